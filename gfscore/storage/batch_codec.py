"""A metadata write batch as bytes: the payload of an operation log record.

Pure and fast: both directions are on the critical path (each change, and each record of a recovery). It knows the
tables' order, which is part of the format, and nothing of what is in them.

    format u8 (1), then for each change: table u8 (+ 128: delete) | key length u16 | [value length u32] | key | [value]
"""

from __future__ import annotations

import struct

from gfscore.errors import Code, GfsError

Batch = list[tuple[str, bytes, bytes | None]]

# The place of a table is its number on disk: add at the end only.
TABLE_NAMES = (
    "entries",
    "inodes",
    "mapping",
    "chunks",
    "xattrs",
    "symlinks",
    "policies",
    "orphans",
    "requests",
    "counters",
    "places",
    "trash",
    "trash_expiry",
)

_FORMAT = 1
_DELETE = 128
_NUMBERS = {name: number for number, name in enumerate(TABLE_NAMES)}
_PUT_HEAD = struct.Struct("<BHI")
_DELETE_HEAD = struct.Struct("<BH")


def encode_batch(batch: Batch) -> bytes:
    """The bytes of `batch`. Raises KeyError for an unknown table, struct.error for a key over 65535 bytes."""
    parts = [b"\x01"]
    append = parts.append
    put_head = _PUT_HEAD.pack
    for table, key, value in batch:
        if value is None:
            append(_DELETE_HEAD.pack(_NUMBERS[table] + _DELETE, len(key)))
            append(key)
        else:
            append(put_head(_NUMBERS[table], len(key), len(value)))
            append(key)
            append(value)
    return b"".join(parts)


def decode_batch(data: bytes | memoryview) -> Batch:
    """The batch of `data`. Raises GfsError(BAD_MESSAGE) for anything that `encode_batch` does not make."""
    data = bytes(data)
    if not data or data[0] != _FORMAT:
        raise GfsError(Code.BAD_MESSAGE, f"log record of format {data[0] if data else 'none'}, not {_FORMAT}")
    batch: Batch = []
    append = batch.append
    put_head = _PUT_HEAD.unpack_from
    position = 1
    size = len(data)
    try:
        while position < size:
            number = data[position]
            if number < _DELETE:
                number, key_size, value_size = put_head(data, position)
                key_end = position + 7 + key_size
                end = key_end + value_size
                append((TABLE_NAMES[number], data[position + 7 : key_end], data[key_end:end]))
            else:
                number, key_size = _DELETE_HEAD.unpack_from(data, position)
                end = position + 3 + key_size
                append((TABLE_NAMES[number - _DELETE], data[position + 3 : end], None))
            position = end
    except (struct.error, IndexError) as error:
        raise GfsError(Code.BAD_MESSAGE, f"malformed log record: {error}") from error
    if position != size:
        raise GfsError(Code.BAD_MESSAGE, "log record cut short")
    return batch
