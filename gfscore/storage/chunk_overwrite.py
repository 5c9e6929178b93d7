"""Overwriting committed bytes: verify what stays [00130], journal, write in place, then the block checksums.

`plan` only reads; `carry_out` writes. After a kill in between, replay ends at old or new for every block (rule 18).
"""

from __future__ import annotations

from collections.abc import Sequence

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_extents as ext
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_extend import put
from gfscore.storage.chunk_read import fetch
from gfscore.storage.chunk_state import OpenChunk
from gfscore.storage.overwrite_journal import BlockChange, OverwriteJournal


class BadBlock(Exception):
    """Committed bytes that have to stay do not verify."""

    def __init__(self, block: int) -> None:
        super().__init__(block)
        self.block = block


class Overwrite:
    """A planned overwrite: what goes where, what blocks hash to afterwards, and what was there before."""

    __slots__ = ("changes", "extents", "tail_crc", "undo")

    def __init__(self, extents: list[ext.Extent]) -> None:
        self.extents = extents
        self.changes: list[BlockChange] = []
        self.tail_crc: int | None = None  # of the last, partial block, where it changes
        self.undo: list[tuple[int, bytes | None]] = []  # (offset, old bytes; None: not known)

    @property
    def first_byte(self) -> int:
        """Start of the first block that changes."""
        return self.changes[0].block * BLOCK_BYTES

    def touches(self, block: int) -> bool:
        return any(change.block == block for change in self.changes)


def plan(live: OpenChunk, extents: list[ext.Extent], checksums: Sequence[int] | None) -> Overwrite:
    """Work out an overwrite of sorted extents below the committed length. Raises BadBlock."""
    state = live.state
    committed = state.committed
    length = committed[0]
    result = Overwrite(extents)
    scratch = memoryview(bytearray(BLOCK_BYTES))
    trusted = checksums if len(extents) == 1 and extents[0][0] % BLOCK_BYTES == 0 else None
    first = extents[0][0] // BLOCK_BYTES
    blocks = sorted(ext.by_block(extents).items())
    if len(blocks) > 1:
        for block, _ in blocks:
            live.file.prefetch(BLOCK_BYTES, state.data_start + block * BLOCK_BYTES)
    for block, pieces in blocks:
        start = block * BLOCK_BYTES
        covered = min(BLOCK_BYTES, length - start)
        old_crc = state.block_crc(block, committed)
        if sum(len(piece) for _, piece in pieces) == covered:
            if trusted is not None and covered == BLOCK_BYTES and block - first < len(trusted):
                crc = trusted[block - first]
            else:
                crc = 0
                for _, piece in pieces:
                    crc = crc32c(piece, crc)
            zeros = old_crc == (fmt.ZERO_BLOCK_CRC if covered == BLOCK_BYTES else crc32c(fmt.ZERO_BLOCK[:covered]))
            result.undo.append((start, fmt.ZERO_BLOCK[:covered] if zeros else None))
        else:
            content = scratch[:covered]
            fetch(live, content, start)
            if crc32c(content) != old_crc:
                raise BadBlock(block)
            for at, piece in pieces:
                result.undo.append((start + at, bytes(content[at : at + len(piece)])))
                content[at : at + len(piece)] = piece
            crc = crc32c(content)
        result.changes.append(BlockChange(block, covered, crc))
        if covered < BLOCK_BYTES:
            result.tail_crc = crc
    return result


def carry_out(live: OpenChunk, journal: OverwriteJournal, overwrite: Overwrite, durable: bool) -> None:
    """Journal, then write in place.

    Raises OSError when the journal refused (nothing happened), InPlaceFailed (the record has to be forgotten before
    anything else) or Unrestored when the disk refused in the middle.
    """
    state = live.state
    with journal.add(state.handle, state.version, overwrite.extents, overwrite.changes, durable):
        try:
            for offset, view in overwrite.extents:
                put(live, view, offset)
                state.physical_end = max(state.physical_end, offset + len(view))
            _change_table(live, overwrite.changes)
        except OSError as error:
            _restore(live, overwrite, error)
            raise InPlaceFailed(error) from error


class InPlaceFailed(Exception):
    """The disk refused in the middle of an overwrite; the bytes are as before. The record must be forgotten."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Unrestored(Exception):
    """As InPlaceFailed, but the old bytes could not be put back: the replica is damaged."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _restore(live: OpenChunk, overwrite: Overwrite, cause: OSError) -> None:
    state = live.state
    for offset, old in overwrite.undo:
        if old is None:
            raise Unrestored(cause)
        for at in range(0, len(old), fmt.PAGE_BYTES):
            piece = old[at : at + fmt.PAGE_BYTES]
            now = live.file.pread(len(piece), state.data_start + offset + at)
            if now.ljust(len(piece), b"\0") == piece:
                continue  # never written; a hole stays a hole, which a full disk could not fill
            try:
                live.file.pwrite(piece, state.data_start + offset + at)
            except OSError:
                raise Unrestored(cause) from cause
    lo, hi = overwrite.changes[0].block, overwrite.changes[-1].block
    try:
        live.file.pwrite(state.table[4 * lo : 4 * hi + 4], fmt.TABLE_START + 4 * lo)
    except OSError:
        raise Unrestored(cause) from cause


def _change_table(live: OpenChunk, changes: list[BlockChange]) -> None:
    """The checksums of complete blocks, in one write; the partial last block's lies in the header."""
    complete = [change for change in changes if change.covered == BLOCK_BYTES]
    if not complete:
        return
    lo, hi = complete[0].block, complete[-1].block
    raw = live.state.table[4 * lo : 4 * hi + 4]
    for change in complete:
        at = 4 * (change.block - lo)
        raw[at : at + 4] = change.crc.to_bytes(4, "little")
    live.file.pwrite(raw, fmt.TABLE_START + 4 * lo)
    live.state.table[4 * lo : 4 * hi + 4] = raw
