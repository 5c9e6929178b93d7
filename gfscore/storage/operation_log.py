"""The operation log [0050]-[0054]: records on disk, in order, in segments; what was appended and flushed is never lost.

Payloads are opaque. Calls block and are serialised here, so that the server's group commit and its checkpointer may
use one log from two threads. No call is ever repeated after a failed write or flush: the log then refuses everything.
"""

from __future__ import annotations

import errno
import mmap
import threading
from collections.abc import Iterator

from gfscore.env.interfaces import Disk, DiskFile
from gfscore.errors import Code, GfsError
from gfscore.storage.log_blocks import PAGE_BYTES, PAGE_DATA_BYTES, offset_of, pack_pages, stream_bytes
from gfscore.storage.log_segment import (
    SEAL_BYTES,
    LogDamaged,
    Scan,
    Segment,
    first_lsn_of,
    pack_frames,
    pack_header,
    pack_seal,
    records,
    scan,
    segment_name,
    unpack_header,
    unpack_segment,
)

__all__ = ["LogDamaged", "OperationLog", "make_directory"]

_STEP_BYTES = 2 * 1024 * 1024  # space is allocated ahead in such steps, so that a flush changes no metadata
_BUFFER_PAGES = 64  # aligned, reused: what goes around the page cache in one write
_SEGMENT_BYTES_MAX = 64 * 1024 * 1024
_TEMPORARY = "segment.new"
_ZEROS = bytes(1024 * 1024)


class OperationLog:
    """An open log. `next_lsn` is the number of the next record; `appended_bytes` counts since it was opened."""

    def __init__(
        self, disk: Disk, directory: str, cluster_id: str, segments: list[int], segment_bytes_max: int, step_bytes: int
    ) -> None:
        self.cluster_id = cluster_id
        self.next_lsn = 0
        self.appended_bytes = 0
        self._disk = disk
        self._directory = directory
        self._segments = segments  # first lsn of each, ascending; the last is being written
        self._segment_bytes_max = segment_bytes_max
        self._step_bytes = step_bytes
        self._lock = threading.Lock()
        self._failure = ""
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_PAGES * PAGE_BYTES))
        self._file: DiskFile | None = None
        self._position = 0  # of the end of the last record, in the stream of the last segment
        self._allocated = 0  # bytes of the file
        self._tail = b""  # the stream from the start of the page that `_position` is in, up to it
        self._last_read: tuple[Segment, Scan] | None = None  # of the last segment, from open to the first reading

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        cluster_id: str | None = None,
        new_cluster_id: str | None = None,
        segment_bytes_max: int = _SEGMENT_BYTES_MAX,
        step_bytes: int = _STEP_BYTES,
    ) -> OperationLog:
        """Open the log in `directory`. Where there is none, begin that of `new_cluster_id` (None: it should be there).

        A torn tail is cut off and everything kept is made durable before this returns. Raises LogDamaged, OSError,
        GfsError: WRONG_CLUSTER for a log of another cluster than `cluster_id`, NOT_SUPPORTED for another format.
        """
        make_directory(disk, directory)
        names = disk.listdir(directory)
        if _TEMPORARY in names:
            disk.unlink(f"{directory}/{_TEMPORARY}")
        segments = sorted(lsn for lsn in map(first_lsn_of, names) if lsn is not None)
        if not segments:
            if new_cluster_id is None:
                raise LogDamaged(disk.real_path(directory), "no log segment there")
            log = cls(disk, directory, new_cluster_id, [], segment_bytes_max, step_bytes)
            log.next_lsn = 1
            log._use(log._make_segment(0))
            return log
        found_id = _one_cluster(disk, directory, segments)
        if cluster_id is not None and found_id != cluster_id:
            raise GfsError(
                Code.WRONG_CLUSTER,
                f"{disk.real_path(directory)} belongs to cluster {found_id}, not {cluster_id}; use its own directory",
            )
        log = cls(disk, directory, found_id, segments, segment_bytes_max, step_bytes)
        log._go_on()
        return log

    def append_batch(self, payloads: list[bytes]) -> int:
        """Append records and flush once; the lsn of the last. Blocks.

        OSError(ENOSPC) before anything was written leaves the log usable; any other failure ends it: every later call
        raises GfsError(IO) (rule 20).
        """
        if not payloads:
            return self.next_lsn - 1
        with self._lock:
            self._usable()
            frames = pack_frames(payloads, self.next_lsn)
            if self._position and offset_of(self._position + len(frames)) > self._segment_bytes_max:
                self._switch_if_room()
            self._allocate(self._position + len(frames) + SEAL_BYTES)
            try:
                self._write(frames)
                assert self._file is not None
                self._file.fdatasync()
            except BaseException as error:
                self._failure = str(error) or repr(error)
                raise
            self.next_lsn += len(payloads)
            self.appended_bytes += len(frames)
            if self.room < self._step_bytes // 2:
                self._grow(self._position + self._step_bytes // 2)
            return self.next_lsn - 1

    @property
    def room(self) -> int:
        """Bytes of frames that can be appended without asking the disk for space. Any thread."""
        return stream_bytes(self._allocated) - self._position - SEAL_BYTES

    @property
    def room_wanted(self) -> int:
        """`room` below it means that the disk is full: half of it is kept for changes that must not be refused."""
        return self._step_bytes // 2

    def make_room(self, size: int) -> bool:
        """Try to have `room` for `size` bytes and what is kept besides; False when the disk is full. Blocks."""
        with self._lock:
            self._usable()
            return self._grow(self._position + size + self.room_wanted)

    def switch_segment(self) -> None:
        """Go on in a new segment, so that the older ones can be removed some day. Does nothing in an empty one."""
        with self._lock:
            self._usable()
            if self._position:
                self._switch()

    def read_from(self, lsn: int) -> Iterator[tuple[int, bytes | memoryview]]:
        """(lsn, payload) of `lsn` and all later records. Raises LogDamaged when one of them is missing or damaged."""
        if lsn < self._segments[0]:
            raise LogDamaged(
                self._disk.real_path(self._directory),
                f"it begins with record {self._segments[0]}, but record {lsn} is needed: a segment is missing",
            )
        segments = [first for first in self._segments if first > lsn]
        segments.insert(0, max(first for first in self._segments if first <= lsn))
        for place, first in enumerate(segments):
            is_last = first == self._segments[-1]
            segment, found = self._verified(first, is_last)
            follows = found.next_lsn if is_last else segments[place + 1]
            if found.next_lsn != follows:
                raise LogDamaged(
                    f"{self._real_path(first)} at byte {offset_of(found.end)}",
                    f"record {found.next_lsn} is missing or damaged; the next segment begins with record {follows}",
                )
            for number, payload in records(segment.blocks.stream, first, found.end):
                if number >= lsn:
                    yield number, payload

    def remove_before(self, lsn: int) -> int:
        """Remove the segments that have only records before `lsn`; how many they were."""
        with self._lock:
            removed = 0
            while len(self._segments) > 1 and self._segments[1] <= lsn:
                self._disk.unlink(self._path(self._segments[0]))
                del self._segments[0]
                removed += 1
            if removed:
                self._disk.sync_directory(self._directory)
            return removed

    @property
    def first_lsn(self) -> int:
        """The oldest record that may be read."""
        return self._segments[0]

    def close(self) -> None:
        with self._lock:
            self._failure = self._failure or "it is closed"
            if self._file is not None:
                self._file.close()
                self._file = None

    # ---------------------------------------------------------------- inside

    def _path(self, first_lsn: int) -> str:
        return f"{self._directory}/{segment_name(first_lsn)}"

    def _real_path(self, first_lsn: int) -> str:
        return f"{self._disk.real_path(self._directory)}/{segment_name(first_lsn)}"

    def _usable(self) -> None:
        if self._failure:
            raise GfsError(Code.IO, f"the operation log cannot be written: {self._failure}; restart the master")

    def _verified(self, first: int, is_last: bool) -> tuple[Segment, Scan]:
        if is_last and self._last_read is not None:
            known, self._last_read = self._last_read, None
            return known
        segment = unpack_segment(_read(self._disk, self._path(first)), self._real_path(first))
        return segment, scan(segment, self._real_path(first), last=is_last)

    def _go_on(self) -> None:
        """Continue the last segment behind its last complete record."""
        first = self._segments[-1]
        path = self._path(first)
        data = _read(self._disk, path)
        segment = unpack_segment(data, self._real_path(first))
        found = scan(segment, self._real_path(first), last=True)
        self._step_bytes = step = segment.header.step
        page = found.end - found.end % PAGE_DATA_BYTES
        self._tail = segment.blocks.stream[page : found.end]
        file = self._disk.open(path)
        try:
            if found.torn:
                kept = pack_pages(self._tail, page, first)
                start = offset_of(page)
                file.pwrite(kept.ljust(len(data.rstrip(b"\0")) - start, b"\0"), start)
            if len(data) % step:
                file.truncate(len(data) - len(data) % step)  # allocating was cut short; no record is so far behind
            # A process that was killed may have left complete records, and names, that are not on the disk yet.
            file.fdatasync()
        finally:
            file.close()
        if found.end == 0 and len(self._segments) > 1:
            self._seal_former()
        self._file = self._disk.open(path, direct=True)
        self.next_lsn = found.next_lsn
        self._position = found.end
        self._allocated = len(data) - len(data) % step
        self._last_read = (segment, found)

    def _seal_former(self) -> None:
        """The process was killed between making a segment and sealing the one before it."""
        first, path = self._segments[-2], self._path(self._segments[-2])
        segment = unpack_segment(_read(self._disk, path), self._real_path(first))
        found = scan(segment, self._real_path(first), last=False)
        if found.sealed or found.next_lsn != self._segments[-1]:
            return  # if records are missing, it is for the reader to say
        page = found.end - found.end % PAGE_DATA_BYTES
        file = self._disk.open(path)
        try:
            sealed = segment.blocks.stream[page : found.end] + pack_seal(found.next_lsn)
            file.pwrite(pack_pages(sealed, page, first), offset_of(page))
            file.fdatasync()
        finally:
            file.close()

    def _make_segment(self, room: int) -> DiskFile:
        """Make the segment of `next_lsn`, complete and durable before it has its name, with space for `room` bytes.

        OSError(ENOSPC) leaves the log as it was; any other failure ends it.
        """
        temporary = f"{self._directory}/{_TEMPORARY}"
        named = False
        try:
            file = self._disk.open(temporary, create=True)
            try:
                file.truncate(0)
                file.pwrite(pack_header(self.cluster_id, self.next_lsn, self._step_bytes), 0)
                self._fill(file, PAGE_BYTES, self._whole_steps(room + SEAL_BYTES))
                file.fdatasync()
            finally:
                file.close()
            self._disk.rename(temporary, self._path(self.next_lsn))
            named = True
            self._disk.sync_directory(self._directory)
            return self._disk.open(self._path(self.next_lsn), direct=True)
        except BaseException as error:
            if named or not isinstance(error, OSError) or error.errno != errno.ENOSPC:
                self._failure = str(error) or repr(error)
            elif self._disk.exists(temporary):
                self._disk.unlink(temporary)
            raise

    def _use(self, file: DiskFile) -> None:
        """Go on in the segment that `_make_segment` made."""
        if self._file is not None:
            self._file.close()
        self._file = file
        self._segments.append(self.next_lsn)
        self._position = 0
        self._allocated = file.size()
        self._tail = b""
        self._last_read = None

    def _switch(self) -> None:
        """A new segment first, then the seal that says so: a sealed segment without the next one is damage."""
        self._allocate(self._position + SEAL_BYTES)
        file = self._make_segment(self.room)  # no less than now: who asked for room counts on it
        try:
            self._write(pack_seal(self.next_lsn))
            assert self._file is not None
            self._file.fdatasync()
        except BaseException as error:
            self._failure = str(error) or repr(error)
            raise
        self._use(file)

    def _switch_if_room(self) -> None:
        """On a full disk the segment goes on beyond its size, as far as it has space."""
        try:
            self._switch()
        except OSError as error:
            if self._failure or error.errno != errno.ENOSPC:
                raise

    def _whole_steps(self, end: int) -> int:
        """Bytes of a file that has a stream up to `end`."""
        return (offset_of(end) + self._step_bytes) // self._step_bytes * self._step_bytes

    def _fill(self, file: DiskFile, start: int, stop: int) -> None:
        while start < stop:
            size = min(len(_ZEROS), stop - start)
            file.pwrite(memoryview(_ZEROS)[:size], start)
            start += size

    def _allocate(self, end: int) -> None:
        """Fill the file with zeros for a stream up to `end`. OSError(ENOSPC) leaves the log as it was."""
        if end <= stream_bytes(self._allocated):
            return
        target = self._whole_steps(end)
        file = self._disk.open(self._path(self._segments[-1]))
        try:
            try:
                self._fill(file, self._allocated, target)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    file.truncate(self._allocated)
                else:
                    self._failure = str(error)
                raise
            try:
                file.fdatasync()
            except BaseException as error:
                self._failure = str(error) or repr(error)
                raise
        finally:
            file.close()
        self._allocated = target

    def _grow(self, end: int) -> bool:
        """As `_allocate`; False when the disk is full."""
        try:
            self._allocate(end + SEAL_BYTES)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return False
        return True

    def _write(self, frames: bytes) -> None:
        """Write whole pages: the page that holds the end of the log again, with its old bytes, and those behind."""
        file = self._file
        assert file is not None
        self._last_read = None
        buffer, first = self._buffer, self._segments[-1]
        position = self._position - len(self._tail)
        pending = self._tail + frames
        for start in range(0, len(pending), _BUFFER_PAGES * PAGE_DATA_BYTES):
            pages = pack_pages(pending[start : start + _BUFFER_PAGES * PAGE_DATA_BYTES], position + start, first)
            buffer[: len(pages)] = pages
            file.pwrite(buffer[: len(pages)], offset_of(position + start))
        self._position += len(frames)
        over = self._position % PAGE_DATA_BYTES
        self._tail = pending[len(pending) - over :] if over else b""


def make_directory(disk: Disk, directory: str) -> None:
    """Make `directory` and its parents, and make their names and those of the files in it durable."""
    disk.mkdir(directory)
    while directory:
        disk.sync_directory(directory)
        directory = directory.rpartition("/")[0]
    disk.sync_directory("")


def _one_cluster(disk: Disk, directory: str, segments: list[int]) -> str:
    """The cluster that all segments belong to, by their headers. Raises LogDamaged, NOT_SUPPORTED."""
    found = ""
    for first in segments:
        path = f"{directory}/{segment_name(first)}"
        real = f"{disk.real_path(directory)}/{segment_name(first)}"
        file = disk.open(path)
        try:
            header = unpack_header(file.pread(PAGE_BYTES, 0), real)
        finally:
            file.close()
        if header.first_lsn != first:
            raise LogDamaged(real, f"its header says it begins with record {header.first_lsn}: it was renamed")
        if found and header.cluster_id != found:
            raise LogDamaged(real, f"it belongs to cluster {header.cluster_id}, the one before it to {found}")
        found = header.cluster_id
    return found


def _read(disk: Disk, path: str) -> bytes:
    file = disk.open(path)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()
