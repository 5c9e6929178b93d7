"""What the parts of one chunkserver share. Holds state and hands it around; decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from gfscore.env.interfaces import Env
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import Session
from gfscore.replica.lease import Lease
from gfscore.server.chunkserver import scrub_state
from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.grants import GrantVerifier
from gfscore.server.chunkserver.identity import Identity
from gfscore.server.chunkserver.peers import Peers
from gfscore.server.chunkserver.pushes import Pushes
from gfscore.server.chunkserver.replicas import Replica, ReplicaTable
from gfscore.server.chunkserver.scrub import Scrub
from gfscore.server.chunkserver.store_io import StoreIo
from gfscore.storage.buffers import BufferPool
from gfscore.storage.chunk_store import ChunkStore

log = logging.getLogger(__name__)


class Node:
    """One running chunkserver. What is on its disk is known from `open_store` on; handlers run only when `ready`."""

    store: ChunkStore
    replicas: ReplicaTable
    scrubbed: scrub_state.ScrubState

    def __init__(self, config: ChunkserverConfig, env: Env, identity: Identity) -> None:
        self.config = config
        self.env = env
        self.identity = identity
        self.server_id = identity.server_id
        self.address = pb.Address()
        self.io = StoreIo(env.run_io, self.fail)
        self.session = Session()
        self.grants = GrantVerifier()
        self.peers = Peers(env.transport)
        self.pool = BufferPool()
        self.pushes = Pushes(env.clock, self.peers, self.pool, config.push_buffer_bytes)
        self.calls: dict[str, int] = {}
        self.scrub = Scrub(self)
        self.ready = False
        self.beat_wanted = trio.Event()
        self.failures: dict[tuple[int, str], pb.ChunkReport] = {}  # (handle, server) → what to report
        self.fatal_error: BaseException | None = None
        self._stop: Callable[[], object] | None = None

    async def open_store(self, chunk_size: int) -> None:
        """Open the chunks of this directory; recovery included. Raises GfsError."""
        if self.ready:
            return
        self.store = ChunkStore(self.env.disk, chunk_size, pool=self.pool)
        await self.io.run(self.store.open_all)
        self.replicas = ReplicaTable(self.io, self.store, self.beat_soon)
        await self.replicas.open()
        self.scrubbed = await self.io.run(scrub_state.load, self.env.disk)
        for handle in self.scrubbed.corrupt:
            self.replicas.mark_corrupt(handle, "found before the restart")
        self.ready = True
        log.info("event=store_opened chunks=%d chunk_size=%d", len(self.replicas.index), chunk_size)

    # ------------------------------------------------------------ what the master is to hear

    def beat_soon(self) -> None:
        """The next heartbeat goes out at once."""
        self.beat_wanted.set()

    def report_failure(self, replica: Replica, lease: Lease) -> None:
        """Servers that missed a mutation under `lease` (rule 8)."""
        for server_id in sorted(lease.failed_servers):
            self.failures[replica.handle, server_id] = pb.ChunkReport(
                handle=replica.handle, version=lease.grant.version, length=replica.chunk.length
            )
        self.beat_soon()

    # ------------------------------------------------------------ the end

    def on_stop(self, stop: Callable[[], object]) -> None:
        self._stop = stop

    def fail(self, error: BaseException) -> None:
        """The process cannot go on: everything is cancelled, `run_chunkserver` raises `error`."""
        if self.fatal_error is None:
            log.critical("event=fatal server=%s error=%r", self.server_id, str(error))
            self.fatal_error = error
        if self._stop is not None:
            self._stop()
