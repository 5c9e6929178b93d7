"""`gfs ps`: the processes of a local cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from gfsmount.cli.local import cluster
from gfsmount.cli.options import json_option, root_option
from gfsmount.cli.output import print_json, print_table


@click.command("ps")
@root_option
@json_option
def command(root: Path, as_json: bool) -> None:
    """List the processes of the local cluster."""
    rows = cluster(root).ps()
    if as_json:
        print_json([dataclasses.asdict(row) for row in rows])
    else:
        headings = ("ROLE", "NAME", "PID", "ADDRESS", "STATE")
        print_table(headings, [(row.role, row.name, row.pid or "-", row.address, row.state) for row in rows])
