"""`gfs status`: the state of a cluster."""

from __future__ import annotations

from typing import Any

import click

from gfsmount.cli.options import json_option, master_option


@click.command("status")
@json_option
@master_option
def command(as_json: bool, master: str | None) -> int:
    """Show master, chunkservers and the health of all chunks.

    Exit status 1 if a chunkserver is suspect or down, or a chunk is lost or has fewer replicas than wanted.
    """
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import print_json
    from gfsmount.cli.targets import default_address

    async def work(session: Session) -> dict[str, Any]:
        return await session.client.status()

    state = on_cluster(default_address(master), work)
    if as_json:
        print_json(state)
    else:
        _show(state)
    chunks = state["chunks"]
    healthy = not chunks["lost"] and not chunks["under_replicated"]
    return int(not healthy or any(server["state"] in ("suspect", "down") for server in state["chunkservers"]))


def _repairing(repairing: dict[str, Any]) -> str:
    from gfsmount.cli.output import human_size

    if not repairing["queued"] and not repairing["running"]:
        return "nothing to do"
    left = repairing["seconds_left"]
    return (
        f"{repairing['queued']} chunks queued, {repairing['running']} clones running, "
        f"{human_size(repairing['bytes_per_second'])}/s, "
        + ("time left not known yet" if left is None else f"about {left:.0f} s left")
    )


def _show(state: dict[str, Any]) -> None:
    from gfsmount.cli.output import human_size, print_table

    master, chunks = state["master"], state["chunks"]
    click.echo(
        f"master {master['address']}: {master['files']} files, {master['directories']} directories, "
        f"{master['chunks']} chunks; {master['trash_files']} deleted files "
        f"({human_size(master['trash_bytes'])}) in the trash"
    )
    counts = ", ".join(f"{chunks[key]} {key.replace('_', ' ')}" for key in chunks if key != "total")
    click.echo(f"chunks: {chunks['total']} in all, {counts}")
    if state["safe_mode"]["active"]:
        click.echo(f"safe mode: {state['safe_mode']['reason']}")
    click.echo(f"repairing: {_repairing(state['repairing'])}")
    for server in state["chunkservers"]:
        if server["state"] == "drained":
            click.echo(f"{server['id']} is drained: it may be switched off")
        elif server["chunks_left"]:
            click.echo(f"{server['id']} is drained of {server['chunks_left']} chunks")
    click.echo()
    print_table(
        ("CHUNKSERVER", "ADDRESS", "RACK", "STATE", "CHUNKS", "USED", "OF", "SCRUBBED"),
        [
            (
                server["id"],
                server["address"],
                server["rack"],
                server["state"],
                server["chunks"],
                human_size(server["used_bytes"]),
                human_size(server["total_bytes"]),
                _scrubbed(server["scrub"]),
            )
            for server in state["chunkservers"]
        ],
    )


def _scrubbed(scrub: dict[str, Any]) -> str:
    """How the check of all that a server has is going, and what it found."""
    import datetime

    if scrub["percent"]:
        text = f"{scrub['percent']:.0f}% of this pass"
    elif scrub["finished"]:
        text = datetime.datetime.fromtimestamp(scrub["finished"]).strftime("%Y-%m-%d %H:%M")
    else:
        text = "not yet"
    return f"{text}, {scrub['bad']} bad" if scrub["bad"] else text
