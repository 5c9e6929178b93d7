"""The blocks of an operation log segment: 508 bytes of the stream of frames and a CRC32C, in the 512 bytes a disk
writes as one. So each block is new, or as it was before (unwritten: zeros), or damaged, and these are told apart.

Pure functions over bytes. Positions count bytes of the stream, offsets bytes of the file.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from gfscore.checksum import Buffer, crc32c

PAGE_BYTES = 4096
BLOCK_BYTES = 512
DATA_BYTES = 508  # of the stream, in each block
PAGE_DATA_BYTES = PAGE_BYTES // BLOCK_BYTES * DATA_BYTES

UNWRITTEN, WRITTEN, DAMAGED = 0, 1, 2

_MASK = 0xFFFFFFFF
_ZEROS = bytes(DATA_BYTES)
_BLOCK = Struct("<508sI")


class Blocks(NamedTuple):
    """`stream` has zeros for what is unwritten or damaged; `states` has a byte for each block up to the last one that
    is not zeros."""

    stream: bytes
    states: bytes


def offset_of(position: int) -> int:
    """Where in the file a byte of the stream is. Behind the header page."""
    return PAGE_BYTES + position // DATA_BYTES * BLOCK_BYTES + position % DATA_BYTES


def stream_bytes(file_bytes: int) -> int:
    """How much of the stream whole pages of a file of this size hold, its header page not counted."""
    return max(0, file_bytes // PAGE_BYTES - 1) * PAGE_DATA_BYTES


def pack_pages(stream: Buffer, position: int, seed: int) -> bytes:
    """Whole pages with `stream`, which begins at `position`, the start of a page. `seed` differs between segments: a
    block of another one, or from another place, does not verify."""
    number = position // DATA_BYTES
    parts: list[Buffer] = []
    for start in range(0, len(stream), DATA_BYTES):
        data = stream[start : start + DATA_BYTES]
        if len(data) < DATA_BYTES:
            data = bytes(data).ljust(DATA_BYTES, b"\0")
        parts.append(data)
        parts.append(crc32c(data, (seed + number) & _MASK).to_bytes(4, "little"))
        number += 1
    missing = -(len(parts) // 2) % (PAGE_BYTES // BLOCK_BYTES)
    if missing:
        parts.append(bytes(missing * BLOCK_BYTES))
    return b"".join(parts)


def unpack_blocks(data: bytes, seed: int) -> Blocks:
    """The stream of a whole segment file."""
    used = len(data.rstrip(b"\0")) - PAGE_BYTES
    if used <= 0:
        return Blocks(b"", b"")
    blocks = data[PAGE_BYTES : PAGE_BYTES - (-used // BLOCK_BYTES) * BLOCK_BYTES]
    if len(blocks) % BLOCK_BYTES:  # a file that was cut
        blocks = blocks.ljust(-(-len(blocks) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")
    parts: list[bytes] = []
    states = bytearray(len(blocks) // BLOCK_BYTES)
    for number, (piece, said) in enumerate(_BLOCK.iter_unpack(blocks)):
        if crc32c(piece, (seed + number) & _MASK) == said:
            states[number] = WRITTEN
            parts.append(piece)
        else:
            states[number] = DAMAGED if said or piece != _ZEROS else UNWRITTEN
            parts.append(_ZEROS)
    return Blocks(b"".join(parts), bytes(states))
