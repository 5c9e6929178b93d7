"""Checkpoints of the master's state [0052]-[0054]: made in the background, complete before they have their name.

A checkpoint is an LMDB file `checkpoint-<lsn>.lmdb` with the state after the log record of that number, and its
checksum in `….lmdb.sum` beside it. Blocking; run in a thread. It never touches a file that is being served from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

import lmdb

from gfscore.checksum import crc32c
from gfscore.env.interfaces import Disk
from gfscore.storage.batch_codec import TABLE_NAMES
from gfscore.storage.lmdb_tables import ABOUT, FORMAT, CheckpointDamaged, LmdbTables

Item = tuple[bytes, bytes | None]
Layer = Iterable[tuple[str, Iterable[Item]]]

_TEMPORARY = "checkpoint.new"
_SLICE_KEYS = 64  # between two chances for the event loop's thread
_COMMIT_KEYS = 20_000  # bounds the dirty pages that LMDB holds in memory
_SUM_BYTES = 1024 * 1024
_MAP_BYTES_MIN = 1 << 30  # address space, not disk
_MAP_GROWTH = 4


def checkpoint_name(lsn: int) -> str:
    return f"checkpoint-{lsn:020d}.lmdb"


def list_checkpoints(disk: Disk, directory: str) -> list[int]:
    """The lsn of each checkpoint that has its name, ascending; they may still be damaged."""
    return sorted(lsn for lsn in map(_lsn_of, disk.listdir(directory)) if lsn is not None)


def write_checkpoint(
    disk: Disk, directory: str, base_lsn: int | None, layer: Layer, lsn: int, cluster_id: str
) -> LmdbTables:
    """Write the checkpoint `lsn`: the one of `base_lsn` (None: nothing) plus `layer`; returns it, opened.

    The layer yields (table, items in key order), value None for a delete. Nothing has the checkpoint's name before
    all of it is durable. Raises OSError (ENOSPC, …), lmdb.Error; CheckpointDamaged when the base is not any more what
    was written: then what is being served may be wrong, too, and must not go into another checkpoint.
    """
    temporary = f"{directory}/{_TEMPORARY}"
    final = f"{directory}/{checkpoint_name(lsn)}"
    if disk.exists(temporary):
        disk.unlink(temporary)
    try:
        return _write(disk, directory, base_lsn, layer, lsn, cluster_id, temporary, final)
    except (OSError, lmdb.Error, CheckpointDamaged):
        # On a full disk the space is wanted for the log.
        for path in (temporary, f"{final}.sum"):
            if disk.exists(path) and not disk.exists(final):
                disk.unlink(path)
        raise


def _write(
    disk: Disk, directory: str, base_lsn: int | None, layer: Layer, lsn: int, cluster_id: str, temporary: str,
    final: str,
) -> LmdbTables:  # fmt: skip
    fresh = base_lsn is None
    size = 0
    if base_lsn is not None:
        base = f"{directory}/{checkpoint_name(base_lsn)}"
        size = _copy(disk, base, temporary)
        if _said(disk, base) != _sum_line(disk, temporary):
            raise CheckpointDamaged(
                disk.real_path(base),
                "it is not any more what was written; restart the master: it goes back to an older one and the log",
            )
    path = disk.real_path(temporary)
    map_bytes = max(_MAP_BYTES_MIN, _MAP_GROWTH * size)
    while True:
        try:
            _fill(path, map_bytes, layer, lsn, cluster_id, fresh)
            break
        except lmdb.MapFullError:
            # Some of the layer is committed. Puts and deletes can be repeated; appending to an empty table cannot.
            map_bytes *= _MAP_GROWTH
            fresh = False
    disk.sync_real_path(temporary)
    _write_sum(disk, temporary, f"{final}.sum")
    disk.rename(temporary, final)
    disk.sync_directory(directory)
    return LmdbTables(disk.real_path(final))


def verify(disk: Disk, directory: str, lsn: int) -> None:
    """Read all of a checkpoint and compare it with its checksum. Raises CheckpointDamaged, OSError."""
    name = f"{directory}/{checkpoint_name(lsn)}"
    path = disk.real_path(name)
    text = _said(disk, name)
    if not text:
        raise CheckpointDamaged(path, "it has no checksum beside it")
    if text != _sum_line(disk, name):
        raise CheckpointDamaged(path, "size or checksum are not those in its .sum file")


def _said(disk: Disk, name: str) -> bytes:
    """The contents of the .sum file beside a checkpoint; nothing where there is none."""
    if not disk.exists(f"{name}.sum"):
        return b""
    file = disk.open(f"{name}.sum")
    try:
        return file.pread(256, 0)
    finally:
        file.close()


def open_checkpoint(disk: Disk, directory: str, lsn: int) -> LmdbTables:
    """Open a checkpoint after verifying every byte. Raises CheckpointDamaged, OSError, GfsError(NOT_SUPPORTED)."""
    verify(disk, directory, lsn)
    tables = LmdbTables(disk.real_path(f"{directory}/{checkpoint_name(lsn)}"))
    if tables.lsn != lsn:
        tables.close()
        raise CheckpointDamaged(tables.path, f"holds the state after record {tables.lsn}: it was renamed")
    return tables


def set_aside(disk: Disk, directory: str, lsn: int) -> None:
    """Rename a damaged checkpoint so that it is neither used nor counted again; an operator may look at it."""
    name = checkpoint_name(lsn)
    disk.rename(f"{directory}/{name}", f"{directory}/damaged-{name}")
    disk.sync_directory(directory)


def prune(disk: Disk, directory: str, keep: int) -> int:
    """Remove all but the newest `keep` checkpoints and what is left of unfinished ones.

    Returns the number of the first log record that recovery may still need. With a single checkpoint that is record
    1: should it turn out damaged, the whole log is the only other way back.
    """
    lsns = list_checkpoints(disk, directory)
    kept = lsns[-keep:]
    for lsn in lsns[:-keep]:
        disk.unlink(f"{directory}/{checkpoint_name(lsn)}")
    sums = {f"{checkpoint_name(lsn)}.sum" for lsn in kept}
    for name in disk.listdir(directory):
        if name == _TEMPORARY or (name.endswith(".sum") and name not in sums):
            disk.unlink(f"{directory}/{name}")
    return kept[0] + 1 if len(kept) > 1 else 1


def _lsn_of(name: str) -> int | None:
    if len(name) == 36 and name.startswith("checkpoint-") and name.endswith(".lmdb") and name[11:31].isdigit():
        return int(name[11:31])
    return None


def _copy(disk: Disk, source: str, target: str) -> int:
    """Copy a file inside the file system; its size."""
    old = disk.open(source)
    try:
        new = disk.open(target, create=True, exclusive=True)
        try:
            size = old.size()
            old.copy_to(new, size)
        finally:
            new.close()
    finally:
        old.close()
    return size


def _fill(path: str, map_bytes: int, layer: Layer, lsn: int, cluster_id: str, fresh: bool) -> None:
    """Apply the layer to the LMDB file at `path`. Not durable yet when it returns."""
    with lmdb.open(path, subdir=False, map_size=map_bytes, lock=False, sync=False, max_dbs=len(TABLE_NAMES) + 1) as env:
        about = env.open_db(ABOUT)
        with env.begin(write=True) as txn:
            txn.delete(b"complete", db=about)
        dbs = {name: env.open_db(name.encode()) for name in TABLE_NAMES}
        for name, items in layer:
            _apply(env, dbs[name], items, fresh)
        with env.begin(write=True, db=about) as txn:
            txn.put(b"format", FORMAT)
            txn.put(b"lsn", str(lsn).encode())
            txn.put(b"cluster_id", cluster_id.encode())
            txn.put(b"complete", b"yes")


def _apply(env: Any, db: Any, items: Iterable[Item], fresh: bool) -> None:
    """Apply one table's changes in slices, between which the thread of the event loop gets the interpreter."""
    remaining = iter(items)
    pending = list(islice(remaining, _SLICE_KEYS))
    last_key: bytes | None = None  # the greatest key in the table before; None: there is none, or not known yet
    if not fresh:
        with env.begin(db=db) as txn, txn.cursor() as cursor:
            last_key = cursor.key() if cursor.last() else None
    while pending:
        with env.begin(write=True, db=db) as txn, txn.cursor() as cursor:
            for _ in range(0, _COMMIT_KEYS, _SLICE_KEYS):
                # Behind all keys that were there, pages are filled one by one to the brim instead of split in halves.
                appends = last_key is None or pending[0][0] > last_key
                if appends:
                    cursor.putmulti([item for item in pending if item[1] is not None], append=True)
                else:
                    cursor.putmulti([item for item in pending if item[1] is not None])
                    for key, value in pending:
                        if value is None:
                            txn.delete(key)
                pending = list(islice(remaining, _SLICE_KEYS))
                if not pending:
                    break
                time.sleep(0)


def _write_sum(disk: Disk, source: str, target: str) -> None:
    line = _sum_line(disk, source)
    file = disk.open(target, create=True)
    try:
        file.truncate(0)
        file.pwrite(line, 0)
        file.fdatasync()
    finally:
        file.close()


def _sum_line(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        size = file.size()
        buffer = memoryview(bytearray(min(_SUM_BYTES, max(size, 1))))
        crc = 0
        position = 0
        while position < size:
            count = file.pread_into(buffer, position)
            if count == 0:
                break
            crc = crc32c(buffer[:count], crc)
            position += count
    finally:
        file.close()
    return f"crc32c={crc:08x} size={position}\n".encode()
