"""Reading blocks of a chunk and checking them: no byte leaves before the whole block it lies in has verified [00126].

It decides nothing: a mismatch comes out as the number of the block.
"""

from __future__ import annotations

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_state import OpenChunk

DIRECT_READ_BYTES_MIN = 256 * 1024


def fetch(live: OpenChunk, view: memoryview, offset: int) -> None:
    """Fill `view` with stored bytes from `offset` of the chunk, unverified. Behind the end of the file are zeros."""
    count = live.file.pread_into(view, live.state.data_start + offset)
    if count < len(view):
        view[count:] = bytes(len(view) - count)


def fetch_direct(live: OpenChunk, aligned: memoryview, size: int, offset: int) -> None:
    """The same around the page cache. `aligned` is page-aligned memory with room for `size` rounded up to a page."""
    rounded = -(-size // fmt.PAGE_BYTES) * fmt.PAGE_BYTES
    count = live.direct().pread_into(aligned[:rounded], live.state.data_start + offset)
    if count < size:
        aligned[count:size] = bytes(size - count)


def first_bad_block(live: OpenChunk, view: memoryview, offset: int, committed: tuple[int, int]) -> int | None:
    """The first block in `view` that does not verify. `view` starts at block-aligned `offset` and ends at a block's
    end or at the committed length."""
    state = live.state
    table = state.table
    size = len(view)
    block = offset // BLOCK_BYTES
    complete = committed[0] // BLOCK_BYTES
    for at in range(0, size, BLOCK_BYTES):
        expected = fmt.table_entry(table, block) if block < complete else committed[1]
        if crc32c(view[at : at + BLOCK_BYTES]) != expected:
            return block
        block += 1
    return None


def bad_blocks(live: OpenChunk, view: memoryview, offset: int, committed: tuple[int, int]) -> list[int]:
    """All such blocks."""
    bad = []
    for at in range(0, len(view), BLOCK_BYTES):
        block = first_bad_block(live, view[at : at + BLOCK_BYTES], offset + at, committed)
        if block is not None:
            bad.append(block)
    return bad


def aligned_range(offset: int, size: int, length: int) -> tuple[int, int]:
    """The blocks around a range: (start, end), the end at most the committed length."""
    start = offset - offset % BLOCK_BYTES
    end = offset + size
    return start, min(length, end + -end % BLOCK_BYTES)
