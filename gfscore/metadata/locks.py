"""Read-write locks per namespace node, pure [0056]-[0062]: who holds what, who waits, who goes on next.

Keys are tuples in one total order (level, kind, id...); an owner takes its keys in that order, one after the other,
and that is why nobody waits in a circle. Locks exist only while somebody holds or awaits them. The waiting itself
is the shell's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Any

from gfscore.metadata.lookup import ancestors
from gfscore.metadata.tables import Tables

Key = tuple[Any, ...]
"""Compared as tuples; the second item tells kinds apart, so that items of different types never meet."""

_BEHIND_ALL_LEVELS = 1 << 32
_DIRECTORY, _NAME, _INODE, _CHUNK = range(4)


def directory_key(depth: int, inode: int) -> Key:
    """A directory, `depth` steps below the root."""
    return (depth, _DIRECTORY, inode)


def name_key(depth: int, parent: int, name: bytes) -> Key:
    """A name in the directory `parent`, which lies at `depth`."""
    return (depth, _NAME, parent, name)


def inode_key(inode: int) -> Key:
    """A file, whatever its names."""
    return (_BEHIND_ALL_LEVELS, _INODE, inode)


def chunk_key(handle: int) -> Key:
    return (_BEHIND_ALL_LEVELS, _CHUNK, handle)


def path_reads(t: Tables, directory: int) -> list[Key]:
    """The keys of `directory` and all its ancestors, to be read-locked, from the root down: its depth is their number
    less one. After waiting for them, compare with a new answer: a rename may have moved the directory meanwhile.

    Raises NOT_DIRECTORY, STALE_INODE.
    """
    chain = ancestors(t, directory)
    chain.reverse()
    return [(depth, _DIRECTORY, inode) for depth, inode in enumerate(chain)]


class LockTable:
    """Locks by key. Several readers or one writer; first come, first served, so that no writer starves."""

    __slots__ = ("_held", "_queues", "_states", "_todo")

    def __init__(self) -> None:
        self._states: dict[Key, int] = {}  # number of readers, -1 for a writer; free keys do not appear
        self._queues: dict[Key, deque[tuple[Hashable, bool]]] = {}  # (owner, wants to write), where somebody waits
        self._held: dict[Hashable, dict[Key, bool]] = {}  # what an owner has, True where it writes
        self._todo: dict[Hashable, list[tuple[Key, bool]]] = {}  # what waiting owners still want, the next one last

    def __len__(self) -> int:
        """Locks that exist."""
        return len(self._states)

    def try_acquire(self, owner: Hashable, reads: Iterable[Key], writes: Iterable[Key]) -> bool:
        """All locks at once, or none and False. A key in both is written.

        An owner may add to what it holds, behind it in the order; it may not turn a read lock into a write lock.
        """
        wanted = dict.fromkeys(reads, False)
        for key in writes:
            wanted[key] = True
        held = self._held.get(owner)
        if held is not None:
            self._drop_known(wanted, held)
        states, queues = self._states, self._queues
        for key, write in wanted.items():
            state = states.get(key, 0)
            if (state != 0 if write else state < 0) or (queues and key in queues):
                return False
        for key, write in wanted.items():
            states[key] = -1 if write else states.get(key, 0) + 1
        if held is None:
            self._held[owner] = wanted
        else:
            held.update(wanted)
        return True

    def acquire_or_queue(self, owner: Hashable, reads: Iterable[Key], writes: Iterable[Key]) -> bool:
        """All locks now, or False: the owner then waits, holding what it got, until a `release` names it."""
        reads, writes = list(reads), list(writes)
        assert owner not in self._todo, "the owner is waiting already"
        if self.try_acquire(owner, reads, writes):
            return True
        wanted = dict.fromkeys(reads, False) | dict.fromkeys(writes, True)
        held = self._held.setdefault(owner, {})
        self._drop_known(wanted, held)
        self._todo[owner] = sorted(wanted.items(), reverse=True)
        return self._advance(owner)

    def release(self, owner: Hashable) -> list[Hashable]:
        """Give everything back, places in a queue too. The owners that waited and now hold all their locks."""
        freed = self._held.pop(owner, {})
        todo = self._todo.pop(owner, None)
        ready: list[Hashable] = []
        for key, write in freed.items():
            state = 0 if write else self._states[key] - 1
            if state:
                self._states[key] = state
            else:
                del self._states[key]
        if not self._queues:
            return ready
        woken = list(freed)
        if todo:
            key, write = todo[-1]
            self._queues[key].remove((owner, write))
            if not self._queues[key]:
                del self._queues[key]
            woken.append(key)
        for key in woken:
            self._wake(key, ready)
        return ready

    @staticmethod
    def _drop_known(wanted: dict[Key, bool], held: dict[Key, bool]) -> None:
        """Take from `wanted` what the owner has, and see that the rest follows the order."""
        last = max(held) if held else None
        for key in list(wanted):
            if key in held:
                assert held[key] or not wanted[key], f"a read lock cannot become a write lock: {key}"
                del wanted[key]
            else:
                assert last is None or key > last, f"{key} is not behind {last}, which the owner holds"

    def _grant(self, owner: Hashable, key: Key, write: bool) -> bool:
        """Take a lock for the owner if its state allows."""
        state = self._states.get(key, 0)
        if state < 0 or (write and state):
            return False
        self._states[key] = -1 if write else state + 1
        self._held[owner][key] = write
        return True

    def _advance(self, owner: Hashable) -> bool:
        """Take locks in order up to the first that is not to be had, and wait there. True when none is left."""
        todo = self._todo[owner]
        while todo:
            key, write = todo[-1]
            if key in self._queues or not self._grant(owner, key, write):
                self._queues.setdefault(key, deque()).append((owner, write))
                return False
            todo.pop()
        del self._todo[owner]
        return True

    def _wake(self, key: Key, ready: list[Hashable]) -> None:
        """Serve the queue of a key as far as it goes; those who got all they wanted are added to `ready`."""
        queue = self._queues.get(key)
        moved = []
        while queue and self._grant(queue[0][0], key, queue[0][1]):
            owner, _ = queue.popleft()
            self._todo[owner].pop()
            moved.append(owner)
        if queue is not None and not queue:
            del self._queues[key]
        ready += [owner for owner in moved if self._advance(owner)]
