"""`gfs append`: atomic record append [0104]."""

from __future__ import annotations

import sys

import click

from gfsmount.cli.options import json_option, master_option


@click.command("append")
@click.argument("file")
@click.argument("record", required=False)
@click.option("--lines", is_flag=True, help="Each line is a record of its own, with its newline.")
@json_option
@master_option
def command(file: str, record: str | None, lines: bool, as_json: bool, master: str | None) -> None:
    """Append RECORD, or standard input, to FILE as one record (--lines: a record per line); print each offset."""
    import os

    from gfscore.errors import Code, GfsError
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import target
    from gfsmount.cli.transfer import read_input

    where = target(file, master)
    offsets: list[int] = []

    async def work(session: Session) -> None:
        with about(where):
            handle = await session.paths.open(where.path, write=True, create=True)
        most = session.client.chunk_size // 4

        async def one(data: bytes) -> None:
            with about(where):
                offset = await handle.append(data)
            offsets.append(offset)
            if not as_json:
                click.echo(offset)

        try:
            if record is not None:
                await one(os.fsencode(record) + (b"\n" if lines else b""))
            elif lines:
                # In their order: one at a time, each on all replicas before the next is read.
                while line := await read_input(sys.stdin.buffer.readline, most + 1):
                    await one(line)
            else:
                data = await read_input(sys.stdin.buffer.read, most + 1)
                if not data:
                    raise GfsError(Code.INVALID, "a record has at least one byte: standard input is empty")
                await one(data)
        finally:
            await handle.close()

    on_cluster(where.address, work)
    if as_json:
        print_json(offsets)
