"""Rename with all that POSIX and renameat2 ask of it: replacing, NOREPLACE, EXCHANGE, directories across parents."""

from __future__ import annotations

from dataclasses import dataclass

from gfscore.errors import Code, GfsError
from gfscore.ids import TRASH_INODE
from gfscore.metadata.inodes import FileType, InodeRecord, load, store
from gfscore.metadata.keys import entry_key, pack8
from gfscore.metadata.lookup import ancestors, cannot_remove, check_name, check_new_name, find, is_empty, open_directory
from gfscore.metadata.remove import Removed, drop_link
from gfscore.metadata.tables import ENTRIES, PLACES
from gfscore.metadata.transaction import Transaction
from gfscore.metadata.trash import take_out


@dataclass(slots=True)
class Renamed:
    """What a rename did."""

    moved: int  # the inode that `name` stood for
    replaced: Removed | None  # what `new_name` stood for, when it is gone
    exchanged: int | None  # the inode that now has the old name, after an exchange
    changed: bool  # False where both names were links of one inode: nothing happens then


def _is_directory(record: InodeRecord) -> bool:
    return record.type is FileType.DIRECTORY


def _refuse_cycle(tx: Transaction, moved: InodeRecord, into: int, name: bytes) -> None:
    """A directory cannot become its own descendant."""
    if _is_directory(moved) and moved.inode in ancestors(tx, into):
        raise GfsError(Code.INVALID, f"directory {name!r} cannot be moved into itself")


def _check_replaceable(tx: Transaction, moved: InodeRecord, target: InodeRecord, new_name: bytes) -> None:
    if _is_directory(target):
        if not _is_directory(moved):
            raise GfsError(Code.IS_DIRECTORY, f"{new_name!r} is a directory, what should replace it is not")
        if target.nlink > 2 or not is_empty(tx, target.inode):
            raise GfsError(Code.NOT_EMPTY, f"directory {new_name!r} is not empty")
    elif _is_directory(moved):
        raise GfsError(Code.NOT_DIRECTORY, f"{new_name!r} is not a directory, what should replace it is")


def rename(
    tx: Transaction,
    *,
    parent: int,
    name: bytes,
    new_parent: int,
    new_name: bytes,
    now_ns: int,
    no_replace: bool = False,
    exchange: bool = False,
    hold_replaced: bool = False,
    trash_seconds: int = 0,
) -> Renamed:
    """Give the inode of `name` in `parent` the name `new_name` in `new_parent`.

    `hold_replaced` keeps what loses its last name by it as an orphan, `trash_seconds` in the trash, as for `unlink`.
    Out of the trash, a rename restores. Raises NOT_FOUND, EXISTS (`no_replace`), INVALID (into its own subtree, or both
    flags), IS_DIRECTORY, NOT_DIRECTORY, NOT_EMPTY, NOT_PERMITTED (into the trash), STALE_INODE, NAME_TOO_LONG.
    """
    check_name(name)
    check_new_name(new_parent, new_name)
    if no_replace and exchange:
        raise GfsError(Code.INVALID, "NOREPLACE and EXCHANGE exclude one another")
    if exchange and parent == TRASH_INODE:
        raise GfsError(Code.NOT_PERMITTED, "nothing can be put into the trash by an exchange")
    source = open_directory(tx, parent)
    target = source if new_parent == parent else open_directory(tx, new_parent)
    inode = find(tx, parent, name)
    if inode is None:
        raise cannot_remove(parent, name)
    other = find(tx, new_parent, new_name)
    if other is None and exchange:
        raise cannot_remove(new_parent, new_name)
    if other is not None and no_replace:
        raise GfsError(Code.EXISTS, f"{new_name!r} exists already")
    if other == inode:
        return Renamed(inode, None, inode if exchange else None, False)
    moved = load(tx, inode)
    if source is not target:
        _refuse_cycle(tx, moved, new_parent, name)
    displaced = None if other is None else load(tx, other)
    if parent == TRASH_INODE:
        take_out(tx, inode)
        moved.nlink = 1
    replaced = None
    if exchange:
        assert displaced is not None
        if source is not target:
            _refuse_cycle(tx, displaced, parent, new_name)
        tx.put(ENTRIES, entry_key(parent, name), pack8(displaced.inode))
        _move(tx, displaced, target, source, name, now_ns)
    else:
        if displaced is not None:
            _check_replaceable(tx, moved, displaced, new_name)
            if _is_directory(displaced):
                target.nlink -= 1
            replaced = drop_link(
                tx, displaced, target, new_name, now_ns=now_ns, hold=hold_replaced, trash_seconds=trash_seconds
            )
        tx.delete(ENTRIES, entry_key(parent, name))
    tx.put(ENTRIES, entry_key(new_parent, new_name), pack8(inode))
    _move(tx, moved, source, target, new_name, now_ns)
    source.mtime_ns = source.ctime_ns = now_ns
    target.mtime_ns = target.ctime_ns = now_ns
    store(tx, source)
    if target is not source:
        store(tx, target)
    return Renamed(inode, replaced, other if exchange else None, True)


def _move(tx: Transaction, record: InodeRecord, old: InodeRecord, new: InodeRecord, name: bytes, now_ns: int) -> None:
    """Account for `record` leaving the directory `old` for `name` in `new`. The caller changes the entries and stores
    both."""
    record.ctime_ns = now_ns
    if _is_directory(record):
        tx.put(PLACES, pack8(record.inode), entry_key(new.inode, name))
        if old is not new:
            record.parent = new.inode
            old.nlink -= 1
            new.nlink += 1
    store(tx, record)
