"""Bytes of one file that were written but not sent yet: pure bookkeeping, no I/O.

Segments are kept in order and never overlap; a later write cuts what it covers. Buffers are never copied, only
sliced, so a 1 MiB write of the kernel goes to the socket as it came.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES


class Segment(NamedTuple):
    """`data` belongs at byte `offset` of the file."""

    offset: int
    data: memoryview

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


class DirtyRanges:
    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._data: list[memoryview] = []
        self.size = 0  # bytes

    def __bool__(self) -> bool:
        return bool(self._offsets)

    @property
    def end(self) -> int:
        """One past the last dirty byte, 0 if there is none."""
        return self._offsets[-1] + len(self._data[-1]) if self._offsets else 0

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """`data` replaces whatever is dirty in its range."""
        view = memoryview(data)
        if not view:
            return
        if self._offsets and offset < self.end:
            self.discard(offset, offset + len(view))
            index = bisect_left(self._offsets, offset)
        else:
            index = len(self._offsets)
        self._offsets.insert(index, offset)
        self._data.insert(index, view)
        self.size += len(view)

    def discard(self, start: int, stop: int) -> None:
        """Forget what is dirty in [start, stop)."""
        first = max(bisect_right(self._offsets, start) - 1, 0)
        kept: list[Segment] = []
        last = first
        while last < len(self._offsets) and self._offsets[last] < stop:
            offset, data = self._offsets[last], self._data[last]
            end = offset + len(data)
            self.size -= len(data)
            if offset < start:
                kept.append(Segment(offset, data[: min(end, start) - offset]))
            if end > stop:
                kept.append(Segment(max(stop, offset), data[max(stop, offset) - offset :]))
            last += 1
        self._offsets[first:last] = [segment.offset for segment in kept]
        self._data[first:last] = [segment.data for segment in kept]
        self.size += sum(len(segment.data) for segment in kept)

    def overlaps(self, start: int, stop: int) -> bool:
        index = bisect_left(self._offsets, stop)
        return index > 0 and self._offsets[index - 1] + len(self._data[index - 1]) > start

    def contiguous_before(self, end: int, limit: int) -> int:
        """How many bytes just before `end` are dirty without a gap (at most about `limit`)."""
        index = bisect_left(self._offsets, end) - 1
        start = end
        while index >= 0 and self._offsets[index] + len(self._data[index]) >= start and end - start < limit:
            start = self._offsets[index]
            index -= 1
        return end - start

    def take(self, start: int, stop: int) -> list[Segment]:
        """Remove and return what is dirty in [start, stop), in order."""
        taken: list[Segment] = []
        index = max(bisect_right(self._offsets, start) - 1, 0)
        while index < len(self._offsets) and self._offsets[index] < stop:
            offset, data = self._offsets[index], self._data[index]
            low, high = max(offset, start), min(offset + len(data), stop)
            if low < high:
                taken.append(Segment(low, data[low - offset : high - offset]))
            index += 1
        if taken:
            self.discard(start, stop)
        return taken

    def first_offset(self) -> int:
        return self._offsets[0]


def payload_checksums(parts: list[memoryview]) -> list[int]:
    """CRC32C of each 64 KiB of the parts taken as one run of bytes."""
    if len(parts) == 1:
        view = parts[0]
        return [crc32c(view[i : i + BLOCK_BYTES]) for i in range(0, len(view), BLOCK_BYTES)]
    checksums: list[int] = []
    current, filled = 0, 0
    for part in parts:
        position = 0
        while position < len(part):
            count = min(BLOCK_BYTES - filled, len(part) - position)
            current = crc32c(part[position : position + count], current)
            position += count
            filled += count
            if filled == BLOCK_BYTES:
                checksums.append(current)
                current, filled = 0, 0
    if filled:
        checksums.append(current)
    return checksums


def merge_extents(segments: list[Segment]) -> list[tuple[int, int]]:
    """(offset, length) of the segments, neighbours joined."""
    extents: list[tuple[int, int]] = []
    for segment in segments:
        if extents and sum(extents[-1]) == segment.offset:
            extents[-1] = (extents[-1][0], extents[-1][1] + len(segment.data))
        else:
            extents.append((segment.offset, len(segment.data)))
    return extents
