"""`gfs ls`: list directories."""

from __future__ import annotations

import click

from gfsmount.cli.options import json_option, master_option


@click.command("ls")
@click.argument("path", required=False)
@click.option("-l", "long", is_flag=True, help="With mode, links, owner, size and time.")
@click.option("-r", "-R", "--recursive", is_flag=True, help="With all that is below.")
@json_option
@master_option
def command(path: str | None, long: bool, recursive: bool, as_json: bool, master: str | None) -> None:
    """List a directory, or show a file, by name."""
    from gfscore.client import Attr
    from gfsmount.cli.attributes import attributes, long_row
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json, print_table, shown
    from gfsmount.cli.targets import start_target

    where = start_target(path, master)

    async def work(session: Session) -> list[tuple[bytes, Attr]]:
        if recursive:
            return [(name, attr) async for name, attr in session.walk(where) if name]
        return [(entry.name, entry.attr) for entry in await session.entries(where)]

    entries = sorted(on_cluster(where.address, work), key=lambda entry: entry[0])
    if as_json:
        print_json([attributes(name, attr) for name, attr in entries])
    elif long:
        print_table(("MODE", "LINKS", "UID", "GID", "SIZE", "MODIFIED", "NAME"), [long_row(n, a) for n, a in entries])
    else:
        for name, _ in entries:
            click.echo(shown(name))
