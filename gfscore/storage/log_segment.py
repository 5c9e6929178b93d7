"""The bytes of an operation log segment: its header, its frames, and how far a segment can be believed.

Pure functions over bytes; `operation_log` does the reading and writing. All integers are little endian.

    header, one page of 4096 bytes:
        magic 8 | format u32 | first lsn u64 | cluster id length u16 | cluster id | zeros | CRC32C u32 of all before
    frames, one behind the other:
        payload length u32 (1 or more) | CRC32C u32 of the rest | lsn u64 | place in its batch u32 | payload
    zeros to the end: space allocated ahead
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError

PAGE_BYTES = 4096
FRAME = struct.Struct("<IIQI")
FRAME_BYTES = FRAME.size
PAYLOAD_BYTES_MAX = 256 * 1024 * 1024  # a length above it is not one: a snapshot of a huge tree is one record

_MAGIC = b"GFSOPLOG"
_FORMAT = 1
_HEADER = struct.Struct("<8sIQH")
_BEHIND_CRC = struct.Struct("<QI")
_SECTOR_BYTES = 512  # a disk writes whole sectors


class LogDamaged(GfsError):
    """The operation log cannot be believed; the message names file, offset and remedy. Nothing is skipped silently."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(
            Code.IO,
            f"operation log damaged: {where}: {what}; restore the file from a copy or a master replica "
            "(nothing was changed on disk)",
        )


class Scan(NamedTuple):
    """What a segment holds: records up to `next_lsn` - 1, ending at byte `end`; `torn` if rubbish follows."""

    next_lsn: int
    end: int
    torn: bool


def segment_name(first_lsn: int) -> str:
    return f"segment-{first_lsn:020d}.log"


def first_lsn_of(name: str) -> int | None:
    """The lsn in a segment's file name; None for any other file."""
    if len(name) == 32 and name.startswith("segment-") and name.endswith(".log") and name[8:28].isdigit():
        return int(name[8:28])
    return None


def pack_header(cluster_id: str, first_lsn: int) -> bytes:
    name = cluster_id.encode()
    page = _HEADER.pack(_MAGIC, _FORMAT, first_lsn, len(name)) + name
    page = page.ljust(PAGE_BYTES - 4, b"\0")
    return page + crc32c(page).to_bytes(4, "little")


def unpack_header(page: bytes, path: str) -> tuple[str, int]:
    """(cluster id, first lsn). Raises LogDamaged."""
    if len(page) < PAGE_BYTES or crc32c(page[: PAGE_BYTES - 4]) != int.from_bytes(page[-4:], "little"):
        raise LogDamaged(path, "its header does not verify")
    magic, version, first_lsn, length = _HEADER.unpack_from(page)
    if magic != _MAGIC:
        raise LogDamaged(path, "not a log segment")
    if version != _FORMAT:
        raise LogDamaged(path, f"format {version} is not known to this version of the program")
    return page[_HEADER.size : _HEADER.size + length].decode(), first_lsn


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


def records(data: bytes, first_lsn: int, end: int) -> Iterator[tuple[int, memoryview]]:
    """(lsn, payload) of a segment whose bytes up to `end` were verified by `scan`."""
    view = memoryview(data)
    position = PAGE_BYTES
    lsn = first_lsn
    while position < end:
        size = FRAME.unpack_from(data, position)[0]
        position += FRAME_BYTES
        yield lsn, view[position : position + size]
        position += size
        lsn += 1


def scan(data: bytes, first_lsn: int, path: str, *, last: bool) -> Scan:
    """Verify every record of a segment.

    Only the `last` segment may end in rubbish, and only in what a flush that never finished can leave behind: the
    batch in flight, in part. One batch is in flight at a time, so a verified record of a *later* batch behind the
    rubbish proves that the rubbish was once flushed and acknowledged. Raises LogDamaged.
    """
    position, lsn = _verified_prefix(data, first_lsn)
    rest = len(data.rstrip(b"\0"))
    if rest <= position:
        return Scan(lsn, position, False)
    if not last:
        # Whether anything is missing shows in the first lsn of the next segment.
        return Scan(lsn, position, True)
    later = _find_record(data, position, rest, lsn)
    if later is not None:
        found, found_lsn, place = later
        if found_lsn - place > lsn or not _has_lost_sector(data, position, found):
            raise LogDamaged(
                f"{path} at byte {position}",
                f"record {lsn} does not verify, but record {found_lsn} behind it (byte {found}) does",
            )
    return Scan(lsn, position, True)


def _verified_prefix(data: bytes, lsn: int) -> tuple[int, int]:
    """(end of the last record of the verified prefix, the lsn after it)."""
    unpack = FRAME.unpack_from
    view = memoryview(data)
    position = PAGE_BYTES
    last_frame = len(data) - FRAME_BYTES
    while position < last_frame:
        size, crc, found, _ = unpack(data, position)
        end = position + FRAME_BYTES + size
        if size == 0 or found != lsn or end > len(data) or crc32c(view[position + 8 : end]) != crc:
            break
        position = end
        lsn += 1
    return position, lsn


def _find_record(data: bytes, start: int, stop: int, lsn: int) -> tuple[int, int, int] | None:
    """(offset, lsn, place in batch) of the first verified record behind `start` with an lsn of `lsn` or later."""
    unpack = FRAME.unpack_from
    view = memoryview(data)
    lsn_max = lsn + (stop - start) // FRAME_BYTES + 1
    for position in range(start + 1, stop - FRAME_BYTES):
        size, crc, found, place = unpack(data, position)
        if not lsn <= found <= lsn_max or not size or position + FRAME_BYTES + size > len(data):
            continue
        if crc32c(view[position + 8 : position + FRAME_BYTES + size]) == crc:
            return position, found, place
    return None


def _has_lost_sector(data: bytes, start: int, found: int) -> bool:
    """Whether some sector from `start` up to the one with `found` still holds the zeros from before the write."""
    position = start
    stop = found - found % _SECTOR_BYTES
    while position < stop:
        end = min(stop, position + _SECTOR_BYTES - position % _SECTOR_BYTES)
        if data.count(0, position, end) == end - position:
            return True
        position = end
    return False
