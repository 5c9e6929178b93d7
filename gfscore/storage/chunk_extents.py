"""Ranges of one mutation put in order: sorted, without overlaps, split at the committed length, cut into blocks.

Pure. Extents are (offset in the chunk, bytes); where two overlap the later one of the list wins, as if they had
been written one after the other.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

from gfscore.checksum import Buffer, crc32c
from gfscore.ids import BLOCK_BYTES
from gfscore.storage.chunk_format import PAGE_BYTES, ZERO_BLOCK, ZERO_BLOCK_CRC

Extent = tuple[int, memoryview]
_JOIN_BYTES_MAX = 32 * 1024  # smaller neighbours are joined: a copy is cheaper than a system call
_RUN_BYTES_MAX = 1024 * 1024


def normalise(extents: Sequence[tuple[int, Buffer]]) -> list[Extent]:
    """Sorted, non-empty, non-overlapping extents with the same effect; small neighbours joined."""
    ordered = [(offset, memoryview(data).cast("B")) for offset, data in extents if len(data)]
    if len(ordered) < 2:
        return ordered
    result = sorted(ordered, key=lambda extent: extent[0])
    if any(one[0] + len(one[1]) > two[0] for one, two in pairwise(result)):
        result = _without_overlaps(ordered)
    return _joined(result)


def _without_overlaps(extents: list[Extent]) -> list[Extent]:
    """Later ones first: each keeps only what nobody after it covers."""
    taken: list[Extent] = []
    for offset, view in reversed(extents):
        pieces = [(offset, view)]
        for start, other in taken:
            end = start + len(other)
            left: list[Extent] = []
            for at, piece in pieces:
                if at + len(piece) <= start or at >= end:
                    left.append((at, piece))
                    continue
                if at < start:
                    left.append((at, piece[: start - at]))
                if at + len(piece) > end:
                    left.append((end, piece[end - at :]))
            pieces = left
        taken.extend(pieces)
    return sorted(taken, key=lambda extent: extent[0])


def _joined(extents: list[Extent]) -> list[Extent]:
    result: list[Extent] = []
    run: list[memoryview] = []
    run_start = run_end = run_bytes = 0

    def close_run() -> None:
        if run:
            result.append((run_start, run[0] if len(run) == 1 else memoryview(b"".join(run))))
            run.clear()

    for offset, view in extents:
        small = len(view) < _JOIN_BYTES_MAX
        if not (run and small and offset == run_end and run_bytes + len(view) <= _RUN_BYTES_MAX):
            close_run()
            if not small:
                result.append((offset, view))
                continue
            run_start, run_bytes = offset, 0
        run.append(view)
        run_end = offset + len(view)
        run_bytes += len(view)
    close_run()
    return result


def split_at(extents: list[Extent], length: int) -> tuple[list[Extent], list[Extent]]:
    """(what overwrites committed bytes, what extends the chunk)."""
    inside: list[Extent] = []
    behind: list[Extent] = []
    for offset, view in extents:
        if offset >= length:
            behind.append((offset, view))
        elif offset + len(view) <= length:
            inside.append((offset, view))
        else:
            inside.append((offset, view[: length - offset]))
            behind.append((length, view[length - offset :]))
    return inside, behind


def by_block(extents: list[Extent]) -> dict[int, list[Extent]]:
    """Pieces by block number, with offsets inside the block."""
    blocks: dict[int, list[Extent]] = {}
    for offset, view in extents:
        done = 0
        while done < len(view):
            block, at = divmod(offset + done, BLOCK_BYTES)
            count = min(BLOCK_BYTES - at, len(view) - done)
            blocks.setdefault(block, []).append((at, view[done : done + count]))
            done += count
    return blocks


def extend_crc(tail_crc: int, position: int, data: memoryview, completed: list[int]) -> int:
    """The tail checksum after `data` at `position` (the end so far); checksums of completed blocks are appended."""
    size = len(data)
    room = BLOCK_BYTES - position % BLOCK_BYTES
    if size < room:
        return crc32c(data, tail_crc)
    completed.append(crc32c(data[:room], tail_crc))
    done = room
    while size - done >= BLOCK_BYTES:
        completed.append(crc32c(data[done : done + BLOCK_BYTES]))
        done += BLOCK_BYTES
    return crc32c(data[done:]) if done < size else 0


def extend_crc_zeros(tail_crc: int, position: int, end: int, completed: list[int]) -> int:
    """The same for zeros from `position` to `end`; costs next to nothing however many they are."""
    return extend_crc_repeated(tail_crc, position, end, completed, ZERO_BLOCK, ZERO_BLOCK_CRC)


def extend_crc_repeated(
    tail_crc: int, position: int, end: int, completed: list[int], block: bytes, block_crc: int
) -> int:
    """The same for one byte repeated; `block` is a block of it and `block_crc` its checksum."""
    view = memoryview(block)
    at = position % BLOCK_BYTES
    if at:
        count = min(BLOCK_BYTES - at, end - position)
        tail_crc = crc32c(view[:count], tail_crc)
        position += count
        if position % BLOCK_BYTES:
            return tail_crc
        completed.append(tail_crc)
    completed.extend([block_crc] * ((end - position) // BLOCK_BYTES))
    rest = (end - position) % BLOCK_BYTES
    return crc32c(view[:rest]) if rest else 0


def page_aligned(view: memoryview) -> bool:
    """Whether O_DIRECT may write from this memory. Read-only memory counts as not aligned: it is never a pool's."""
    if view.readonly:
        return False
    return ctypes.addressof(ctypes.c_char.from_buffer(view)) % PAGE_BYTES == 0
