"""CRC32C of byte ranges and of 64 KiB blocks [0126]. The one place that names the library."""

from __future__ import annotations

from collections.abc import Iterator

import crc32c as _library

from gfscore.ids import BLOCK_BYTES

Buffer = bytes | bytearray | memoryview


def crc32c(data: Buffer, start: int = 0) -> int:
    """CRC32C of `data`, continuing from `start`, the CRC32C of what comes before it."""
    return _library.crc32c(data, start)


def block_checksums(data: Buffer) -> Iterator[int]:
    """CRC32C of each 64 KiB of `data`; the last one covers what is left."""
    view = memoryview(data)
    for offset in range(0, len(view), BLOCK_BYTES):
        yield _library.crc32c(view[offset : offset + BLOCK_BYTES])
