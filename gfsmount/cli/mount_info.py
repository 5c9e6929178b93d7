"""`gfs mount-info`: what a mount has asked its master so far, and what it still owes it."""

from __future__ import annotations

import click

from gfsmount.cli.options import json_option


@click.command("mount-info")
@click.argument("path", default=".")
@json_option
def command(path: str, as_json: bool) -> None:
    """Show the mount that PATH lies on: its master, its calls by method, lengths that are not committed yet."""
    import json
    import os

    from gfsmount.cli.output import print_json, print_table
    from gfsmount.cli.usage import UsageProblem
    from gfsmount.localcluster.mounts import mount_of

    entry = mount_of(os.path.realpath(path))
    if entry is None:
        raise UsageProblem(f"{path} is not on a gfs mount")
    info = json.loads(os.getxattr(entry.mountpoint, "gfs.mount_info"))
    if as_json:
        print_json(info)
        return
    click.echo(f"{entry.mountpoint} of master {info['master']}, client {info['client_id']}")
    click.echo(f"{info['uncommitted']} files whose length the master does not have yet")
    print_table(["CALL", "COUNT"], sorted(info["calls"].items()))
