"""`gfs du`: add up sizes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import click

from gfsmount.cli.options import json_option, master_option


@click.command("du")
@click.argument("path", required=False)
@click.option("-s", "--summarize", is_flag=True, help="Only the total.")
@json_option
@master_option
def command(path: str | None, summarize: bool, as_json: bool, master: str | None) -> None:
    """Add up the lengths of the files below PATH, directory by directory; a file with several names counts once."""
    from gfscore.client import FileType
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import human_size, print_json, shown
    from gfsmount.cli.targets import start_target

    where = start_target(path, master)

    async def work(session: Session) -> dict[str, Any]:
        sizes: Counter[bytes] = Counter()
        counts: Counter[str] = Counter()
        seen: set[int] = set()
        async for relative, attr in session.walk(where):
            if attr.type == FileType.DIRECTORY:
                counts["directories"] += 1
                sizes[relative] += 0
            elif attr.inode not in seen:
                seen.add(attr.inode)
                counts["files"] += 1
                directory = relative
                while directory:
                    directory = directory.rpartition(b"/")[0]
                    sizes[directory] += attr.size
                if not relative:
                    sizes[b""] += attr.size
        rows = [{"path": shown(name), "bytes": size} for name, size in sorted(sizes.items())]
        return {"path": shown(where.typed), "bytes": sizes[b""], **counts, "below": rows[1:]}

    found = on_cluster(where.address, work)
    if as_json:
        if summarize:
            del found["below"]
        print_json(found)
        return
    for row in [] if summarize else found["below"]:
        click.echo(f"{human_size(row['bytes']):>12}  {found['path'].rstrip('/')}/{row['path']}")
    click.echo(f"{human_size(found['bytes']):>12}  {found['path']}")
