"""Making the replicas of chunks equal that nobody writes to: what an ended lease left half done (rules 6, 8, 9).

A mutation may have reached some replicas only when its primary or its client died. Nobody was told that it is there, so
any of the replicas is as good as another; but they have to agree, or a file says something else at every read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import trio

from gfscore.metadata.chunks import find_chunk
from gfscore.metadata.policies import Policy
from gfscore.server.master.chunk_calls import ChunkCalls
from gfscore.server.master.fencing import Fenced, Fencing
from gfscore.server.master.grants import GrantSigner
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.state import MasterState

_TRIES = 2  # the second without the server that failed in the first
_AT_ONCE_MAX = 16


class Equalizing:
    def __init__(
        self, state: MasterState, servers: Servers, leases: LeaseBook, fencing: Fencing, calls: ChunkCalls,
        signer: GrantSigner, defaults: Policy,
    ) -> None:  # fmt: skip
        self._state = state
        self._servers = servers
        self._leases = leases
        self._fencing = fencing
        self._calls = calls
        self._signer = signer
        self._defaults = defaults
        self._at_once = trio.CapacityLimiter(_AT_ONCE_MAX)

    async def make_equal(
        self, handles: Collection[int], *, unless_leased: bool = False, tries: int = _TRIES
    ) -> dict[int, Fenced]:
        """A new version of each chunk, with equal contents everywhere; all leases on them are over.

        In the result `servers` is empty where no replica answered, and `equal` says whether it worked. `unless_leased`:
        chunks on which somebody has got a lease meanwhile are left alone, and not in the result. `tries`: with one,
        nobody is left out who answers.
        """
        results: dict[int, Fenced] = {}
        failed: set[str] = set()
        async with self._fencing.exclusive(handles):
            todo = [handle for handle in handles if not (unless_leased and self._leases.find(handle) is not None)]
            for _ in range(tries):
                results.update(await self._fencing.fence_held(todo, exclude=failed))
                todo = [handle for handle in todo if results[handle].servers and not results[handle].equal]
                async with trio.open_nursery() as nursery:
                    for handle in todo:
                        nursery.start_soon(self._reconcile, handle, results[handle], failed)
                todo = [handle for handle in todo if not results[handle].equal]
                if not todo:
                    break
        return results

    async def _reconcile(self, handle: int, fenced: Fenced, failed: set[str]) -> None:
        """Who is at fault is added to `failed`."""
        servers = fenced.best_first()
        grant = self._signer.sign(
            handle, fenced.version, servers[0].id, servers[0].epoch, [server.message for server in servers],
            self._defaults, fresh=False, length_floor=0,
        )  # fmt: skip
        async with self._at_once:
            await self._state.flushed()  # nobody may use a version that could be forgotten
            length, at_fault = await self._calls.reconcile(servers[0], grant)
        failed.update(at_fault)
        if not at_fault:
            fenced.length, fenced.equal = length, True
            self._leases.settled(handle)

    async def doubtful(self, handles: Collection[int]) -> list[int]:
        """Of these chunks, those whose replicas are not known to have equal contents: somebody answers otherwise, or
        somebody does not answer who may come back with a replica of the recorded version."""
        by_server: dict[ServerState, list[int]] = {}
        for handle in handles:
            for server in self._servers.replicas(handle):
                by_server.setdefault(server, []).append(handle)
        found = await self._calls.inspect(by_server, digest=True)
        return [handle for handle in handles if not self._known_equal(handle, found.get(handle, ()))]

    def _known_equal(self, handle: int, answers: Iterable[tuple[ServerState, Any]]) -> bool:
        """A chunk that nobody has any more is lost, and holds up nothing."""
        chunk = find_chunk(self._state.tables, handle)
        if chunk is None:
            return True
        digests = [item.digest for _, item in answers if not item.error and item.version == chunk.version]
        absent = len(self._servers.replicas(handle)) > len(digests)
        unheard = not self._servers.heard_all and len(digests) < chunk.goal
        return len(set(digests)) <= 1 and not absent and not unheard
