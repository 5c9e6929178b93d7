"""One replica of one chunk on the local disk: verified reads, and mutations that a kill cannot tear.

Mutations of one chunk are serial: each takes `lock` itself. Reads take no lock; one that meets a mismatch while a
mutation may be in flight looks again under the lock before it calls the replica corrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gfscore.checksum import Buffer, crc32c
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_extend, chunk_overwrite, chunk_read, chunk_verify
from gfscore.storage import chunk_format as fmt
from gfscore.storage.buffers import PooledBuffer
from gfscore.storage.chunk_extents import Extent, normalise, page_aligned, split_at
from gfscore.storage.chunk_state import OpenChunk, disk_error

if TYPE_CHECKING:
    from gfscore.storage.chunk_store import ChunkStore


class Chunk:
    """Got from a `ChunkStore`. All methods block on the disk and raise GfsError: UNKNOWN_CHUNK after a delete, NO_SPACE
    (state as before), IO, CHECKSUM_MISMATCH; StoreFailed after a failed sync."""

    __slots__ = ("_live", "_name_durable", "_store", "corrupt", "handle", "lock", "used")

    def __init__(self, store: ChunkStore, handle: int, *, name_durable: bool = False) -> None:
        self.handle = handle
        self.lock = threading.Lock()
        self.corrupt = False  # something of it did not verify
        self.used = True  # since the store last looked for descriptors to close
        self._store = store
        self._live: OpenChunk | None = None
        self._name_durable = name_durable

    # ---------------------------------------------------------------- what it is

    @property
    def version(self) -> int:
        return self._get().state.version

    @property
    def length(self) -> int:
        """Committed bytes."""
        return self._get().state.committed[0]

    @property
    def doubtful(self) -> bool:
        """A header page is damaged: length and version may be older than what was acknowledged."""
        return self._get().doubtful

    @property
    def path(self) -> str:
        """Relative to the disk's root."""
        return self._store.path_of(self.handle)

    def append_slot(self, client_id: int) -> tuple[int, int, int] | None:
        """(sequence, offset, length) of the latest append of this client, if it is still remembered (rule 14)."""
        state = self._get().state
        number = state.find_client(client_id)
        return None if number is None else fmt.read_slot(state.page, number)[1:]

    def append_table_bytes(self) -> bytes:
        """The append table as `replace` takes it on another replica."""
        state = self._get().state
        return fmt.slots_bytes(state.page, state.slot_count)

    def block_checksums(self) -> tuple[int, int, bytes]:
        """(length, checksum of the last, partial block or 0, 4 bytes little endian per complete block)."""
        with self.lock:
            state = self._get_locked().state
            length, tail = state.committed
            return length, tail, bytes(state.table[: length // BLOCK_BYTES * 4])

    def digest(self) -> int:
        """Equal where the contents and the append table are."""
        length, tail, table = self.block_checksums()
        return crc32c(self.append_table_bytes(), crc32c(table, crc32c(b"%d %d" % (length, tail))))

    # ---------------------------------------------------------------- reading

    def read(self, offset: int, size: int) -> memoryview:
        """Verified bytes of its own; fewer than asked at the end. For large reads see `read_pooled`."""
        buffer = self.read_pooled(offset, size)
        try:
            return memoryview(bytes(buffer.view))
        finally:
            buffer.release()

    def read_pooled(self, offset: int, size: int) -> PooledBuffer:
        """Verified bytes in `.view` of a pooled buffer, fewer than asked at the end; the caller releases it."""
        live = self._get()
        committed = live.state.committed
        size = min(size, committed[0] - offset)
        if size <= 0 or offset < 0:
            return self._store.pool.acquire(0)
        start, end = chunk_read.aligned_range(offset, size, committed[0])
        buffer = self._store.pool.acquire(-(-(end - start) // fmt.PAGE_BYTES) * fmt.PAGE_BYTES)
        try:
            got = self._fetch_verified(live, buffer.whole, start, end, committed, aligned=True)
            buffer.view = buffer.whole[offset - start : min(offset - start + size, max(got, offset - start))]
        except BaseException:
            buffer.release()
            raise
        return buffer

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` with verified bytes; how many there were."""
        live = self._get()
        committed = live.state.committed
        size = min(len(view), committed[0] - offset)
        if size <= 0 or offset < 0:
            return 0
        start, end = chunk_read.aligned_range(offset, size, committed[0])
        if start == offset and end == offset + size:
            aligned = size % fmt.PAGE_BYTES == 0 and size >= chunk_read.DIRECT_READ_BYTES_MIN and page_aligned(view)
            return self._fetch_verified(live, view[:size], start, end, committed, aligned=aligned)
        buffer = self.read_pooled(offset, size)
        try:
            size = len(buffer.view)
            view[:size] = buffer.view
            return size
        finally:
            buffer.release()

    def _fetch_verified(
        self, live: OpenChunk, memory: memoryview, start: int, end: int, committed: tuple[int, int], *, aligned: bool
    ) -> int:
        """Bytes now verified in `memory`, from `start`. `aligned`: it is page-aligned, with room for whole pages."""
        size = end - start
        try:
            if aligned and size >= chunk_read.DIRECT_READ_BYTES_MIN:
                chunk_read.fetch_direct(live, memory, size, start)
            else:
                chunk_read.fetch(live, memory[:size], start)
            if chunk_read.first_bad_block(live, memory[:size], start, committed) is None:
                return size
            # A mutation may have been at work on these bytes: look again when none is.
            with self.lock:
                live = self._get_locked()
                committed = live.state.committed
                whole = memoryview(bytearray(max(0, min(end + -end % BLOCK_BYTES, committed[0]) - start)))
                chunk_read.fetch(live, whole, start)
                self._check(chunk_read.first_bad_block(live, whole, start, committed))
        except OSError as error:
            raise disk_error(error, self.handle) from error
        size = min(size, len(whole))
        memory[:size] = whole[:size]
        return size

    def verify(self) -> list[int]:
        """Read everything; the numbers of the blocks that do not verify. Sets `corrupt` accordingly."""
        return chunk_verify.verify(self, self._store)

    # ---------------------------------------------------------------- mutations

    def write(
        self,
        extents: Sequence[tuple[int, Buffer]],
        checksums: Sequence[int] | None = None,
        append: tuple[int, int] | None = None,
        sync: bool = False,
    ) -> int:
        """One mutation: all `extents` (offset, bytes), all or nothing per block; the length after it.

        `checksums`: CRC32C of each 64 KiB of a single block-aligned extent, verified by the caller. `append`: (client
        id, sequence) of a record append, remembered with offset and length. `sync`: durable on return. No extents and
        `sync`: everything before it becomes durable.
        """
        with self.lock:
            live = self._begin()
            try:
                return self._write_locked(live, normalise(extents), checksums, append, sync)
            except OSError as error:
                raise self._failed(error) from error

    def sync(self) -> None:
        """Make everything durable: one fdatasync, none if nothing changed since the last."""
        self.write((), sync=True)

    def pad(self, pad_byte: int, sync: bool = False) -> int:
        """Fill the rest of the chunk [0106]; the length after it, which is the chunk size."""
        with self.lock:
            live = self._begin()
            state = live.state
            try:
                if state.committed[0] < state.chunk_size:
                    length, tail = chunk_extend.write_padding(live, state.committed, state.chunk_size, pad_byte)
                    self._commit(live, length, tail, sync=sync, padded=True)
                if sync:
                    self._make_durable(live)
            except OSError as error:
                raise self._failed(error) from error
            return state.committed[0]

    def replace(self, offset: int, data: Buffer, new_length: int, append_table: bytes) -> None:
        """Reconciliation (rule 9): these bytes, this length and this append table, whatever was there before.

        Blocks that `data` covers only in part must verify. Raises ValueError for a malformed table.
        """
        slots = fmt.parse_slots(append_table)
        with self.lock:
            live = self._begin()
            state = live.state
            if not 0 <= offset <= offset + len(data) <= new_length <= state.chunk_size:
                raise GfsError(Code.INVALID, f"chunk {self.handle:016x}: a copy outside of the chunk")
            try:
                self._store.journal.forget(self.handle)
                if new_length < state.committed[0]:
                    # What is cut may be written over later without the journal: the cut comes first, durably.
                    tail = self._tail_at_cut(live, new_length, (offset, memoryview(data).cast("B")))
                    self._cut(live, new_length, tail, state.version, slots)
                self._write_locked(live, normalise([(offset, data)]), None, None, False)
                length, tail = state.committed
                if length < new_length:
                    length, tail = chunk_extend.write_zeros(live, state.committed, new_length)
                self._commit(live, length, tail, slots=slots)
            except OSError as error:
                raise self._failed(error) from error

    def set_version(self, old: int, new: int, truncate: int | None = None) -> None:
        """Raise the version, and cut to `truncate` bytes if that is shorter; durable on return (rule 1).

        A repeated request is answered as the first. Raises STALE_VERSION when the replica has neither version.
        """
        with self.lock:
            live = self._begin()
            state = live.state
            if state.version not in (old, new):
                raise GfsError(Code.STALE_VERSION, f"chunk {self.handle:016x} has version {state.version}, not {old}")
            length, tail = state.committed
            try:
                if truncate is not None and truncate < length:
                    self._store.journal.forget(self.handle)
                    self._cut(live, truncate, self._tail_at_cut(live, truncate, None), new, None)
                else:
                    if state.version != new:
                        self._commit(live, length, tail, version=new, sync=True)
                    self._make_durable(live)
            except OSError as error:
                raise self._failed(error) from error

    # ---------------------------------------------------------------- inside, under the lock

    def _write_locked(
        self,
        live: OpenChunk,
        extents: list[Extent],
        checksums: Sequence[int] | None,
        append: tuple[int, int] | None,
        sync: bool,
    ) -> int:
        state = live.state
        if not extents:
            if sync:
                self._make_durable(live)
            return state.committed[0]
        first, end = extents[0][0], extents[-1][0] + len(extents[-1][1])
        if first < 0 or end > state.chunk_size:
            raise GfsError(Code.INVALID, f"chunk {self.handle:016x}: a write outside of the chunk")
        slot = None if append is None else (*append, first, end - first)
        if first >= state.committed[0]:
            length, tail = chunk_extend.write_behind(live, extents, checksums, state.committed)
            self._commit(live, length, tail, append=slot, sync=sync)
            if sync:
                self._make_durable(live)
            return length
        return self._overwrite(live, extents, checksums, slot, sync)

    def _overwrite(
        self,
        live: OpenChunk,
        extents: list[Extent],
        checksums: Sequence[int] | None,
        slot: tuple[int, int, int, int] | None,
        sync: bool,
    ) -> int:
        state = live.state
        inside, behind = split_at(extents, state.committed[0])
        try:
            plan = chunk_overwrite.plan(live, inside, checksums)
        except chunk_overwrite.BadBlock as bad:
            self._check(bad.block)
            raise
        synced = state.synced_length
        if synced < state.committed[0] and synced % BLOCK_BYTES and plan.touches(synced // BLOCK_BYTES):
            # A journal record must not promise more of a block than is durable of it, else replay after a power loss
            # could not tell what the block should be.
            self._make_durable(live)
        durable = plan.first_byte < state.synced_length
        target = state.committed if plan.tail_crc is None else (state.committed[0], plan.tail_crc)
        if behind:  # first, because this is what a full disk refuses, and nothing counts yet
            target = chunk_extend.write_behind(live, behind, None, target)
        self._in_place(live, plan, durable)
        only_journalled = durable and not behind and slot is None and not state.dirty
        if target != state.committed or slot is not None:
            self._commit_after(live, target, slot, plan, durable)
        if only_journalled:
            state.dirty = False  # the journal is the durable copy
        else:
            state.dirty = True
            if sync:
                self._make_durable(live)
        return target[0]

    def _in_place(self, live: OpenChunk, plan: chunk_overwrite.Overwrite, durable: bool) -> None:
        journal = self._store.journal
        try:
            chunk_overwrite.carry_out(live, journal, plan, durable)
        except chunk_overwrite.InPlaceFailed as failed:
            journal.checkpoint()
            raise failed.cause from failed
        except chunk_overwrite.Unrestored as failed:
            self.corrupt = True  # the record stays: a replay after a restart can still finish the work
            raise failed.cause from failed

    def _commit_after(
        self,
        live: OpenChunk,
        target: tuple[int, int],
        slot: tuple[int, int, int, int] | None,
        plan: chunk_overwrite.Overwrite,
        durable: bool,
    ) -> None:
        """The header page after an overwrite. One that changes synced bytes of the tail becomes durable with the next
        checkpoint of the journal, so it counts as perhaps durable from now on."""
        state = live.state
        tail_synced = durable and plan.tail_crc is not None
        if tail_synced and state.synced_length == state.committed[0] and plan.tail_crc is not None:
            state.synced_tail = plan.tail_crc
        try:
            self._commit(live, *target, append=slot, sync=tail_synced)
        except OSError:
            self.corrupt = True  # data and header disagree; the next start replays the journal
            raise
        state.unsettled = state.unsettled or tail_synced

    def _commit(
        self,
        live: OpenChunk,
        length: int,
        tail: int,
        *,
        append: tuple[int, int, int, int] | None = None,
        slots: list[tuple[int, int, int, int]] | None = None,
        version: int | None = None,
        sync: bool = False,
        padded: bool = False,
    ) -> None:
        before = live.state.committed[0]
        live.state.commit(
            live.file, length, tail, append=append, slots=slots, version=version, sync=sync, padded=padded
        )
        if length != before:
            self._store.count_bytes(length - before)

    def _cut(
        self, live: OpenChunk, length: int, tail: int, version: int, slots: list[tuple[int, int, int, int]] | None
    ) -> None:
        """Shorten, durably. Records that are cut are forgotten: their retry is a new append."""
        state = live.state
        kept = fmt.read_slots(state.page, state.slot_count) if slots is None else slots
        kept = [slot for slot in kept if slot[2] + slot[3] <= length]
        self._commit(live, length, tail, slots=kept, version=version, sync=True)
        self._make_durable(live)
        state.stale_table = True  # the next mutation sees to it

    def _tail_at_cut(self, live: OpenChunk, length: int, replaced: Extent | None) -> int:
        """The tail checksum if the chunk ended at `length`; the block must verify, unless `replaced` covers it."""
        start = length - length % BLOCK_BYTES
        if start == length:
            return 0
        state = live.state
        whole = memoryview(bytearray(min(BLOCK_BYTES, state.committed[0] - start)))
        chunk_read.fetch(live, whole, start)
        bad = chunk_read.first_bad_block(live, whole, start, state.committed)
        if bad is not None and replaced and replaced[0] <= start and replaced[0] + len(replaced[1]) >= length:
            # About to be replaced; until then no checksum may vouch for bytes that did not verify.
            return crc32c(whole[: length - start]) ^ 1
        self._check(bad)
        return crc32c(whole[: length - start])

    def tail_checksum_at(self, live: OpenChunk, length: int) -> int:
        """For a clone that is cut; the lock is held."""
        return self._tail_at_cut(live, length, None)

    def check_up_to(self, live: OpenChunk, end: int) -> None:
        """For a clone; the lock is held. Raises CHECKSUM_MISMATCH for a damaged block before `end`, OSError."""
        committed = live.state.committed
        end = min(end + -end % BLOCK_BYTES, committed[0])
        buffer = self._store.pool.acquire(chunk_verify.PIECE_BYTES)
        try:
            for start in range(0, end, chunk_verify.PIECE_BYTES):
                piece = buffer.whole[: min(chunk_verify.PIECE_BYTES, end - start)]
                chunk_read.fetch(live, piece, start)
                self._check(chunk_read.first_bad_block(live, piece, start, committed))
        finally:
            buffer.release()

    def _check(self, bad_block: int | None) -> None:
        if bad_block is not None:
            self.corrupt = True
            raise GfsError(
                Code.CHECKSUM_MISMATCH, f"chunk {self.handle:016x}: block {bad_block} does not match its checksum"
            )

    def _begin(self) -> OpenChunk:
        """The chunk ready for a mutation."""
        self._store.check_usable()
        live = self._get_locked()
        if live.state.unsettled or live.state.stale_table:
            try:
                self._make_durable(live)
                if live.state.stale_table:
                    # Only now: until the header is durable, an older one may still need these checksums.
                    live.state.clear_table_behind(live.file)
                    self._store.fdatasync(live.file)
            except OSError as error:
                raise self._failed(error) from error
        return live

    def _failed(self, error: OSError) -> GfsError:
        """A mutation that the disk refused: what is in the file is the truth, so it is read again at the next use."""
        self._live = None
        return disk_error(error, self.handle)

    def _make_durable(self, live: OpenChunk) -> None:
        state = live.state
        if state.dirty or state.unsettled:
            if not state.flags & fmt.FLAG_SYNC:
                # So that whoever opens the file next knows that this page may be durable, and keeps it.
                state.commit(live.file, *state.committed, sync=True)
            self._store.fdatasync(live.file)
            state.synced(live.file)
        if not self._name_durable:
            self._store.sync_name(self.handle)
            self._name_durable = True

    # ---------------------------------------------------------------- descriptors

    def _get(self) -> OpenChunk:
        live = self._live
        if live is None:
            with self.lock:
                return self._get_locked()
        self.used = True
        return live

    def _get_locked(self) -> OpenChunk:
        live = self._live
        if live is None:
            try:
                live = self._store.load(self)
            except OSError as error:
                raise disk_error(error, self.handle) from error
            self._live = live
            self._store.opened(self)
        self.used = True
        return live

    def get_locked(self) -> OpenChunk:
        """For the store, which holds the lock."""
        return self._get_locked()

    def adopt(self, live: OpenChunk | None) -> None:
        """For the store: the file it has just created, or None for one it has just deleted."""
        self._live = live

    def live_if_open(self) -> OpenChunk | None:
        """For the store: without opening anything."""
        return self._live

    def close_if_idle(self) -> bool:
        """Drop descriptors and state unless a mutation is at work; readers that hold them finish first."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            self._live = None
            return True
        finally:
            self.lock.release()
