"""What chunkservers report, judged against the state: who has which version, what is stale, what is garbage.

The last good copy is never collected (rule 2), and nothing at all before every known server has been heard (rule 23).
"""

from __future__ import annotations

import logging

from gfscore.env import Env
from gfscore.errors import GfsError
from gfscore.metadata.chunks import find_chunk, mark_used, raise_version
from gfscore.metadata.inodes import load_file
from gfscore.metadata.lengths import commit_length
from gfscore.metadata.transaction import CLOCK, counter
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.background import put_off_when_full
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.servers import CORRUPT, Servers, ServerState
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_COLLECT_MAX = 2000  # handles in one answer
_UNKNOWN_MAX = 100_000  # per server; what does not fit is reported again some day
_STALE_AT_ONCE = 1000  # chunks looked at in one go


class Reports:
    """The handler of heartbeats."""

    def __init__(self, state: MasterState, servers: Servers, leases: LeaseBook, env: Env, chunk_size: int) -> None:
        self._state = state
        self._servers = servers
        self._leases = leases
        self._env = env
        self._chunk_size = chunk_size
        self._stale_todo: list[int] = []
        self._first_seen: set[int] = set()

    def heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        """Take in one heartbeat. Raises UNKNOWN_SESSION."""
        server = self._servers.of_heartbeat(request)
        for report in request.report:
            self._judge(server, report)
        if request.power_lost:
            self._servers.uncompared.update(report.handle for report in request.report)
        with put_off_when_full():
            self._note_used()
        for report, failed_id in zip(request.failed, request.failed_servers, strict=False):
            self._failed(report, failed_id)
        for report in request.released:
            with put_off_when_full():  # the length stays pending, and whoever asks for it settles it
                self._released(server, report)
        if request.last_of_first and not server.complete:
            self._servers.first_report_done(server)
        elif request.report:
            self._servers.reported()
        reply = pb.HeartbeatReply(confirmed_released=[report.handle for report in request.released])
        reply.collect.extend(self._collectable(server))
        self._servers.answered(server)
        return reply

    def _judge(self, server: ServerState, report: pb.ChunkReport) -> None:
        handle, version = report.handle, report.version
        servers = self._servers
        if handle in servers.busy:
            return
        if handle in server.collect:
            if self._may_go(handle, server.id):
                return
            server.collect.discard(handle)
        chunk = find_chunk(self._state.tables, handle)
        if chunk is None:
            if len(server.unknown) < _UNKNOWN_MAX:
                server.unknown.add(handle)
        elif report.corrupt:
            self._corrupt(server, handle)
        elif version == chunk.version:
            servers.add_replica(handle, server)
            if not chunk.used:
                self._first_seen.add(handle)
        elif version < chunk.version:
            servers.remove_replica(handle, server.id, version)
            if not version:  # it was there, and is gone
                self._first_seen.add(handle)
                self._end_lease(server, handle)
        else:
            with put_off_when_full():
                self._adopt(server, handle, version)

    def _note_used(self) -> None:
        """Logged: after a restart too, a chunk of which no replica is left is known to be lost, and not unused."""
        if self._first_seen:
            tx = self._state.begin()
            mark_used(tx, self._first_seen)
            self._state.commit(tx)
            self._servers.dirty.update(self._first_seen)
            self._first_seen.clear()

    def _end_lease(self, server: ServerState, handle: int) -> None:
        """A member of it has lost its replica. Above all when that is the primary: the next grant is another one's."""
        lease = self._leases.find(handle)
        if lease is not None and any(member.id == server.id for member in lease.replicas):
            lease.broken = True

    def _corrupt(self, server: ServerState, handle: int) -> None:
        """A replica that is damaged: not read from, in no new set, and deleted only when another is there [00127]."""
        if self._servers.stale.get(handle, {}).get(server.id) == CORRUPT:
            return
        log.warning("event=corrupt_replica chunk=%016x server=%s", handle, server.id)
        self._servers.remove_replica(handle, server.id, CORRUPT)
        self._first_seen.add(handle)
        self._end_lease(server, handle)
        if not self._servers.replicas(handle):
            log.error("event=no_undamaged_replica chunk=%016x", handle)

    def _adopt(self, server: ServerState, handle: int, version: int) -> None:
        """A version that was made durable there but never logged: it is the newest nevertheless (rule 1)."""
        log.info("event=version_adopted chunk=%016x version=%d server=%s", handle, version, server.id)
        tx = self._state.begin()
        raise_version(tx, handle, version)
        self._state.commit(tx)
        self._leases.drop(handle)
        others = self._servers.stale.get(handle, {})
        same = [s for s in self._servers.by_id.values() if others.get(s.id) == version]
        self._servers.set_replicas(handle, [*same, server])

    def _failed(self, report: pb.ChunkReport, server_id: str) -> None:
        """A primary says that `server_id` missed a mutation: it leaves the set with the next version (rule 8)."""
        server = self._servers.by_id.get(server_id)
        if server is not None:
            server.failed_at = self._env.clock.boottime()
        chunk = find_chunk(self._state.tables, report.handle)
        if chunk is None or chunk.version != report.version or report.handle in self._servers.busy:
            return
        log.warning("event=replica_failed chunk=%016x version=%d server=%s", report.handle, report.version, server_id)
        lease = self._leases.find(report.handle)
        if lease is not None:
            lease.broken = True
            lease.failed.add(server_id)

    def _released(self, server: ServerState, report: pb.ChunkReport) -> None:
        """An idle lease is given back with the chunk's final length [0093]."""
        lease = self._leases.find(report.handle)
        if lease is None or lease.primary is not server or lease.version != report.version:
            return
        self._leases.drop(report.handle, clean=True)
        tx = self._state.begin()
        try:
            size = lease.index * self._chunk_size + report.length if report.length else 0
            # A lower bound: another chunk, whose lease ended without a word, may reach further; who asks settles it.
            mtime_ns = self._leases.counted_mtime(load_file(tx, lease.inode), report.mtime_ns)
            commit_length(tx, lease.inode, size, now_ns=self._env.clock.wall_ns(), mtime_ns=mtime_ns)
        except GfsError:
            return  # the file is gone
        self._state.commit(tx)

    def _collectable(self, server: ServerState) -> list[int]:
        """What `server` may delete now."""
        decided = [server.collect.pop() for _ in range(min(len(server.collect), _COLLECT_MAX))]
        found = [handle for handle in decided if self._may_go(handle, server.id)]
        if not (server.complete and self._servers.heard_all):
            return found
        clock = counter(self._state.tables, CLOCK)
        for handle in list(server.unknown)[: _COLLECT_MAX - len(found)]:
            server.unknown.discard(handle)
            if handle > clock:
                log.error("event=chunk_from_the_future chunk=%016x server=%s clock=%d", handle, server.id, clock)
            elif handle not in self._servers.busy and find_chunk(self._state.tables, handle) is None:
                found.append(handle)
        return found

    def _may_go(self, handle: int, server_id: str) -> bool:
        """Whether a replica is not needed now: the chunk is gone, or enough others are on servers heard of just now.

        Asked when it is deleted, and not when that is decided: its server may have been away for weeks in between,
        and the others lost (rule 2).
        """
        chunk = find_chunk(self._state.tables, handle)
        if chunk is None:
            return True
        others = [server for server in self._servers.replicas(handle) if server.id != server_id]
        return sum(map(self._servers.is_up, others)) >= chunk.goal

    def collect_stale(self) -> None:
        """Have stale replicas deleted where enough current ones are up (rule 2). Called now and then, for a slice."""
        servers = self._servers
        if not servers.heard_all:
            return
        if not self._stale_todo:
            self._stale_todo = list(servers.stale)
        todo = self._stale_todo[-_STALE_AT_ONCE:]
        del self._stale_todo[-_STALE_AT_ONCE:]
        for handle in todo:
            stale = servers.stale.get(handle)
            if stale is None:
                continue
            chunk = find_chunk(self._state.tables, handle)
            if chunk is None:
                servers.freed([handle])
                continue
            if handle in servers.busy:
                continue
            if sum(map(servers.is_up, servers.replicas(handle))) < chunk.goal:
                continue
            for server_id in stale:
                current = servers.by_id.get(server_id)
                if current is not None:
                    current.collect.add(handle)
            del servers.stale[handle]
