"""`gfs mv`: rename or move."""

from __future__ import annotations

import click

from gfsmount.cli.options import master_option


@click.command("mv")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@click.argument("destination")
@master_option
def command(sources: tuple[str, ...], destination: str, master: str | None) -> None:
    """Rename SOURCE to DESTINATION, or move all sources into it if it is a directory."""
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.targets import targets

    *from_where, into = targets([*sources, destination], master)

    async def work(session: Session) -> None:
        placed = await session.placed([source.name for source in from_where], into)
        for source, place in zip(from_where, placed, strict=True):
            await session.find(source, follow=False)
            with about(place):
                await session.paths.rename(source.path, place.path)

    on_cluster(into.address, work)
