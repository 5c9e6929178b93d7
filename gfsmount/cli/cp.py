"""`gfs cp`: copy inside the file system."""

from __future__ import annotations

import os

import click

from gfsmount.cli.options import master_option


@click.command("cp")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.argument("destination")
@click.option("--reflink", is_flag=True, help="At once, as a snapshot: copy and original share their chunks.")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories too.")
@master_option
def command(sources: tuple[str, ...], destination: str, reflink: bool, recursive: bool, master: str | None) -> None:
    """Copy SOURCE to DESTINATION, or all sources into it if it is a directory."""
    from gfscore.client import FileType
    from gfscore.errors import Code, GfsError
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import meter
    from gfsmount.cli.targets import targets
    from gfsmount.cli.transfer import copy

    *from_where, into = targets([*sources, destination], master)

    async def work(session: Session) -> None:
        placed = await session.placed([source.name for source in from_where], into)
        with meter("copying", shown_when=not reflink) as progress:
            for source, place in zip(from_where, placed, strict=True):
                attr = await session.stat(source)
                if attr.type == FileType.DIRECTORY and not recursive:
                    raise GfsError(Code.IS_DIRECTORY, f"{source.typed} is a directory: add -r to copy it")
                with about(place):
                    if reflink:
                        await _reflink(session, source.path, place.path)
                    else:
                        await copy(session, source, attr, place, recursive, progress)

    async def _reflink(session: Session, source: str, place: str) -> None:
        """A snapshot never replaces; like cp, replace a file that is there, in one step."""
        try:
            await session.paths.snapshot(source, place)
        except GfsError as error:
            if error.code is not Code.EXISTS:
                raise
            if (await session.paths.stat(place)).type == FileType.DIRECTORY:
                raise
            aside = f"{place}.{os.getpid()}.new"
            await session.paths.snapshot(source, aside)
            await session.paths.rename(aside, place)

    on_cluster(into.address, work)
