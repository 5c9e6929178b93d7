"""Gathers the writes of one file and sends them, many pieces in flight [0094]-[00103].

`write` returns as soon as its bytes are kept here; `write_out` and `sync` say when they are on the replicas. Pieces are
pushed at the same time, but the primary is asked in the order of their offsets, so that a sequential write only ever
extends the chunk. A range that is in flight is not sent again until the answer is there: the later write always wins.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gfscore.client.chunks import ChunkGrant, Chunks
from gfscore.client.deadline import pause_seconds, worth_another_try
from gfscore.client.dirty import DirtyRanges, Segment, merge_extents
from gfscore.client.mutation import INLINE_BYTES_MAX, Mutator
from gfscore.client.options import ClientOptions
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PIECE_BYTES

EXTENTS_MAX = 1024  # of one write request
_SCATTERED_BYTES = 8 * PIECE_BYTES  # dirty bytes that form no whole piece are sent at the latest here


class WriteBudget:
    """Bounds the bytes that all files of a client keep in memory."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.used = 0
        self._waiting = trio.lowlevel.ParkingLot()

    def add(self, size: int) -> None:
        self.used += size

    def release(self, size: int) -> None:
        self.used -= size
        self._waiting.unpark_all()

    async def below_limit(self) -> None:
        while self.used > self.bytes_max:
            await self._waiting.park()


class _Piece:
    __slots__ = ("asked", "index", "previous", "segments", "size", "start", "stop", "sync")

    def __init__(self, index: int, segments: list[Segment], sync: bool, previous: trio.Event | None) -> None:
        self.index = index
        self.segments = segments
        self.sync = sync
        self.start = segments[0].offset
        self.stop = segments[-1].end
        self.size = sum(len(segment.data) for segment in segments)
        self.asked = trio.Event()  # the primary has been asked to apply this piece, or never will
        self.previous = previous


class FileWriter:
    """One per file that is written, shared by all its handles."""

    def __init__(
        self,
        inode: int,
        chunk_bytes: int,
        chunks: Chunks,
        mutator: Mutator,
        budget: WriteBudget,
        nursery: trio.Nursery,
        env: Env,
        options: ClientOptions,
        attempt: Callable[[], Callable[[int], None]],
        unsynced: set[int],
    ) -> None:
        """`attempt`: see `Files.attempt`. `unsynced`: indexes of chunks that
        were changed since the last sync, through this writer or otherwise."""
        self.inode = inode
        self.error: GfsError | None = None  # of the latest piece that failed for good
        self.error_number = 0
        self._chunk_bytes = chunk_bytes
        self._chunks = chunks
        self._mutator = mutator
        self._budget = budget
        self._nursery = nursery
        self._env = env
        self._options = options
        self._attempt = attempt
        self._dirty = DirtyRanges()
        self._in_flight: dict[_Piece, None] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._last_asked: dict[int, trio.Event] = {}  # chunk index -> `asked` of its latest piece
        self._acknowledged: set[int] = set()  # chunk handles in which something of ours is acknowledged
        self._unsynced = unsynced
        self._syncing = trio.Lock()

    # ------------------------------------------------------------ for the file's handles

    @property
    def busy(self) -> bool:
        return bool(self._dirty or self._in_flight)

    @property
    def unsent_end(self) -> int:
        """One past the last byte that the replicas do not have yet, 0 when they have all."""
        if not self._in_flight:
            return self._dirty.end
        return max(self._dirty.end, *(piece.stop for piece in self._in_flight))

    def overlaps(self, start: int, stop: int) -> bool:
        """Is there anything in [start, stop) that the replicas do not have yet?"""
        return self._dirty.overlaps(start, stop) or any(p.start < stop and p.stop > start for p in self._in_flight)

    async def write(self, offset: int, data: bytes | memoryview) -> None:
        """Keep `data`; send what has become whole pieces. Waits only while too much is kept already."""
        before = self._dirty.size
        self._dirty.add(offset, data)
        self._budget.add(self._dirty.size - before)
        end = offset + len(data)
        for start in range(offset // PIECE_BYTES * PIECE_BYTES, end, PIECE_BYTES):
            stop = start + PIECE_BYTES
            if stop > end and self._dirty.end > end:
                continue  # inside older dirty bytes; sent with them
            if self._dirty.contiguous_before(stop, PIECE_BYTES) >= PIECE_BYTES:
                await self._dispatch(start, stop, sync=False)
        if self._dirty.size > _SCATTERED_BYTES or self._budget.used > self._budget.bytes_max:
            await self._dispatch_all(sync=False)
        while len(self._in_flight) >= self._options.pieces_in_flight:
            await self._changed.park()
        await self._budget.below_limit()

    async def write_out(self) -> None:
        """Return when everything written so far is on all replicas, or has failed (see `error`)."""
        await self._dispatch_all(sync=False)
        while self._in_flight:
            await self._changed.park()

    async def sync(self) -> None:
        """`write_out`, and to the disks of all replicas. Raises GfsError."""
        if len(self._in_flight) == 0 and self._dirty and self._dirty.size <= INLINE_BYTES_MAX:
            await self._dispatch_all(sync=True)  # one message for data and sync
        else:
            await self._dispatch_all(sync=False)
        while self._in_flight:
            await self._changed.park()
        async with self._syncing:  # another sync that is under way may have taken over what this one is for
            for index in sorted(self._unsynced):
                self._unsynced.discard(index)  # before: what is written meanwhile is for the next sync
                try:
                    await self._sync_chunk(index)
                except BaseException:
                    self._unsynced.add(index)
                    raise

    # ------------------------------------------------------------ sending

    async def _dispatch_all(self, sync: bool) -> None:
        while self._dirty:
            start = self._dirty.first_offset()
            chunk_stop = (start // self._chunk_bytes + 1) * self._chunk_bytes
            await self._dispatch(start, chunk_stop, sync)

    async def _dispatch(self, start: int, stop: int, sync: bool) -> None:
        """Send what is dirty in [start, stop), a range within one chunk, as pieces of limited size."""
        while any(piece.start < stop and piece.stop > start for piece in self._in_flight):
            await self._changed.park()
        segments = self._dirty.take(start, stop)
        index = start // self._chunk_bytes
        group: list[Segment] = []
        size = 0
        for segment in segments:
            while segment.data:
                room = PIECE_BYTES - size
                if room == 0 or len(group) == EXTENTS_MAX:
                    self._launch(index, group, sync)
                    group, size = [], 0
                    continue
                group.append(Segment(segment.offset, segment.data[:room]))
                size += len(group[-1].data)
                segment = Segment(segment.offset + room, segment.data[room:])
        if group:
            self._launch(index, group, sync)

    def _launch(self, index: int, segments: list[Segment], sync: bool) -> None:
        piece = _Piece(index, segments, sync, self._last_asked.get(index))
        self._last_asked[index] = piece.asked
        self._in_flight[piece] = None
        self._nursery.start_soon(self._send, piece)

    async def _send(self, piece: _Piece) -> None:
        try:
            await self._send_until_done(piece)
        except GfsError as error:
            self.error = error
            self.error_number += 1
        finally:
            piece.asked.set()
            if self._last_asked.get(piece.index) is piece.asked:
                del self._last_asked[piece.index]
            del self._in_flight[piece]
            self._budget.release(piece.size)
            self._changed.unpark_all()

    async def _send_until_done(self, piece: _Piece) -> None:
        """Retry first from the push, then with a new grant from the master [00103]."""
        parts = [segment.data for segment in piece.segments]
        base = piece.index * self._chunk_bytes
        extents = [(offset - base, length) for offset, length in merge_extents(piece.segments)]
        failed: ChunkGrant | None = None
        grant: ChunkGrant | None = None
        attempt = 0
        reason: GfsError | None = None
        with trio.move_on_after(self._options.timeout_seconds):
            while True:
                granted = False
                try:
                    grant = await self._grant(piece.index, failed)
                    granted = True
                    push_id = await self._mutator.push(grant, parts) if piece.size > INLINE_BYTES_MAX else 0
                    if piece.previous is not None:
                        await piece.previous.wait()
                    piece.asked.set()
                    acknowledge = self._attempt()
                    await self._mutator.write(grant, extents, parts, push_id, piece.sync)
                    acknowledge(piece.stop)
                    self._acknowledged.add(grant.body.handle)
                    if not piece.sync:
                        self._unsynced.add(piece.index)
                    return
                except GfsError as error:
                    attempt += 1
                    if not worth_another_try(error, attempt, from_chunkserver=granted):
                        if failed is not None:
                            self._chunks.leave(self.inode, failed)
                        raise
                    reason = error
                    if granted and (attempt > 1 or error.code is not Code.UNKNOWN_PUSH):
                        failed = grant
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        if grant is not None:
            self._chunks.leave(self.inode, grant)
        raise GfsError(Code.TIMED_OUT, f"a write to inode {self.inode} could not be completed: {reason}")

    async def _grant(self, index: int, failed: ChunkGrant | None) -> ChunkGrant:
        fresh = failed is not None and failed.body.handle not in self._acknowledged
        return await self._chunks.grant(self.inode, index, failed, fresh=fresh)

    async def _sync_chunk(self, index: int) -> None:
        failed: ChunkGrant | None = None
        attempt = 0
        reason: GfsError | None = None
        with trio.move_on_after(self._options.timeout_seconds):
            while True:
                grant: ChunkGrant | None = None
                try:
                    grant = await self._chunks.grant(self.inode, index, failed, existing=True)
                    await self._mutator.write(grant, [], [], 0, sync=True)
                    return
                except GfsError as error:
                    attempt += 1
                    if not worth_another_try(error, attempt, from_chunkserver=grant is not None):
                        raise
                    failed, reason = grant or failed, error
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        raise GfsError(Code.TIMED_OUT, f"inode {self.inode} could not be synced: {reason}")
