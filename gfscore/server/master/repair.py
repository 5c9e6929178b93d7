"""Keeps every chunk at its goal: watches servers and locations, has clones made and replicas given up [0069]-[0074].

A server that goes, comes or is drained makes it look at all chunks again, in slices; everything else comes to it as
single chunks whose replicas changed. Decisions are the core's, the work is `cloning`'s.
"""

from __future__ import annotations

import logging
from collections import deque

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.placement import choose_servers, has_room
from gfscore.metadata.repair import MISPLACED, SURPLUS, Action, Site, improves, move_to, unbalanced
from gfscore.metadata.repair_queue import Limits, RepairQueue, Slots
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.cloning import Cloning, SourceFailed
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.repair_view import RepairView
from gfscore.server.master.safe_mode import SafeMode
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_SLICE = 1000  # chunks looked at between two chances for others
_DROPS_MAX = 64  # replicas given up at the same time
_RETRY_SECONDS_MIN = 1.0
_RETRY_SECONDS_MAX = 30.0
_HOPELESS_MAX = 256  # chunks in one go that nobody can take; the others are found so the next time
_HOPELESS_SECONDS = 10.0  # nobody can take it now: the servers that could are full, say
_RATE_SECONDS = 10.0  # the rate in the status is the mean of so long
_MOVES_LOOKED_AT = 2000  # chunks, in the search for some that may move
_MOVES_PAUSE_BEATS = 3  # a replica that is given up is deleted after one, and missing in the next report

Plan = tuple[ServerState, ServerState]


class Repair:
    def __init__(
        self, state: MasterState, env: Env, config: MasterConfig, servers: Servers, cloning: Cloning,
        safe_mode: SafeMode, nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self.safe_mode = safe_mode
        self._env = env
        self._config = config
        self._servers = servers
        self._cloning = cloning
        self._nursery = nursery
        self._view = RepairView(state, servers, config.rebalance_moves_max * config.chunk_size)
        self._queue = RepairQueue()
        self._slots = Slots(Limits(config.clones_max, config.clones_per_server_max))
        self._at_work: set[int] = set()
        self._moving: set[int] = set()  # of those, what is moved only to balance disks
        self._dropping = 0
        self._tries: dict[int, tuple[int, set[str]]] = {}  # handle → failures in a row, servers that failed
        self._scan_wanted = True
        self._plan: Plan | None = None
        self._hopeless: list[tuple[int, int]] = []
        self._move_candidates: list[int] = []
        self._moves_from = 0.0  # boottime
        self._done: deque[tuple[float, int]] = deque()  # (when, bytes) of finished clones
        self._mean_bytes = 0.0
        self._began: float | None = None  # boottime since when there is something to clone
        self._wake = trio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            # Not for every chunk that is created or reported: they wait for the next beat.
            with trio.move_on_after(min(1.0, self._config.heartbeat_seconds)):
                await self._wake.wait()
            self._wake = trio.Event()
            if self._view.refresh():
                self._scan_wanted = True
            if not self._config.clones_max or not self.safe_mode.may_clone:
                self._servers.dirty.clear()  # all chunks are looked at when it is over
                self._scan_wanted = True
                continue
            if self._scan_wanted:
                self._scan_wanted = False
                await self._view.note_deleted()
                await self._judge_all(self._servers.known_chunks())
            dirty, self._servers.dirty = self._servers.dirty, set()
            await self._judge_all(list(dirty))
            waited_for, self._servers.waited_for = self._servers.waited_for, set()
            for handle in waited_for:
                self._queue.wanted(handle)
            self._queue.revive(self._env.clock.boottime())
            self._start_clones()
            self._start_drops()
            self._start_moves()
            self._log_changes()

    def _log_changes(self) -> None:
        queued = self._queue.clones + self._slots.running
        if queued and self._began is None:
            self._began = self._env.clock.boottime()
            log.warning("event=repair_started chunks=%d", queued)
        elif not queued and self._began is not None:
            log.info("event=repair_done seconds=%.1f", self._env.clock.boottime() - self._began)
            self._began = None

    # ------------------------------------------------------------ judging

    async def _judge_all(self, handles: list[int]) -> None:
        for start in range(0, len(handles), _SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            for handle in handles[start : start + _SLICE]:
                self._judge(handle)

    def _judge(self, handle: int) -> None:
        if handle in self._at_work:
            return  # judged when that is done
        need = self._view.need(handle)
        for server_id in need.gone:
            self._servers.lacks(handle, server_id)
        if need.action is Action.CLONE or (need.action is Action.DROP and self.safe_mode.may_delete):
            self._queue.put(handle, need.level)
        elif handle in self._queue:
            self._queue.remove(handle)
            self._tries.pop(handle, None)

    # ------------------------------------------------------------ clones

    def _start_clones(self) -> None:
        passed_over = 0
        while self._slots.free and passed_over < _HOPELESS_MAX:
            taken = self._queue.take(self._accept, range(SURPLUS))
            hopeless, self._hopeless = self._hopeless, []
            passed_over += len(hopeless)
            for handle, level in hopeless:
                self._queue.defer(handle, level, self._env.clock.boottime() + _HOPELESS_SECONDS)
            if taken is not None:
                assert self._plan is not None
                self._begin(*taken, *self._plan)
            elif not hopeless:
                return

    def _accept(self, handle: int, level: int) -> bool:
        """Whether a clone of this chunk can begin now; who takes part is in `_plan` then."""
        good = [server for server in self._servers.replicas(handle) if not server.gone]
        sources = good or self._servers.damaged(handle)
        others = [server for server in self._servers.usable() if self._may_get(server, handle, level)]
        if not sources or not others:
            self._hopeless.append((handle, level))
            return False
        failed = self._tries.get(handle, (0, set()))[1]
        up = [server for server in sources if self._servers.is_up(server)]
        fit = [server for server in up if server.id not in failed]
        source_id = self._slots.source([server.id for server in fit or up or sources])
        free = [server for server in others if self._slots.takes(server.id)]
        if source_id is None or not free:
            return False
        existing = [s for s in good if self._servers.counts(s) and s.id not in self._servers.draining]
        try:
            chosen = choose_servers(
                [server.load for server in [*existing, *free]], 1, random=self._env.random,
                avoid={*self._servers.stale.get(handle, ()), *failed}, existing=[server.id for server in existing],
            )  # fmt: skip
        except GfsError:
            self._hopeless.append((handle, level))
            return False
        self._plan = self._servers.by_id[source_id], self._servers.by_id[chosen[0]]
        return True

    def _may_get(self, server: ServerState, handle: int, level: int) -> bool:
        if handle in server.collect or any(known.id == server.id for known in self._servers.replicas(handle)):
            return False
        site = self._view.sites.get(server.id)
        return level != MISPLACED or (site is not None and improves(self._view.sites_of(handle), site))

    def _begin(self, handle: int, level: int, source: ServerState, destination: ServerState) -> None:
        self._slots.begin(source.id, destination.id)
        self._at_work.add(handle)
        destination.load.recent_creations += 1
        self._nursery.start_soon(self._clone, handle, level, source, destination)

    async def _clone(self, handle: int, level: int, source: ServerState, destination: ServerState) -> None:
        try:
            copied = await self._cloning.clone(handle, source, destination)
            self._tries.pop(handle, None)
            self._count(copied)
        except GfsError as error:
            log.warning(
                "event=clone_failed chunk=%016x source=%s destination=%s code=%s error=%r",
                handle, source.id, destination.id, error.code.name, str(error),
            )  # fmt: skip
            failures, failed = self._tries.get(handle, (0, set()))
            if isinstance(error, SourceFailed) or error.code is Code.UNREACHABLE:  # it may have waited for its source
                failed.add(source.id)
            if not isinstance(error, SourceFailed) and error.code is not Code.STALE_VERSION:
                failed.add(destination.id)
            self._tries[handle] = (failures + 1, failed)
            if handle in self._moving:
                self._tries.pop(handle)
                return
            wait = min(_RETRY_SECONDS_MAX, _RETRY_SECONDS_MIN * 2 ** min(failures, 10))
            self._queue.defer(handle, level, self._env.clock.boottime() + wait)
        finally:
            self._slots.end(source.id, destination.id)
            self._at_work.discard(handle)
            self._moving.discard(handle)
            self._pause_moves()
            self._servers.dirty.add(handle)
            self._wake.set()

    def _count(self, copied: int) -> None:
        self._done.append((self._env.clock.boottime(), copied))
        self._forget_done()
        self._mean_bytes = copied if not self._mean_bytes else 0.9 * self._mean_bytes + 0.1 * copied

    def _forget_done(self) -> None:
        before = self._env.clock.boottime() - _RATE_SECONDS
        while self._done and self._done[0][0] < before:
            self._done.popleft()

    # ------------------------------------------------------------ replicas that are too many

    def _start_drops(self) -> None:
        while self._dropping < _DROPS_MAX and self.safe_mode.may_delete:
            taken = self._queue.take(lambda _handle, _level: True, (SURPLUS,))
            if taken is None:
                return
            self._dropping += 1
            self._at_work.add(taken[0])
            self._nursery.start_soon(self._drop, taken[0])

    async def _drop(self, handle: int) -> None:
        try:
            victim = self._servers.by_id.get(self._view.need(handle).victim)
            if victim is not None:
                gone = victim

                def is_surplus() -> bool:
                    self._scan_wanted |= self._view.refresh()
                    return self._view.need(handle).victim == gone.id

                await self._cloning.drop(handle, victim, is_surplus)
        except GfsError as error:
            log.warning("event=drop_failed chunk=%016x error=%r", handle, str(error))
            self._queue.defer(handle, SURPLUS, self._env.clock.boottime() + _RETRY_SECONDS_MAX)
        finally:
            self._dropping -= 1
            self._at_work.discard(handle)
            self._pause_moves()
            self._servers.dirty.add(handle)
            self._wake.set()

    # ------------------------------------------------------------ rebalancing

    def _start_moves(self) -> None:
        """Fill a server that has little, gently: a few chunks at a time, when nothing else can be done, and by what the
        servers say after the moves before. One move that fails is not tried again and again either."""
        percent = self._config.rebalance_percent
        if not percent or self._at_work or not self.safe_mode.may_delete:
            return
        if self._env.clock.boottime() < self._moves_from:
            return
        full, empty = unbalanced(list(self._view.sites.values()), percent / 100)
        fullest = {site.id for site in full}
        destinations = deque(site for site in empty if self._takes_moves(site.id))
        if not fullest or not destinations:
            return
        if not self._move_candidates:
            self._move_candidates = list(self._servers.locations)
        looked_at = self._move_candidates[-_MOVES_LOOKED_AT:]
        del self._move_candidates[-_MOVES_LOOKED_AT:]
        for handle in looked_at:
            if len(self._moving) >= self._config.rebalance_moves_max or not self._slots.free:
                return
            self._move(handle, fullest, destinations)

    def _takes_moves(self, server_id: str) -> bool:
        server = self._servers.by_id.get(server_id)
        return server is not None and self._servers.is_up(server) and has_room(server.load)

    def _move(self, handle: int, fullest: set[str], destinations: deque[Site]) -> None:
        """Start a move of this chunk, if its fullest server is one of the fullest of all, so that it is the one whose
        replica is surplus then. Whoever gets it is the last of `destinations` from then on."""
        sites = self._view.sites_of(handle)
        source_id = max(sites, key=lambda known: known.use).id if sites else ""
        if source_id not in fullest or handle in self._queue or not all(known.sure for known in sites):
            return
        source = self._servers.by_id.get(source_id)
        site = move_to(sites, source_id, destinations)
        if site is None or source is None or source.gone or not self._slots.source([source_id]):
            return
        destination = self._servers.by_id[site.id]
        if handle in destination.collect or not self._slots.takes(site.id):
            return
        destinations.remove(site)
        destinations.append(site)
        self._moving.add(handle)
        self._begin(handle, MISPLACED, source, destination)

    def _pause_moves(self) -> None:
        """Until the servers have said how full they are now."""
        self._moves_from = self._env.clock.boottime() + _MOVES_PAUSE_BEATS * self._config.heartbeat_seconds

    # ------------------------------------------------------------ what is told

    def report(self, reply: pb.StatusReply) -> None:
        """The part of the status that is about repair."""
        now = self._env.clock.boottime()
        self._forget_done()
        since = min(_RATE_SECONDS, max(1.0, now - self._done[0][0])) if self._done else 1.0
        rate = sum(size for _, size in self._done) / since
        reply.safe_mode_reason = self.safe_mode.reason
        reply.safe_mode = bool(reply.safe_mode_reason)
        reply.repair_queued = self._queue.clones
        reply.repair_running = self._slots.running
        reply.repair_bytes_per_second = rate
        todo = (reply.repair_queued + reply.repair_running) * self._mean_bytes
        if reply.repair_queued + reply.repair_running:
            reply.repair_seconds_left = todo / rate if rate and todo else -1.0
        reply.unheard.extend(self._servers.unheard)
