"""How long a file is: lengths committed by writers, and truncation. The bytes themselves are cut by the shell."""

from __future__ import annotations

from dataclasses import dataclass

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import INDEX_MAX, cut_mapping, handle_at
from gfscore.metadata.inodes import LENGTH_MAX, InodeRecord, load_file, store
from gfscore.metadata.transaction import Transaction
from gfscore.metadata.trash import resized


@dataclass(slots=True)
class Truncated:
    """What a truncation leaves to do."""

    freed_chunks: list[int]  # handles that no file refers to any more
    boundary: tuple[int, int, int] | None  # the chunk to cut: index, handle, bytes of it to keep


def _check_size(size: int, chunk_size: int) -> None:
    if size < 0:
        raise GfsError(Code.INVALID, f"a file cannot have {size} bytes")
    if size > min(LENGTH_MAX, (INDEX_MAX + 1) * chunk_size):
        raise GfsError(Code.FILE_TOO_LARGE, f"a file cannot have {size} bytes")


def commit_length(
    tx: Transaction, inode: int, size: int, *, now_ns: int, mtime_ns: int | None = None, release: bool = False
) -> InodeRecord:
    """A length that became true at the primaries: the size grows to it, never shrinks; the new record.

    `mtime_ns`: when it was last written; 0 leaves the time, None too unless the size grows. `release`: no writer is
    left, `size` is the truth again.
    Raises STALE_INODE, IS_DIRECTORY, INVALID, FILE_TOO_LARGE.
    """
    _check_size(size, LENGTH_MAX)
    record = load_file(tx, inode)
    grows = size > record.size
    if mtime_ns is None:
        mtime_ns = now_ns if grows else 0
    if not grows and not mtime_ns and not (release and record.length_pending):
        return record
    if grows:
        record.size = size
        if not record.nlink:
            resized(tx, record)
    if grows or mtime_ns:
        record.mtime_ns = mtime_ns or record.mtime_ns
        record.ctime_ns = max(record.ctime_ns, mtime_ns or now_ns)
    if release:
        record.length_pending = False
    store(tx, record)
    return record


def truncate(tx: Transaction, inode: int, size: int, *, chunk_size: int, now_ns: int) -> Truncated:
    """Make the file exactly `size` bytes long, as the state knows it: the caller has resolved a pending length first.

    Chunks behind the end are given up. Where the end falls into a chunk, that one is the boundary, which may be shared
    with a snapshot. Raises STALE_INODE, IS_DIRECTORY, INVALID, FILE_TOO_LARGE.
    """
    _check_size(size, chunk_size)
    record = load_file(tx, inode)
    keep, within = divmod(size, chunk_size)
    shrinks = size < record.size or record.length_pending
    boundary = None
    if shrinks and within:
        handle = handle_at(tx, inode, keep)
        boundary = (keep, handle, within) if handle else None
    freed = cut_mapping(tx, record, keep + (within > 0))
    record.size = size
    if not record.nlink:
        resized(tx, record)
    record.mtime_ns = record.ctime_ns = now_ns
    store(tx, record)
    return Truncated(freed, boundary)
