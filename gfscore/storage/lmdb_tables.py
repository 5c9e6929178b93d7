"""A checkpoint that is served from as it lies on disk: the compact B-tree mapped into memory of [0052].

Read-only. One read transaction for the whole life of the object; the file never changes once it has its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import lmdb

from gfscore.errors import Code, GfsError
from gfscore.storage.batch_codec import TABLE_NAMES

ABOUT = b"about"  # the table with what a checkpoint says about itself
FORMAT = b"1"
_FIRST_TABLES = TABLE_NAMES[:10]  # every checkpoint has these; one written by an older version lacks later ones


class CheckpointDamaged(GfsError):
    """A checkpoint is incomplete or does not verify; an older one and the operation log take its place."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(Code.IO, f"checkpoint {path}: {what}")


class TableStatistics(NamedTuple):
    """One table's size: entries, and the bytes of all its pages."""

    entries: int
    bytes: int


class LmdbTables:
    """The tables of the checkpoint file at `path`. Implements `metadata.tables.Tables`.

    Raises CheckpointDamaged when the file is not a complete checkpoint (quick checks; not every byte is read),
    GfsError(NOT_SUPPORTED) for one of another version.
    """

    __slots__ = ("_dbs", "_env", "_get", "_txn", "cluster_id", "entries", "lsn", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # lock=False: nobody ever writes this file. readahead=False: look-ups are scattered over a large file.
            self._env = lmdb.open(
                path,
                subdir=False,
                readonly=True,
                create=False,
                lock=False,
                max_dbs=len(TABLE_NAMES) + 1,
                readahead=False,
            )
            self._txn = self._env.begin()
            about = self._env.open_db(ABOUT, txn=self._txn, create=False)
            said = dict(self._txn.cursor(about))
            if said.get(b"complete") != b"yes":
                raise CheckpointDamaged(path, "incomplete")
            if said[b"format"] != FORMAT:
                raise GfsError(
                    Code.NOT_SUPPORTED,
                    f"checkpoint {path} has format {said[b'format'].decode()}, this version of the program reads "
                    f"{FORMAT.decode()}: start the version that wrote it, or use another directory",
                )
            self._dbs = {name: self._env.open_db(name.encode(), txn=self._txn, create=False) for name in _FIRST_TABLES}
            for name in TABLE_NAMES[len(_FIRST_TABLES) :]:
                with suppress(lmdb.NotFoundError):
                    self._dbs[name] = self._env.open_db(name.encode(), txn=self._txn, create=False)
            self.lsn = int(said[b"lsn"])
            self.cluster_id = said[b"cluster_id"].decode()
            self.entries = sum(self._txn.stat(db)["entries"] for db in self._dbs.values())
        except (lmdb.Error, KeyError, ValueError) as error:
            if "already open" in str(error):  # LMDB's own rule; it says nothing about the file
                raise GfsError(Code.BUSY, f"checkpoint {path} is being served from by this process") from error
            raise CheckpointDamaged(path, f"cannot be opened: {error}") from error
        self._get = self._txn.get

    def get(self, table: str, key: bytes) -> bytes | None:
        """The value, None where there is none."""
        db = self._dbs.get(table)
        if db is None:
            return None
        value: bytes | None = self._get(key, None, db)
        return value

    def range(self, table: str, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) in key order from `start` up to, not including, `stop` (None: the end)."""
        db = self._dbs.get(table)
        if db is None:
            return
        with self._txn.cursor(db) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return
            for item in cursor.iternext():
                if stop is not None and item[0] >= stop:
                    return
                yield item

    def statistics(self) -> dict[str, TableStatistics]:
        """How large each table is on disk."""
        result = {}
        for name, db in self._dbs.items():
            stat = self._txn.stat(db)
            pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
            result[name] = TableStatistics(stat["entries"], pages * stat["psize"])
        return result

    def close(self) -> None:
        """End the mapping; nothing may be read any more."""
        self._txn.abort()
        self._env.close()
