"""The chunkservers the master knows: sessions (epochs), load, and where replicas are. Nothing of it is persisted but
which servers there were, because a fresh master deletes nothing before it has heard from them (rule 23).

Locations come from reports and from grants only [0048]. Judging a report is the business of `reports`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PROTOCOL_VERSION
from gfscore.metadata.chunks import find_chunk
from gfscore.metadata.keys import pack8
from gfscore.metadata.placement import ServerLoad, choose_servers
from gfscore.metadata.tables import COUNTERS
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import Channel
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.state import MasterState, secret_of

log = logging.getLogger(__name__)

REPORT_SLICE_CHUNKS = 1000
_KNOWN = b"server/"  # + server id: it has registered once
_SUSPECT_HEARTBEATS = 4
_DRIFT = 1.05  # the master waits longer than a server counts: clocks differ (rule 4)
_DECAY_SECONDS = 10.0
_PING_SECONDS = 1.0
_GATHERING_SECONDS = 5.0  # in which the servers of before a restart come back, as a rule

Replicas = tuple["ServerState", ...]


class ServerState:
    """One session of one chunkserver. A registration makes a new one; the old one is `gone`."""

    __slots__ = (
        "channel", "chunk_count", "collect", "complete", "epoch", "free_bytes", "gone", "heard", "id", "incarnation",
        "load", "message", "suspect", "total_bytes", "unknown", "used_bytes",
    )  # fmt: skip

    def __init__(self, message: pb.Server, epoch: int, incarnation: int, channel: Channel, load: ServerLoad) -> None:
        self.id = message.id
        self.message = message
        self.epoch = epoch
        self.incarnation = incarnation
        self.channel = channel
        self.load = load
        self.heard = 0.0  # boottime of the last answered heartbeat
        self.gone = False  # another session has taken its place, or it has lapsed
        self.suspect = False  # did not answer a call; cleared by its next heartbeat
        self.complete = False  # its first report is in
        self.chunk_count = 0
        self.total_bytes = self.used_bytes = self.free_bytes = 0
        self.collect: set[int] = set()  # freed chunks that it has to delete
        self.unknown: set[int] = set()  # reported chunks that the state does not have


class Servers:
    """The registry and the locations."""

    def __init__(self, state: MasterState, env: Env, config: MasterConfig) -> None:
        self.by_id: dict[str, ServerState] = {}
        self.locations: dict[int, Replicas] = {}  # replicas of the recorded version
        self.stale: dict[int, dict[str, int]] = {}  # handle → server → another version; -1 corrupt
        self.busy: set[int] = set()  # chunks whose version or existence is being changed: reports say nothing yet
        self.heard_all = False  # every server known from before the start has reported completely
        self._state = state
        self._env = env
        self._config = config
        self._secret = secret_of(state)
        self._sets: dict[tuple[str, ...], Replicas] = {}  # equal sets are one tuple: a million chunks share a few
        self._changed = trio.Event()
        self._gathering_until = env.clock.boottime() + _GATHERING_SECONDS
        self._decayed = env.clock.boottime()
        prefix = _KNOWN
        self._awaited = {
            key[len(prefix) :].decode() for key, _ in state.tables.range(COUNTERS, prefix, prefix + b"\xff")
        }
        self._registering = trio.Lock()
        self._note_completeness()

    # ------------------------------------------------------------ sessions

    async def register(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        """A chunkserver starts a session. Raises WRONG_PROTOCOL, WRONG_CLUSTER, INVALID, BUSY (a copy)."""
        if request.protocol != PROTOCOL_VERSION:
            raise GfsError(
                Code.WRONG_PROTOCOL, f"protocol {request.protocol} is not {PROTOCOL_VERSION}: install the same version"
            )
        if request.cluster_id and request.cluster_id != self._state.cluster_id:
            raise GfsError(
                Code.WRONG_CLUSTER,
                f"server {request.server_id} belongs to cluster {request.cluster_id}, this is {self._state.cluster_id}",
            )
        if not request.server_id:
            raise GfsError(Code.INVALID, "a chunkserver needs an id")
        async with self._registering:
            await self._refuse_copy(request)
            old = self.by_id.get(request.server_id)
            reply = self._begin(request)
        if old is not None:
            await old.channel.aclose()
        return reply

    async def _refuse_copy(self, request: pb.RegisterRequest) -> None:
        """Two processes on copies of one data directory would both be believed (rule 22)."""
        old = self.by_id.get(request.server_id)
        if old is None or old.gone or old.message.address == request.address:
            return
        try:
            reply, _ = await old.channel.call("Info", pb.Empty(), timeout=_PING_SECONDS)
        except GfsError:
            return
        if reply.server_id == request.server_id:
            address = old.message.address
            raise GfsError(
                Code.BUSY,
                f"chunkserver {request.server_id} is alive at {address.host}:{address.port}: "
                "is this data directory a copy of its?",
            )

    def _begin(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        tx = self._state.begin()
        epoch = tx.tick()
        tx.put(COUNTERS, _KNOWN + request.server_id.encode(), pack8(epoch))
        self._state.commit(tx)
        old = self.by_id.get(request.server_id)
        if old is not None:
            self.end_session(old)
        address = request.address
        message = pb.Server(id=request.server_id, address=address, rack=request.rack)
        channel = self._env.transport.control_channel(address.host, address.control_port, "Chunkserver")
        load = ServerLoad(request.server_id, request.rack, request.total_bytes, request.used_bytes, 0, address.host)
        server = ServerState(message, epoch, request.incarnation, channel, load)
        server.heard = self._env.clock.boottime()
        server.total_bytes, server.used_bytes = request.total_bytes, request.used_bytes
        server.free_bytes = max(0, request.total_bytes - request.used_bytes)
        if old is not None:
            server.collect = old.collect
            if old.incarnation == request.incarnation and old.complete:
                server.unknown = old.unknown
        self.by_id[server.id] = server
        self._signal()
        log.info(
            "event=chunkserver_registered server=%s address=%s:%d epoch=%d incarnation=%d",
            server.id, address.host, address.port, epoch, request.incarnation,
        )  # fmt: skip
        return pb.RegisterReply(
            cluster_id=self._state.cluster_id,
            epoch=epoch,
            secret=self._secret,
            chunk_size=self._config.chunk_size,
            session_seconds=self._config.lease_seconds,
            heartbeat_seconds=self._config.heartbeat_seconds,
            report_slice=REPORT_SLICE_CHUNKS,
        )

    def of_heartbeat(self, request: pb.HeartbeatRequest) -> ServerState:
        """The session of a heartbeat, with its load brought up to date. Raises UNKNOWN_SESSION: register again."""
        server = self.by_id.get(request.server_id)
        if server is None or server.gone or server.epoch != request.epoch:
            raise GfsError(Code.UNKNOWN_SESSION, f"server {request.server_id} has no session {request.epoch}: register")
        server.total_bytes, server.used_bytes = request.total_bytes, request.used_bytes
        server.free_bytes = request.free_bytes
        server.chunk_count = request.chunk_count
        # What others put on the same disk counts too: full is full.
        server.load.total_bytes = request.total_bytes
        server.load.used_bytes = max(request.used_bytes, request.total_bytes - request.free_bytes)
        server.suspect = False
        return server

    def answered(self, server: ServerState) -> None:
        """Its heartbeat is being answered: the session is good for another while."""
        server.heard = self._env.clock.boottime()

    def first_report_done(self, server: ServerState) -> None:
        server.complete = True
        self._signal()

    def end_session(self, server: ServerState) -> None:
        """Its leases are void. Where its replicas were is kept: they are still there when it comes back."""
        server.gone = True
        self._signal()

    def lapse(self) -> list[ServerState]:
        """End the sessions that were not heard of for too long; which ones. Called now and then."""
        now = self._env.clock.boottime()
        if now - self._decayed >= _DECAY_SECONDS:
            self._decayed = now
            for server in self.by_id.values():
                server.load.recent_creations >>= 1
        limit = now - self._config.lease_seconds * _DRIFT - 1
        lapsed = [server for server in self.by_id.values() if not server.gone and server.heard < limit]
        for server in lapsed:
            log.warning("event=chunkserver_lost server=%s", server.id)
            self.end_session(server)
        return lapsed

    def state_of(self, server: ServerState) -> str:
        """As `gfs status` says it."""
        if server.gone:
            return "down"
        return "suspect" if server.suspect or not self._heard_lately(server) else "up"

    def _heard_lately(self, server: ServerState) -> bool:
        silent = self._env.clock.boottime() - server.heard
        return silent < self._config.heartbeat_seconds * _SUSPECT_HEARTBEATS + 1

    def usable(self) -> list[ServerState]:
        """Servers that take new chunks."""
        return [s for s in self.by_id.values() if not s.gone and not s.suspect and self._heard_lately(s)]

    def alive(self, server_id: str, epoch: int) -> ServerState | None:
        """The server, if this session of it is still good."""
        server = self.by_id.get(server_id)
        return server if server is not None and server.epoch == epoch and not server.gone else None

    def place(self, count: int, avoid: list[str]) -> Replicas:
        """Servers for a new chunk, the primary first [0064]. Raises NO_SERVERS."""
        usable = self.usable()
        ids = choose_servers([s.load for s in usable], count, random=self._env.random, avoid=avoid)
        for server_id in ids:
            self.by_id[server_id].load.recent_creations += 1
        return self.as_set([self.by_id[server_id] for server_id in ids])

    # ------------------------------------------------------------ locations

    def as_set(self, servers: list[ServerState]) -> Replicas:
        """The one tuple for this list of servers."""
        key = tuple([server.id for server in servers])
        known = self._sets.get(key)
        if known is None or any(server.gone for server in known):
            known = self._sets[key] = tuple(servers)
        return known

    def replicas(self, handle: int) -> list[ServerState]:
        """The current session of each server that has a good replica, as far as it confirmed it in that session.

        A server that registered anew has to report the chunk first, unless it is down: then it is named, down.
        """
        found = []
        for server in self.locations.get(handle, ()):
            if server.gone:
                current = self.by_id.get(server.id)
                if current is not None and not current.gone:
                    # Same incarnation: the same process, which lost nothing. Another one: believed once it reports.
                    if current.incarnation != server.incarnation and current.complete:
                        continue
                    server = current
            found.append(server)
        return found

    def nobody_has(self, handle: int, missing: Collection[str]) -> bool:
        """Every server that could have the chunk says that it does not: those in `missing` when asked, those that were
        restarted by reporting all that they have."""
        reported = {server.id for server in self.replicas(handle)}
        for server in self.locations.get(handle, ()):
            if server.id in missing:
                continue
            current = self.by_id.get(server.id)
            if current is None or current.gone or not current.complete or server.id in reported:
                return False
        return True

    def set_replicas(self, handle: int, servers: list[ServerState]) -> None:
        """A grant or a new version: exactly these have it now; any others are stale."""
        stale = self.stale.get(handle, {})
        for server in self.locations.get(handle, ()):
            if all(server.id != other.id for other in servers):
                stale[server.id] = 0
        for server in servers:
            stale.pop(server.id, None)
        if stale:
            self.stale[handle] = stale
        else:
            self.stale.pop(handle, None)
        self.locations[handle] = self.as_set(servers)

    def add_replica(self, handle: int, server: ServerState) -> None:
        """A report says that `server` has the recorded version."""
        known = self.locations.get(handle, ())
        if server in known:
            return
        others = [other for other in known if other.id != server.id]
        self.locations[handle] = self.as_set([*others, server])
        self._drop_stale(handle, server.id)

    def remove_replica(self, handle: int, server_id: str, version: int) -> None:
        """The replica there is stale (`version`) or corrupt (-1): not read from, not part of a new set."""
        known = self.locations.get(handle, ())
        left = [server for server in known if server.id != server_id]
        if len(left) != len(known):
            self.locations[handle] = self.as_set(left)
        self.stale.setdefault(handle, {})[server_id] = version

    def _drop_stale(self, handle: int, server_id: str) -> None:
        stale = self.stale.get(handle)
        if stale is not None and stale.pop(server_id, None) is not None and not stale:
            del self.stale[handle]

    def freed(self, handles: list[int]) -> None:
        """Nothing refers to these chunks any more: their servers are told at their next heartbeats [0076]."""
        for handle in handles:
            for server in self.locations.pop(handle, ()):
                current = self.by_id.get(server.id)
                if current is not None:
                    current.collect.add(handle)
            for server_id in self.stale.pop(handle, {}):
                current = self.by_id.get(server_id)
                if current is not None:
                    current.collect.add(handle)

    # ------------------------------------------------------------ waiting for reports

    async def wait_for(self, handles: list[int], seconds: float) -> None:
        """Until each chunk has a live replica or every server that may have one has reported; `seconds` at most."""
        with trio.move_on_after(seconds):
            while not self.heard_all and any(self._live(handle) == 0 for handle in handles if handle):
                await self._changed.wait()

    async def wait_for_sets(self, handles: list[int], seconds: float) -> None:
        """As `wait_for`; shortly after a start until each chunk has all the replicas it should have, lest the first
        new version leaves out a server that is just about to register."""
        await self.wait_for(handles, seconds)
        with trio.move_on_after(max(0.0, self._gathering_until - self._env.clock.boottime())):
            while not self.heard_all and any(self._live(handle) < self._goal(handle) for handle in handles):
                await self._changed.wait()

    def gathering(self, count: int) -> bool:
        """Shortly after a start, while fewer than `count` servers are up and some that were known are missing: what is
        placed now would have too few replicas for good."""
        return (
            not self.heard_all
            and self._env.clock.boottime() < self._gathering_until
            and len(self.usable()) < min(count, len(self._awaited) + len(self.by_id))
        )

    async def wait_gathered(self, count: int) -> None:
        """Until `gathering` is over."""
        with trio.move_on_after(max(0.0, self._gathering_until - self._env.clock.boottime())):
            while self.gathering(count):
                await self._changed.wait()

    def _live(self, handle: int) -> int:
        return sum(not server.gone for server in self.replicas(handle))

    def _goal(self, handle: int) -> int:
        chunk = find_chunk(self._state.tables, handle)
        return 0 if chunk is None else chunk.goal

    def _note_completeness(self) -> None:
        awaited = self._awaited
        if awaited:
            awaited.difference_update([s.id for s in self.by_id.values() if s.complete and not s.gone])
        self.heard_all = not awaited

    def _signal(self) -> None:
        self._note_completeness()
        self._changed.set()
        self._changed = trio.Event()

    def reported(self) -> None:
        """New locations are known."""
        self._changed.set()
        self._changed = trio.Event()

    async def aclose(self) -> None:
        for server in self.by_id.values():
            await server.channel.aclose()
