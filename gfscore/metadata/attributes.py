"""chmod, chown and utimens, and the target of a symlink. Who may do it is not asked here; sizes are in `lengths`."""

from __future__ import annotations

import stat

from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import FileType, InodeRecord, load, store
from gfscore.metadata.keys import pack8
from gfscore.metadata.tables import SYMLINKS, Tables
from gfscore.metadata.transaction import Transaction

_ID_MAX = (1 << 32) - 2  # the last one means "leave as it is" to chown


def _check_id(number: int, what: str) -> int:
    if not 0 <= number <= _ID_MAX:
        raise GfsError(Code.INVALID, f"{what} {number} is not between 0 and {_ID_MAX}")
    return number


def set_attributes(
    tx: Transaction,
    inode: int,
    *,
    now_ns: int,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    atime_ns: int | None = None,
    mtime_ns: int | None = None,
    ctime_ns: int | None = None,
) -> InodeRecord:
    """Change what is not None; the new record. `ctime` becomes `now_ns` unless it is given.

    A new owner or group takes set-user-id, and set-group-id of an executable, from all but directories, unless the mode
    is set with it. Raises STALE_INODE, INVALID (an id out of range).
    """
    record = load(tx, inode)
    if uid is not None:
        record.uid = _check_id(uid, "uid")
    if gid is not None:
        record.gid = _check_id(gid, "gid")
    if (uid is not None or gid is not None) and record.type is not FileType.DIRECTORY:
        record.mode &= ~stat.S_ISUID
        if record.mode & stat.S_IXGRP:
            record.mode &= ~stat.S_ISGID
    if mode is not None:
        record.mode = mode & 0o7777
    if atime_ns is not None:
        record.atime_ns = atime_ns
    if mtime_ns is not None:
        record.mtime_ns = mtime_ns
    record.ctime_ns = now_ns if ctime_ns is None else ctime_ns
    store(tx, record)
    return record


def read_link(t: Tables, inode: int) -> bytes:
    """The target of a symlink. Raises STALE_INODE, INVALID for any other type."""
    target = t.get(SYMLINKS, pack8(inode))
    if target is None:
        load(t, inode)
        raise GfsError(Code.INVALID, f"inode {inode} is not a symlink")
    return target
