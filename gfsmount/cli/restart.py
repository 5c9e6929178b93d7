"""`gfs restart`: restart one process of a local cluster."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.cli.local import cluster
from gfsmount.cli.options import root_option


@click.command("restart")
@root_option
@click.argument("name")
def command(root: Path, name: str) -> None:
    """Stop the process NAME (see gfs ps) if it runs, start it, and wait until it is usable."""
    cluster(root).restart(name)
