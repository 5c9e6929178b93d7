"""`gfs get-policy`: the policies of a file or directory."""

from __future__ import annotations

import click

from gfsmount.cli.options import json_option, master_option


@click.command("get-policy")
@click.argument("path")
@json_option
@master_option
def command(path: str, as_json: bool, master: str | None) -> None:
    """Show the policies that hold for PATH."""
    from gfscore.client.paths import split
    from gfscore.ids import ROOT_INODE
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import target

    where = target(path, master)

    async def work(session: Session) -> dict[str, str]:
        attr = await session.find(where)
        parent = 0
        if (await session.find(where, follow=False)).inode == attr.inode != ROOT_INODE:  # else it is somewhere else
            parent = (await session.paths.find(split(where.path)[0])).inode
        return await session.client.get_policy(attr.inode, parent)

    values = on_cluster(where.address, work)
    if as_json:
        print_json(values)
    else:
        for name, value in sorted(values.items()):
            click.echo(f"{name}={value}")
