"""A whole check, as `gfs fsck` makes it: every file below a path, every replica of it, and the wait for the repair."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import trio

from gfscore.client.client import Client
from gfscore.client.paths import Paths
from gfscore.client.types import Attr, FileType
from gfscore.client.verify import Progress, Verifier
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE

_TRASH = "/.trash"
_FILES_AT_ONCE = 8
_RECHECK_SECONDS = 2.0


async def fsck(client: Client, path: str, progress: Progress, repair_seconds: float | None = None) -> dict[str, Any]:
    """Verify everything below `path`, with its trash if that is the whole file system. With `repair_seconds` wait that
    long for what is wrong to be repaired.

    Returns what `gfs fsck --json` prints: how many `files`, `chunks` and `replicas`; `problems` (`verify.Problem`) and
    those that were `repaired`; `notes` about the whole cluster. Raises GfsError: what looking `path` up raises.
    """
    whole = (await Paths(client).find(path)).inode == ROOT_INODE
    found: dict[str, Any] = {}
    verifier = client.verifier(progress)
    try:
        await _check_all(client, verifier, [path, _TRASH] if whole else [path])
        before = verifier.problems
        if repair_seconds is not None:
            with trio.move_on_after(repair_seconds):
                await _wait_for_repair(client, verifier)
        if whole:
            found["notes"] = await _notes(client, verifier)
    finally:
        await verifier.aclose()
    found.update(files=verifier.files, chunks=verifier.chunks, replicas=verifier.replicas)
    found["problems"] = [problem.as_dict() for problem in verifier.problems]
    if repair_seconds is not None:
        left = {(problem.handle, problem.server, problem.kind) for problem in verifier.problems}
        found["repaired"] = [p.as_dict() for p in before if (p.handle, p.server, p.kind) not in left]
    return found


async def _check_all(client: Client, verifier: Verifier, tops: list[str]) -> None:
    limit = trio.Semaphore(_FILES_AT_ONCE)
    seen: set[int] = set()

    async def bounded(path: str, attr: Attr) -> None:
        try:
            await verifier.check(path, attr.inode)
        finally:
            limit.release()

    async with trio.open_nursery() as nursery:
        for top in tops:
            async for path, attr in _below(client, top):
                if attr.type == FileType.FILE and attr.inode not in seen:
                    seen.add(attr.inode)
                    # Taken here, not in the task: at most so many tasks exist, however many files there are.
                    await limit.acquire()
                    nursery.start_soon(bounded, path, attr)
    await verifier.settle()


async def _below(client: Client, top: str) -> AsyncIterator[tuple[str, Attr]]:
    """Path and attributes of `top` and of all below it; bytes of a path that are no UTF-8 are escaped."""
    base = os.fsencode(top)
    try:
        async for name, attr in Paths(client).walk(top):
            path = base.rstrip(b"/") + b"/" + name if name else base
            yield path.decode("utf-8", "backslashreplace"), attr
    except GfsError as error:
        if top != _TRASH or error.code is not Code.NOT_FOUND:  # nothing was ever deleted
            raise


async def _wait_for_repair(client: Client, verifier: Verifier) -> None:
    """The check has told the servers; replacing is the master's work. Replicas that differ become equal with the next
    lease on their chunk, so one is taken."""
    while verifier.problems:
        for inode, index in verifier.unequal():
            with contextlib.suppress(GfsError):  # it stays a problem, and is tried again
                await client.reconcile(inode, index)
        await trio.sleep(_RECHECK_SECONDS)
        await verifier.recheck()


async def _notes(client: Client, verifier: Verifier) -> list[dict[str, Any]]:
    """What is no problem, but may surprise: chunks on servers that belong to no file that has a path."""
    notes = []
    for server in (await client.status())["chunkservers"]:
        extra = server["chunks"] - verifier.replicas_by_server.get(server["id"], 0)
        if extra > 0:
            text = f"{extra} chunks of no file that has a path: held open, or orphaned and soon collected"
            notes.append({"kind": "orphan", "server": server["id"], "count": extra, "message": text})
    return notes
