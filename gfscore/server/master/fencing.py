"""Raising chunk versions and copying shared chunks: what ends every older lease on them (rules 1, 3, 7; [0116]).

The replicas make the new version durable first, then it is logged. The caller holds the locks that keep others away
from the chunk; what a chunkserver reports about it meanwhile is not judged.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass, field

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import find_chunk, load_chunk, raise_version, replace_shared_chunk
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.tables import COUNTERS
from gfscore.metadata.transaction import Transaction
from gfscore.server.master.chunk_calls import Answer, ChunkCalls, Wanted
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_ROUNDS_MAX = 5  # a version may turn out to be taken already by an attempt before a crash
# Versions that each start of a master has for itself: what an earlier one tried and could not log is never given again.
_VERSIONS_PER_START = 1 << 20
_STARTS = b"starts"
# After these a replica has not taken the version it was asked to take, and will not.
_DEFINITE = frozenset({Code.STALE_VERSION, Code.UNKNOWN_CHUNK})
REPORT_WAIT_SECONDS = 3.0


@dataclass(slots=True)
class Fenced:
    """The new set of a chunk. `length`: of its longest replica, bytes."""

    version: int = 0
    servers: list[ServerState] = field(default_factory=list)
    length: int = 0
    missing: list[str] = field(default_factory=list)  # servers that never had the chunk
    unsure: bool = False  # some server was asked for `version` and may have it though it is not in `servers`


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
        self._attempted: dict[int, int] = {}  # versions that some replica may have without the log knowing
        tx = state.begin()
        starts = unpack8(tx.get(COUNTERS, _STARTS) or pack8(0))
        tx.put(COUNTERS, _STARTS, pack8(starts + 1))
        state.commit(tx)
        self._versions_from = starts * _VERSIONS_PER_START

    def candidates(self, handle: int, exclude: Collection[str] = ()) -> list[ServerState]:
        """Live servers with a good replica, without the excluded ones unless nobody else is left."""
        alive = [server for server in self._servers.replicas(handle) if not server.gone]
        return [server for server in alive if server.id not in exclude] or alive

    async def fence(
        self, handles: list[int], *, truncate: int | None = None, exclude: Collection[str] = ()
    ) -> dict[int, Fenced]:
        """A new version on every replica that answers, logged; leases on the chunks are over.

        A chunk of which no replica answered has an empty set in the result, and keeps its version. `truncate`: cut the
        replicas to so many bytes as well.
        """
        await self._servers.wait_for_sets(handles, REPORT_WAIT_SECONDS)
        busy = [handle for handle in handles if handle not in self._servers.busy]
        self._servers.busy.update(busy)
        try:
            results = {handle: Fenced() for handle in handles}
            await self._prepare(self._first_round(results, exclude, truncate), results)
            self._log(results)
            return results
        finally:
            self._servers.busy.difference_update(busy)

    async def _prepare(self, todo: list[Wanted], results: dict[int, Fenced]) -> None:
        """Ask in rounds until each result is a version and exactly those who have it, or empty."""
        for _ in range(_ROUNDS_MAX):
            if not todo:
                return
            answers = await self._calls.prepare(todo)
            todo = self._next_round(todo, answers, results)
        for item in todo:  # nobody is sure of anything: better nothing than a set that is not one
            results[item.handle].servers.clear()

    def _first_round(self, results: dict[int, Fenced], exclude: Collection[str], truncate: int | None) -> list[Wanted]:
        wanted = []
        for handle in results:
            chunk = find_chunk(self._state.tables, handle)
            servers = self.candidates(handle, exclude)
            if chunk is not None and servers:
                version = max(chunk.version, self._attempted.get(handle, 0), self._versions_from) + 1
                self._attempted[handle] = version
                wanted.append(Wanted(handle, chunk.version, version, servers, truncate))
        return wanted

    def _next_round(
        self, asked: list[Wanted], answers: dict[int, list[Answer]], results: dict[int, Fenced]
    ) -> list[Wanted]:
        """Sort the answers; what has to be asked again because a replica was ahead of the log, or because one that is
        left out may have taken the version all the same: its answer was lost, or the question is still on its way.
        """
        again: list[Wanted] = []
        for item in asked:
            result = results[item.handle]
            given = answers.get(item.handle, [])
            definite = {a.server for a in given if a.error is Code.OK or a.error in _DEFINITE}
            result.unsure = result.unsure or any(server not in definite for server in item.servers)
            ahead = max((answer.version for answer in given), default=0)
            uncut = item.truncate is not None and any(
                answer.error is Code.OK and answer.length > item.truncate for answer in given
            )
            if ahead > item.version or uncut:
                # Another attempt got there first (before a crash, or without the cut): all go beyond it together.
                base = max(ahead, item.version)
                self._attempted[item.handle] = base + 1
                result.servers.clear()
                result.unsure = False
                again += [
                    item._replace(old_version=answer.version, version=base + 1, servers=[answer.server])
                    for answer in given
                    if answer.version
                ]
                continue
            for answer in given:
                if answer.error is Code.OK and answer.version == item.version:
                    result.version = item.version
                    if answer.server not in result.servers:
                        result.servers.append(answer.server)
                    result.length = max(result.length, answer.length)
                elif answer.error is Code.STALE_VERSION and item.old_version < answer.version < item.version:
                    again.append(item._replace(old_version=answer.version, servers=[answer.server]))
                elif answer.error is Code.UNKNOWN_CHUNK:
                    result.missing.append(answer.server.id)
                else:
                    log.warning(
                        "event=prepare_refused chunk=%016x server=%s code=%s has_version=%d",
                        item.handle, answer.server.id, answer.error.name, answer.version,
                    )  # fmt: skip
        waiting = {item.handle for item in again}
        for handle in dict.fromkeys(item.handle for item in asked):
            result = results[handle]
            if result.unsure and result.servers and handle not in waiting:
                # The version that is logged must be one that nobody outside its set was ever asked to take (rule 3).
                self._attempted[handle] = result.version + 1
                servers, result.servers, result.unsure = result.servers, [], False
                again.append(Wanted(handle, result.version, result.version + 1, servers))
        return again

    def _log(self, results: dict[int, Fenced]) -> None:
        tx = self._state.begin()
        for handle, result in results.items():
            if result.servers and find_chunk(tx, handle) is not None:
                raise_version(tx, handle, result.version)
                self._servers.set_replicas(handle, result.servers)
                self._leases.drop(handle)
                self._attempted.pop(handle, None)
        self._state.commit(tx)

    async def copy(
        self, inode: int, index: int, handle: int, *, truncate: int | None = None, avoid: Collection[str] = ()
    ) -> tuple[int, Fenced]:
        """Copy-on-write: give the file a chunk of its own in the place of the shared `handle` [0116].

        The new handle is logged as taken before any server sees it, the mapping only when the copies exist; dying in
        between leaves orphaned chunks. New handle, version and servers; 0 where there is nothing to copy, because
        the chunk was shared before its first use. Raises NOT_READY when nobody could copy it.
        """
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
            copies = await self._sure_copies(new_handle, servers, answers.get(handle, []))
            if not copies.servers and self._never_used(handle, version, answers.get(handle, [])):
                return 0, copies
            if not copies.servers:
                raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} could be copied: servers are down")
            tx = _ReservedTick(self._state.tables)
            tx.reserved = new_handle
            made = replace_shared_chunk(tx, inode, index, handle)
            assert made == new_handle, "the reserved handle was not used"
            if copies.version > 1:
                raise_version(tx, new_handle, copies.version)
            self._state.commit(tx)
            self._servers.set_replicas(new_handle, copies.servers)
            return new_handle, copies
        finally:
            self._servers.busy.discard(new_handle)

    def _never_used(self, handle: int, version: int, given: list[Answer]) -> bool:
        """Every server of the set of a chunk that is still at its first version says that it does not have it."""
        missing = [answer.server.id for answer in given if answer.error is Code.UNKNOWN_CHUNK]
        return version == 1 and self._servers.heard_all and self._servers.nobody_has(handle, missing)

    async def _sure_copies(self, handle: int, asked: list[ServerState], given: list[Answer]) -> Fenced:
        """Who has the new chunk, at a version that nobody else can have: whoever did not answer may still copy it."""
        copied = [answer.server for answer in given if answer.error is Code.OK]
        definite = {answer.server for answer in given if answer.error is Code.OK or answer.error in _DEFINITE}
        result = Fenced(version=1, servers=copied)
        if copied and any(server not in definite for server in asked):
            result = Fenced()
            await self._prepare([Wanted(handle, 1, 2, copied)], {handle: result})
        return result
