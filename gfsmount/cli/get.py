"""`gfs get`: copy files out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gfscore.errors import Code, GfsError
from gfsmount.cli.options import master_option


@click.command("get")
@click.argument("sources", nargs=-1, required=True, metavar="PATH…")
@click.argument("destination", metavar="LOCAL")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories too.")
@master_option
def command(sources: tuple[str, ...], destination: str, recursive: bool, master: str | None) -> None:
    """Copy files to the local path LOCAL, or into it if it is a directory. "-" is standard output."""
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import Meter, meter
    from gfsmount.cli.targets import targets
    from gfsmount.cli.transfer import get, into_stream, read_file

    wanted = targets(sources, master)
    into = Path(destination)
    if len(wanted) > 1 and destination != "-" and not into.is_dir():
        raise GfsError(Code.NOT_DIRECTORY, f"{destination} is not a directory")

    async def work(session: Session) -> None:
        with meter("copying out", shown_when=destination != "-") as progress:
            for source in wanted:
                if destination == "-":
                    with about(source):
                        file = await session.paths.open(source.path)
                    try:
                        await read_file(file, into_stream(sys.stdout.buffer), Meter())
                    finally:
                        await file.close()
                else:
                    place = into / (source.name or "root") if into.is_dir() else into
                    await get(session, source, await session.stat(source), place, recursive, progress)

    on_cluster(wanted[0].address, work)
