"""Checking a whole chunk, data and headers, for the scrub and for `gfs fsck` [00131].

Piece by piece, so that other calls get their turn in between, and around the page cache where the file system can: what
is checked is the disk, and nothing that somebody reads is pushed out of memory for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage import chunk_read
from gfscore.storage.chunk_state import disk_error

if TYPE_CHECKING:
    from gfscore.storage.chunk_file import Chunk
    from gfscore.storage.chunk_store import ChunkStore

PIECE_BYTES = 1024 * 1024


def verify(chunk: Chunk, store: ChunkStore) -> list[int]:
    """Check everything; the numbers of the blocks that do not verify. Sets `chunk.corrupt` to what came out."""
    good = verify_headers(chunk, store)
    bad: list[int] = []
    start = 0
    while start < chunk.length:
        bad += verify_piece(chunk, store, start)
        start += PIECE_BYTES
    chunk.corrupt = bool(bad) or not good
    return bad


def verify_piece(chunk: Chunk, store: ChunkStore, start: int) -> list[int]:
    """Read up to PIECE_BYTES from `start`, a multiple of the block size; the blocks that do not verify.

    Raises GfsError(IO) for what cannot be read.
    """
    with chunk.lock:
        live = chunk.get_locked()
        committed = live.state.committed
    size = min(PIECE_BYTES, committed[0] - start)
    if size <= 0:
        return []
    buffer = store.pool.acquire(PIECE_BYTES)
    try:
        chunk_read.fetch_direct(live, buffer.whole, size, start)
        if chunk_read.first_bad_block(live, buffer.whole[:size], start, committed) is None:
            return []
        with chunk.lock:  # a mutation may have been at work on these bytes: look again when none is
            live = chunk.get_locked()
            committed = live.state.committed
            size = max(0, min(PIECE_BYTES, committed[0] - start))
            chunk_read.fetch(live, buffer.whole[:size], start)
            bad = chunk_read.bad_blocks(live, buffer.whole[:size], start, committed)
    except OSError as error:
        raise disk_error(error, chunk.handle) from error
    finally:
        buffer.release()
    if bad:
        chunk.corrupt = True
    return bad


def verify_headers(chunk: Chunk, store: ChunkStore) -> bool:
    """Whether header pages and block checksums on the disk are what they should be.

    Raises GfsError: UNKNOWN_CHUNK when the file was deleted behind our back, CHECKSUM_MISMATCH when no page is good.
    """
    with chunk.lock:
        live = chunk.get_locked()
        if live.doubtful:
            chunk.adopt(None)  # perhaps it can be read by now
            live = chunk.get_locked()
        state = live.state
        try:
            if not store.disk.exists(chunk.path):
                raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {chunk.handle:016x}: its file is not there any more")
            raw = live.file.pread(fmt.TABLE_START, 0)
            table = live.file.pread(state.committed[0] // BLOCK_BYTES * 4, fmt.TABLE_START)
        except OSError as error:
            raise disk_error(error, chunk.handle) from error
        raw += bytes(fmt.TABLE_START - len(raw))
        _, damaged = fmt.parse_headers(raw, chunk.handle, state.chunk_size)
        newest = raw[state.slot * fmt.PAGE_BYTES : (state.slot + 1) * fmt.PAGE_BYTES]
        good = not damaged and newest == state.page and table == state.table[: state.committed[0] // BLOCK_BYTES * 4]
        if not good:
            chunk.corrupt = True
        return good


def describe_damage(bad: list[int]) -> str:
    """For people: what a check found. `bad`: blocks; none, when it is the headers."""
    if not bad:
        return "a header page or the table of block checksums is damaged"
    if len(bad) == 1:
        return f"block {bad[0]} does not match its checksum"
    return f"{len(bad)} blocks do not match their checksums, the first is {bad[0]}"
