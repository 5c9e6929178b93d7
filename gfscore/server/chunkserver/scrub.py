"""The idle scrub: reads and verifies all chunks again and again, slowly, so that damage is found while there are still
good replicas, also of what nobody reads [00131]. It finds and reports; replacing is the master's business.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from typing import TYPE_CHECKING

from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.server.chunkserver import scrub_state
from gfscore.storage.chunk_store import Chunk
from gfscore.storage.chunk_verify import PIECE_BYTES, describe_damage, verify_headers, verify_piece

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node

log = logging.getLogger(__name__)

_START_SECONDS = 1.0  # between looks whether the store is open, or has anything to verify
_NAP_SECONDS = 0.1  # shorter waits are saved up: many small chunks cost one wait
_SAVE_SECONDS = 30.0
_FOREGROUND = ("Push", "Write", "Append", "Apply", "Read")
_BUSY_CALLS_PER_SECOND = 20
_BUSY_FACTOR = 4  # while clients are at work the scrub goes so much slower


class Scrub:
    """Runs on one node for as long as the server does. What it remembers is `node.scrubbed`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._todo: list[int] = []
        self._done = 0  # of `_todo`
        self._owed_seconds = 0.0
        self._looked_at = (0.0, 0)  # boottime and foreground calls at the last wait
        self._saved_at = 0.0
        self._saved_corrupt: set[int] = set()

    @property
    def percent(self) -> float:
        """How far the pass under way is; 0 between two passes."""
        return 100.0 * self._done / len(self._todo) if self._todo else 0.0

    async def run(self) -> None:
        """Until cancelled."""
        node = self._node
        clock, config = node.env.clock, node.config
        while not node.ready:
            await clock.sleep(_START_SECONDS)
        self._saved_corrupt = set(node.scrubbed.corrupt)
        while True:
            if config.scrub_bytes_per_second and node.replicas.index:
                await self._pass()
            pause_until = clock.boottime() + config.scrub_pause_seconds
            while clock.boottime() < pause_until:
                await clock.sleep(min(config.scrub_pause_seconds, _SAVE_SECONDS))
                await self._save_if_due()
                if not node.scrubbed.finished_ns and config.scrub_bytes_per_second and node.replicas.index:
                    break  # a new server has got its first chunks

    async def _pass(self) -> None:
        """From where the last one was broken off, to the last chunk there is."""
        node, memory = self._node, self._node.scrubbed
        self._todo = await node.io.run(sorted, list(node.replicas.index))
        self._done = bisect_right(self._todo, memory.position)
        if self._done:
            log.info("event=scrub_resumed chunk=%016x", memory.position)
        while self._done < len(self._todo):
            handle = self._todo[self._done]
            if handle in node.replicas.index and handle not in node.replicas.corrupt:
                await self._check(handle)
            self._done += 1
            memory.position = handle
            await self._save_if_due()
        log.info("event=scrub_finished chunks=%d damaged=%d", len(self._todo), len(node.replicas.corrupt))
        self._todo, self._done = [], 0
        memory.position, memory.finished_ns = 0, node.env.clock.wall_ns()
        await self._save()

    async def _check(self, handle: int) -> None:
        table = self._node.replicas
        try:
            chunk = self._node.store.get(handle)
            was_open = chunk.live_if_open() is not None
            await self._verify(chunk)
            if not was_open:
                chunk.close_if_idle()
        except GfsError as error:
            if handle in table.index:
                table.found_damage(handle, error)

    async def _verify(self, chunk: Chunk) -> None:
        """Raises GfsError: CHECKSUM_MISMATCH, IO, UNKNOWN_CHUNK."""
        run, store = self._node.io.run, self._node.store
        good = await run(verify_headers, chunk, store)
        await self._pace(BLOCK_BYTES)
        bad: list[int] = []
        start = 0
        while start < chunk.length:
            bad += await run(verify_piece, chunk, store, start)
            await self._pace(min(PIECE_BYTES, max(0, chunk.length - start)))
            start += PIECE_BYTES
        if bad or not good:
            raise GfsError(Code.CHECKSUM_MISMATCH, describe_damage(bad))

    async def _pace(self, size: int) -> None:
        """Wait as long as `size` bytes take at the rate that is set, longer while clients want the disk."""
        node = self._node
        self._owed_seconds += size / node.config.scrub_bytes_per_second
        if self._owed_seconds < _NAP_SECONDS:
            return
        now = node.env.clock.boottime()
        calls = sum(node.calls.get(name, 0) for name in _FOREGROUND)
        since, calls_then = self._looked_at
        busy = calls - calls_then > _BUSY_CALLS_PER_SECOND * max(now - since, _NAP_SECONDS)
        self._looked_at = (now, calls)
        seconds, self._owed_seconds = self._owed_seconds, 0.0
        await node.env.clock.sleep(seconds * _BUSY_FACTOR if busy else seconds)

    async def _save_if_due(self) -> None:
        now = self._node.env.clock.boottime()
        damaged = self._node.replicas.corrupt != self._saved_corrupt
        if damaged or (self._todo and now - self._saved_at >= _SAVE_SECONDS):
            await self._save()

    async def _save(self) -> None:
        node, memory = self._node, self._node.scrubbed
        memory.corrupt = set(node.replicas.corrupt)
        self._saved_at = node.env.clock.boottime()
        self._saved_corrupt = memory.corrupt
        try:
            await node.io.run(scrub_state.save, node.env.disk, memory)
        except OSError as error:
            log.warning("event=scrub_not_saved error=%r", str(error))
