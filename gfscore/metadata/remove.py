"""Taking names away: unlink, rmdir, and the end of inodes that nothing refers to any more.

A file that loses its last name goes to the trash, if its policy wants that [0075]; deleted again, or when its time is
over, it is reclaimed [0076]. One without a name that somebody still has open is an orphan until it is released. Chunks
are only unreferenced here: the handles that no file has any more are returned, for the shell to collect the replicas.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gfscore.errors import Code, GfsError
from gfscore.ids import TRASH_INODE
from gfscore.metadata.chunks import drop_mapping
from gfscore.metadata.inodes import HAS_POLICY, HAS_XATTRS, FileType, InodeRecord, load, store
from gfscore.metadata.keys import after_prefix, entry_key, pack8, unpack8
from gfscore.metadata.lookup import cannot_remove, check_name, find, is_empty, open_directory
from gfscore.metadata.policies import trash_seconds as retention
from gfscore.metadata.tables import ENTRIES, INODES, ORPHANS, PLACES, POLICIES, SYMLINKS, XATTRS, Tables
from gfscore.metadata.transaction import DIRECTORIES, FILES, Transaction
from gfscore.metadata.trash import put_in, take_out

_TO_TRASH = (FileType.FILE, FileType.SYMLINK)


@dataclass(slots=True)
class Removed:
    """What became of the inode behind a name that was taken away."""

    inode: int
    freed_chunks: list[int]  # handles that no file refers to any more
    last_link: bool  # it was the inode's last name
    directory: bool
    held: bool  # the inode lives on as an orphan
    trashed: bool = False  # it lives on in the trash


def _drop_inode(tx: Transaction, record: InodeRecord) -> list[int]:
    """Delete all there is of an inode but its names. Returns the chunk handles that became free."""
    key = pack8(record.inode)
    freed: list[int] = []
    if record.type is FileType.FILE:
        freed = drop_mapping(tx, record)
    elif record.type is FileType.SYMLINK:
        tx.delete(SYMLINKS, key)
    if record.flags & HAS_XATTRS:
        for xattr, _ in list(tx.range(XATTRS, key, after_prefix(record.inode))):
            tx.delete(XATTRS, xattr)
    if record.flags & HAS_POLICY:
        tx.delete(POLICIES, key)
    tx.delete(INODES, key)
    tx.count(DIRECTORIES if record.type is FileType.DIRECTORY else FILES, -1)
    return freed


def drop_link(
    tx: Transaction, record: InodeRecord, directory: InodeRecord, name: bytes, *, now_ns: int, hold: bool,
    trash_seconds: int,
) -> Removed:  # fmt: skip
    """One name less for `record`: `name` in `directory`, which the caller takes away; for a directory (found empty) the
    only one. `trash_seconds` is for files of which no policy says how long they can be restored."""
    is_directory = record.type is FileType.DIRECTORY
    record.nlink = 0 if is_directory else record.nlink - 1
    record.ctime_ns = now_ns
    last = record.nlink == 0
    if last and record.type in _TO_TRASH:
        seconds = retention(tx, record, directory, trash_seconds)
        if seconds:
            put_in(tx, record, directory.inode, name, now_ns=now_ns, seconds=seconds)
            return Removed(record.inode, [], True, False, False, trashed=True)
    elif is_directory:
        tx.delete(PLACES, pack8(record.inode))
    if last and not hold:
        return Removed(record.inode, _drop_inode(tx, record), True, is_directory, False)
    if last:
        tx.put(ORPHANS, pack8(record.inode), b"\1")
    store(tx, record)
    return Removed(record.inode, [], last, is_directory, last)


def reclaim(tx: Transaction, inode: int, *, hold: bool = False) -> Removed:
    """The end of a file in the trash: its time is over, or it was deleted again [0084]. `hold` as in `unlink`."""
    take_out(tx, inode)
    if hold:
        tx.put(ORPHANS, pack8(inode), b"\1")
        return Removed(inode, [], True, False, True)
    return Removed(inode, _drop_inode(tx, load(tx, inode)), True, False, False)


def unlink(
    tx: Transaction, *, parent: int, name: bytes, now_ns: int, hold: bool = False, trash_seconds: int = 0
) -> Removed:
    """Take a name of anything but a directory away. `hold` keeps an inode that loses its last name as an orphan, unless
    the trash keeps it: for `trash_seconds` where no policy says how long.

    Raises NOT_FOUND, IS_DIRECTORY, NOT_DIRECTORY, NOT_PERMITTED (the trash itself), STALE_INODE, INVALID,
    NAME_TOO_LONG.
    """
    check_name(name)
    directory = open_directory(tx, parent)
    inode = find(tx, parent, name)
    if inode is None:
        raise cannot_remove(parent, name)
    record = load(tx, inode)
    if record.type is FileType.DIRECTORY:
        raise GfsError(Code.IS_DIRECTORY, f"{name!r} is a directory")
    tx.delete(ENTRIES, entry_key(parent, name))
    directory.mtime_ns = directory.ctime_ns = now_ns
    store(tx, directory)
    if parent == TRASH_INODE:
        return reclaim(tx, inode, hold=hold)
    return drop_link(tx, record, directory, name, now_ns=now_ns, hold=hold, trash_seconds=trash_seconds)


def rmdir(tx: Transaction, *, parent: int, name: bytes, now_ns: int, hold: bool = False) -> Removed:
    """Remove an empty directory.

    Raises NOT_FOUND, NOT_DIRECTORY, NOT_EMPTY, NOT_PERMITTED (the trash), STALE_INODE, INVALID, NAME_TOO_LONG.
    """
    check_name(name)
    directory = open_directory(tx, parent)
    inode = find(tx, parent, name)
    if inode is None:
        raise cannot_remove(parent, name)
    record = load(tx, inode)
    if record.type is not FileType.DIRECTORY:
        raise GfsError(Code.NOT_DIRECTORY, f"{name!r} is not a directory")
    if record.nlink > 2 or not is_empty(tx, inode):
        raise GfsError(Code.NOT_EMPTY, f"directory {name!r} is not empty")
    tx.delete(ENTRIES, entry_key(parent, name))
    directory.nlink -= 1
    directory.mtime_ns = directory.ctime_ns = now_ns
    store(tx, directory)
    return drop_link(tx, record, directory, name, now_ns=now_ns, hold=hold, trash_seconds=0)


def release_orphan(tx: Transaction, inode: int) -> list[int]:
    """Nobody has it open any more: the chunk handles that became free. Does nothing for what is no orphan."""
    key = pack8(inode)
    if tx.get(ORPHANS, key) is None:
        return []
    tx.delete(ORPHANS, key)
    return _drop_inode(tx, load(tx, inode))


def orphans(t: Tables) -> Iterator[int]:
    """All inodes without a name."""
    return (unpack8(key) for key, _ in t.range(ORPHANS, b"", None))
