"""What operators ask: FileInfo, Status, Statfs."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import trio

from gfscore.env import Env
from gfscore.errors import Code
from gfscore.metadata.chunks import chunks_from, find_chunk, unpack_chunk
from gfscore.metadata.inodes import load_file
from gfscore.metadata.keys import unpack8
from gfscore.metadata.placement import reserve_of
from gfscore.metadata.policies import Policy, effective
from gfscore.metadata.tables import CHUNKS
from gfscore.metadata.transaction import CHUNK_COUNT, DIRECTORIES, FILES, counter, trash_counts
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.chunk_calls import ChunkCalls
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.repair import Repair
from gfscore.server.master.scanning import slices
from gfscore.server.master.servers import CORRUPT, Servers, ServerState
from gfscore.server.master.sessions import Sessions
from gfscore.server.master.state import MasterState

_PAGE_BYTES = 4096
_MANY_CHUNKS = 1000  # a count of so many is good for a while
_HEALTH_SECONDS = 1.0
_COUNTING_SHARE = 4  # at most one of so many seconds goes into counting, however often the status is asked for
_FILE_INFO_CHUNKS = 2000  # in one answer


class Admin:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, sessions: Sessions, servers: Servers, leases: LeaseBook,
        chunk_calls: ChunkCalls, repair: Repair, defaults: Policy, chunk_size: int, down_seconds: float,
    ) -> None:  # fmt: skip
        self.address = pb.Address()
        self._state = state
        self._env = env
        self._calls = calls
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._chunk_calls = chunk_calls
        self._repair = repair
        self._defaults = defaults
        self._chunk_size = chunk_size
        self._down_seconds = down_seconds
        self._started = env.clock.boottime()
        self._health = (0, 0, 0, 0)
        self._on_draining: Counter[str] = Counter()  # chunks that count on a draining server
        self._counted_draining: set[str] = set()
        self._health_until = float("-inf")
        self._counting = trio.Lock()

    # ------------------------------------------------------------ Statfs

    def statfs(self, request: pb.Empty, context: CallContext) -> pb.StatfsReply:
        """Handler of `Statfs`: space for data, so what the disks have divided by the usual number of replicas. What is
        free on a server that is to be emptied is for nobody."""
        tables = self._state.tables
        live = [server for server in self._servers.by_id.values() if not server.gone]
        taking = [server for server in live if server.id not in self._servers.draining]
        copies = max(1, min(self._defaults.replication, len(live)))
        return pb.StatfsReply(
            total_bytes=sum(server.total_bytes for server in live) // copies,
            free_bytes=sum(max(0, s.free_bytes - reserve_of(s.total_bytes)) for s in taking) // copies,
            files=counter(tables, FILES) - trash_counts(tables)[0],
            directories=counter(tables, DIRECTORIES),
        )

    # ------------------------------------------------------------ Status

    async def status(self, request: pb.Empty, context: CallContext) -> pb.StatusReply:
        """Handler of `Status`."""
        healthy, under, over, lost = await self._chunk_health()
        tables = self._state.tables
        trash_files, trash_bytes = trash_counts(tables)
        now = self._env.clock.boottime()
        reply = pb.StatusReply(
            address=self.address,
            cluster_id=self._state.cluster_id,
            files=counter(tables, FILES) - trash_files,
            directories=counter(tables, DIRECTORIES),
            chunks=counter(tables, CHUNK_COUNT),
            healthy=healthy,
            under_replicated=under,
            over_replicated=over,
            lost=lost,
            clients=len(self._sessions),
            uptime_seconds=now - self._started,
            log_sequence_number=self._state.applied,
            resident_bytes=_resident_bytes(),
            calls=self._calls.counts,
            trash_files=trash_files,
            trash_bytes=trash_bytes,
        )
        for server in sorted(self._servers.by_id.values(), key=lambda server: server.id):
            reply.chunkservers.add(
                server=server.message,
                state=self._servers.state_of(server),
                chunks=server.chunk_count,
                used_bytes=server.used_bytes,
                total_bytes=server.total_bytes,
                heard_seconds_ago=max(0.0, now - server.heard),
                scrub_percent=server.scrub[0],
                scrub_finished_ns=server.scrub[1],
                scrub_bad=server.scrub[2],
            )
            if server.id in self._servers.draining:
                self._say_what_is_left(reply.chunkservers[-1], server)
        if now - self._started > self._down_seconds:
            for server_id in self._servers.unheard:
                if server_id not in self._servers.by_id:  # known from before the start: its address is not
                    entry = reply.chunkservers.add(state="down", heard_seconds_ago=now - self._started)
                    entry.server.id = server_id
        self._repair.report(reply)
        return reply

    def _say_what_is_left(self, entry: pb.StatusReply.ChunkserverStatus, server: ServerState) -> None:
        """A draining server may be switched off when no chunk counts on it, and it has none."""
        entry.chunks_left = max(server.chunk_count, self._on_draining[server.id])
        if entry.state == "draining" and server.complete and not entry.chunks_left:
            entry.state = "drained"

    async def _chunk_health(self) -> tuple[int, int, int, int]:
        """(healthy, under-, over-replicated, lost) of all chunks, counted in slices; the state may change meanwhile."""
        async with self._counting:
            began = self._env.clock.boottime()
            if began < self._health_until and self._counted_draining == self._servers.draining:
                return self._health
            self._counted_draining = set(self._servers.draining)
            healthy = under = over = lost = 0
            on_draining: Counter[str] = Counter()
            async for rows in slices(self._state.tables, CHUNKS):
                for key, raw in rows:
                    servers = self._servers.replicas(unpack8(key))
                    if self._servers.draining:
                        on_draining.update(server.id for server in servers if server.id in self._servers.draining)
                    live = sum(map(self._servers.counts, servers))
                    chunk = unpack_chunk(raw)
                    goal = chunk.goal
                    if live == goal or not chunk.used:  # that is in nobody's hands yet
                        healthy += 1
                    elif live > goal:
                        over += 1
                    elif servers or not self._servers.heard_all:
                        under += 1
                    else:
                        lost += 1
            self._on_draining = on_draining
            self._health = (healthy, under, over, lost)
            ended = self._env.clock.boottime()
            good_for = _HEALTH_SECONDS if sum(self._health) > _MANY_CHUNKS else 0.0
            self._health_until = ended + max(good_for, (_COUNTING_SHARE - 1) * (ended - began))
            return self._health

    # ------------------------------------------------------------ FileInfo

    async def file_info(self, request: pb.FileInfoRequest, context: CallContext) -> pb.FileInfoReply:
        """Handler of `FileInfo`: every replica of every chunk, as its server says it is; a page of them."""
        tables = self._state.tables
        record = load_file(tables, request.inode)
        count = min(request.count or _FILE_INFO_CHUNKS, _FILE_INFO_CHUNKS)
        found_here = list(islice(chunks_from(tables, request.inode, request.first), count + 1))
        following = found_here.pop()[0] if len(found_here) > count else 0
        handles = [handle for _, handle in found_here]
        await self._servers.wait_for(handles, 1.0)
        by_server: dict[ServerState, list[int]] = {}
        for handle in handles:
            for server in self._all_replicas(handle):
                by_server.setdefault(server, []).append(handle)
        found = await self._chunk_calls.inspect({s: h for s, h in by_server.items() if not s.gone})
        reply = pb.FileInfoReply(
            length=record.size, replication=effective(tables, request.inode, self._defaults).replication, next=following
        )
        for index, handle in found_here:
            chunk = reply.chunks.add(index=index, handle=handle)
            self._describe(chunk, handle, dict(found.get(handle, ())))
            if record.length_pending and chunk.length:
                reply.length = max(reply.length, index * self._chunk_size + chunk.length)
        return reply

    def _all_replicas(self, handle: int) -> list[ServerState]:
        """Good ones and stale ones."""
        servers = self._servers.replicas(handle)
        known = {server.id for server in servers}
        stale = [self._servers.by_id.get(server_id) for server_id in self._servers.stale.get(handle, ())]
        return servers + [server for server in stale if server is not None and server.id not in known]

    def _describe(self, chunk: pb.FileInfoReply.Chunk, handle: int, items: dict[ServerState, Any]) -> None:
        record = find_chunk(self._state.tables, handle)
        if record is None:
            return  # given up while the servers were asked
        lease = self._leases.find(handle)
        stale = self._servers.stale.get(handle, {})
        chunk.version = record.version
        chunk.goal = record.goal
        chunk.references = record.references
        chunk.used = record.used
        chunk.primary = lease.primary.id if lease is not None else ""
        for server in self._all_replicas(handle):
            item = items.get(server)
            if item is None:
                chunk.replicas.add(server=server.message, state="unreachable")
                continue
            if item.error == Code.UNKNOWN_CHUNK:
                state = "missing"
            elif item.error in (Code.CHECKSUM_MISMATCH, Code.IO) or stale.get(server.id) == CORRUPT:
                state = "corrupt"
            elif item.error or item.version != record.version:
                state = "stale"
            else:
                state = "good"
                chunk.length = item.length if item.primary else max(chunk.length, item.length)
            chunk.replicas.add(server=server.message, state=state, path=item.path)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
