"""`gfs set`: policies of a file or directory."""

from __future__ import annotations

import click

from gfsmount.cli.options import json_option, master_option


@click.command("set")
@click.argument("path")
@click.argument("settings", nargs=-1, required=True, metavar="NAME=VALUE…")
@click.option("-r", "--recursive", is_flag=True, help="Also of everything that is below PATH already.")
@json_option
@master_option
def command(path: str, settings: tuple[str, ...], recursive: bool, as_json: bool, master: str | None) -> None:
    """Set policies of PATH: replication, trash_seconds, append_pad, append_sync.

    What is created below a directory later inherits them; what is there already keeps its own, unless -r is given.
    Another replication of a file adds or removes replicas at once.
    """
    from gfscore.client import FileType
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.output import print_json, shown
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
        attr = await session.find(where)
        with about(where):
            now = await session.client.set_policy(attr.inode, values)
        if recursive and attr.type == FileType.DIRECTORY:
            async for relative, below in session.walk(where):
                if relative and below.type in (FileType.FILE, FileType.DIRECTORY):
                    with about(where.below(shown(relative))):
                        await session.client.set_policy(below.inode, values)
        return now

    now = on_cluster(where.address, work)
    if as_json:
        print_json(now)
