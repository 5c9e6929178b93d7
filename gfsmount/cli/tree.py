"""`gfs tree`: a directory and all below it."""

from __future__ import annotations

import os
from typing import Any

import click

from gfsmount.cli.options import json_option, master_option


@click.command("tree")
@click.argument("path", required=False)
@json_option
@master_option
def command(path: str | None, as_json: bool, master: str | None) -> None:
    """Show PATH and all below it."""
    from gfscore.client import FileType
    from gfsmount.cli.attributes import attributes
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import start_target

    where = start_target(path, master)

    async def work(session: Session) -> dict[str, Any]:
        nodes: dict[bytes, dict[str, Any]] = {}
        async for relative, attr in session.walk(where):
            parent, _, name = relative.rpartition(b"/")
            node = attributes(name, attr) if relative else attributes(os.fsencode(where.typed), attr)
            if attr.type == FileType.DIRECTORY:
                node["entries"] = []
            if relative:
                nodes[parent]["entries"].append(node)
            nodes[relative] = node
        return nodes[b""]

    root = on_cluster(where.address, work)
    if as_json:
        print_json(root)
    else:
        click.echo(root["name"])
        _draw(root, "")


def _draw(node: dict[str, Any], indent: str) -> None:
    entries = sorted(node.get("entries", ()), key=lambda entry: str(entry["name"]))
    for entry in entries:
        last = entry is entries[-1]
        click.echo(f"{indent}{'└── ' if last else '├── '}{entry['name']}{'/' if 'entries' in entry else ''}")
        _draw(entry, indent + ("    " if last else "│   "))
