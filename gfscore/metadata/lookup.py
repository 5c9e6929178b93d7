"""Reading the namespace: names, pages of a directory, ancestors. Changes nothing."""

from __future__ import annotations

from itertools import islice

from gfscore.errors import Code, GfsError
from gfscore.ids import NAME_BYTES_MAX, ROOT_INODE, TRASH_INODE, TRASH_NAME
from gfscore.metadata.inodes import FileType, InodeRecord, load_directory, load_raw, raw_parent, raw_type
from gfscore.metadata.keys import after_prefix, entry_key, pack8, unpack8
from gfscore.metadata.tables import ENTRIES, INODES, Tables


def check_name(name: bytes) -> None:
    """Refuse what cannot be the name of an entry. Raises INVALID, NAME_TOO_LONG."""
    if len(name) > NAME_BYTES_MAX:
        raise GfsError(Code.NAME_TOO_LONG, f"a name of {len(name)} bytes is longer than {NAME_BYTES_MAX}")
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise GfsError(Code.INVALID, f"{name!r} cannot be the name of a file")


def check_new_name(parent: int, name: bytes) -> None:
    """Refuse what cannot become an entry of the directory `parent`. Raises INVALID, NAME_TOO_LONG, NOT_PERMITTED."""
    check_name(name)
    if parent == TRASH_INODE:
        raise GfsError(Code.NOT_PERMITTED, "nothing can be made in the trash: files get there by being removed")
    if parent == ROOT_INODE and name == TRASH_NAME:
        raise GfsError(Code.NOT_PERMITTED, f"/{TRASH_NAME.decode()} is the trash: choose another name")


def find(t: Tables, parent: int, name: bytes) -> int | None:
    """The inode that `name` stands for in the directory `parent`, None where there is none. Checks nothing."""
    raw = t.get(ENTRIES, pack8(parent) + name)
    return None if raw is None else unpack8(raw)


def not_found(name: bytes) -> GfsError:
    return GfsError(Code.NOT_FOUND, f"{name!r} does not exist")


def cannot_remove(parent: int, name: bytes) -> GfsError:
    """The error for a name that no entry has: NOT_FOUND, but for the trash, which is there without one."""
    if parent == ROOT_INODE and name == TRASH_NAME:
        return GfsError(Code.NOT_PERMITTED, "the trash itself can be neither removed nor renamed: gfs trash empty")
    return not_found(name)


def lookup(t: Tables, parent: int, name: bytes) -> int:
    """The inode of `name` in `parent`; `.` and `..` are understood, and the trash is found, which no entry names.

    Raises NOT_FOUND, NOT_DIRECTORY, STALE_INODE (the parent is gone), INVALID, NAME_TOO_LONG.
    """
    child = find(t, parent, name)
    if child is not None:
        return child
    record = load_directory(t, parent)
    if name == b".":
        return parent
    if name == b"..":
        return record.parent
    if parent == ROOT_INODE and name == TRASH_NAME and t.get(INODES, pack8(TRASH_INODE)) is not None:
        return TRASH_INODE
    check_name(name)
    raise not_found(name)


def open_directory(t: Tables, inode: int) -> InodeRecord:
    """A directory that can take new entries. Raises NOT_FOUND for one that was removed while somebody held it."""
    record = load_directory(t, inode)
    if record.nlink == 0:
        raise GfsError(Code.NOT_FOUND, f"directory {inode} was removed")
    return record


def list_page(t: Tables, inode: int, after: bytes, limit: int) -> tuple[list[tuple[bytes, int]], bool]:
    """At most `limit` entries (name, inode) in byte order behind the name `after` (b"": from the first), and
    whether there are more. Raises NOT_DIRECTORY, STALE_INODE."""
    load_directory(t, inode)
    start = entry_key(inode, after) + b"\0" if after else pack8(inode)
    rows = [(key[8:], unpack8(value)) for key, value in islice(t.range(ENTRIES, start, after_prefix(inode)), limit + 1)]
    more = len(rows) > limit
    return rows[:limit], more


def is_empty(t: Tables, inode: int) -> bool:
    """No entry in this directory."""
    return next(t.range(ENTRIES, pack8(inode), after_prefix(inode)), None) is None


def ancestors(t: Tables, directory: int) -> list[int]:
    """`directory`, its parent, and so on up to the root. Raises NOT_DIRECTORY, STALE_INODE."""
    chain = [directory]
    inode = directory
    raw = load_raw(t, inode)
    if raw_type(raw) != FileType.DIRECTORY:
        raise GfsError(Code.NOT_DIRECTORY, f"inode {inode} is not a directory")
    while inode != ROOT_INODE:
        inode = raw_parent(raw)
        chain.append(inode)
        raw = load_raw(t, inode)
    return chain
