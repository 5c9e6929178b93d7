"""`gfs drain`: empty a chunkserver."""

from __future__ import annotations

from typing import Any

import click

from gfsmount.cli.options import json_option, master_option

_POLL_SECONDS = 0.5


@click.command("drain")
@click.argument("server")
@click.option("--cancel", is_flag=True, help="It is to be filled again.")
@click.option("--wait", is_flag=True, help="Return when it is empty and may be switched off.")
@json_option
@master_option
def command(server: str, cancel: bool, wait: bool, as_json: bool, master: str | None) -> None:
    """Empty SERVER (an id, or HOST:PORT, of gfs status): no new chunks, and its replicas are copied elsewhere.

    Survives restarts, until --cancel. gfs status says `drained` when it may be switched off; if that is for good, tell
    the master by gfs forget-server, or it waits for it after each of its starts before it deletes anything.
    """
    import trio

    from gfscore.errors import Code, GfsError
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import meter, print_json
    from gfsmount.cli.targets import default_address
    from gfsmount.cli.usage import UsageProblem

    if cancel and wait:
        raise UsageProblem("--cancel has nothing to --wait for")

    async def work(session: Session) -> dict[str, Any]:
        operator = session.client.operator
        found = await operator.drain(server, cancel=cancel)
        if not wait:
            return found
        done = total = 0
        with meter("chunks to go", sizes=False, shown_when=not as_json) as bar:
            while found["state"] != "drained":
                if found["state"] == "down":
                    remedy = f"start it, or gfs forget-server {found['id']}"
                    raise GfsError(Code.NOT_READY, f"{found['id']} is down: {remedy}")
                await trio.sleep(_POLL_SECONDS)
                rows = (await session.client.status())["chunkservers"]
                row = next((row for row in rows if row["id"] == found["id"]), None)
                if row is None or row["state"] == "up":
                    raise GfsError(Code.NOT_READY, f"{found['id']} is not being drained any more")
                found = {key: row[key] for key in ("id", "state", "chunks_left")}
                if found["chunks_left"] > total:
                    bar.add_total(found["chunks_left"] - total)
                    total = found["chunks_left"]
                bar.advance(total - found["chunks_left"] - done)
                done = total - found["chunks_left"]
        return found

    found = on_cluster(default_address(master), work)
    if as_json:
        print_json(found)
    elif found["state"] == "drained":
        click.echo(f"{found['id']} is drained: it may be switched off (for good: then gfs forget-server {found['id']})")
    elif cancel:
        click.echo(f"{found['id']} is {found['state']}")
    else:
        click.echo(f"{found['id']} is {found['state']}, {found['chunks_left']} chunks to go (gfs status)")
