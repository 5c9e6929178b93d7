"""Hard links: another name for an inode that has one already. Never for directories."""

from __future__ import annotations

from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import FileType, InodeRecord, load, store
from gfscore.metadata.keys import entry_key, pack8
from gfscore.metadata.lookup import check_new_name, not_found, open_directory
from gfscore.metadata.tables import ENTRIES
from gfscore.metadata.transaction import Transaction

LINKS_MAX = 65_000


def link(tx: Transaction, inode: int, *, new_parent: int, new_name: bytes, now_ns: int) -> InodeRecord:
    """Give `inode` the name `new_name` in `new_parent` too; its new record.

    Raises EXISTS, NOT_PERMITTED (a directory, or in the trash), TOO_MANY_LINKS, NOT_FOUND (it has lost its last name),
    NOT_DIRECTORY, STALE_INODE, INVALID, NAME_TOO_LONG.
    """
    check_new_name(new_parent, new_name)
    directory = open_directory(tx, new_parent)
    record = load(tx, inode)
    if record.type is FileType.DIRECTORY:
        raise GfsError(Code.NOT_PERMITTED, "a directory has one name only")
    key = entry_key(new_parent, new_name)
    if tx.get(ENTRIES, key) is not None:
        raise GfsError(Code.EXISTS, f"{new_name!r} exists already")
    if record.nlink == 0:
        raise not_found(b"inode %d" % inode)
    if record.nlink >= LINKS_MAX:
        raise GfsError(Code.TOO_MANY_LINKS, f"an inode has at most {LINKS_MAX} names")
    tx.put(ENTRIES, key, pack8(inode))
    record.nlink += 1
    record.ctime_ns = now_ns
    store(tx, record)
    directory.mtime_ns = directory.ctime_ns = now_ns
    store(tx, directory)
    return record
