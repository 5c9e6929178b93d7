"""`gfs put`: copy local files in."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gfsmount.cli.options import master_option


@click.command("put")
@click.argument("sources", nargs=-1, required=True, metavar="LOCAL…")
@click.argument("destination", metavar="PATH")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories too.")
@master_option
def command(sources: tuple[str, ...], destination: str, recursive: bool, master: str | None) -> None:
    """Copy local files to PATH, or into it if it is a directory. "-" is standard input."""
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import meter
    from gfsmount.cli.targets import target
    from gfsmount.cli.transfer import open_new, put, put_stream

    into = target(destination, master)

    async def work(session: Session) -> None:
        names = [Path(source).resolve().name if source != "-" else "stdin" for source in sources]
        with meter("copying in") as progress:
            for source, place in zip(sources, await session.placed(names, into), strict=True):
                if source != "-":
                    await put(session, Path(source), place, recursive, progress)
                    continue
                file = await open_new(session, place)
                try:
                    await put_stream(file, sys.stdin.buffer, progress)
                finally:
                    await file.close()

    on_cluster(into.address, work)
