"""After a restart: replay of the redo journal, and, after a power loss, finding out how much of a chunk survived.

A kill leaves the page cache, so then only the replay has work to do and nothing may be cut. After a power loss what was
never synced may be missing in any part: the chunk ends at the last byte up to which everything verifies, never
before what was synced. It changes data only through what journal or headers vouch for.
"""

from __future__ import annotations

from typing import NamedTuple

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_extend import write_table
from gfscore.storage.chunk_extents import Extent, by_block
from gfscore.storage.chunk_read import fetch
from gfscore.storage.chunk_state import ChunkState, OpenChunk
from gfscore.storage.overwrite_journal import BlockChange, Record


class _Redo(NamedTuple):
    """What one record does to one block."""

    pieces: list[Extent]
    change: BlockChange


def replay(live: OpenChunk, records: list[Record], *, power_lost: bool) -> int:
    """Bring every block that the records of this chunk touch to a state that verifies; how many were changed.

    Records are in order; nothing was cut or replaced since the first (`OverwriteJournal.forget`). A block whose other
    bytes are damaged is left alone: it is found out when it is read.
    """
    blocks: dict[int, list[_Redo]] = {}
    for record in records:
        pieces = by_block(record.extents)
        for change in record.blocks:
            blocks.setdefault(change.block, []).append(_Redo(pieces[change.block], change))
    return sum(_redo_block(live, block, redo, power_lost) for block, redo in sorted(blocks.items()))


def _redo_block(live: OpenChunk, block: int, redo: list[_Redo], power_lost: bool) -> bool:
    state = live.state
    committed = state.committed
    start = block * BLOCK_BYTES
    covered = min(BLOCK_BYTES, committed[0] - start)
    # A record that covers more than the header commits was never synced with its extension: it promises nothing.
    redo = [step for step in redo if step.change.covered <= covered]
    if covered <= 0 or not redo:
        return False
    content = memoryview(bytearray(covered))
    fetch(live, content, start)
    before = bytes(content)
    for step in redo:
        for at, piece in step.pieces:
            content[at : at + len(piece)] = piece
    change = redo[-1].change
    synced = state.synced_length - start
    if crc32c(content) == state.block_crc(block, committed) or (
        # An extension after the last sync was lost; `settle` will cut it off.
        power_lost and change.covered <= synced < covered and crc32c(content[:synced]) == state.synced_tail
    ):
        if content != before:
            live.file.pwrite(content, state.data_start + start)
        return content != before
    if crc32c(content[: change.covered]) != change.crc:
        return False
    if change.covered < covered and (not power_lost or change.covered < synced):
        return False  # only a power loss can take back an extension, and none that was synced
    live.file.pwrite(content[: change.covered], state.data_start + start)
    if change.covered == BLOCK_BYTES:
        write_table(live, block, [change.crc])
    else:
        end = start + change.covered
        if end == state.synced_length:
            state.synced_tail = change.crc
        _commit_cut(live, end, change.crc)
    return True


def settle(live: OpenChunk, damaged_pages: list[int]) -> bool:
    """After a power loss: cut the chunk to what verifies, from what was synced upwards; whether anything changed.

    Synced blocks are not looked at (a read does that). The caller makes the result durable.
    """
    state = live.state
    length, tail = _surviving(live)
    changed = (length, tail) != state.committed
    if changed:
        _commit_cut(live, length, tail)
    for page in damaged_pages:
        if page != state.slot:
            live.file.pwrite(state.page, page * fmt.PAGE_BYTES)
    return changed or bool(damaged_pages)


def _surviving(live: OpenChunk) -> tuple[int, int]:
    state = live.state
    length = state.committed[0]
    synced = min(state.synced_length, length)
    scratch = memoryview(bytearray(BLOCK_BYTES))
    for block in range(synced // BLOCK_BYTES, fmt.block_count(length)):
        start = block * BLOCK_BYTES
        content = scratch[: min(BLOCK_BYTES, length - start)]
        fetch(live, content, start)
        if crc32c(content) == state.block_crc(block, state.committed):
            continue
        if start >= synced:
            return start, 0
        if synced < length and crc32c(content[: synced - start]) == state.synced_tail:
            return synced, state.synced_tail
        break  # synced bytes are damaged: that is no power loss, so leave it to be found and reported
    return state.committed


def _commit_cut(live: OpenChunk, length: int, tail: int) -> None:
    state: ChunkState = live.state
    slots = [slot for slot in fmt.read_slots(state.page, state.slot_count) if slot[2] + slot[3] <= length]
    state.commit(live.file, length, tail, slots=slots, sync=True)
