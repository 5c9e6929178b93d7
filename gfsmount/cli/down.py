"""`gfs down`: unmount and stop a local cluster."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.cli.local import cluster
from gfsmount.cli.options import root_option


@click.command("down")
@root_option
def command(root: Path) -> None:
    """Unmount and stop the local cluster, in order. Its data stays."""
    cluster(root).down()
