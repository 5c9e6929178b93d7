"""The bytes of a chunk file: where things lie and how a header page is packed (`docs/chunk_format.md`).

Pure: no I/O. Everything is a function of the mutations that were applied, so equal replicas have equal pages.
"""

from __future__ import annotations

from struct import Struct

from gfscore.checksum import Buffer, crc32c
from gfscore.ids import BLOCK_BYTES

PAGE_BYTES = 4096
HEADER_PAGES = 3
TABLE_START = HEADER_PAGES * PAGE_BYTES
SLOTS_MAX = 120  # clients whose latest append is remembered per chunk
SLOTS_START = 128  # in the page
FLAG_SYNC = 1  # this page was written on the way to an fdatasync: it may be durable
FLAG_PADDED = 2

_MAGIC = b"GFSCHUNK"
_FORMAT = 1
# magic, format, flags | handle, version, chunk size, generation, length, synced length, synced generation |
# tail checksum, synced tail checksum, slots in use
_FIXED = Struct("<8sII7QIII")
_SLOT = Struct("<QQII")  # client id, sequence, offset, length
_U32 = Struct("<I")
_CRC_AT = PAGE_BYTES - 4
SLOT_BYTES = _SLOT.size

ZERO_BLOCK = bytes(BLOCK_BYTES)
ZERO_BLOCK_CRC = crc32c(ZERO_BLOCK)


def block_count(length: int) -> int:
    """Blocks that `length` bytes touch, the last perhaps partial."""
    return -(-length // BLOCK_BYTES)


def data_start(chunk_size: int) -> int:
    """Offset of the first byte of data in a chunk file, 4 KiB-aligned."""
    return TABLE_START + -(-(chunk_size // BLOCK_BYTES * 4) // PAGE_BYTES) * PAGE_BYTES


def table_entry(table: bytearray, block: int) -> int:
    """The checksum of a complete block."""
    return int(_U32.unpack_from(table, block * 4)[0])


def pack_checksums(checksums: list[int]) -> bytes:
    """Table entries as they lie in the file."""
    if len(checksums) == 1:
        return _U32.pack(checksums[0])
    return Struct(f"<{len(checksums)}I").pack(*checksums)


class Header:
    """The fields of one header page."""

    __slots__ = (
        "flags",
        "generation",
        "length",
        "page",
        "slot_count",
        "synced_generation",
        "synced_length",
        "synced_tail",
        "tail_crc",
        "version",
    )

    def __init__(self, page: bytearray, fields: tuple[int, ...]) -> None:
        self.page = page
        self.flags, self.version, self.generation, self.length = fields[0], fields[2], fields[4], fields[5]
        self.synced_length, self.synced_generation = fields[6], fields[7]
        self.tail_crc, self.synced_tail, self.slot_count = fields[8], fields[9], fields[10]


def parse_page(raw: Buffer, handle: int, chunk_size: int) -> Header | None:
    """The header in one page, None when it is blank, torn, damaged or of another chunk."""
    page = bytearray(raw)
    if len(page) != PAGE_BYTES:
        return None
    magic, number, flags, *rest = _FIXED.unpack_from(page)
    if magic != _MAGIC or number != _FORMAT or crc32c(memoryview(page)[:_CRC_AT]) != _U32.unpack_from(page, _CRC_AT)[0]:
        return None
    if rest[0] != handle or rest[2] != chunk_size or rest[4] > chunk_size or rest[9] > SLOTS_MAX:
        return None
    return Header(page, (flags, *rest))


def parse_headers(raw: Buffer, handle: int, chunk_size: int) -> tuple[list[Header | None], list[int]]:
    """The headers of all pages, and the numbers of the pages that are not valid. Creation fills all of them, so a blank
    one is damage too, or a creation that was never finished."""
    view = memoryview(raw)
    headers: list[Header | None] = []
    damaged: list[int] = []
    for number in range(HEADER_PAGES):
        part = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        header = parse_page(part, handle, chunk_size)
        headers.append(header)
        if header is None:
            damaged.append(number)
    return headers, damaged


def pack_page(page: bytearray, handle: int, chunk_size: int, header: tuple[int, ...]) -> None:
    """Fill in the fixed fields and the checksum. `header`: flags, version, generation, length, synced length,
    synced generation, tail checksum, synced tail checksum, slots in use."""
    flags, version, generation, length, synced_length, synced_generation, tail, synced_tail, slots = header
    _FIXED.pack_into(
        page, 0, _MAGIC, _FORMAT, flags, handle, version, chunk_size, generation, length,
        synced_length, synced_generation, tail, synced_tail, slots,
    )  # fmt: skip
    _U32.pack_into(page, _CRC_AT, crc32c(memoryview(page)[:_CRC_AT]))


def read_slots(page: bytearray, count: int) -> list[tuple[int, int, int, int]]:
    """(client id, sequence, offset, length) of every slot in use, in slot order."""
    return [_SLOT.unpack_from(page, SLOTS_START + number * SLOT_BYTES) for number in range(count)]


def write_slot(page: bytearray, number: int, slot: tuple[int, int, int, int]) -> None:
    """Fill one slot."""
    _SLOT.pack_into(page, SLOTS_START + number * SLOT_BYTES, *slot)


def read_slot(page: bytearray, number: int) -> tuple[int, int, int, int]:
    """(client id, sequence, offset, length) of one slot."""
    return _SLOT.unpack_from(page, SLOTS_START + number * SLOT_BYTES)


def slots_bytes(page: bytearray, count: int) -> bytes:
    """The append table as it travels to another replica."""
    return bytes(page[SLOTS_START : SLOTS_START + count * SLOT_BYTES])


def parse_slots(raw: Buffer) -> list[tuple[int, int, int, int]]:
    """The inverse of `slots_bytes`. Raises ValueError when it is not an append table."""
    if len(raw) % SLOT_BYTES or len(raw) > SLOTS_MAX * SLOT_BYTES:
        raise ValueError("not an append table")
    return [_SLOT.unpack_from(raw, at) for at in range(0, len(raw), SLOT_BYTES)]
