"""`gfs cat`: files to standard output."""

from __future__ import annotations

import sys

import click

from gfsmount.cli.options import master_option


@click.command("cat")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@master_option
def command(paths: tuple[str, ...], master: str | None) -> None:
    """Write files to standard output."""
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import Meter
    from gfsmount.cli.targets import targets
    from gfsmount.cli.transfer import into_stream, read_file

    sources = targets(paths, master)

    async def work(session: Session) -> None:
        for source in sources:
            with about(source):
                file = await session.paths.open(source.path)
            try:
                await read_file(file, into_stream(sys.stdout.buffer), Meter())
            finally:
                await file.close()

    on_cluster(sources[0].address, work)
