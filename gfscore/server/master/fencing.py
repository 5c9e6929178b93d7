"""Raising chunk versions and copying shared chunks: what ends every older lease on them (rules 1, 3, 7; [0116]).

The replicas make the new version durable first, then it is logged. The caller holds the locks that keep others away
from the chunk; what a chunkserver reports about it meanwhile is not judged.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import trio

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import find_chunk, load_chunk, raise_version, replace_shared_chunk
from gfscore.metadata.transaction import Transaction
from gfscore.server.master.chunk_calls import Answer, ChunkCalls, Wanted
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_ROUNDS_MAX = 8  # each further one leaves somebody out, or follows a master that died between Prepare and its log
REPORT_WAIT_SECONDS = 3.0
_LOGGED_BYTES = 1024  # more than is logged of one new version


class Doubt(NamedTuple):
    """How far a replica may be behind what was acknowledged; the smaller the better. A replica that lived through
    everything has none. Of those that did not, the longest has it: a restart loses nothing but what was in flight, a
    power cut what was not synced, at the end or (unseen) in the middle."""

    cause: int = 0  # `PrepareReply.Item.doubt`
    minus_length: int = 0


@dataclass(slots=True)
class Fenced:
    """The new set of a chunk. `length`: of its longest replica, bytes. `equal`: all replicas have the same contents.
    `doubts`: by server, where there are any."""

    version: int = 0
    servers: list[ServerState] = field(default_factory=list)
    length: int = 0
    equal: bool = False
    missing: list[str] = field(default_factory=list)  # servers that never had the chunk
    lost: list[str] = field(default_factory=list)  # servers without it that lost power since it was granted
    doubts: dict[str, Doubt] = field(default_factory=dict)

    def best_first(self, complaints: Collection[str] = (), former: str = "") -> list[ServerState]:
        """The servers, the next primary first: the others are made equal to it (rule 9), so it has to be one that has
        everything that was acknowledged. Among equals the `former` one unless somebody complained, else one that nobody
        complained of."""

        def rank(server: ServerState) -> Any:
            doubt = self.doubts.get(server.id, Doubt())
            return doubt, server.id in complaints, server.id != former, server.load.recent_creations

        return sorted(self.servers, key=rank)


@dataclass(slots=True)
class _Attempt:
    """One chunk on its way to a new version. `held`: who is still asked, and the version it is thought to have."""

    handle: int
    recorded: int
    held: dict[ServerState, int]


class _ReservedTick(Transaction):
    """A transaction whose next logical time was drawn, and logged, before."""

    __slots__ = ("reserved",)
    reserved: int

    def tick(self) -> int:
        return self.reserved


class Fencing:
    def __init__(self, state: MasterState, servers: Servers, leases: LeaseBook, calls: ChunkCalls) -> None:
        self._state = state
        self._servers = servers
        self._leases = leases
        self._calls = calls
        self._held: set[int] = set()  # chunks of which somebody changes version or set
        self._freed = trio.Event()

    @asynccontextmanager
    async def exclusive(self, handles: Collection[int]) -> AsyncIterator[None]:
        """Nobody else gives these chunks a new version or a copy meanwhile; so nobody gets a lease that is not granted
        yet. The locks of the namespace are taken before this, never inside."""
        while not self._held.isdisjoint(handles):
            await self._freed.wait()
        self._held.update(handles)
        try:
            yield
        finally:
            self._held.difference_update(handles)
            self._freed.set()
            self._freed = trio.Event()

    def candidates(self, handle: int, exclude: Collection[str] = ()) -> list[ServerState]:
        """Live servers with a good replica, without the excluded ones unless nobody else is left. Those that are down
        are not waited for once more, unless there are no others."""
        alive = [server for server in self._servers.replicas(handle) if not server.gone]
        alive = [server for server in alive if self._servers.counts(server)] or alive
        return [server for server in alive if server.id not in exclude] or alive

    async def fence(
        self, handles: list[int], *, truncate: int | None = None, exclude: Collection[str] = ()
    ) -> dict[int, Fenced]:
        """A new version on every replica that answers, logged; leases on the chunks are over.

        A chunk of which no replica answered has an empty set in the result, and keeps its version. `truncate`: cut the
        replicas to so many bytes as well.
        """
        async with self.exclusive(handles):
            return await self.fence_held(handles, truncate=truncate, exclude=exclude)

    async def fence_held(
        self, handles: list[int], *, truncate: int | None = None, exclude: Collection[str] = ()
    ) -> dict[int, Fenced]:
        """`fence` for who has the chunks exclusively."""
        await self._servers.wait_for_sets(handles, REPORT_WAIT_SECONDS)
        results = {handle: Fenced() for handle in handles}
        await self._try(self._attempts(handles, exclude), truncate, results)
        return results

    async def _try(self, attempts: list[_Attempt], truncate: int | None, results: dict[int, Fenced]) -> None:
        # Nobody could read replicas that have a version which is not logged.
        self._state.need_room(len(attempts) * _LOGGED_BYTES)
        busy = [one.handle for one in attempts if one.handle not in self._servers.busy]
        self._servers.busy.update(busy)
        try:
            for _ in range(_ROUNDS_MAX):
                if not attempts:
                    break
                attempts = await self._round(attempts, truncate, results)
            self._log(results)
        finally:
            self._servers.busy.difference_update(busy)

    async def never_used(self, handle: int, *, unanimous: bool = False) -> bool:
        """Whether nothing was ever acknowledged in this new chunk, nor will be.

        What is acknowledged is on all the servers that it was granted to, and one that is asked for a new version of
        a chunk that it does not have never makes it from then on: so one such answer is enough. `unanimous`: of all of
        them, none may be away. Where the operator has given up all of them, nobody is left to have it.
        """
        async with self.exclusive([handle]):
            return await self._never_used(handle, unanimous)

    async def _never_used(self, handle: int, unanimous: bool) -> bool:
        chunk = find_chunk(self._state.tables, handle)
        if chunk is None or not chunk.members or handle in self._servers.stale:
            return False
        ids = self._servers.members(chunk)
        servers = [server for server in map(self._servers.by_id.get, ids) if server is not None and not server.gone]
        if not ids or len(servers) < (len(ids) if unanimous else 1):
            return not ids
        results = {handle: Fenced()}
        await self._try([_Attempt(handle, chunk.version, dict.fromkeys(servers, chunk.version))], None, results)
        found = results[handle]
        if len(found.missing) + len(found.lost) == len(ids):
            return True
        return not unanimous and bool(found.missing) and not found.servers

    def _attempts(self, handles: list[int], exclude: Collection[str]) -> list[_Attempt]:
        attempts = []
        for handle in handles:
            chunk = find_chunk(self._state.tables, handle)
            servers = self.candidates(handle, exclude)
            if chunk is not None and servers:
                attempts.append(_Attempt(handle, chunk.version, dict.fromkeys(servers, chunk.version)))
        return attempts

    async def _round(
        self, attempts: list[_Attempt], truncate: int | None, results: dict[int, Fenced]
    ) -> list[_Attempt]:
        """Ask everybody for one version; which chunks need another round.

        A version counts only when all who were asked for it have answered. Whoever was silent may have taken it and
        would look like a member of the set later, without what is written meanwhile (rule 3): so those who answered
        are taken beyond it.
        """
        version = await self._state.new_version(above=max(max(one.held.values()) for one in attempts))
        wanted = []
        for one in attempts:
            for old_version in set(one.held.values()):
                servers = [server for server, held in one.held.items() if held == old_version]
                wanted.append(Wanted(one.handle, old_version, version, servers, truncate))
        answers = await self._calls.prepare(wanted)
        again = []
        for one in attempts:
            given = {answer.server: answer for answer in answers.get(one.handle, ())}
            if self._sort(one, given, version, results[one.handle]):
                again.append(one)
        return [one for one in again if one.held]

    def _sort(self, one: _Attempt, given: dict[ServerState, Answer], version: int, result: Fenced) -> bool:
        """Take in the answers of one round; whether there has to be another."""
        settled = True
        length = 0
        digests = set()
        held: dict[ServerState, int] = {}
        for server in one.held:
            answer = given.get(server)
            if answer is None:
                settled = False
            elif answer.error is Code.OK and answer.version == version:
                held[server] = version
                length = max(length, answer.length)
                digests.add(answer.digest)
                if answer.doubt:
                    result.doubts[server.id] = Doubt(answer.doubt, -answer.length)
            elif answer.error is Code.STALE_VERSION:
                if answer.version > one.recorded:  # ahead of the log: an attempt of a master that died
                    held[server] = answer.version
                    settled = False
            elif answer.error is Code.UNKNOWN_CHUNK:
                (result.lost if answer.doubt else result.missing).append(server.id)
            else:
                log.warning(
                    "event=prepare_refused chunk=%016x server=%s code=%s has_version=%d",
                    one.handle, server.id, answer.error.name, answer.version,
                )  # fmt: skip
                settled = False
        one.held = held
        if settled:
            result.version, result.servers, result.length = version, list(held), length
            result.equal = len(digests) == 1
        return not settled

    def _log(self, results: dict[int, Fenced]) -> None:
        tx = self._state.begin()
        for handle, result in results.items():
            if result.servers and find_chunk(tx, handle) is not None:
                raise_version(tx, handle, result.version)
                self._servers.set_replicas(handle, result.servers)
                self._leases.drop(handle, clean=result.equal)
        self._state.commit(tx)

    async def copy(
        self, inode: int, index: int, handle: int, *, truncate: int | None = None, avoid: Collection[str] = ()
    ) -> tuple[int, Fenced]:
        """Copy-on-write: give the file a chunk of its own in the place of the shared `handle` [0116].

        The new handle is logged as taken before any server sees it, the mapping only when the copies exist; dying in
        between leaves orphaned chunks. The new handle and its set; 0 where there is nothing to copy, because the chunk
        was shared before its first use. Raises NOT_READY when nobody could copy it, NO_SPACE when for want of room.
        """
        async with self.exclusive([handle]):
            return await self._copy(inode, index, handle, truncate, avoid)

    async def _copy(
        self, inode: int, index: int, handle: int, truncate: int | None, avoid: Collection[str]
    ) -> tuple[int, Fenced]:
        await self._servers.wait_for_sets([handle], REPORT_WAIT_SECONDS)
        reserving = self._state.begin()
        new_handle = reserving.tick()
        self._servers.busy.add(new_handle)
        try:
            self._state.commit(reserving)
            await self._state.flushed()
            version = load_chunk(self._state.tables, handle).version
            servers = self.candidates(handle, avoid)
            answers = await self._calls.clone([Wanted(handle, version, 1, servers, truncate, new_handle)])
            given = answers.get(handle, [])
            copied = [answer.server for answer in given if answer.error is Code.OK]
            if not copied and any(answer.error is Code.NO_SPACE for answer in given):
                raise GfsError(Code.NO_SPACE, f"the chunkservers of chunk {handle:016x} have no room for a copy of it")
            if not copied and await self._never_used(handle, unanimous=False):
                return 0, Fenced()
            if not copied:
                reason = "those that answer are damaged" if given else "servers are down"
                raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} could be copied: {reason}")
            tx = _ReservedTick(self._state.tables)
            tx.reserved = new_handle
            made = replace_shared_chunk(tx, inode, index, handle)
            assert made == new_handle, "the reserved handle was not used"
            self._state.commit(tx)
            self._servers.set_replicas(new_handle, copied)
            doubts = {answer.server.id: Doubt(answer.doubt, -answer.length) for answer in given if answer.doubt}
            if doubts or handle in self._leases.unclean:
                self._leases.leave(new_handle, inode)
            if len(copied) == len(servers):
                return new_handle, Fenced(1, copied, max(answer.length for answer in given), doubts=doubts)
            # Who did not answer may have made a copy all the same: it must not pass for one of these.
            fenced = (await self.fence([new_handle]))[new_handle]
            if not fenced.servers:
                raise GfsError(Code.NOT_READY, f"the copies of chunk {handle:016x} cannot be reached any more")
            return new_handle, fenced
        finally:
            self._servers.busy.discard(new_handle)
