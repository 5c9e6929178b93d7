"""What the client library takes and gives: plain values, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from gfscore.proto import gfs_pb2 as pb


class FileType(IntEnum):
    """Numbers as on the wire."""

    UNKNOWN = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


@dataclass(slots=True)
class Attr:
    """Attributes of an inode. `mode` has the permission bits only; times are nanoseconds since the epoch.

    `volatile`: somebody else may be changing the file right now; neither attributes nor data may be cached.
    """

    inode: int
    type: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int = 0
    volatile: bool = False
    length_pending: bool = False

    def copy(self) -> Attr:
        return Attr(
            self.inode,
            self.type,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.rdev,
            self.volatile,
            self.length_pending,
        )


def attr_from_wire(attr: pb.Attr) -> Attr:
    return Attr(
        attr.inode,
        attr.type,
        attr.mode,
        attr.uid,
        attr.gid,
        attr.nlink,
        attr.size,
        attr.atime_ns,
        attr.mtime_ns,
        attr.ctime_ns,
        attr.rdev,
        False,
        attr.length_pending,
    )


class Entry(NamedTuple):
    name: bytes
    attr: Attr


@dataclass(slots=True)
class AttrChanges:
    """What `setattr` changes; None leaves a thing as it is. Times in nanoseconds since the epoch."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    atime_now: bool = False
    mtime_now: bool = False


@dataclass(slots=True)
class Invalidation:
    """What another client changed. `names`: entries of the directory `inode`; inode 0: anything may have changed."""

    inode: int
    names: list[bytes]
    attr: bool
    data: bool


class FileSystemSpace(NamedTuple):
    total_bytes: int
    free_bytes: int
    files: int
