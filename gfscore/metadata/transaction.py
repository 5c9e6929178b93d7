"""One decision in the making: reads through to the state, collects writes, applies nothing.

A decision that raises has changed nothing, because only the caller applies `batch`. The logical clock
here is the only source of inode numbers, chunk handles, client ids and epochs [0046].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from gfscore.ids import ROOT_INODE, TRASH_INODE
from gfscore.metadata.inodes import FileType, InodeRecord, store
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.tables import COUNTERS, Batch, Tables, merge_ranges

CLOCK = b"clock"
FILES = b"files"  # inodes that are not directories, those without a name and those in the trash included
DIRECTORIES = b"directories"  # without the trash
CHUNK_COUNT = b"chunks"
TRASH_COUNTS = (COUNTERS, b"trash")  # where two numbers are: files in the trash, their bytes
CLUSTER_ID = b"cluster_id"  # not a number: the cluster's name, UTF-8

_ZERO = pack8(0)


class Transaction:
    """A `Tables` that sees its own writes, over a state that stays as it is."""

    __slots__ = ("_tables", "_writes")

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._writes: dict[tuple[str, bytes], bytes | None] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        at = (table, key)
        if at in self._writes:
            return self._writes[at]
        return self._tables.get(table, key)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self._writes[table, key] = value

    def delete(self, table: str, key: bytes) -> None:
        self._writes[table, key] = None

    def extend(self, puts: Mapping[tuple[str, bytes], bytes]) -> None:
        """Many puts at once, by (table, key)."""
        self._writes.update(puts)

    def reader(self, table: str) -> Callable[[bytes], bytes | None]:
        """A faster `get` for one table, good until the next write to it."""
        if any(of == table for of, _ in self._writes):
            return partial(self.get, table)
        return partial(self._tables.get, table)

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As `Tables.range`. Costs a look at every write of this transaction."""
        below = self._tables.range(table, start, stop)
        own = [
            (key, value)
            for (of, key), value in self._writes.items()
            if of == table and key >= start and (stop is None or key < stop)
        ]
        if not own:
            return below
        own.sort()
        return merge_ranges(iter(own), below)

    def tick(self) -> int:
        """The next logical time; never given out before."""
        return self.ticks(1)

    def ticks(self, count: int) -> int:
        """`count` logical times in a row; the first of them."""
        first = unpack8(self.get(COUNTERS, CLOCK) or _ZERO) + 1
        self._writes[COUNTERS, CLOCK] = pack8(first + count - 1)
        return first

    def count(self, name: bytes, delta: int) -> None:
        """Change the counter `name` by `delta`."""
        self._writes[COUNTERS, name] = pack8(unpack8(self.get(COUNTERS, name) or _ZERO) + delta)

    @property
    def batch(self) -> Batch:
        """What to log and to apply."""
        return [(table, key, value) for (table, key), value in self._writes.items()]


def counter(t: Tables, name: bytes) -> int:
    """The value of a counter, 0 where it was never set."""
    return unpack8(t.get(COUNTERS, name) or _ZERO)


def trash_counts(t: Tables) -> tuple[int, int]:
    """(files, bytes) in the trash."""
    raw = t.get(*TRASH_COUNTS) or _ZERO + _ZERO
    return unpack8(raw[:8]), unpack8(raw[8:])


def cluster_id(t: Tables) -> str:
    """The cluster's name; empty on a state that was never bootstrapped."""
    return (t.get(COUNTERS, CLUSTER_ID) or b"").decode()


def bootstrap(tx: Transaction, now_ns: int, cluster_id: str) -> None:
    """Make an empty state a file system: the root directory, the clock behind it, the cluster's name."""
    assert tx.get(COUNTERS, CLOCK) is None, "the state is not empty"
    tx.put(COUNTERS, CLOCK, pack8(ROOT_INODE))
    tx.put(COUNTERS, CLUSTER_ID, cluster_id.encode())
    tx.count(DIRECTORIES, 1)
    root = InodeRecord(ROOT_INODE, FileType.DIRECTORY, 0o755, 0, 0, 2, 0, now_ns, now_ns, now_ns)
    root.parent = ROOT_INODE
    store(tx, root)
    make_trash(tx, now_ns)


def make_trash(tx: Transaction, now_ns: int) -> None:
    """The directory of deleted files [0075]. No entry names it; private names are in it, so only root may look."""
    trash = InodeRecord(TRASH_INODE, FileType.DIRECTORY, 0o700, 0, 0, 2, 0, now_ns, now_ns, now_ns)
    trash.parent = ROOT_INODE
    store(tx, trash)
