"""The inode record: its fields, its bytes, and how it is loaded and stored.

Everything about one file that is not a name, a chunk or a large value. Knows no operation on the namespace.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Protocol

from gfscore.errors import Code, GfsError
from gfscore.metadata.keys import pack8
from gfscore.metadata.tables import INODES, Tables


class FileType(IntEnum):
    """Equal to the wire's FileType."""

    UNKNOWN = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


_TYPES = tuple(FileType)

# The third byte of a record: the type in three bits, then these.
TYPE_MASK = 0x07
PENDING_BIT = 0x08  # length_pending
HAS_XATTRS = 0x10  # `flags`: saves a range over the table for the many that have none
HAS_POLICY = 0x20
HAS_SEGMENTS = 0x40  # the mapping has, or had, a segment behind the first
FLAGS_MASK = HAS_XATTRS | HAS_POLICY | HAS_SEGMENTS

LENGTH_MAX = (1 << 63) - 1  # bytes, what an off_t can say

FORMAT = 1
_ATIME, _CTIME, NLINK_PRESENT, _RDEV, _PARENT = 1, 2, 4, 8, 16
# format, which optional fields follow, type | flags, mode, uid, gid, size, mtime; then atime and ctime where they
# differ from mtime, nlink where it is not 1, rdev where it is not 0, and last the parent of a directory.
_CORE = "<BBBHIIQq"
_LAYOUTS = [
    Struct(
        _CORE
        + ("q" if mask & _ATIME else "")
        + ("q" if mask & _CTIME else "")
        + ("I" if mask & NLINK_PRESENT else "")
        + ("Q" if mask & _RDEV else "")
        + ("Q" if mask & _PARENT else "")
    )
    for mask in range(32)
]
_PARENT_FIELD = Struct("<Q")


class Writer(Tables, Protocol):
    """A transaction, as far as `store` needs it."""

    def put(self, table: str, key: bytes, value: bytes) -> None: ...


@dataclass(slots=True)
class InodeRecord:
    """Attributes of an inode. Times in nanoseconds since the epoch, size in bytes, mode without the type bits."""

    inode: int
    type: FileType
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    parent: int = 0  # of a directory; the root is its own
    length_pending: bool = False
    flags: int = 0

    def pack(self) -> bytes:
        """29 bytes for a plain new file, 45 for one with three different times."""
        mask = 0
        extra = []
        mtime_ns = self.mtime_ns
        if self.atime_ns != mtime_ns:
            mask |= _ATIME
            extra.append(self.atime_ns)
        if self.ctime_ns != mtime_ns:
            mask |= _CTIME
            extra.append(self.ctime_ns)
        if self.nlink != 1:
            mask |= NLINK_PRESENT
            extra.append(self.nlink)
        if self.rdev:
            mask |= _RDEV
            extra.append(self.rdev)
        if self.parent:
            mask |= _PARENT
            extra.append(self.parent)
        kind = self.type | self.flags | (PENDING_BIT if self.length_pending else 0)
        return _LAYOUTS[mask].pack(FORMAT, mask, kind, self.mode, self.uid, self.gid, self.size, mtime_ns, *extra)


def unpack(inode: int, raw: bytes) -> InodeRecord:
    """The record in `raw`. Raises ValueError for a format this version does not know."""
    if raw[0] != FORMAT:
        raise ValueError(f"inode {inode}: format {raw[0]} is not known")
    mask = raw[1]
    _, _, kind, mode, uid, gid, size, mtime_ns, *extra = _LAYOUTS[mask].unpack(raw)
    atime_ns = ctime_ns = mtime_ns
    nlink = 1
    rdev = parent = 0
    if mask:
        extra.reverse()
        if mask & _ATIME:
            atime_ns = extra.pop()
        if mask & _CTIME:
            ctime_ns = extra.pop()
        if mask & NLINK_PRESENT:
            nlink = extra.pop()
        if mask & _RDEV:
            rdev = extra.pop()
        if mask & _PARENT:
            parent = extra.pop()
    return InodeRecord(
        inode, _TYPES[kind & TYPE_MASK], mode, uid, gid, nlink, size, atime_ns, mtime_ns, ctime_ns,
        rdev, parent, kind & PENDING_BIT != 0, kind & FLAGS_MASK,
    )  # fmt: skip


def stale(inode: int) -> GfsError:
    """The error for an inode that is not there (any more)."""
    return GfsError(Code.STALE_INODE, f"inode {inode} does not exist any more")


def load_raw(t: Tables, inode: int) -> bytes:
    """The packed record. Raises STALE_INODE."""
    raw = t.get(INODES, pack8(inode))
    if raw is None:
        raise stale(inode)
    return raw


def load(t: Tables, inode: int) -> InodeRecord:
    """Raises STALE_INODE where there is no such inode."""
    return unpack(inode, load_raw(t, inode))


def load_file(t: Tables, inode: int) -> InodeRecord:
    """A regular file. Raises STALE_INODE, IS_DIRECTORY, or INVALID for any other type."""
    record = load(t, inode)
    if record.type is not FileType.FILE:
        if record.type is FileType.DIRECTORY:
            raise GfsError(Code.IS_DIRECTORY, f"inode {inode} is a directory")
        raise GfsError(Code.INVALID, f"inode {inode} is not a regular file")
    return record


def load_directory(t: Tables, inode: int) -> InodeRecord:
    """A directory. Raises STALE_INODE, NOT_DIRECTORY."""
    record = load(t, inode)
    if record.type is not FileType.DIRECTORY:
        raise GfsError(Code.NOT_DIRECTORY, f"inode {inode} is not a directory")
    return record


def store(tx: Writer, record: InodeRecord) -> None:
    tx.put(INODES, pack8(record.inode), record.pack())


def raw_type(raw: bytes) -> int:
    """The type in a packed record."""
    return raw[2] & TYPE_MASK


def raw_parent(raw: bytes) -> int:
    """The parent in a packed directory record."""
    return int.from_bytes(raw[-8:], "little")


def raw_with_parent(raw: bytes, parent: int) -> bytes:
    """A packed directory record with another parent."""
    return raw[:-8] + _PARENT_FIELD.pack(parent)


def raw_not_pending(raw: bytes) -> bytes:
    """A packed record with `length_pending` cleared."""
    if raw[2] & PENDING_BIT:
        return raw[:2] + bytes((raw[2] & ~PENDING_BIT,)) + raw[3:]
    return raw
