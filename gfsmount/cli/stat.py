"""`gfs stat`: the attributes of a file."""

from __future__ import annotations

import os

import click

from gfsmount.cli.options import json_option, master_option


@click.command("stat")
@click.argument("path")
@click.option("-L", "--dereference", is_flag=True, help="Follow a symbolic link.")
@json_option
@master_option
def command(path: str, dereference: bool, as_json: bool, master: str | None) -> None:
    """Show the attributes of PATH."""
    from gfsmount.cli.attributes import attributes, mode_text, time_text
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import target

    where = target(path, master)

    async def work(session: Session) -> dict[str, object]:
        attr = await session.stat(where, follow=dereference)
        shown = attributes(os.fsencode(where.path), attr)
        if not as_json:
            shown["mode"] = mode_text(attr)
            for key in ("atime", "mtime", "ctime"):
                shown[key] = time_text(int(shown.pop(f"{key}_ns")))
        return shown

    values = on_cluster(where.address, work)
    if as_json:
        print_json(values)
        return
    for key, value in values.items():
        click.echo(f"{key:>6}: {value}")
