"""A file system in memory for the tests of the pure core: decide, validate, apply."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TypeVar

from gfscore.metadata.attributes import set_attributes
from gfscore.metadata.create import create
from gfscore.metadata.inodes import FileType, InodeRecord, load
from gfscore.metadata.tables import TABLES, EmptyTables, LayeredTables
from gfscore.metadata.transaction import Transaction, bootstrap
from gfscore.metadata.validate import validate

T = TypeVar("T")


class State:
    """The tables, and a time that moves on by itself."""

    def __init__(self) -> None:
        self.tables = LayeredTables(EmptyTables())
        self._times = count(1000)
        self.now_ns = next(self._times)
        tx = Transaction(self.tables)
        bootstrap(tx, self.now_ns, "cluster-a")
        self.tables.apply(tx.batch)

    def run(self, operation: Callable[..., T], *args: object, timed: bool = True, **kwargs: object) -> T:
        """Decide and apply one operation and check all invariants; an error must leave everything as it was."""
        self.now_ns = next(self._times)
        if timed:
            kwargs.setdefault("now_ns", self.now_ns)
        before = self.dump()
        tx = Transaction(self.tables)
        try:
            result = operation(tx, *args, **kwargs)
        except Exception:
            assert self.dump() == before
            raise
        self.tables.apply(tx.batch)
        validate(self.tables)
        return result

    def make(self, name: bytes, parent: int = 1, type: FileType = FileType.FILE, **kwargs: object) -> int:
        """A new inode's number."""
        options: dict[str, object] = {"mode": 0o644, "uid": 1000, "gid": 1000} | kwargs
        return self.run(create, parent=parent, name=name, type=type, **options).inode

    def mkdir(self, name: bytes, parent: int = 1, **kwargs: object) -> int:
        return self.make(name, parent, FileType.DIRECTORY, **kwargs)

    def record(self, inode: int) -> InodeRecord:
        return load(self.tables, inode)

    def chmod(self, inode: int, mode: int) -> None:
        self.run(set_attributes, inode, mode=mode)

    def dump(self) -> list[tuple[str, bytes, bytes]]:
        """The whole state, in order."""
        return [(table, key, value) for table in TABLES for key, value in self.tables.range(table, b"", None)]
