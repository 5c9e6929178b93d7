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
from gfscore.storage.log_segment import (
    PAGE_BYTES,
    LogDamaged,
    Scan,
    first_lsn_of,
    pack_frames,
    pack_header,
    records,
    scan,
    segment_name,
    unpack_header,
)

__all__ = ["LogDamaged", "OperationLog", "make_directory"]

_STEP_BYTES = 2 * 1024 * 1024  # space is allocated ahead in such steps, so that a flush changes no metadata
_BUFFER_BYTES = 256 * 1024  # page-aligned, reused: what goes around the page cache in one write
_SEGMENT_BYTES_MAX = 64 * 1024 * 1024
_TEMPORARY = "segment.new"
_ZEROS = bytes(1024 * 1024)


class OperationLog:
    """An open log. `next_lsn` is the number of the next record; `appended_bytes` counts since it was opened."""

    def __init__(
        self, disk: Disk, directory: str, cluster_id: str, segments: list[int], segment_bytes_max: int
    ) -> None:
        self.cluster_id = cluster_id
        self.next_lsn = 0
        self.appended_bytes = 0
        self._disk = disk
        self._directory = directory
        self._segments = segments  # first lsn of each, ascending; the last is being written
        self._segment_bytes_max = segment_bytes_max
        self._lock = threading.Lock()
        self._failure = ""
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
        self._file: DiskFile | None = None
        self._position = 0  # end of the last record
        self._allocated = 0
        self._tail = b""  # the bytes of the page that `_position` is in, before it
        self._last_read: tuple[bytes, Scan] | None = None  # of the last segment, from open to the first reading

    @classmethod
    def open(
        cls,
        disk: Disk,
        directory: str,
        *,
        cluster_id: str | None = None,
        new_cluster_id: str | None = None,
        segment_bytes_max: int = _SEGMENT_BYTES_MAX,
    ) -> OperationLog:
        """Open the log in `directory`. Where there is none, begin that of `new_cluster_id` (None: it should be there).

        A torn tail is cut off and everything kept is made durable before this returns. Raises LogDamaged, OSError,
        GfsError(WRONG_CLUSTER) for a log of another cluster than `cluster_id`.
        """
        make_directory(disk, directory)
        names = disk.listdir(directory)
        if _TEMPORARY in names:
            disk.unlink(f"{directory}/{_TEMPORARY}")
        segments = sorted(lsn for lsn in map(first_lsn_of, names) if lsn is not None)
        if not segments:
            if new_cluster_id is None:
                raise LogDamaged(disk.real_path(directory), "no log segment there")
            log = cls(disk, directory, new_cluster_id, [], segment_bytes_max)
            log.next_lsn = 1
            log._begin_segment()
            return log
        data, found_id = _read_segment(disk, directory, segments[-1])
        if cluster_id is not None and found_id != cluster_id:
            raise GfsError(
                Code.WRONG_CLUSTER,
                f"{disk.real_path(directory)} belongs to cluster {found_id}, not {cluster_id}; use its own directory",
            )
        log = cls(disk, directory, found_id, segments, segment_bytes_max)
        log._go_on(data)
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
            if self._position > PAGE_BYTES and self._position + len(frames) > self._segment_bytes_max:
                self._switch()
            self._allocate(self._position + len(frames))
            try:
                self._write(frames)
                assert self._file is not None
                self._file.fdatasync()
            except BaseException as error:
                self._failure = str(error) or repr(error)
                raise
            self.next_lsn += len(payloads)
            self.appended_bytes += len(frames)
            return self.next_lsn - 1

    def switch_segment(self) -> None:
        """Go on in a new segment, so that the older ones can be removed some day. Does nothing in an empty one."""
        with self._lock:
            self._usable()
            if self._position > PAGE_BYTES:
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
            data, found = self._verified(first, is_last)
            follows = found.next_lsn if is_last else segments[place + 1]
            if found.next_lsn != follows:
                raise LogDamaged(
                    f"{self._disk.real_path(self._path(first))} at byte {found.end}",
                    f"record {found.next_lsn} is missing or damaged; the next segment begins with record {follows}",
                )
            for number, payload in records(data, first, found.end):
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

    def _usable(self) -> None:
        if self._failure:
            raise GfsError(Code.IO, f"the operation log cannot be written: {self._failure}; restart the master")

    def _verified(self, first: int, is_last: bool) -> tuple[bytes, Scan]:
        if is_last and self._last_read is not None:
            known, self._last_read = self._last_read, None
            return known
        data, _ = _read_segment(self._disk, self._directory, first)
        return data, scan(data, first, self._disk.real_path(self._path(first)), last=is_last)

    def _go_on(self, data: bytes) -> None:
        """Continue the last segment, whose contents are `data`, behind its last complete record."""
        first = self._segments[-1]
        found = scan(data, first, self._disk.real_path(self._path(first)), last=True)
        file = self._disk.open(self._path(first))
        if found.torn:
            end = len(data.rstrip(b"\0"))
            file.pwrite(bytes(end - found.end), found.end)
        # A process that was killed may have left complete records, and names, that are not on the disk yet.
        file.fdatasync()
        file.close()
        self._file = self._disk.open(self._path(first), direct=True)
        self.next_lsn = found.next_lsn
        self._position = found.end
        # A file that somebody cut may end inside the page that holds the end of the log: never fill that with zeros.
        page_end = (found.end + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
        self._allocated = max(len(data) - len(data) % PAGE_BYTES, page_end)
        self._tail = data[found.end - found.end % PAGE_BYTES : found.end]
        self._last_read = (data, found)

    def _begin_segment(self) -> None:
        """Make the segment of `next_lsn`: complete and durable before it has its name."""
        temporary = f"{self._directory}/{_TEMPORARY}"
        file = self._disk.open(temporary, create=True)
        try:
            file.truncate(0)
            file.pwrite(pack_header(self.cluster_id, self.next_lsn), 0)
            file.fdatasync()
        finally:
            file.close()
        self._disk.rename(temporary, self._path(self.next_lsn))
        self._disk.sync_directory(self._directory)
        direct = self._disk.open(self._path(self.next_lsn), direct=True)
        if self._file is not None:
            self._file.close()
        self._file = direct
        self._segments.append(self.next_lsn)
        self._position = PAGE_BYTES
        self._allocated = PAGE_BYTES
        self._tail = b""
        self._last_read = None

    def _switch(self) -> None:
        try:
            self._begin_segment()
        except OSError as error:
            if error.errno != errno.ENOSPC or self._disk.exists(self._path(self.next_lsn)):
                self._failure = str(error)
            raise
        except BaseException as error:
            self._failure = str(error) or repr(error)
            raise

    def _allocate(self, end: int) -> None:
        """Fill the file with zeros up to `end` and a step beyond. OSError(ENOSPC) leaves the log as it was."""
        if end <= self._allocated:
            return
        target = (end + _STEP_BYTES) // _STEP_BYTES * _STEP_BYTES
        file = self._disk.open(self._path(self._segments[-1]))
        try:
            while self._allocated < target:
                size = min(len(_ZEROS), target - self._allocated)
                file.pwrite(memoryview(_ZEROS)[:size], self._allocated)
                self._allocated += size
        except OSError as error:
            if error.errno != errno.ENOSPC:
                self._failure = str(error)
            file.close()
            raise
        try:
            file.fdatasync()
        except BaseException as error:
            self._failure = str(error) or repr(error)
            raise
        finally:
            file.close()

    def _write(self, frames: bytes) -> None:
        """Write whole pages: the page that holds the end of the log again, with its old bytes, and those behind."""
        file = self._file
        assert file is not None
        self._last_read = None
        buffer = self._buffer
        offset = self._position - len(self._tail)
        pending = self._tail + frames
        for start in range(0, len(pending), _BUFFER_BYTES):
            piece = pending[start : start + _BUFFER_BYTES]
            size = (len(piece) + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
            buffer[: len(piece)] = piece
            buffer[len(piece) : size] = bytes(size - len(piece))
            file.pwrite(buffer[:size], offset + start)
        self._position += len(frames)
        self._tail = pending[len(pending) - self._position % PAGE_BYTES :] if self._position % PAGE_BYTES else b""


def make_directory(disk: Disk, directory: str) -> None:
    """Make `directory` and its parents, and make their names and those of the files in it durable."""
    disk.mkdir(directory)
    while directory:
        disk.sync_directory(directory)
        directory = directory.rpartition("/")[0]
    disk.sync_directory("")


def _read_segment(disk: Disk, directory: str, first_lsn: int) -> tuple[bytes, str]:
    """(all bytes, cluster id) of a segment. Raises LogDamaged."""
    path = f"{directory}/{segment_name(first_lsn)}"
    file = disk.open(path)
    try:
        data = file.pread(file.size(), 0)
    finally:
        file.close()
    cluster_id, found = unpack_header(data[:PAGE_BYTES], disk.real_path(path))
    if found != first_lsn:
        raise LogDamaged(disk.real_path(path), f"its header says it begins with record {found}: it was renamed")
    return data, cluster_id
