"""`gfs stop`: stop one process of a local cluster."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.cli.local import cluster
from gfsmount.cli.options import root_option


@click.command("stop")
@root_option
@click.argument("name")
def command(root: Path, name: str) -> None:
    """Stop the process NAME (see gfs ps). `gfs up` or `gfs restart` starts it again."""
    cluster(root).stop(name)
