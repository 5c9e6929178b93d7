"""Attributes of a file as `gfs ls` and `gfs stat` show them."""

from __future__ import annotations

import datetime
import stat
from typing import Any

from gfscore.client import Attr, FileType
from gfsmount.cli.output import shown

_TYPE_BITS = {
    FileType.FILE: stat.S_IFREG,
    FileType.DIRECTORY: stat.S_IFDIR,
    FileType.SYMLINK: stat.S_IFLNK,
    FileType.FIFO: stat.S_IFIFO,
    FileType.SOCKET: stat.S_IFSOCK,
    FileType.CHARACTER_DEVICE: stat.S_IFCHR,
    FileType.BLOCK_DEVICE: stat.S_IFBLK,
}


def mode_text(attr: Attr) -> str:
    """As `ls -l` writes it: drwxr-xr-x."""
    return stat.filemode(_TYPE_BITS.get(FileType(attr.type), 0) | attr.mode)


def time_text(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9).isoformat(" ")


def attributes(name: bytes, attr: Attr) -> dict[str, Any]:
    """For JSON. Times in nanoseconds since the epoch, size in bytes."""
    return {
        "name": shown(name),
        "inode": attr.inode,
        "type": FileType(attr.type).name.lower(),
        "mode": f"{attr.mode:04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "links": attr.nlink,
        "size": attr.size,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
    }


def long_row(name: bytes, attr: Attr) -> tuple[object, ...]:
    return (mode_text(attr), attr.nlink, attr.uid, attr.gid, attr.size, time_text(attr.mtime_ns), shown(name))
