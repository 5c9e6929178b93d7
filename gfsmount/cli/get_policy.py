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
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import target

    where = target(path, master)

    async def work(session: Session) -> dict[str, str]:
        return await session.client.get_policy((await session.find(where)).inode)

    values = on_cluster(where.address, work)
    if as_json:
        print_json(values)
    else:
        for name, value in sorted(values.items()):
            click.echo(f"{name}={value}")
