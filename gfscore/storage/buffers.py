"""Page-aligned buffers that are used again and again: what O_DIRECT needs, and what pushes are received into.

Anonymous memory maps, because fresh memory costs a page fault per 4 KiB and `bytearray` is not aligned.
The pool bounds what is *kept*; who asks beyond that gets memory that goes away with its release, so that a
thread never waits here. The limits on what may be in flight belong to the server.
"""

from __future__ import annotations

import mmap
import threading

from gfscore.ids import BLOCK_BYTES, PIECE_BYTES

SMALL_BYTES = 2 * BLOCK_BYTES  # an unaligned read of 64 KiB touches two blocks
LARGE_BYTES = PIECE_BYTES + BLOCK_BYTES  # an unaligned piece touches one block more than an aligned one


class PooledBuffer:
    """A lease on one buffer. `view` is the part that was asked for (or, after a read, the bytes that were read)."""

    __slots__ = ("_memory", "_pool", "view")

    def __init__(self, pool: BufferPool, memory: mmap.mmap, size: int) -> None:
        self._pool = pool
        self._memory: mmap.mmap | None = memory
        self.view = memoryview(memory)[:size]

    @property
    def whole(self) -> memoryview:
        """All of the buffer, page-aligned, at least as large as what was asked for."""
        if self._memory is None:
            raise ValueError("the buffer was released")
        return memoryview(self._memory)

    def release(self) -> None:
        """Give the memory back; `view` is not to be used any more. A second call does nothing."""
        memory, self._memory = self._memory, None
        if memory is not None:
            self.view = memoryview(b"")
            self._pool._give_back(memory)


class BufferPool:
    """Thread-safe. `keep_bytes` bounds the memory kept for later use."""

    def __init__(self, keep_bytes: int = 16 * 1024 * 1024) -> None:
        self._lock = threading.Lock()
        self._free: dict[int, list[mmap.mmap]] = {SMALL_BYTES: [], LARGE_BYTES: []}
        self._keep_bytes = keep_bytes
        self._kept_bytes = 0
        self._out_bytes = 0

    def acquire(self, size: int) -> PooledBuffer:
        """A page-aligned buffer for `size` bytes, with whatever bytes were in it. Never waits."""
        room = SMALL_BYTES if size <= SMALL_BYTES else LARGE_BYTES if size <= LARGE_BYTES else _round_up(size)
        with self._lock:
            self._out_bytes += room
            free = self._free.get(room)
            if free:
                self._kept_bytes -= room
                return PooledBuffer(self, free.pop(), size)
        return PooledBuffer(self, mmap.mmap(-1, room), size)

    def _give_back(self, memory: mmap.mmap) -> None:
        room = len(memory)
        with self._lock:
            self._out_bytes -= room
            free = self._free.get(room)
            if free is not None and self._kept_bytes + room <= self._keep_bytes:
                free.append(memory)
                self._kept_bytes += room

    def statistics(self) -> tuple[int, int]:
        """(bytes in use, bytes kept for later)."""
        with self._lock:
            return self._out_bytes, self._kept_bytes


def _round_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
