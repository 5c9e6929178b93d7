"""Atomic record append to one file [00104]-[00108].

One append of this client is in flight per file; what is asked for meanwhile waits and goes together, as one atomic
record, in the next. The first caller to find nothing in flight sends for all: no task of its own, no hop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from gfscore.client.chunks import ChunkGrant, Chunks
from gfscore.client.deadline import pause_seconds, worth_another_try
from gfscore.client.mutation import INLINE_BYTES_MAX, Mutator
from gfscore.client.options import ClientOptions
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import APPEND_FRACTION, PIECE_BYTES

BATCH_RECORDS_MAX = 1024


class _Waiting:
    __slots__ = ("done", "error", "offset", "record")

    def __init__(self, record: memoryview) -> None:
        self.record = record
        self.done: trio.Event | None = None
        self.offset = -1
        self.error: GfsError | None = None


class Appender:
    def __init__(
        self, inode: int, chunk_bytes: int, chunks: Chunks, mutator: Mutator, env: Env, options: ClientOptions,
        attempt: Callable[[], Callable[[int], None]],
    ) -> None:  # fmt: skip
        """`attempt`: see `Files.attempt`."""
        self.inode = inode
        self._chunk_bytes = chunk_bytes
        self._chunks = chunks
        self._mutator = mutator
        self._env = env
        self._options = options
        self._attempt = attempt
        self._queue: deque[_Waiting] = deque()
        self._sending = False
        self._grant: ChunkGrant | None = None

    @property
    def record_bytes_max(self) -> int:
        return self._chunk_bytes // APPEND_FRACTION

    async def append(self, record: bytes | memoryview) -> int:
        """The record is whole and contiguous at the returned offset of the file on all replicas.

        Raises GfsError: INVALID for no bytes, MESSAGE_TOO_LARGE over a quarter of a chunk [0106], TIMED_OUT with the
        reason (the record may be there then, or not).
        """
        if not len(record):
            raise GfsError(Code.INVALID, "a record has at least one byte")
        if len(record) > self.record_bytes_max:
            raise GfsError(
                Code.MESSAGE_TOO_LARGE,
                f"a record of {len(record)} bytes is over a quarter of the chunk size ({self.record_bytes_max} bytes)",
            )
        mine = _Waiting(memoryview(record))
        self._queue.append(mine)
        if self._sending:
            mine.done = trio.Event()
            try:
                await mine.done.wait()
            except trio.Cancelled:
                self._leave(mine)
                raise
        if mine.offset < 0 and mine.error is None:  # it is this caller's turn to send
            await self._send_batch()
        if mine.error is not None:
            raise mine.error
        return mine.offset

    def forget_grant(self) -> None:
        """The file was cut, cloned or given back to the master: ask again where its end is."""
        self._grant = None

    def begin_behind(self, end: int) -> None:
        """Something was written up to `end`, perhaps behind the chunk that was the last one."""
        if self._grant is not None and end > (self._grant.index + 1) * self._chunk_bytes:
            self._grant = None

    async def _send_batch(self) -> None:
        batch: list[_Waiting] = []
        size = 0
        limit = min(self.record_bytes_max, PIECE_BYTES)
        while self._queue and len(batch) < BATCH_RECORDS_MAX:
            if batch and size + len(self._queue[0].record) > limit:
                break
            batch.append(self._queue.popleft())
            size += len(batch[-1].record)
        self._sending = True
        try:
            # Once the record is on its way its fate must be learnt, or the next one could not be told from a retry.
            with trio.CancelScope(shield=True):
                offset = await self._append_until_done([waiting.record for waiting in batch], size)
            for waiting in batch:
                waiting.offset = offset
                offset += len(waiting.record)
        except GfsError as error:
            for waiting in batch:
                waiting.error = error
        finally:
            self._sending = False
            for waiting in batch:
                if waiting.done is not None:
                    waiting.done.set()
            self._wake_next()

    def _leave(self, waiting: _Waiting) -> None:
        """A caller gives up; if it had just been told to send for all, the next one is."""
        if waiting in self._queue:
            self._queue.remove(waiting)
            assert waiting.done is not None
            if waiting.done.is_set():
                self._sending = False
                self._wake_next()

    def _wake_next(self) -> None:
        """The next one in the queue sends for all behind it."""
        if self._queue:
            self._sending = True
            first = self._queue[0]
            assert first.done is not None
            first.done.set()

    async def _append_until_done(self, parts: list[memoryview], size: int) -> int:
        sequence = self._mutator.next_sequence()
        attempt = 0
        failed: ChunkGrant | None = None
        reason: GfsError | None = None
        with trio.move_on_after(self._options.timeout_seconds):
            while True:
                granted = False
                try:
                    grant = await self._current_grant(failed)
                    granted = True
                    try:
                        push_id = await self._mutator.push(grant, parts) if size > INLINE_BYTES_MAX else 0
                        acknowledge = self._attempt()
                        reply = await self._mutator.append(grant, sequence, size, parts, push_id)
                    except GfsError as error:
                        if attempt or error.code is not Code.UNKNOWN_PUSH:
                            failed = grant
                        raise
                    if not reply.next_chunk:
                        offset = grant.index * self._chunk_bytes + int(reply.offset)
                        acknowledge(offset + size)
                        return offset
                    failed = None
                    granted = False  # what the master says is final
                    self._keep(await self._chunks.grant_last(self.inode, grant.index + 1))
                    continue
                except GfsError as error:
                    attempt += 1
                    if not worth_another_try(error, attempt, from_chunkserver=granted):
                        raise
                    reason = error
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        raise GfsError(Code.TIMED_OUT, f"an append to inode {self.inode} could not be completed: {reason}")

    async def _current_grant(self, failed: ChunkGrant | None) -> ChunkGrant:
        """A retry stays in the chunk of the first try, if the file still has it: only there can it be recognised
        (rule 14)."""
        if failed is not None:
            return self._keep(await self._chunks.grant(self.inode, failed.index, failed, existing=True))
        return self._grant or self._keep(await self._chunks.grant_last(self.inode))

    def _keep(self, grant: ChunkGrant) -> ChunkGrant:
        self._grant = None if grant.once else grant
        return grant
