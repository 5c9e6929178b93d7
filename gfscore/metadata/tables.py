"""The whole state of the master as ordered byte tables: an overlay in memory over a read-only base.

`LayeredTables.apply` is the only function that changes state; live operation, recovery and shadows all
run it. This module knows nothing of what the bytes mean, and it never does I/O itself (the base may).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from typing import Protocol

from sortedcontainers import SortedList

Batch = list[tuple[str, bytes, bytes | None]]
"""Puts and deletes (value None), in any order, at most one of each (table, key)."""

ENTRIES = "entries"
INODES = "inodes"
MAPPING = "mapping"
CHUNKS = "chunks"
XATTRS = "xattrs"
SYMLINKS = "symlinks"
POLICIES = "policies"
ORPHANS = "orphans"
REQUESTS = "requests"
COUNTERS = "counters"
PLACES = "places"
TRASH = "trash"
TRASH_EXPIRY = "trash_expiry"
TABLES = (
    ENTRIES, INODES, MAPPING, CHUNKS, XATTRS, SYMLINKS, POLICIES, ORPHANS, REQUESTS, COUNTERS,
    PLACES, TRASH, TRASH_EXPIRY,
)  # fmt: skip

_SORT_SLICE = 4096  # keys sorted in one go by a background thread, so that it never holds the interpreter for long
_DISCARD_SLICE = 500  # keys let go of in one go
_FEW_KEYS = 64  # up to so many new keys, adding one by one beats a bulk update of the index


# The marker for "this layer says nothing about the key" (None says "deleted"): bytes by type, compared by identity.
_ABSENT = bytes(bytearray(b"absent"))


class Tables(Protocol):
    """What decisions read: the state, a checkpoint, or a transaction over either."""

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, None where there is none."""
        ...

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order from `start` up to, not including, `stop` (None: the end).

        To be consumed before the state changes again.
        """
        ...


class EmptyTables:
    """The base of a state that has no checkpoint yet."""

    __slots__ = ()

    def get(self, table: str, key: bytes) -> bytes | None:
        return None

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return iter(())


def merge_ranges(
    newer: Iterator[tuple[bytes, bytes | None]], older: Iterator[tuple[bytes, bytes]]
) -> Iterator[tuple[bytes, bytes]]:
    """Both in key order; `newer` wins, and its None hides what `older` has."""
    below = next(older, None)
    for key, value in newer:
        while below is not None and below[0] < key:
            yield below
            below = next(older, None)
        if below is not None and below[0] == key:
            below = next(older, None)
        if value is not None:
            yield key, value
    if below is not None:
        yield below
        yield from older


class SortedItems:
    """The items of one table of a frozen layer in key order, sorted while they are consumed."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[bytes, bytes | None]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[tuple[bytes, bytes | None]]:
        values = self._values
        keys = list(values)
        runs = [sorted(keys[at : at + _SORT_SLICE]) for at in range(0, len(keys), _SORT_SLICE)]
        for key in runs[0] if len(runs) == 1 else merge(*runs):
            yield key, values[key]


class _Layer:
    """Changes by table. The key index is brought up to date only when somebody asks for a range."""

    __slots__ = ("_fresh", "_keys", "values")

    def __init__(self) -> None:
        self.values: dict[str, dict[bytes, bytes | None]] = {table: {} for table in TABLES}
        self._fresh: dict[str, list[bytes]] = {table: [] for table in TABLES}
        self._keys: dict[str, SortedList] = {table: SortedList() for table in TABLES}

    def apply(self, batch: Batch) -> None:
        values, fresh = self.values, self._fresh
        for table, key, value in batch:
            of_table = values[table]
            if key not in of_table:
                fresh[table].append(key)
            of_table[key] = value

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes | None]]:
        keys = self._keys[table]
        fresh = self._fresh[table]
        if fresh:
            if len(fresh) <= _FEW_KEYS:
                for key in fresh:
                    keys.add(key)
            else:
                keys.update(fresh)
            fresh.clear()
        values = self.values[table]
        return ((key, values[key]) for key in keys.irange(start, stop, (True, False)))

    def __len__(self) -> int:
        return sum(map(len, self.values.values()))

    def drop_keys(self) -> None:
        for table in TABLES:
            self._fresh[table].clear()
            self._keys[table].clear()


class FrozenLayer:
    """What changed between two checkpoints; never changes any more, so another thread may read it."""

    __slots__ = ("_layer",)

    def __init__(self, layer: _Layer) -> None:
        self._layer = layer

    def __iter__(self) -> Iterator[tuple[str, SortedItems]]:
        """(table, items in key order; a value of None deletes) for each table with changes."""
        for table, values in self._layer.values.items():
            if values:
                yield table, SortedItems(values)

    def __len__(self) -> int:
        """Keys in all tables."""
        return len(self._layer)

    def discard(self) -> Iterator[None]:
        """Empty it bit by bit, when nobody reads it any more: letting go of it at once would stop all threads for long.

        To be iterated by a background thread, which may rest at each step.
        """
        self._layer.drop_keys()
        for values in self._layer.values.values():
            while values:
                for _ in range(min(len(values), _DISCARD_SLICE)):
                    values.popitem()
                yield


class LayeredTables:
    """An overlay, sometimes a frozen layer that is being written to a checkpoint, and the base, newest first."""

    __slots__ = ("_base", "_frozen", "_overlay", "_values")

    def __init__(self, base: Tables) -> None:
        self._base = base
        self._overlay = _Layer()
        self._values = self._overlay.values  # one look-up less in `get`
        self._frozen: _Layer | None = None

    def get(self, table: str, key: bytes) -> bytes | None:
        value = self._values[table].get(key, _ABSENT)
        if value is not _ABSENT:
            return value
        if self._frozen is not None:
            value = self._frozen.values[table].get(key, _ABSENT)
            if value is not _ABSENT:
                return value
        return self._base.get(table, key)

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        result = self._base.range(table, start, stop)
        if self._frozen is not None and self._frozen.values[table]:
            result = merge_ranges(self._frozen.range(table, start, stop), result)
        if self._values[table]:
            result = merge_ranges(self._overlay.range(table, start, stop), result)
        return result

    def apply(self, batch: Batch) -> None:
        """Change the state. The one function that does."""
        self._overlay.apply(batch)

    @property
    def base(self) -> Tables:
        return self._base

    @property
    def overlay_size(self) -> int:
        """Keys changed since the last freeze."""
        return len(self._overlay)

    @property
    def frozen(self) -> bool:
        """A checkpoint of a frozen layer is under way."""
        return self._frozen is not None

    def freeze(self) -> FrozenLayer:
        """Set all changes so far aside for a checkpoint; later ones go to a new overlay. No layer may be frozen yet."""
        assert self._frozen is None, "a layer is frozen already: rebase or thaw first"
        self._frozen = self._overlay
        self._overlay = _Layer()
        self._values = self._overlay.values
        return FrozenLayer(self._frozen)

    def rebase(self, new_base: Tables) -> Tables:
        """Put in place a base that contains the frozen layer, and drop that layer. Returns the old base, to close."""
        assert self._frozen is not None, "nothing is frozen"
        old, self._base, self._frozen = self._base, new_base, None
        return old

    def thaw(self) -> None:
        """The checkpoint failed: take the frozen layer back into the overlay."""
        assert self._frozen is not None, "nothing is frozen"
        layer, newer = self._frozen, self._overlay
        layer.apply([(table, key, value) for table, of in newer.values.items() for key, value in of.items()])
        self._overlay, self._values, self._frozen = layer, layer.values, None
