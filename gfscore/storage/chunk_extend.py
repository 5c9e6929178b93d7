"""Writing behind the committed length: data first, then block checksums; the caller commits the header page.

Nothing here touches a committed byte, so a kill at any moment leaves the chunk as it was. Leftovers of earlier
attempts behind the committed length are simply written over [00107].
"""

from __future__ import annotations

from collections.abc import Sequence

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES, PIECE_BYTES
from gfscore.storage import chunk_extents as ext
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_state import OpenChunk

DIRECT_BYTES_MIN = 256 * 1024


def write_behind(
    live: OpenChunk, extents: list[ext.Extent], checksums: Sequence[int] | None, committed: tuple[int, int]
) -> tuple[int, int]:
    """Write sorted extents that start at or behind `committed` (length, tail checksum); the new pair.

    Gaps become zeros. `checksums`: CRC32C per block of a single block-aligned extent, trusted.
    Raises OSError, and then nothing counts.
    """
    position, tail = committed
    first_block = position // BLOCK_BYTES
    state = live.state
    if state.physical_end > position and _has_gap(extents, position):
        # A gap reads as zeros only where the file has nothing; leftovers must go first.
        live.file.truncate(state.data_start + position)
        state.physical_end = position
    completed: list[int] = []
    for offset, view in extents:
        if offset > position:
            tail = ext.extend_crc_zeros(tail, position, offset, completed)
        position = offset + len(view)
        put(live, view, offset)
        if position > state.physical_end:
            state.physical_end = position
        if checksums is not None and offset % BLOCK_BYTES == 0 and len(checksums) == fmt.block_count(len(view)):
            completed.extend(checksums[: len(view) // BLOCK_BYTES])
            tail = checksums[-1] if len(view) % BLOCK_BYTES else 0
        else:
            tail = ext.extend_crc(tail, offset, view, completed)
    write_table(live, first_block, completed)
    return position, tail


def write_zeros(live: OpenChunk, committed: tuple[int, int], end: int) -> tuple[int, int]:
    """Extend with zeros to `end`, as a hole that the file's size includes; the new (length, tail checksum)."""
    position, tail = committed
    state = live.state
    if state.physical_end > position:
        live.file.truncate(state.data_start + position)
    live.file.truncate(state.data_start + end)
    state.physical_end = end
    completed: list[int] = []
    tail = ext.extend_crc_zeros(tail, position, end, completed)
    write_table(live, position // BLOCK_BYTES, completed)
    return end, tail


def write_padding(live: OpenChunk, committed: tuple[int, int], end: int, pad_byte: int) -> tuple[int, int]:
    """Extend with `pad_byte` to `end` [0106]; the new (length, tail checksum)."""
    if pad_byte == 0:
        return write_zeros(live, committed, end)
    position, tail = committed
    block = bytes([pad_byte]) * BLOCK_BYTES
    completed: list[int] = []
    tail = ext.extend_crc_repeated(tail, position, end, completed, block, crc32c(block))
    piece = memoryview(bytes([pad_byte]) * min(PIECE_BYTES, end - position))
    at = position
    while at < end:
        count = min(len(piece), end - at)
        live.file.pwrite(piece[:count], live.state.data_start + at)
        at += count
    live.state.physical_end = max(live.state.physical_end, end)
    write_table(live, position // BLOCK_BYTES, completed)
    return end, tail


def put(live: OpenChunk, view: memoryview, offset: int) -> None:
    """Write data bytes at `offset` of the chunk: large aligned ones around the page cache, the rest through it."""
    size = len(view)
    position = live.state.data_start + offset
    if size >= DIRECT_BYTES_MIN and offset % fmt.PAGE_BYTES == 0 and ext.page_aligned(view):
        whole = size - size % fmt.PAGE_BYTES
        live.direct().pwrite(view[:whole], position)
        if whole < size:
            live.file.pwrite(view[whole:], position + whole)
    else:
        live.file.pwrite(view, position)


def write_table(live: OpenChunk, first_block: int, checksums: list[int]) -> None:
    """Store checksums of consecutive blocks, in the file and then in memory."""
    if checksums:
        raw = fmt.pack_checksums(checksums)
        live.file.pwrite(raw, fmt.TABLE_START + 4 * first_block)
        live.state.table[4 * first_block : 4 * first_block + len(raw)] = raw


def _has_gap(extents: list[ext.Extent], position: int) -> bool:
    for offset, view in extents:
        if offset > position:
            return True
        position = offset + len(view)
    return False
