"""All chunk files of one chunkserver: names, creation, clones, deletion, descriptors, and recovery at start.

Blocking code for worker threads. Different chunks may be used from different threads; each chunk serialises its own
mutations. After a failed sync the store refuses every mutation (rule 20): contents are unknown, the process ends.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator

from gfscore.env.interfaces import Disk, DiskFile
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage import chunk_recovery
from gfscore.storage.buffers import BufferPool
from gfscore.storage.chunk_boot import remember_boot, same_boot
from gfscore.storage.chunk_file import Chunk
from gfscore.storage.chunk_state import NotBorn, OpenChunk, create_file, disk_error, header_of, is_shortage, load_state
from gfscore.storage.overwrite_journal import LIMIT_BYTES, OverwriteJournal, Record

__all__ = ["Chunk", "ChunkStore", "StoreFailed"]

_log = logging.getLogger(__name__)
_ROOT = "chunks"
CLONE_SUFFIX = ".new"
_CHUNK_NAME = re.compile("[0-9a-f]{16}")
_DIRECTORY_NAME = re.compile("[0-9a-f]{2}")


class StoreFailed(Exception):
    """An fdatasync failed: what is on the disk is unknown. End the process; never try again (rule 20)."""


class ChunkStore:
    """Open it with `open_all`. Methods raise GfsError, and StoreFailed after a failed sync.

    `open_limit`: chunk files held open at once (two descriptors each). `boot_id`: of the machine, None to ask it; a
    store that finds another one treats unsynced data as what a power loss may have left.
    """

    def __init__(
        self,
        disk: Disk,
        chunk_size: int,
        *,
        pool: BufferPool | None = None,
        open_limit: int = 300,
        boot_id: str | None = None,
        journal_bytes: int = LIMIT_BYTES,
    ) -> None:
        self.disk = disk
        self.chunk_size = chunk_size
        self.pool = pool or BufferPool()
        self.journal = OverwriteJournal(disk, self.fdatasync, self._sync_touched, journal_bytes)
        self._boot_id = disk.boot_id() if boot_id is None else boot_id
        self._open_limit = open_limit
        self._lock = threading.Lock()
        self._chunks: dict[int, Chunk] = {}
        self._opened: OrderedDict[int, Chunk] = OrderedDict()
        self._directories: set[str] = set()
        self._new_directories: set[str] = set()  # whose names are not durable yet
        self.power_was_lost = self.booted_since = False  # since its last life: with chunks in it, or at all
        self._power_lost = False  # and not every chunk was looked at since
        self._failure: str | None = None
        self._bytes = 0

    # ---------------------------------------------------------------- start and end

    def open_all(self) -> None:
        """Find the chunks, and replay the journal. Reads directories, not chunk files."""
        try:
            self.disk.mkdir(_ROOT)
            for name in self.disk.listdir(_ROOT):
                if _DIRECTORY_NAME.fullmatch(name):
                    self._directories.add(f"{_ROOT}/{name}")
                    self._find_chunks(f"{_ROOT}/{name}")
            # What the last life made and did not live to sync.
            self.disk.sync_directory(_ROOT)
            self.disk.sync_directory("")
            self.booted_since = self._power_lost = not same_boot(self.disk, self._boot_id)
            self.power_was_lost = self._power_lost and bool(self._chunks)
            if not self._chunks:
                self._all_settled()
            self._replay(self.journal.read())
        except OSError as error:
            raise GfsError(Code.IO, f"the chunk store cannot be opened: {error}") from error

    def _find_chunks(self, directory: str) -> None:
        for name in self.disk.listdir(directory):
            if name.endswith(CLONE_SUFFIX):
                self.disk.unlink(f"{directory}/{name}")  # a clone that was never finished, so never promised
            elif _CHUNK_NAME.fullmatch(name):
                handle = int(name, 16)
                self._chunks[handle] = Chunk(self, handle)

    def _replay(self, records: list[Record]) -> None:
        by_handle: dict[int, list[Record]] = {}
        for record in records:
            by_handle.setdefault(record.handle, []).append(record)
        for handle, found in by_handle.items():
            chunk = self._chunks.get(handle)
            if chunk is not None:
                self._replay_chunk(chunk, found)
        self.journal.checkpoint()

    def _replay_chunk(self, chunk: Chunk, records: list[Record]) -> None:
        try:
            live, _ = self._load_raw(chunk)
            # Of older versions too: the header with the new one may have reached the disk before what is in place.
            records = [record for record in records if record.version <= live.state.version]
            changed = chunk_recovery.replay(live, records, power_lost=self._power_lost)
        except NotBorn:
            return  # removed by the scan
        except (GfsError, OSError) as error:
            if is_shortage(error):
                raise  # the records are needed: the next start finds them
            _log.error("event=not_replayed chunk=%016x error=%s", chunk.handle, error)
            chunk.corrupt = True  # and no reason not to serve the others
            return
        if changed:
            _log.info("event=replayed chunk=%016x blocks=%d", chunk.handle, changed)

    def _all_settled(self) -> None:
        """From here on what does not verify is damage. Where the boot cannot be noted, the next start looks again."""
        if self._power_lost and self._boot_id:
            try:
                remember_boot(self.disk, self._boot_id)
            except OSError as error:
                _log.warning("event=boot_not_remembered error=%s", error)
        self._power_lost = False

    def close(self) -> None:
        """An orderly end: everything in place, descriptors closed."""
        if self._failure is None:
            try:
                self.journal.checkpoint()
            except OSError as error:
                raise GfsError(Code.IO, f"the overwrite journal: {error}") from error
        self.journal.close()
        with self._lock:
            for chunk in self._opened.values():
                chunk.close_if_idle()
            self._opened.clear()

    # ---------------------------------------------------------------- what is here

    def handles(self) -> list[int]:
        """All chunks, in order."""
        with self._lock:
            return sorted(self._chunks)

    def get(self, handle: int) -> Chunk:
        """Raises UNKNOWN_CHUNK."""
        chunk = self._chunks.get(handle)
        if chunk is None:
            raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {handle:016x} is not here")
        return chunk

    def scan(self) -> Iterator[tuple[int, int, int]]:
        """(handle, version, length) of every chunk, from its header pages. Damaged ones are marked `corrupt`; one
        without a readable header comes as version 0.

        After a power loss this settles each of them, so a complete scan ends that state: the next start need not.
        Raises NOT_READY without descriptors or memory to look at one: what it is worth is not known then.
        """
        total = 0
        for handle in self.handles():
            chunk = self._chunks.get(handle)
            if chunk is None:
                continue
            try:
                version, length = self._peek(chunk)
            except NotBorn:
                self._forget_unborn(chunk)
                continue
            except GfsError as error:
                if error.code == Code.UNKNOWN_CHUNK:
                    continue
                if error.code == Code.NOT_READY:
                    raise
                chunk.corrupt = True
                version = length = 0
            total += length
            yield handle, version, length
        self._bytes = total
        self._all_settled()

    def _peek(self, chunk: Chunk) -> tuple[int, int]:
        live = chunk.live_if_open()
        if live is None and self._power_lost:
            return chunk.version, chunk.length
        if live is not None:
            return live.state.version, live.state.committed[0]
        newest, damaged = header_of(self.disk, self.path_of(chunk.handle), chunk.handle, self.chunk_size)
        if damaged:
            chunk.corrupt = True
        return newest.version, newest.length

    @property
    def used_bytes(self) -> int:
        """Committed bytes of all chunks: right after a complete `scan`, and kept up from there."""
        return self._bytes

    @property
    def chunk_count(self) -> int:
        return len(self._chunks)

    def corrupt_handles(self) -> list[int]:
        """Chunks of which something did not verify."""
        with self._lock:
            return sorted(handle for handle, chunk in self._chunks.items() if chunk.corrupt)

    def path_of(self, handle: int) -> str:
        """Relative to the disk's root."""
        return f"{_ROOT}/{handle & 0xFF:02x}/{handle:016x}"

    def real_path(self, handle: int) -> str:
        """For people: the chunk file on this machine."""
        return self.disk.real_path(self.path_of(handle))

    # ---------------------------------------------------------------- changes

    def create(self, handle: int, version: int) -> Chunk:
        """A new, empty chunk; durable with its first sync. Raises EXISTS, NO_SPACE."""
        self.check_usable()
        chunk = Chunk(self, handle)
        with chunk.lock:
            with self._lock:
                if handle in self._chunks:
                    raise GfsError(Code.EXISTS, f"chunk {handle:016x} is here already")
                self._chunks[handle] = chunk
            path = self.path_of(handle)
            try:
                self.need_directory(handle)
                file, state = create_file(self.disk, path, handle, version, self.chunk_size)
            except OSError as error:
                with self._lock:
                    self._chunks.pop(handle, None)
                raise disk_error(error, handle) from error
            chunk.adopt(OpenChunk(file, state, lambda: self.disk.open(path, direct=True)))
        self.opened(chunk)
        return chunk

    def delete(self, handle: int) -> None:
        """Remove the file; a read in flight still ends well. Raises UNKNOWN_CHUNK."""
        self.check_usable()
        chunk = self.get(handle)
        with chunk.lock:
            try:
                self.journal.forget(handle)
                live = chunk.live_if_open()
                freed = live.state.committed[0] if live is not None else 0
                if live is None:
                    try:
                        freed = self._peek_length(chunk)
                    except (GfsError, NotBorn, OSError):
                        freed = 0  # unreadable: it did not count
                with contextlib.suppress(FileNotFoundError):  # somebody else deleted it
                    self.disk.unlink(self.path_of(handle))
            except OSError as error:
                raise disk_error(error, handle) from error
            self._drop(chunk)
        self.count_bytes(-freed)

    def present(self, handle: int) -> bool:
        """Whether the chunk's file is where it should be."""
        return handle in self._chunks and self.disk.exists(self.path_of(handle))

    def forget(self, handle: int) -> None:
        """The chunk's file is not on the disk any more, though nobody here deleted it."""
        chunk = self._chunks.get(handle)
        if chunk is not None:
            self._drop(chunk)

    def _drop(self, chunk: Chunk) -> None:
        with self._lock:
            self._chunks.pop(chunk.handle, None)
            self._opened.pop(chunk.handle, None)
        chunk.adopt(None)

    def _peek_length(self, chunk: Chunk) -> int:
        return self._load_raw(chunk)[0].state.committed[0]

    def set_version(self, handle: int, old: int, new: int, truncate: int | None = None) -> Chunk:
        """See `Chunk.set_version`."""
        chunk = self.get(handle)
        chunk.set_version(old, new, truncate)
        return chunk

    def clone(self, handle: int, version: int, new_handle: int, new_version: int, truncate: int | None = None) -> Chunk:
        """A copy under a new handle, inside the file system where it can, durable on return [0116].

        A repeated request finds the copy. Raises UNKNOWN_CHUNK, STALE_VERSION, EXISTS, NO_SPACE, and CHECKSUM_MISMATCH
        where any of it is damaged: the copy may be the only one.
        """
        self.check_usable()
        there = self._chunks.get(new_handle)
        if there is not None:
            if there.version == new_version:
                return there
            raise GfsError(Code.EXISTS, f"chunk {new_handle:016x} is here already, with another version")
        source = self.get(handle)
        temporary = self.path_of(new_handle) + CLONE_SUFFIX
        with source.lock:
            live = source.get_locked()
            if live.state.version != version:
                message = f"chunk {handle:016x} has version {live.state.version}, not {version}"
                raise GfsError(Code.STALE_VERSION, message)
            try:
                self.need_directory(new_handle)
                length = self._copy_chunk(source, live, temporary, new_handle, new_version, truncate)
                self.disk.rename(temporary, self.path_of(new_handle))
                self.sync_name(new_handle)
            except OSError as error:
                if self.disk.exists(temporary):
                    self.disk.unlink(temporary)
                raise disk_error(error, new_handle) from error
        chunk = Chunk(self, new_handle, name_durable=True)
        with self._lock:
            self._chunks[new_handle] = chunk
        self.count_bytes(length)
        return chunk

    def put_in_place(self, handle: int, path: str) -> Chunk:
        """The durable file at `path` becomes the chunk, durably; a replica that was here before is gone with it."""
        old = self._chunks.get(handle)
        chunk = Chunk(self, handle, name_durable=True)
        with old.lock if old is not None else contextlib.nullcontext():
            freed = 0
            try:
                if old is not None:
                    with contextlib.suppress(GfsError, NotBorn, OSError):  # unreadable: it did not count
                        freed = self._peek_length(old)
                self.journal.forget(handle)  # also of an earlier copy that was given up, or of a file that vanished
                self.disk.rename(path, self.path_of(handle))
                self.sync_name(handle)
            except OSError as error:
                raise disk_error(error, handle) from error
            with self._lock:
                self._chunks[handle] = chunk
                self._opened.pop(handle, None)
            if old is not None:
                old.adopt(None)
        self.count_bytes(-freed)
        return chunk

    def _copy_chunk(
        self, source: Chunk, live: OpenChunk, path: str, handle: int, version: int, truncate: int | None
    ) -> int:
        old = live.state
        length, tail = old.committed
        if truncate is not None and truncate < length:
            length, tail = truncate, source.tail_checksum_at(live, truncate)
        source.check_up_to(live, length)
        if self.disk.exists(path):
            self.disk.unlink(path)
        file, state = create_file(self.disk, path, handle, version, self.chunk_size)
        try:
            live.file.copy_to(file, min(live.file.size(), old.data_start + length))
            # The header pages that were copied name another handle, and the table may go on behind a cut.
            complete = length // BLOCK_BYTES * 4
            first = bytes(state.page) * fmt.HEADER_PAGES
            file.pwrite(first + old.table[:complete] + bytes(len(old.table) - complete), 0)
            slots = [slot for slot in fmt.read_slots(old.page, old.slot_count) if slot[2] + slot[3] <= length]
            state.synced_length, state.synced_tail = 0, 0
            state.commit(file, length, tail, slots=slots, sync=True, padded=length == self.chunk_size)
            self.fdatasync(file)
            state.synced(file)
        finally:
            file.close()
        return length

    def _forget_unborn(self, chunk: Chunk) -> None:
        """A file whose creation was never finished: nothing in it was ever acknowledged."""
        with self._lock:
            self._chunks.pop(chunk.handle, None)
        try:
            self.disk.unlink(self.path_of(chunk.handle))
        except OSError as error:
            _log.warning("event=unborn_chunk chunk=%016x error=%s", chunk.handle, error)

    # ---------------------------------------------------------------- for Chunk and the journal

    def load(self, chunk: Chunk) -> OpenChunk:
        """Open a chunk file; under the chunk's lock. Raises OSError, GfsError."""
        if self._chunks.get(chunk.handle) is not chunk:
            raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {chunk.handle:016x} is not here")
        try:
            live, damaged = self._load_raw(chunk)
        except NotBorn:
            self._forget_unborn(chunk)
            raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {chunk.handle:016x} was never written") from None
        except GfsError:
            chunk.corrupt = True
            raise
        if self._power_lost:
            before = live.state.committed[0]
            if chunk_recovery.settle(live, damaged):
                self.fdatasync(live.file)
                live.state.synced(live.file)
                _log.warning(
                    "event=settled chunk=%016x length_before=%d length=%d",
                    chunk.handle, before, live.state.committed[0],
                )  # fmt: skip
        elif damaged:
            # A kill cannot tear a page: this is damage, perhaps of the newest header.
            chunk.corrupt = live.doubtful = True
        return live

    def _load_raw(self, chunk: Chunk) -> tuple[OpenChunk, list[int]]:
        path = self.path_of(chunk.handle)
        file = self.disk.open(path)
        try:
            state, damaged = load_state(file, chunk.handle, self.chunk_size, power_lost=self._power_lost)
        except BaseException:
            file.close()
            raise
        return OpenChunk(file, state, lambda: self.disk.open(path, direct=True)), damaged

    def opened(self, chunk: Chunk) -> None:
        """Count its descriptors; close those of chunks that nobody used since the last look."""
        with self._lock:
            self._opened[chunk.handle] = chunk
            chances = len(self._opened)
            while len(self._opened) > self._open_limit and chances > 0:
                chances -= 1
                handle, oldest = self._opened.popitem(last=False)
                if oldest is not chunk and not oldest.used and oldest.close_if_idle():
                    continue
                oldest.used = False
                self._opened[handle] = oldest

    def count_bytes(self, growth: int) -> None:
        with self._lock:
            self._bytes += growth

    def check_usable(self) -> None:
        """Raises StoreFailed after a failed sync."""
        if self._failure is not None:
            raise StoreFailed(self._failure)

    def fdatasync(self, file: DiskFile) -> None:
        """Raises StoreFailed, then and ever after, when the disk does not confirm."""
        self.check_usable()
        try:
            file.fdatasync()
        except OSError as error:
            self._failure = f"fdatasync failed: {error}; what is on the disk is unknown"
            raise StoreFailed(self._failure) from error

    def sync_name(self, handle: int) -> None:
        """Make the name of a chunk file durable. Raises StoreFailed."""
        directory = self._directory_of(handle)
        try:
            self.disk.sync_directory(directory)
            if directory in self._new_directories:
                self.disk.sync_directory(_ROOT)
                self._new_directories.discard(directory)
        except OSError as error:
            self._failure = f"the directory of chunk {handle:016x} could not be synced: {error}"
            raise StoreFailed(self._failure) from error

    def need_directory(self, handle: int) -> None:
        """The directory for a new file. Raises OSError."""
        directory = self._directory_of(handle)
        if directory not in self._directories:
            self.disk.mkdir(directory)
            self._new_directories.add(directory)
            self._directories.add(directory)

    def _directory_of(self, handle: int) -> str:
        return f"{_ROOT}/{handle & 0xFF:02x}"

    def _sync_touched(self, handle: int) -> None:
        """For a checkpoint of the journal: this chunk's file durable, whatever another thread does with it."""
        chunk = self._chunks.get(handle)
        if chunk is None:
            return
        live = chunk.live_if_open()
        if live is not None:
            self.fdatasync(live.file)
            return
        try:
            file = self.disk.open(self.path_of(handle))
        except OSError as error:
            if is_shortage(error):
                raise
            if not isinstance(error, FileNotFoundError):  # deleted behind our back: found out when it is used
                chunk.corrupt = True
            return
        try:
            self.fdatasync(file)
        finally:
            file.close()
