"""The redo journal of a chunk store: what is to be overwritten, made durable before it is overwritten (rule 18).

One file. Its first page names an epoch; records of other epochs do not count, so a checkpoint (everything in place
and durable) only writes that page. Thread-safe: mutations of different chunks share the journal and its fdatasync.
It knows nothing of chunk files; the store gives it a function that makes the touched ones durable.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import NamedTuple

from gfscore.checksum import crc32c
from gfscore.env.interfaces import Disk, DiskFile
from gfscore.storage.chunk_extents import Extent

PATH = "overwrite.journal"
LIMIT_BYTES = 64 * 1024 * 1024

_PAGE_BYTES = 4096
_FIRST = Struct("<8sIQI")  # magic, format, epoch, CRC32C of what is before it
_MAGIC = b"GFSREDO1"
_RECORD = Struct("<IIQQQII")  # CRC32C of what follows, bytes in all, epoch, handle, version, extents, blocks
_EXTENT = Struct("<QI")
_BLOCK = Struct("<III")


class BlockChange(NamedTuple):
    """What a block hashes to once the record is in place: CRC32C of its first `covered` bytes."""

    block: int
    covered: int
    crc: int


class Record(NamedTuple):
    """One overwriting mutation as it was found in the journal."""

    handle: int
    version: int
    extents: list[Extent]
    blocks: list[BlockChange]


class OverwriteJournal:
    """`sync_chunk(handle)` makes a chunk file durable; `fdatasync(file)` syncs or ends the store (rule 20)."""

    def __init__(
        self,
        disk: Disk,
        fdatasync: Callable[[DiskFile], None],
        sync_chunk: Callable[[int], None],
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        self._disk = disk
        self._fdatasync = fdatasync
        self._sync_chunk = sync_chunk
        self._limit_bytes = limit_bytes
        self._changed = threading.Condition()
        self._sync_lock = threading.Lock()
        self._file: DiskFile | None = None
        self._epoch = 0
        self._begun = False  # this life's first epoch
        self._end = _PAGE_BYTES
        self._synced_end = _PAGE_BYTES
        self._active = 0  # mutations between their record and the end of their in-place writes
        self._checkpointing = False
        self._touched: set[int] = set()

    # ---------------------------------------------------------------- recovery

    def read(self) -> list[Record]:
        """The records of the last life, in order. Only before the first `add`."""
        if not self._disk.exists(PATH):
            return []
        file = self._file = self._disk.open(PATH)
        first = file.pread(_FIRST.size, 0)
        if len(first) < _FIRST.size:
            return []
        magic, number, epoch, crc = _FIRST.unpack(first)
        if magic != _MAGIC or number != 1 or crc32c(first[:-4]) != crc:
            return []  # the very first write of this file was torn: no record can have followed it
        self._epoch = epoch
        records: list[Record] = []
        while True:
            raw = self._read_record(file)
            if raw is None:
                return records
            record = _parse(raw)
            self._touched.add(record.handle)
            records.append(record)

    def _read_record(self, file: DiskFile) -> bytes | None:
        head = file.pread(_RECORD.size, self._end)
        if len(head) < _RECORD.size:
            return None
        crc, size, epoch, *_ = _RECORD.unpack(head)
        if epoch != self._epoch or size < _RECORD.size or size > file.size() - self._end:
            return None
        raw = file.pread(size, self._end)
        if len(raw) != size or crc32c(memoryview(raw)[4:]) != crc:
            return None
        self._end += size
        return raw

    # ---------------------------------------------------------------- mutations

    @contextmanager
    def add(
        self, handle: int, version: int, extents: list[Extent], blocks: list[BlockChange], durable: bool
    ) -> Iterator[None]:
        """Inside the `with` the caller writes in place. Its record is in the journal before, durably if `durable`.

        Raises OSError when the journal cannot be written (nothing happened then).
        """
        parts, size = _pack(handle, version, extents, blocks)
        with self._changed:
            while self._checkpointing:
                self._changed.wait()
            if self._end + size > self._limit_bytes and self._end > _PAGE_BYTES:
                self._checkpoint_locked()
            # In order and under the lock: replay stops at the first gap.
            file = self._started()
            body = _RECORD.pack(0, size, self._epoch, handle, version, len(extents), len(blocks))[4:] + b"".join(parts)
            file.pwrite(crc32c(body).to_bytes(4, "little") + body, self._end)
            self._end += size
            end = self._end
            self._touched.add(handle)
            self._active += 1
        try:
            if durable:
                self._sync_to(file, end)
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()

    def _started(self) -> DiskFile:
        if self._file is None:
            self._file = self._disk.open(PATH, create=True)
        # In the epoch of the last life, records that were cut off by a torn one could follow on ours.
        if not self._begun:
            self._disk.sync_directory("")
            self._start_epoch(self._file)
        return self._file

    def _start_epoch(self, file: DiskFile) -> None:
        head = _FIRST.pack(_MAGIC, 1, self._epoch + 1, 0)[:-4]
        file.pwrite(head + crc32c(head).to_bytes(4, "little"), 0)
        self._fdatasync(file)
        self._epoch += 1
        self._begun = True
        self._end = self._synced_end = _PAGE_BYTES
        self._touched.clear()

    def _sync_to(self, file: DiskFile, end: int) -> None:
        """Group commit: whoever comes while another one syncs is usually covered by the next."""
        with self._sync_lock:
            if self._synced_end >= end:
                return
            reached = self._end
            self._fdatasync(file)
            self._synced_end = reached

    # ---------------------------------------------------------------- checkpoint

    def checkpoint(self) -> None:
        """Make all touched chunks durable and forget the records."""
        with self._changed:
            while self._checkpointing:
                self._changed.wait()
            if self._touched:
                self._checkpoint_locked()

    def forget(self, handle: int) -> None:
        """Before the chunk is cut, replaced or deleted: no record of it may be replayed over what comes then."""
        if handle in self._touched:
            self.checkpoint()

    def _checkpoint_locked(self) -> None:
        self._checkpointing = True
        try:
            while self._active:
                self._changed.wait()
            for handle in sorted(self._touched):
                self._sync_chunk(handle)
            if self._file is not None:
                self._start_epoch(self._file)
        finally:
            self._checkpointing = False
            self._changed.notify_all()

    def close(self) -> None:
        """Records stay for the next life; `checkpoint` first for an orderly end."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _pack(
    handle: int, version: int, extents: list[Extent], blocks: list[BlockChange]
) -> tuple[list[bytes | memoryview], int]:
    parts: list[bytes | memoryview] = [_EXTENT.pack(offset, len(view)) for offset, view in extents]
    parts += [_BLOCK.pack(*change) for change in blocks]
    parts += [view for _, view in extents]
    return parts, _RECORD.size + sum(map(len, parts))


def _parse(raw: bytes) -> Record:
    _, _, _, handle, version, extent_count, block_count = _RECORD.unpack_from(raw)
    at = _RECORD.size
    blocks_at = at + extent_count * _EXTENT.size
    data_at = blocks_at + block_count * _BLOCK.size
    view = memoryview(raw)
    extents: list[Extent] = []
    for number in range(extent_count):
        offset, length = _EXTENT.unpack_from(raw, at + number * _EXTENT.size)
        extents.append((offset, view[data_at : data_at + length]))
        data_at += length
    blocks = [BlockChange(*_BLOCK.unpack_from(raw, blocks_at + number * _BLOCK.size)) for number in range(block_count)]
    return Record(handle, version, extents, blocks)
