"""The local cluster as commands use it, with progress lines on stderr."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.localcluster import LocalCluster


def cluster(root: Path) -> LocalCluster:
    return LocalCluster(root, report=lambda line: click.echo(f"gfs: {line}", err=True))
