"""The byte format of framed streams, without I/O.

A frame is a 20-byte prefix, a protobuf message (the header) and raw bytes (the payload):

    offset  size
    0       2     magic "GF"
    2       1     kind: 0 request, 1 reply, 2 error (the message is an Error)
    3       1     reserved, 0
    4       2     method number (`methods.py`), little endian like all that follows
    6       2     reserved, 0
    8       4     call id, chosen by the caller; a reply carries its request's
    12      4     header length, bytes
    16      4     payload length, bytes
"""

from __future__ import annotations

import struct
from enum import IntEnum

from gfscore.errors import Code, GfsError

MAGIC = b"GF"
_PREFIX = struct.Struct("<2sBBHHIII")
PREFIX_BYTES = _PREFIX.size
HEADER_BYTES_MAX = 16 * 1024 * 1024
PAYLOAD_BYTES_MAX = 16 * 1024 * 1024


class Kind(IntEnum):
    REQUEST = 0
    REPLY = 1
    ERROR = 2


REQUEST, REPLY, ERROR = 0, 1, 2  # plain integers: this is parsed for every message


def pack_prefix(kind: int, method: int, call_id: int, header_bytes: int, payload_bytes: int) -> bytes:
    """The 20 bytes in front of a message."""
    return _PREFIX.pack(MAGIC, kind, 0, method, 0, call_id, header_bytes, payload_bytes)


def unpack_prefix(buffer: bytearray | memoryview, offset: int = 0) -> tuple[int, int, int, int, int]:
    """(kind, method, call id, header length, payload length).

    Raises GfsError(BAD_MESSAGE) for anything that cannot be a frame of ours, sizes over the limits included:
    nothing is allocated for a length that a stranger made up.
    """
    magic, kind, _, method, _, call_id, header_bytes, payload_bytes = _PREFIX.unpack_from(buffer, offset)
    if magic != MAGIC or kind > ERROR:
        raise GfsError(Code.BAD_MESSAGE, "this is not a gfs stream: wrong magic bytes")
    if header_bytes > HEADER_BYTES_MAX or payload_bytes > PAYLOAD_BYTES_MAX:
        raise GfsError(Code.BAD_MESSAGE, f"message too large: header {header_bytes} B, payload {payload_bytes} B")
    return kind, method, call_id, header_bytes, payload_bytes
