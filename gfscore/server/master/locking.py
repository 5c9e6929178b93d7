"""Waiting for the locks of `gfscore.metadata.locks`, and running quick operations without waiting [0056]-[0062].

A quick operation decides and applies without an await, so while no lock exists it needs none. Whatever talks to others
in between holds its locks across its awaits, and everybody else then looks at the table.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from gfscore.metadata.locks import Key, LockTable, name_key, path_reads
from gfscore.metadata.tables import Tables

T = TypeVar("T")
Keys = tuple[list[Key], list[Key]]
"""What to read-lock and what to write-lock."""

# Read-locked by everything that gives out or changes leases, write-locked by a snapshot: one key instead of a lock on
# each of the ten thousand files below its source. In the order of keys it comes before all directories.
LEASES: Key = (-1, 0)


class Locks:
    """The lock table and the tasks that wait in it."""

    __slots__ = ("_table", "_waiting")

    def __init__(self) -> None:
        self._table = LockTable()
        self._waiting: dict[object, trio.Event] = {}

    @property
    def idle(self) -> bool:
        """No lock exists: a quick operation may go ahead."""
        return not len(self._table)

    def try_run(self, keys: Callable[[], Keys], operation: Callable[[], T]) -> tuple[bool, T | None]:
        """(True, result of `operation`) if its locks are free now; `operation` must not await."""
        if not len(self._table):
            return True, operation()
        owner = object()
        if not self._table.try_acquire(owner, *keys()):
            return False, None
        try:
            return True, operation()
        finally:
            self._release(owner)

    @asynccontextmanager
    async def hold(self, keys: Callable[[], Keys]) -> AsyncIterator[None]:
        """Hold the locks that `keys` names; asked again after waiting, because a rename may have moved directories."""
        while True:
            owner = object()
            wanted = keys()
            try:
                await self._acquire(owner, wanted)
                if keys() != wanted:
                    continue
                yield
                return
            finally:
                self._release(owner)

    async def _acquire(self, owner: object, wanted: Keys) -> None:
        if self._table.acquire_or_queue(owner, *wanted):
            return
        self._waiting[owner] = event = trio.Event()
        try:
            await event.wait()
        finally:
            self._waiting.pop(owner, None)

    def _release(self, owner: object) -> None:
        for ready in self._table.release(owner):
            event = self._waiting.get(ready)
            if event is not None:
                event.set()


def name_keys(t: Tables, *names: tuple[int, bytes], writes: Iterable[Key] = (), reads: Iterable[Key] = ()) -> Keys:
    """To change names, each given as (directory, name): the path to each is read, the name itself written.

    Raises NOT_DIRECTORY, STALE_INODE.
    """
    read = list(reads)
    write = list(writes)
    for parent, name in names:
        path = path_reads(t, parent)
        read += path
        write.append(name_key(len(path) - 1, parent, name))
    return read, write
