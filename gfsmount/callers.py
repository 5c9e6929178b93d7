"""Which process asks, what groups it is in, and the offset of the last record each process appended through this mount.
Reads `/proc`; knows nothing of FUSE.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Protocol

OFFSETS_MAX = 65536


class Caller(Protocol):
    """Who makes a request, as FUSE tells it. `pid` is a thread's."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...


def thread_group(pid: int) -> int:
    """The process that thread `pid` (as FUSE names its caller) belongs to; `pid` itself where that cannot be known."""
    if pid <= 0:
        return pid
    try:
        # Only the leader of a group can be opened so: one cheap system call settles the ordinary case.
        os.close(os.pidfd_open(pid))
        return pid
    except OSError:
        pass
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line[5:])
    except (OSError, ValueError):
        pass
    return pid


def groups_of(caller: Caller) -> set[int]:
    """All groups of the caller; its main one alone where the others cannot be known."""
    groups = {caller.gid}
    try:
        with open(f"/proc/{caller.pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    groups.update(map(int, line[7:].split()))
    except (OSError, ValueError):
        pass
    return groups


class AppendOffsets:
    """Offset of the last record by (inode, process); the least recently appended are forgotten first."""

    __slots__ = ("_offsets",)

    def __init__(self) -> None:
        self._offsets: OrderedDict[tuple[int, int], int] = OrderedDict()

    def remember(self, inode: int, process: int, offset: int) -> None:
        key = (inode, process)
        offsets = self._offsets
        offsets[key] = offset
        offsets.move_to_end(key)
        if len(offsets) > OFFSETS_MAX:
            offsets.popitem(last=False)

    def get(self, inode: int, process: int) -> int | None:
        return self._offsets.get((inode, process))
