"""`gfs snapshot`: an instant copy-on-write copy."""

from __future__ import annotations

import click

from gfsmount.cli.options import master_option


@click.command("snapshot")
@click.argument("source")
@click.argument("destination")
@master_option
def command(source: str, destination: str, master: str | None) -> None:
    """Copy the file or tree SOURCE to DESTINATION at once; both share their chunks until one is written."""
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.targets import targets

    original, copy = targets([source, destination], master)

    async def work(session: Session) -> None:
        await session.find(original)
        with about(copy):
            await session.paths.snapshot(original.path, copy.path)

    on_cluster(copy.address, work)
