"""`gfs fsck`: have every replica of every chunk read and verified, and wait for the repair of what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from gfsmount.cli.options import json_option, master_option

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_TRASH = "/.trash"
_FILES_AT_ONCE = 8
_RECHECK_SECONDS = 2.0


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
    import trio

    from gfscore.client import Attr, FileType
    from gfscore.client.verify import Verifier
    from gfscore.errors import Code, GfsError
    from gfscore.ids import ROOT_INODE
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import meter, print_json, shown
    from gfsmount.cli.targets import Target, default_address, target

    where = target(path, master) if path is not None else Target(default_address(master), "/", "/")
    found: dict[str, Any] = {}

    async def everything(session: Session) -> AsyncIterator[tuple[str, Attr]]:
        """Path and attributes. With all of the file system goes its trash, which no listing shows: what is in there can
        be restored."""
        top, whole = shown(where.path), False
        async for name, attr in session.paths.walk(where.path):
            yield f"{top.rstrip('/')}/{shown(name)}" if name else top, attr
            whole = whole or attr.inode == ROOT_INODE
        if not whole:
            return
        found["notes"] = []
        try:
            async for name, attr in session.paths.walk(_TRASH):
                yield f"{_TRASH}/{shown(name)}", attr
        except GfsError as error:
            if error.code is not Code.NOT_FOUND:  # nothing was ever deleted
                raise

    async def check_all(session: Session, verifier: Verifier) -> None:
        limit = trio.Semaphore(_FILES_AT_ONCE)
        seen: set[int] = set()

        async def bounded(path: str, attr: Attr) -> None:
            try:
                await verifier.check(path, attr.inode)
            finally:
                limit.release()

        async with trio.open_nursery() as nursery:
            async for full, attr in everything(session):
                if attr.type == FileType.FILE and attr.inode not in seen:
                    seen.add(attr.inode)
                    # Taken here, not in the task: at most so many tasks exist, however many files there are.
                    await limit.acquire()
                    nursery.start_soon(bounded, full, attr)
        await verifier.settle()

    async def wait_for_repair(session: Session, verifier: Verifier) -> None:
        """The check has told the servers; replacing is the master's work. Replicas that differ become equal with the
        next lease on their chunk, so one is taken."""
        with trio.move_on_after(wait_seconds):
            while verifier.problems:
                for inode, index in verifier.unequal():
                    try:
                        await session.client.reconcile(inode, index)
                    except GfsError as error:
                        click.echo(f"{where.path}: chunk {index} of inode {inode}: {error}", err=True)
                await trio.sleep(_RECHECK_SECONDS)
                await verifier.recheck()

    async def work(session: Session) -> dict[str, Any]:
        with meter("verifying") as progress:

            def advance(more: int, done: int) -> None:
                progress.add_total(more)
                progress.advance(done)

            verifier = session.client.verifier(advance)
            try:
                await check_all(session, verifier)
                before = verifier.problems
                if repair:
                    await wait_for_repair(session, verifier)
                if "notes" in found:
                    found["notes"] = await _notes(session, verifier)
            finally:
                await verifier.aclose()
        found.update(files=verifier.files, chunks=verifier.chunks, replicas=verifier.replicas)
        found["problems"] = [problem.as_dict() for problem in verifier.problems]
        if repair:
            left = {(problem.handle, problem.server, problem.kind) for problem in verifier.problems}
            gone = [p.as_dict() for p in before if (p.handle, p.server, p.kind) not in left]
            found["repaired"] = gone
        return found

    on_cluster(where.address, work)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return int(bool(found["problems"]))


async def _notes(session: Any, verifier: Any) -> list[dict[str, Any]]:
    """What is no problem, but may surprise: chunks on servers that belong to no file that has a path."""
    notes = []
    for server in (await session.client.status())["chunkservers"]:
        extra = server["chunks"] - verifier.replicas_by_server.get(server["id"], 0)
        if extra > 0:
            text = f"{extra} chunks of no file that has a path: held open, or orphaned and soon collected"
            notes.append({"kind": "orphan", "server": server["id"], "count": extra, "message": text})
    return notes


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
