"""How numbers and pairs become table keys, and the small integers of values. Byte formats only, no decisions."""

from __future__ import annotations

from struct import Struct

_U64 = Struct(">Q")
_SEGMENT = Struct(">QI")
_REQUEST = Struct(">QQ")

pack8 = _U64.pack
segment_key = _SEGMENT.pack  # inode, segment
request_key = _REQUEST.pack  # client id, request id


def unpack8(raw: bytes) -> int:
    """The number in 8 bytes, big endian."""
    return int.from_bytes(raw, "big")


def entry_key(parent: int, name: bytes) -> bytes:
    return pack8(parent) + name


def after_prefix(number: int) -> bytes:
    """The key behind every key that begins with `number`."""
    return pack8(number + 1)


def pack_varints(*numbers: int) -> bytes:
    """Non-negative numbers, 7 bits a byte, least significant first."""
    if max(numbers) < 0x80:
        return bytes(numbers)
    out = bytearray()
    for number in numbers:
        while number >= 0x80:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return bytes(out)


def unpack_varints(raw: bytes) -> list[int]:
    """What `pack_varints` made. Raises ValueError when `raw` ends inside a number."""
    numbers = []
    number = shift = 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
        else:
            numbers.append(number)
            number = shift = 0
    if shift:
        raise ValueError("a varint is cut short")
    return numbers
