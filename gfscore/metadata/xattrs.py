"""Extended attributes: names and values that go with an inode. The names `gfs.*` never come here."""

from __future__ import annotations

from gfscore.errors import Code, GfsError
from gfscore.ids import NAME_BYTES_MAX, XATTR_BYTES_MAX
from gfscore.metadata.inodes import HAS_XATTRS, load, store
from gfscore.metadata.keys import after_prefix, pack8
from gfscore.metadata.tables import XATTRS, Tables
from gfscore.metadata.transaction import Transaction

LIST_BYTES_MAX = 65536  # all names of an inode with their NULs: what listxattr can answer


def _check(name: bytes) -> None:
    if not name or b"\0" in name:
        raise GfsError(Code.INVALID, "the name of an extended attribute is 1 byte or more, none of them NUL")
    if len(name) > NAME_BYTES_MAX:
        raise GfsError(Code.NAME_TOO_LONG, f"the name of an extended attribute has at most {NAME_BYTES_MAX} bytes")


def _missing(name: bytes) -> GfsError:
    return GfsError(Code.NO_ATTRIBUTE, f"no extended attribute {name!r}")


def get_xattr(t: Tables, inode: int, name: bytes) -> bytes:
    """Raises NO_ATTRIBUTE, STALE_INODE, INVALID, NAME_TOO_LONG."""
    _check(name)
    value = t.get(XATTRS, pack8(inode) + name)
    if value is None:
        load(t, inode)
        raise _missing(name)
    return value


def list_xattrs(t: Tables, inode: int) -> list[bytes]:
    """All names, in byte order. Raises STALE_INODE."""
    if not load(t, inode).flags & HAS_XATTRS:
        return []
    return [key[8:] for key, _ in t.range(XATTRS, pack8(inode), after_prefix(inode))]


def set_xattr(
    tx: Transaction,
    inode: int,
    name: bytes,
    value: bytes,
    *,
    now_ns: int,
    create: bool = False,
    replace: bool = False,
) -> None:
    """Set one attribute. Raises EXISTS (`create`), NO_ATTRIBUTE (`replace`), ATTRIBUTE_TOO_LARGE, NO_SPACE (too many
    names), STALE_INODE, INVALID, NAME_TOO_LONG."""
    _check(name)
    if len(value) > XATTR_BYTES_MAX:
        raise GfsError(
            Code.ATTRIBUTE_TOO_LARGE, f"an extended attribute of {len(value)} bytes is longer than {XATTR_BYTES_MAX}"
        )
    record = load(tx, inode)
    key = pack8(inode) + name
    if tx.get(XATTRS, key) is None:
        if replace:
            raise _missing(name)
        names = list_xattrs(tx, inode)
        if sum(map(len, names)) + len(names) + len(name) + 1 > LIST_BYTES_MAX:
            raise GfsError(Code.NO_SPACE, f"the names of an inode's extended attributes exceed {LIST_BYTES_MAX} bytes")
    elif create:
        raise GfsError(Code.EXISTS, f"the extended attribute {name!r} exists already")
    tx.put(XATTRS, key, value)
    record.flags |= HAS_XATTRS
    record.ctime_ns = now_ns
    store(tx, record)


def remove_xattr(tx: Transaction, inode: int, name: bytes, *, now_ns: int) -> None:
    """Raises NO_ATTRIBUTE, STALE_INODE, INVALID, NAME_TOO_LONG."""
    _check(name)
    record = load(tx, inode)
    key = pack8(inode) + name
    if tx.get(XATTRS, key) is None:
        raise _missing(name)
    tx.delete(XATTRS, key)
    if not list_xattrs(tx, inode):
        record.flags &= ~HAS_XATTRS
    record.ctime_ns = now_ns
    store(tx, record)
