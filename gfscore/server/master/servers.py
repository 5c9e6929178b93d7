"""The chunkservers the master knows: sessions (epochs), load, and where replicas are. Nothing of it is persisted but
which servers there were, because a fresh master deletes nothing before it has heard from them (rule 23).

Locations come from reports and from grants only [0048]. Judging a report is the business of `reports`.
"""

from __future__ import annotations

import logging

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PROTOCOL_VERSION
from gfscore.metadata.chunks import ChunkRecord, find_chunk
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.placement import ServerLoad, choose_servers
from gfscore.metadata.tables import COUNTERS
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import Channel
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.state import MasterState, secret_of

log = logging.getLogger(__name__)

REPORT_SLICE_CHUNKS = 1000
_KNOWN = b"server/"  # + server id: it has registered once; its number, which it keeps
_DRAINING = b"drain/"  # + server id: it is to be emptied [0073]
_DRIFT = 1.05  # the master waits longer than a server counts: clocks differ (rule 4)
_DECAY_SECONDS = 10.0
_FAILED_SECONDS = 10.0
_PING_SECONDS = 1.0
_SETS_MIN = 10_000
_GATHERING_SECONDS = 5.0  # in which the servers of before a restart come back, as a rule

CORRUPT = -1  # in the place of a version: the replica is damaged

Replicas = tuple["ServerState", ...]


class ServerState:
    """One session of one chunkserver. A registration makes a new one; the old one is `gone`."""

    __slots__ = (
        "channel", "chunk_count", "collect", "complete", "epoch", "failed_at", "free_bytes", "gone", "heard", "id",
        "incarnation", "load", "message", "number", "scrub", "suspect", "total_bytes", "unknown", "used_bytes",
    )  # fmt: skip

    def __init__(
        self, message: pb.Server, number: int, epoch: int, incarnation: int, channel: Channel, load: ServerLoad
    ) -> None:
        self.id = message.id
        self.number = number  # stands for the id in chunk records
        self.message = message
        self.epoch = epoch
        self.incarnation = incarnation
        self.channel = channel
        self.load = load
        self.heard = 0.0  # boottime of the last answered heartbeat
        self.gone = False  # another session has taken its place, or it has lapsed
        self.suspect = False  # did not answer a call; cleared by its next heartbeat
        self.failed_at = float("-inf")  # boottime at which a primary last said that it missed a mutation
        self.complete = False  # its first report is in
        self.chunk_count = 0
        self.scrub = (0.0, 0, 0)  # percent of the pass under way, end of the last (ns since the epoch), bad ones found
        self.total_bytes = self.used_bytes = self.free_bytes = 0
        self.collect: set[int] = set()  # what it has to delete: freed chunks, and replicas that are not needed
        self.unknown: set[int] = set()  # reported chunks that the state does not have


class Servers:
    """The registry and the locations."""

    def __init__(self, state: MasterState, env: Env, config: MasterConfig) -> None:
        self.by_id: dict[str, ServerState] = {}
        self.locations: dict[int, Replicas] = {}  # replicas of the recorded version
        self.stale: dict[int, dict[str, int]] = {}  # handle → server → another version; -1 corrupt
        self.dirty: set[int] = set()  # chunks whose replicas have changed since repair last looked at them
        self.waited_for: set[int] = set()  # chunks that a client has just asked for in vain
        self.uncompared: set[int] = set()  # chunks with a replica where the power failed: it may lack what others have
        self.generation = 0  # grows when what `replicas` says of unchanged locations may be something else
        self.draining: set[str] = set()
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
        self._numbers = {number: server_id for server_id, number in self._stored(_KNOWN)}
        self._awaited = set(self._numbers.values())
        self.draining.update(server_id for server_id, _ in self._stored(_DRAINING))
        self._registering = trio.Lock()
        self._note_completeness()

    def _stored(self, prefix: bytes) -> list[tuple[str, int]]:
        """The server ids behind the keys with this prefix, and the numbers under them."""
        rows = self._state.tables.range(COUNTERS, prefix, prefix + b"\xff")
        return [(key[len(prefix) :].decode(), unpack8(value) if value else 0) for key, value in rows]

    # ------------------------------------------------------------ sessions

    async def register(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        """A chunkserver starts a session. Raises WRONG_PROTOCOL, WRONG_CLUSTER, INVALID, BUSY (a copy), NOT_READY."""
        if request.protocol != PROTOCOL_VERSION:
            raise GfsError(
                Code.WRONG_PROTOCOL,
                f"the chunkserver speaks protocol {request.protocol}, the master {PROTOCOL_VERSION}: "
                "install the same version on both",
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
        """Two processes on copies of one data directory would both be believed, and an old copy though it lacks what
        was acknowledged since (rule 22). Raises BUSY; NOT_READY while the other one may be alive but does not answer.
        """
        old = self.by_id.get(request.server_id)
        if old is None or (old.incarnation == request.incarnation and old.message.address == request.address):
            return
        address = f"{old.message.address.host}:{old.message.address.port}"
        if request.incarnation <= old.incarnation:
            raise GfsError(
                Code.BUSY,
                f"the data directory of chunkserver {request.server_id} is a copy, or was restored from one: "
                f"the one at {address} was started {old.incarnation} times, this one {request.incarnation}; "
                "use that directory, or an empty one",
            )
        if old.gone or old.message.address == request.address:
            return
        asked_at = self._env.clock.boottime()
        try:
            reply, _ = await old.channel.call("Info", pb.Empty(), timeout=_PING_SECONDS)
        except GfsError as error:
            if self._env.clock.boottime() - asked_at < _PING_SECONDS / 2 or old.gone:
                return  # nobody there any more
            raise GfsError(
                Code.NOT_READY,
                f"chunkserver {request.server_id} was at {address} a moment ago and does not answer; "
                f"waiting until its session ends, in at most {self._config.lease_seconds:g} s",
            ) from error
        if reply.server_id == request.server_id:
            raise GfsError(
                Code.BUSY,
                f"chunkserver {request.server_id} is alive at {address}: is this data directory a copy of its? "
                "Stop that one first, or use an empty directory",
            )

    def _begin(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        tx = self._state.begin()
        epoch = tx.tick()
        key = _KNOWN + request.server_id.encode()
        known = tx.get(COUNTERS, key)
        number = unpack8(known) if known else epoch
        tx.put(COUNTERS, key, pack8(number))
        self._state.commit(tx)
        self._numbers[number] = request.server_id
        old = self.by_id.get(request.server_id)
        if old is not None:
            self.end_session(old)
        address = request.address
        message = pb.Server(id=request.server_id, address=address, rack=request.rack)
        channel = self._env.transport.control_channel(address.host, address.control_port, "Chunkserver")
        load = ServerLoad(request.server_id, request.rack, request.total_bytes, request.used_bytes, 0, address.host)
        server = ServerState(message, number, epoch, request.incarnation, channel, load)
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
        server.scrub = (request.scrub_percent, request.scrub_finished_ns, request.scrub_bad)
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
        """As `gfs status` says it: up, suspect, down, draining."""
        if server.gone or not self.counts(server):
            return "down"
        if not self.is_up(server):
            return "suspect"
        return "draining" if server.id in self.draining else "up"

    def silent_seconds(self, server: ServerState) -> float:
        return self._env.clock.boottime() - server.heard

    def is_up(self, server: ServerState) -> bool:
        """Heard of lately, and it answers."""
        return not server.gone and not server.suspect and self.silent_seconds(server) < self._config.suspect_seconds

    def counts(self, server: ServerState) -> bool:
        """Its replicas count as replicas: it is not given up yet."""
        return self.silent_seconds(server) < self._config.down_seconds

    def usable(self) -> list[ServerState]:
        """Servers that take new chunks."""
        return [s for s in self.by_id.values() if self.is_up(s) and s.id not in self.draining]

    # ------------------------------------------------------------ what an operator says

    def named(self, name: str) -> str:
        """The id of the known server that is called `name`: its id, or its HOST:PORT. Raises NOT_FOUND."""
        if name in self.by_id or name in self._awaited:
            return name
        for server in self.by_id.values():
            address = server.message.address
            if name in (f"{address.host}:{address.port}", f"{address.host}:{address.control_port}"):
                return server.id
        raise GfsError(Code.NOT_FOUND, f"no chunkserver {name!r} is known: see gfs status")

    def set_draining(self, server_id: str, draining: bool) -> None:
        """Logged, so that it outlives a restart."""
        tx = self._state.begin()
        if draining:
            tx.put(COUNTERS, _DRAINING + server_id.encode(), b"")
        else:
            tx.delete(COUNTERS, _DRAINING + server_id.encode())
        self._state.commit(tx)
        (self.draining.add if draining else self.draining.discard)(server_id)

    def forget(self, server_id: str) -> None:
        """It never comes back, says the operator: nobody waits for it (rule 23). Raises BUSY while it is up."""
        server = self.by_id.get(server_id)
        if server is not None and not server.gone and self.counts(server):
            raise GfsError(Code.BUSY, f"chunkserver {server_id} is not down: stop it first")
        tx = self._state.begin()
        for prefix in (_KNOWN, _DRAINING):
            tx.delete(COUNTERS, prefix + server_id.encode())
        self._state.commit(tx)
        self.draining.discard(server_id)
        self._awaited.discard(server_id)
        self._numbers = {number: known for number, known in self._numbers.items() if known != server_id}
        if server is not None:
            self.end_session(server)
            del self.by_id[server_id]
            for handle in [h for h, servers in self.locations.items() if any(s.id == server_id for s in servers)]:
                self.lacks(handle, server_id)
        self._signal()

    @property
    def unheard(self) -> list[str]:
        """Servers of before the start that have not reported completely yet."""
        return sorted(self._awaited)

    def alive(self, server_id: str, epoch: int) -> ServerState | None:
        """The server, if this session of it is still good."""
        server = self.by_id.get(server_id)
        return server if server is not None and server.epoch == epoch and not server.gone else None

    def place(self, count: int, avoid: list[str]) -> Replicas:
        """Servers for a new chunk, the primary first [0064]. Raises NO_SERVERS, NO_SPACE."""
        usable = self.usable()
        # A disk may be too full for one more chunk, or be failing, and look usable: others first for a while.
        failed_after = self._env.clock.boottime() - _FAILED_SECONDS
        failing = [server.id for server in usable if server.failed_at > failed_after]
        ids = choose_servers([s.load for s in usable], count, random=self._env.random, avoid=[*avoid, *failing])
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
            if len(self._sets) > 2 * len(self.locations) + _SETS_MIN:  # most are of chunks that are gone
                self._sets = {tuple([s.id for s in used]): used for used in self.locations.values()}
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

    def members(self, chunk: ChunkRecord) -> list[str]:
        """The ids of those to which a new chunk was granted, without servers that were forgotten."""
        return [self._numbers[number] for number in chunk.members if number in self._numbers]

    def damaged(self, handle: int) -> list[ServerState]:
        """Live servers with a damaged replica: the blocks that still verify can be read there."""
        found = [self.by_id.get(server_id) for server_id, v in self.stale.get(handle, {}).items() if v == CORRUPT]
        return [server for server in found if server is not None and not server.gone]

    def known_chunks(self) -> list[int]:
        """All chunks of which somebody has a replica, be it a damaged one only."""
        return [*self.locations, *(handle for handle in self.stale if handle not in self.locations)]

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
        self.dirty.add(handle)

    def add_replica(self, handle: int, server: ServerState) -> None:
        """A report, or a clone that was finished, says that `server` has the recorded version."""
        known = self.locations.get(handle, ())
        if server in known:
            return
        others = [other for other in known if other.id != server.id]
        self.locations[handle] = self.as_set([*others, server])
        self.dirty.add(handle)
        self._drop_stale(handle, server.id)

    def remove_replica(self, handle: int, server_id: str, version: int) -> None:
        """The replica there is stale (`version`) or corrupt (-1): not read from, not part of a new set."""
        known = self.locations.get(handle, ())
        left = [server for server in known if server.id != server_id]
        if len(left) != len(known):
            self.locations[handle] = self.as_set(left)
        self.stale.setdefault(handle, {})[server_id] = version
        self.dirty.add(handle)

    def give_up_replica(self, handle: int, server_id: str) -> None:
        """A good replica that is one too many: out of the locations, deleted by its server's next heartbeat."""
        left = [server for server in self.locations.get(handle, ()) if server.id != server_id]
        self.locations[handle] = self.as_set(left)
        self.dirty.add(handle)
        current = self.by_id.get(server_id)
        if current is not None:
            current.collect.add(handle)

    def lacks(self, handle: int, server_id: str) -> None:
        """`server_id` does not have the replica that it was thought to have, or it is not counted on any more."""
        self.locations[handle] = self.as_set([s for s in self.locations.get(handle, ()) if s.id != server_id])
        self.dirty.add(handle)

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
        self.generation += 1
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
