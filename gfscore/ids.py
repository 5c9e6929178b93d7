"""The names of things, as types, and the constants every room shares. No logic."""

from __future__ import annotations

from typing import NewType

Inode = NewType("Inode", int)
ChunkHandle = NewType("ChunkHandle", int)  # 64 bits, a logical time, never used twice [0046]
ChunkVersion = NewType("ChunkVersion", int)
SerialNumber = NewType("SerialNumber", int)  # order of mutations within one chunk version [0101]
ClientId = NewType("ClientId", int)
ServerId = NewType("ServerId", str)
Epoch = NewType("Epoch", int)  # one session of a chunkserver with the master
LogSequenceNumber = NewType("LogSequenceNumber", int)

ROOT_INODE = Inode(1)
TRASH_INODE = Inode(1 << 62)  # the directory of deleted files: a number that the logical clock never reaches
TRASH_NAME = b".trash"  # under which the root has it, though its listing does not show it [0075]
NAME_BYTES_MAX = 255
XATTR_BYTES_MAX = 65536
SYMLINK_BYTES_MAX = 4095
BLOCK_BYTES = 64 * 1024  # the unit of checksums [0126]
CHUNK_BYTES_DEFAULT = 64 * 1024 * 1024
CHUNK_BYTES_MIN = 1024 * 1024
CHUNK_BYTES_MAX = 1024 * 1024 * 1024
CHUNK_INDEX_MAX = (1 << 32) - 1  # within one file: 32 bits on the wire and in the master's tables
APPEND_FRACTION = 4  # a record is at most 1/4 of a chunk [0106]
PIECE_BYTES = 1024 * 1024  # what one push or one read moves at most
PROTOCOL_VERSION = 1
