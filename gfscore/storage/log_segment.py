"""The bytes of an operation log segment: its header, its frames, and how far a segment can be believed.

Pure functions over bytes; `operation_log` does the reading and writing. All integers are little endian.

    header, one page of 4096 bytes:
        magic 8 | format u32 | first lsn u64 | step u32 | cluster id length u16 | cluster id | zeros | CRC32C u32
    blocks of 512 bytes (`log_blocks`), whose data is one stream of frames:
        payload length u32 (1 or more) | CRC32C u32 of the rest | lsn u64 | place in its batch u32 | payload
        place 2³²-1: the seal; the next segment exists, and begins with this lsn
    zeros to the end: space allocated ahead, in whole steps
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.storage.log_blocks import (
    BLOCK_BYTES,
    DAMAGED,
    DATA_BYTES,
    PAGE_BYTES,
    UNWRITTEN,
    Blocks,
    offset_of,
    stream_bytes,
    unpack_blocks,
)

FRAME = struct.Struct("<IIQI")
FRAME_BYTES = FRAME.size
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024  # a length above it is not one: a snapshot of a huge tree is one record
SEAL_BYTES = FRAME_BYTES + 1

_MAGIC = b"GFSOPLOG"
_FORMAT = 2
_HEADER = struct.Struct("<8sIQIH")
_BEHIND_CRC = struct.Struct("<QI")
_LENGTH_BYTES = 4
_SEAL = 0xFFFFFFFF


class LogDamaged(GfsError):
    """The operation log cannot be believed; the message names file, offset and remedy. Nothing is skipped silently."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            Code.IO,
            f"operation log damaged: {where}: {what}; restore the file from a copy or a master replica "
            "(nothing was changed on disk)",
        )


class Header(NamedTuple):
    """`step`: the file has a whole multiple of so many bytes, unless its growth was cut short."""

    cluster_id: str
    first_lsn: int
    step: int


class Segment(NamedTuple):
    """A segment file that was read: its header, its size in bytes, its blocks."""

    header: Header
    size: int
    blocks: Blocks


class Scan(NamedTuple):
    """What a segment holds: records up to `next_lsn` - 1, ending at position `end`; `torn` if rubbish follows;
    `sealed` if another segment follows."""

    next_lsn: int
    end: int
    torn: bool = False
    sealed: bool = False


def segment_name(first_lsn: int) -> str:
    return f"segment-{first_lsn:020d}.log"


def first_lsn_of(name: str) -> int | None:
    """The lsn in a segment's file name; None for any other file."""
    if len(name) == 32 and name.startswith("segment-") and name.endswith(".log") and name[8:28].isdigit():
        return int(name[8:28])
    return None


def pack_header(cluster_id: str, first_lsn: int, step: int) -> bytes:
    name = cluster_id.encode()
    page = _HEADER.pack(_MAGIC, _FORMAT, first_lsn, step, len(name)) + name
    page = page.ljust(PAGE_BYTES - 4, b"\0")
    return page + crc32c(page).to_bytes(4, "little")


def unpack_header(page: bytes, path: str) -> Header:
    """Raises LogDamaged, GfsError(NOT_SUPPORTED) for a segment of another version of the program."""
    if len(page) < PAGE_BYTES or crc32c(page[: PAGE_BYTES - 4]) != int.from_bytes(page[-4:], "little"):
        raise LogDamaged(path, "its header does not verify")
    if page[:8] != _MAGIC:
        raise LogDamaged(path, "not a log segment")
    found = int.from_bytes(page[8:12], "little")
    if found != _FORMAT:
        raise GfsError(
            Code.NOT_SUPPORTED,
            f"{path} has format {found}, this version of the program reads {_FORMAT}: "
            "start the version that wrote it, or use another directory",
        )
    _, _, first_lsn, step, length = _HEADER.unpack_from(page)
    return Header(page[_HEADER.size : _HEADER.size + length].decode(), first_lsn, step)


def unpack_segment(data: bytes, path: str) -> Segment:
    """The contents of a segment file, not judged yet. Raises LogDamaged, NOT_SUPPORTED."""
    header = unpack_header(data[:PAGE_BYTES], path)
    return Segment(header, len(data), unpack_blocks(data, header.first_lsn))


def pack_frames(payloads: list[bytes], first_lsn: int) -> bytes:
    """Frames of one batch. Raises ValueError for an empty or oversized payload."""
    parts = []
    lsn = first_lsn
    for place, payload in enumerate(payloads):
        size = len(payload)
        if not 0 < size <= PAYLOAD_BYTES_MAX:
            raise ValueError(f"a log record has 1 to {PAYLOAD_BYTES_MAX} bytes, not {size}")
        behind = _BEHIND_CRC.pack(lsn, place)
        parts.append(FRAME.pack(size, crc32c(payload, crc32c(behind)), lsn, place))
        parts.append(payload)
        lsn += 1
    return b"".join(parts)


def pack_seal(next_lsn: int) -> bytes:
    """The last frame of a segment that another one follows."""
    payload = b"\x01"
    behind = _BEHIND_CRC.pack(next_lsn, _SEAL)
    return FRAME.pack(1, crc32c(payload, crc32c(behind)), next_lsn, _SEAL) + payload


def records(stream: bytes, first_lsn: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """(lsn, payload) of a stream that was verified up to `end` by `scan`."""
    view = memoryview(stream)
    position = 0
    lsn = first_lsn
    while position < end:
        size = FRAME.unpack_from(stream, position)[0]
        position += FRAME_BYTES
        yield lsn, view[position : position + size]
        position += size
        lsn += 1


def scan(segment: Segment, path: str, *, last: bool) -> Scan:
    """Verify every record of a segment.

    Only the `last` segment may end in rubbish, and only in what a flush that never finished can leave behind: blocks
    of the batch in flight, some written, some not. A block that is neither, a file that was cut, a record of a later
    batch behind the rubbish: each proves that something which was there before is damaged. Raises LogDamaged.
    """
    stream, states = segment.blocks
    found = _verified_prefix(stream, segment.header.first_lsn)
    if not last:
        # Whether anything is missing shows in the first lsn of the next segment.
        return found
    lsn, end = found.next_lsn, found.end
    where = f"{path} at byte {offset_of(end)}"
    if found.sealed:
        raise LogDamaged(path, f"a segment that begins with record {lsn} followed it, and is missing")
    whole = segment.size - segment.size % segment.header.step
    if segment.size != whole and offset_of(end) > whole:
        raise LogDamaged(where, f"the file was cut to {segment.size} bytes; record {lsn} and others may be missing")
    rest = len(stream.rstrip(b"\0"))
    first_block = end // DATA_BYTES
    if rest <= end and DAMAGED not in states[first_block:]:
        return found
    later = _find_record(stream, end, rest, lsn)
    if later is not None and later[1] - later[2] > lsn:
        raise LogDamaged(
            where,
            f"record {lsn} does not verify, but record {later[1]} behind it (byte {offset_of(later[0])}) does",
        )
    if not _begun(stream, states, end):
        return found._replace(torn=True)
    damaged = states.find(DAMAGED, first_block)
    if damaged >= 0:
        raise LogDamaged(where, f"record {lsn} does not verify: byte {PAGE_BYTES + damaged * BLOCK_BYTES} is damaged")
    stop = min(_claimed_end(stream, states, end), later[0] if later is not None else 1 << 62)
    if stop < 1 << 62 and stop > stream_bytes(whole):
        raise LogDamaged(where, f"record {lsn} goes on behind the end of the file, which was cut")
    if UNWRITTEN not in _states_of(states, end, stop):
        raise LogDamaged(where, f"record {lsn} does not verify, though all of it was written")
    return found._replace(torn=True)


def _verified_prefix(stream: bytes, lsn: int) -> Scan:
    unpack = FRAME.unpack_from
    view = memoryview(stream)
    position = 0
    last_frame = len(stream) - FRAME_BYTES
    while position < last_frame:
        size, crc, found, place = unpack(stream, position)
        end = position + FRAME_BYTES + size
        if size == 0 or found != lsn or end > len(stream) or crc32c(view[position + 8 : end]) != crc:
            break
        if place == _SEAL:
            return Scan(lsn, position, sealed=True)
        position = end
        lsn += 1
    return Scan(lsn, position)


def _begun(stream: bytes, states: bytes, end: int) -> bool:
    """Whether the next batch may have been begun in full at `end`: its length is there, or in a damaged block."""
    if stream[end : end + _LENGTH_BYTES].strip(b"\0"):
        return True
    return DAMAGED in _states_of(states, end, end + _LENGTH_BYTES)


def _claimed_end(stream: bytes, states: bytes, position: int) -> int:
    """Where the frame at `position` says that it ends; far away where that is not to be known."""
    if UNWRITTEN in _states_of(states, position, position + _LENGTH_BYTES):
        return 1 << 62
    return position + FRAME_BYTES + int.from_bytes(stream[position : position + _LENGTH_BYTES], "little")


def _states_of(states: bytes, start: int, stop: int) -> bytes:
    """The states of the blocks with these bytes of the stream."""
    first, count = start // DATA_BYTES, (stop - 1) // DATA_BYTES + 1
    return states[first:count] + bytes([UNWRITTEN] if count > len(states) else [])


def _find_record(stream: bytes, start: int, stop: int, lsn: int) -> tuple[int, int, int] | None:
    """(position, lsn, place in batch) of the first verified record behind `start` with an lsn of `lsn` or later."""
    unpack = FRAME.unpack_from
    view = memoryview(stream)
    lsn_max = lsn + (stop - start) // FRAME_BYTES + 1
    for position in range(start + 1, stop - FRAME_BYTES):
        size, crc, found, place = unpack(stream, position)
        if not lsn <= found <= lsn_max or not size or position + FRAME_BYTES + size > len(stream):
            continue
        if place == _SEAL:
            place = 0
        if crc32c(view[position + 8 : position + FRAME_BYTES + size]) == crc:
            return position, found, place
    return None
