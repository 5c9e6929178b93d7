"""Records of the metadata core as messages of the wire. No decisions."""

from __future__ import annotations

from gfscore.metadata.inodes import InodeRecord
from gfscore.proto import gfs_pb2 as pb


def attr_of(record: InodeRecord) -> pb.Attr:
    """All attributes of an inode."""
    return pb.Attr(
        inode=record.inode,
        type=record.type,  # type: ignore[arg-type]
        mode=record.mode,
        uid=record.uid,
        gid=record.gid,
        nlink=record.nlink,
        size=record.size,
        atime_ns=record.atime_ns,
        mtime_ns=record.mtime_ns,
        ctime_ns=record.ctime_ns,
        rdev=record.rdev,
        length_pending=record.length_pending,
    )
