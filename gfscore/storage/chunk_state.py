"""What is known of one open chunk file: its newest header, its block checksums, what of it is durable.

A state changes only after the page that says so is in the file. Readers in other threads take `committed` (one
tuple) and may use every checksum of the blocks it covers; everything else belongs to whoever holds the chunk's lock.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable

from gfscore.checksum import Buffer
from gfscore.env.interfaces import Disk, DiskFile
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt

_SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})


class ChunkState:
    """The header as last committed, plus the table of block checksums."""

    __slots__ = (
        "chunk_size",
        "clients",
        "committed",
        "data_start",
        "dirty",
        "durable_slot",
        "flags",
        "generation",
        "handle",
        "page",
        "physical_end",
        "slot",
        "slot_count",
        "stale_table",
        "synced_generation",
        "synced_length",
        "synced_tail",
        "table",
        "unsettled",
        "version",
    )

    def __init__(self, handle: int, chunk_size: int) -> None:
        self.handle = handle
        self.chunk_size = chunk_size
        self.data_start = fmt.data_start(chunk_size)
        self.page = bytearray(fmt.PAGE_BYTES)
        self.slot = 0  # the page that holds the newest header
        self.durable_slot = 0  # the page that the last fdatasync covered: not overwritten before the next
        self.generation = 0
        self.version = 0
        self.flags = 0
        self.committed = (0, 0)  # length in bytes; CRC32C of the committed bytes of the last, partial block
        self.synced_length = 0
        self.synced_tail = 0
        self.synced_generation = 0
        self.unsettled = False  # the newest page may be durable: fdatasync before others are overwritten
        self.stale_table = False  # the file has checksums of blocks that are not committed: see `clear_table_behind`
        self.dirty = False  # an fdatasync is needed to make all of it durable (the redo journal aside)
        self.table = bytearray(self.data_start - fmt.TABLE_START)
        self.physical_end = 0  # bytes of data the file has room for: leftovers may lie behind `length`
        self.slot_count = 0
        self.clients: dict[int, int] | None = None  # client id → slot, made when first needed

    def block_crc(self, block: int, committed: tuple[int, int]) -> int:
        """What the committed bytes of `block` must hash to."""
        if (block + 1) * BLOCK_BYTES <= committed[0]:
            return fmt.table_entry(self.table, block)
        return committed[1]

    def find_client(self, client_id: int) -> int | None:
        """The slot of `client_id` in the append table."""
        if self.clients is None:
            slots = fmt.read_slots(self.page, self.slot_count)
            self.clients = {slot[0]: number for number, slot in enumerate(slots)}
        return self.clients.get(client_id)

    def commit(
        self,
        file: DiskFile,
        length: int,
        tail_crc: int,
        *,
        append: tuple[int, int, int, int] | None = None,
        slots: list[tuple[int, int, int, int]] | None = None,
        version: int | None = None,
        sync: bool = False,
        padded: bool = False,
    ) -> None:
        """Write the next header page, the one step that makes a mutation count. Raises OSError: nothing changed.

        `append`: (client id, sequence, offset, length) to remember; `slots`: the whole table instead.
        `sync`: the caller makes it durable next.
        """
        page = bytearray(self.page)
        count = self.slot_count
        victim = number = None
        if slots is not None:
            count = len(slots)
            page[fmt.SLOTS_START : -4] = bytes(fmt.PAGE_BYTES - 4 - fmt.SLOTS_START)
            for at, slot in enumerate(slots):
                fmt.write_slot(page, at, slot)
        if append is not None:
            number, victim = self._slot_for(append[0])
            fmt.write_slot(page, number, append)
            count = max(count, number + 1)
        flags = (fmt.FLAG_SYNC if sync else 0) | (fmt.FLAG_PADDED if padded else self.flags & fmt.FLAG_PADDED)
        new_version = self.version if version is None else version
        fields = (
            flags, new_version, self.generation + 1, length, self.synced_length, self.synced_generation,
            tail_crc, self.synced_tail, count,
        )  # fmt: skip
        fmt.pack_page(page, self.handle, self.chunk_size, fields)
        # Never the newest page and never the durable one, so neither a kill nor a power loss can leave less than the
        # last acknowledged (or the last synced) header.
        target = (self.slot + 1) % fmt.HEADER_PAGES
        if target == self.durable_slot:
            target = (target + 1) % fmt.HEADER_PAGES
        file.pwrite(page, target * fmt.PAGE_BYTES)
        self.page, self.slot, self.generation, self.flags = page, target, self.generation + 1, flags
        self.version, self.slot_count, self.dirty = new_version, count, True
        self.committed = (length, tail_crc)
        if slots is not None:
            self.clients = None
        elif append is not None and number is not None and self.clients is not None:
            if victim is not None:
                self.clients.pop(victim, None)
            self.clients[append[0]] = number

    def _slot_for(self, client_id: int) -> tuple[int, int | None]:
        """(slot, client forgotten for it). Offsets of appends only grow, so the smallest is the least recent."""
        found = self.find_client(client_id)
        if found is not None:
            return found, None
        if self.slot_count < fmt.SLOTS_MAX:
            return self.slot_count, None
        slots = fmt.read_slots(self.page, self.slot_count)
        number = min(range(len(slots)), key=lambda at: slots[at][2])
        return number, slots[number][0]

    def clear_table_behind(self, file: DiskFile) -> None:
        """Forget checksums of blocks behind the committed length: left by a cut, or by a write that never counted.

        If they stayed, a power loss that kept a later header but not its data could make the old data verify again.
        """
        start = self.committed[0] // BLOCK_BYTES * 4
        self.table[start:] = bytes(len(self.table) - start)
        file.pwrite(self.table[start:], fmt.TABLE_START + start)
        self.stale_table = False

    def synced(self, file: DiskFile) -> None:
        """An fdatasync of the file has returned: all that was committed before it is durable.

        A further header page tells so. Nobody syncs it; the system writes it back in its own time. Without it a power
        loss much later would find the header of before the sync, and damage pass for a tail that never was synced.
        """
        self.synced_length, self.synced_tail = self.committed
        self.synced_generation = self.generation
        self.durable_slot = self.slot
        with contextlib.suppress(OSError):  # the sync counts all the same, and the next mutation tells of it too
            self.commit(file, *self.committed)
        self.unsettled = self.dirty = False


class OpenChunk:
    """A chunk file in use: descriptors and state. Closed when nobody refers to it any more, so that a reader in
    another thread never has its descriptor closed (and given to another file) under its hands."""

    __slots__ = ("_direct", "_lock", "_open_direct", "doubtful", "file", "state")

    def __init__(
        self, file: DiskFile, state: ChunkState, open_direct: Callable[[], DiskFile], *, doubtful: bool = False
    ) -> None:
        self.file = file
        self.state = state
        self.doubtful = doubtful  # a header page is damaged: length and version may be older than what was acknowledged
        self._open_direct = open_direct
        self._direct: DiskFile | None = None
        self._lock = threading.Lock()  # of readers without the chunk's lock, only one opens it

    def direct(self) -> DiskFile:
        """The descriptor that goes around the page cache, where the file system has such a thing."""
        if self._direct is not None:
            return self._direct
        with self._lock:
            if self._direct is None:
                try:
                    self._direct = self._open_direct()
                except OSError as error:
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                        raise
                    return self.file
            return self._direct

    def __del__(self) -> None:
        self.file.close()
        if self._direct is not None:
            self._direct.close()


class NotBorn(Exception):
    """The file exists, but its creation was never finished: nothing was ever acknowledged in it."""


def find_header(
    raw: Buffer, file: DiskFile, handle: int, chunk_size: int, *, power_lost: bool
) -> tuple[list[fmt.Header | None], fmt.Header, list[int]]:
    """All headers, the newest of them, and the numbers of the damaged pages; `raw` holds the header pages.

    Raises NotBorn when the creation was never finished, GfsError(CHECKSUM_MISMATCH) when no page is readable.
    """
    headers, damaged = fmt.parse_headers(raw, handle, chunk_size)
    newest = max((header for header in headers if header), key=lambda header: header.generation, default=None)
    if newest is not None and (newest.generation > 1 or not damaged):
        return headers, newest, damaged
    # The one write of a creation reaches to the start of the data: a file that is shorter never got there, and
    # whatever else made it so short left nothing in it to lose.
    start = fmt.data_start(chunk_size)
    if newest is not None:
        if file.size() < start and all(_blank(raw, page) for page in damaged):
            raise NotBorn
        return headers, newest, damaged
    if all(_blank(raw, page) for page in damaged) and (power_lost or file.size() <= start):
        raise NotBorn
    raise GfsError(Code.CHECKSUM_MISMATCH, f"chunk {handle:016x}: no readable header; the replica is lost")


def _blank(raw: Buffer, page: int) -> bool:
    return not bytes(memoryview(raw)[page * fmt.PAGE_BYTES : (page + 1) * fmt.PAGE_BYTES]).strip(b"\0")


def load_state(file: DiskFile, handle: int, chunk_size: int, *, power_lost: bool) -> tuple[ChunkState, list[int]]:
    """The state of a chunk file, and the numbers of damaged header pages. Raises as `find_header`."""
    state = ChunkState(handle, chunk_size)
    raw = file.pread(state.data_start, 0)
    raw += bytes(state.data_start - len(raw))
    headers, newest, damaged = find_header(raw[: fmt.TABLE_START], file, handle, chunk_size, power_lost=power_lost)
    state.page, state.slot, state.generation = newest.page, headers.index(newest), newest.generation
    state.version, state.flags, state.slot_count = newest.version, newest.flags, newest.slot_count
    state.committed = (newest.length, newest.tail_crc)
    state.synced_length, state.synced_tail = newest.synced_length, newest.synced_tail
    state.synced_generation = newest.synced_generation
    state.durable_slot = state.slot
    for number, header in enumerate(headers):
        if header is not None and header.generation == newest.synced_generation:
            state.durable_slot = number
    state.dirty = True  # unknown: the next sync has to do it
    state.table = bytearray(raw[fmt.TABLE_START :])
    state.stale_table = bool(state.table[newest.length // BLOCK_BYTES * 4 :].strip(b"\0"))
    state.unsettled = bool(newest.flags & fmt.FLAG_SYNC)
    state.physical_end = max(0, file.size() - state.data_start)
    return state, damaged


def header_of(disk: Disk, path: str, handle: int, chunk_size: int) -> tuple[fmt.Header, list[int]]:
    """The newest header of a chunk file, and the numbers of damaged pages. Raises as `find_header` and `disk_error`."""
    try:
        file = disk.open(path)
        try:
            raw = file.pread(fmt.TABLE_START, 0)
            raw += bytes(fmt.TABLE_START - len(raw))
            _, newest, damaged = find_header(raw, file, handle, chunk_size, power_lost=False)
        finally:
            file.close()
    except OSError as error:
        raise disk_error(error, handle) from error
    return newest, damaged


def create_file(disk: Disk, path: str, handle: int, version: int, chunk_size: int) -> tuple[DiskFile, ChunkState]:
    """A new, empty chunk file. Headers and table get their space now: later only data can meet a full disk.

    Every page gets the first header, so that one that is blank later on was zeroed by a disk that lies.
    """
    state = ChunkState(handle, chunk_size)
    fields = (0, version, 1, 0, 0, 0, 0, 0, 0)
    fmt.pack_page(state.page, handle, chunk_size, fields)
    file = disk.open(path, create=True, exclusive=True)
    try:
        file.pwrite(bytes(state.page) * fmt.HEADER_PAGES + bytes(state.data_start - fmt.TABLE_START), 0)
    except OSError:
        file.close()
        disk.unlink(path)
        raise
    state.generation, state.version, state.dirty = 1, version, True
    return file, state


def is_shortage(error: Exception) -> bool:
    """The system ran short of descriptors or memory, which says nothing about the replica."""
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def disk_error(error: OSError, handle: int) -> GfsError:
    """The one place where the local disk's errors become ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GfsError(Code.NO_SPACE, f"chunk {handle:016x}: the disk is full")
    if error.errno == errno.ENOENT:
        return GfsError(Code.UNKNOWN_CHUNK, f"chunk {handle:016x} is not here")
    if is_shortage(error):
        return GfsError(Code.NOT_READY, f"chunk {handle:016x}: {error.strerror}")
    return GfsError(Code.IO, f"chunk {handle:016x}: {error.strerror or error}")
