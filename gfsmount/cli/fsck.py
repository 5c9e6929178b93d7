"""`gfs fsck`: have every replica of every chunk read and verified, and wait for the repair of what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gfsmount.cli.options import json_option, master_option

if TYPE_CHECKING:
    from gfsmount.cli.cluster_client import Session


@click.command("fsck")
@click.argument("path", required=False)
@json_option
@master_option
@click.option("--repair", is_flag=True, help="Have what is wrong repaired where that is safe, and wait for it.")
@click.option("--wait", "wait_seconds", type=float, default=120.0, help="How long --repair waits (default 120 s).")
def command(path: str | None, as_json: bool, master: str | None, repair: bool, wait_seconds: float) -> int:
    """Read and verify every replica of every chunk of PATH (default: all, and the trash).

    Exit status 1 if something is wrong.

    Kinds of problems: corrupt, missing, stale (an older version), unreachable (its chunkserver), unequal (replicas
    that should be the same and are not), under_replicated, over_replicated, lost (no undamaged replica is left).
    """
    from gfscore.client.fsck import fsck
    from gfsmount.cli.cluster_client import about, on_cluster
    from gfsmount.cli.output import meter, print_json
    from gfsmount.cli.targets import Target, default_address, target

    where = target(path, master) if path is not None else Target(default_address(master), "/", "/")

    async def work(session: Session) -> dict[str, Any]:
        with meter("verifying") as progress, about(where):

            def advance(more: int, done: int) -> None:
                progress.add_total(more)
                progress.advance(done)

            return await fsck(session.client, where.path, advance, wait_seconds if repair else None)

    found = on_cluster(where.address, work)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return int(bool(found["problems"]))


def _show(found: dict[str, Any]) -> None:
    for heading, problems in (("repaired: ", found.get("repaired", ())), ("", found["problems"])):
        for problem in problems:
            on = f" on {problem['server']}" if problem["server"] else ""
            click.echo(
                f"{heading}{problem['path']}: chunk {problem['index']} ({problem['handle']}){on}: "
                f"{problem['kind']}: {problem['message']}"
            )
    for note in found.get("notes", ()):
        click.echo(f"note: {note['server']}: {note['message']}")
    click.echo(
        f"{found['files']} files, {found['chunks']} chunks, {found['replicas']} replicas verified, "
        f"{len(found['problems'])} problems"
    )
