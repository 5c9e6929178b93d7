"""`gfs set`: policies of a file or directory."""

from __future__ import annotations

import click

from gfsmount.cli.options import json_option, master_option


@click.command("set")
@click.argument("path")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE…")
@json_option
@master_option
def command(path: str, settings: tuple[str, ...], as_json: bool, master: str | None) -> None:
    """Set policies of PATH: replication, trash_seconds, append_pad, append_sync.

    What is created below a directory later inherits them.
    """
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import target
    from gfsmount.cli.usage import UsageProblem

    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise UsageProblem(f"{setting!r} is not NAME=VALUE, such as replication=2")
        values[name] = value
    where = target(path, master)

    async def work(session: Session) -> dict[str, str]:
        attr = await session.stat(where)
        with about(where):
            return await session.client.set_policy(attr.inode, values)

    now = on_cluster(where.address, work)
    if as_json:
        print_json(now)
