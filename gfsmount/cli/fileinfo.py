"""`gfs fileinfo`: the chunks of a file and their replicas."""

from __future__ import annotations

from typing import Any

import click

from gfsmount.cli.options import json_option, master_option


@click.command("fileinfo")
@click.argument("path")
@json_option
@master_option
def command(path: str, as_json: bool, master: str | None) -> None:
    """Show the chunks of a file, and for each replica its server, state and file."""
    from gfscore.client import FileType
    from gfscore.errors import Code, GfsError
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import human_size, print_json, print_table, shown
    from gfsmount.cli.targets import target

    where = target(path, master)

    async def work(session: Session) -> dict[str, Any]:
        attr = await session.find(where)
        if attr.type != FileType.FILE:
            raise GfsError(Code.INVALID, f"{where.typed} is not a file: only files have chunks")
        return {**await session.client.file_info(attr.inode), "path": shown(where.path)}

    info = on_cluster(where.address, work)
    if as_json:
        print_json(info)
        return
    click.echo(f"{info['path']}: {human_size(info['length'])}, {info['replication']} replicas wanted")
    rows = [
        (
            chunk["index"],
            chunk["handle"],
            chunk["version"],
            chunk["length"],
            replica["chunkserver"],
            "primary" if replica["chunkserver"] == chunk["primary"] else "",
            replica["state"],
            replica["path"],
        )
        for chunk in info["chunks"]
        for replica in chunk["replicas"]
    ]
    print_table(("CHUNK", "HANDLE", "VERSION", "LENGTH", "CHUNKSERVER", "ROLE", "STATE", "FILE"), rows)
