"""`gfs mkdir`: make directories."""

from __future__ import annotations

import click

from gfsmount.cli.options import master_option


@click.command("mkdir")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-p", "parents", is_flag=True, help="With parents; one that is there already is fine.")
@master_option
def command(paths: tuple[str, ...], parents: bool, master: str | None) -> None:
    """Make directories."""
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.targets import targets

    wanted = targets(paths, master)

    async def work(session: Session) -> None:
        for where in wanted:
            with about(where):
                await (session.paths.makedirs(where.path) if parents else session.paths.mkdir(where.path))

    on_cluster(wanted[0].address, work)
