"""Looks after what nobody asks for: files whose writers are gone, and chunks that an ended lease left unclean.

Whoever wants to know a length or to write gets it settled at once, by `lengths` and `leasing`. Without this, what
nobody wants for a month would differ between its replicas for a month. And where the power of a server failed, its
replicas are compared with the others, as they may lack what was acknowledged and not synced.
"""

from __future__ import annotations

import logging

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import find_chunk, unpack_chunk, unpack_segment
from gfscore.metadata.inodes import PENDING_BIT
from gfscore.metadata.keys import unpack8
from gfscore.metadata.tables import CHUNKS, INODES, MAPPING
from gfscore.server.master.background import put_off_when_full
from gfscore.server.master.equalizing import Equalizing
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.scanning import slices
from gfscore.server.master.servers import Servers
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_IN_ONE_GO = 64  # chunks
_COMPARED_IN_ONE_GO = 256  # chunks
_AT_ONCE_MAX = 8
_RETRY_SECONDS = 10.0


class Settling:
    def __init__(
        self, state: MasterState, env: Env, servers: Servers, leases: LeaseBook, lengths: Lengths,
        equalizing: Equalizing, lease_seconds: float, heartbeat_seconds: float,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._servers = servers
        self._leases = leases
        self._lengths = lengths
        self._equalizing = equalizing
        self._patience = lease_seconds  # a writer that lives asks for its next lease before
        self._beat = heartbeat_seconds
        self._due: dict[int, float] = {}  # handle → boottime
        self._at_once = trio.CapacityLimiter(_AT_ONCE_MAX)
        self._files_due: dict[int, float] = {}  # inode → boottime
        self._compare: list[int] = []  # handles, those last that are next
        self._compare_at = 0.0  # boottime of the next look at all that were not compared
        self._grants_at = 0.0  # boottime of the next look at unused grants

    async def run(self) -> None:
        """Until cancelled."""
        await self._find_pending()
        unused_wanted = True
        while True:
            await self._env.clock.sleep(self._beat)
            if unused_wanted and self._servers.heard_all:
                await self._find_unused()
                unused_wanted = False
            if not self._lengths.old_leases_possible:
                with put_off_when_full():
                    await self._compare_chunks()
                await self._settle_chunks()
                await self._settle_files()
                await self._empty_grants()

    async def _find_pending(self) -> None:
        """Files that were being written when the master before ended."""
        async for rows in slices(self._state.tables, INODES):
            self._lengths.unsettled.update(unpack8(key) for key, raw in rows if raw[2] & PENDING_BIT)

    async def _find_unused(self) -> None:
        """Chunks that the master before granted and no server has: if nobody uses them now, they are to be holes."""
        unused: set[int] = set()
        async for rows in slices(self._state.tables, CHUNKS):
            unused.update(unpack8(key) for key, raw in rows if not unpack_chunk(raw).used)
        unused = {handle for handle in unused if self._is_nowhere(handle)}
        if not unused:
            return
        async for rows in slices(self._state.tables, MAPPING):
            for key, raw in rows:
                for handle in unused.intersection(unpack_segment(raw)):
                    if self._is_nowhere(handle):
                        self._leases.leave(handle, unpack8(key[:8]))

    def _is_nowhere(self, handle: int) -> bool:
        return self._leases.find(handle) is None and not self._servers.locations.get(handle)

    async def _settle_chunks(self) -> None:
        now = self._env.clock.boottime()
        unclean = self._leases.unclean
        self._due = {handle: self._due.get(handle, now + self._patience) for handle in unclean}
        ready = [handle for handle, due in self._due.items() if due <= now and self._is_free(handle)]
        ready = ready[:_IN_ONE_GO]
        self._due.update(dict.fromkeys(ready, now + _RETRY_SECONDS))
        for handle in [handle for handle in ready if find_chunk(self._state.tables, handle) is None]:
            self._leases.settled(handle)
            ready.remove(handle)
        async with trio.open_nursery() as nursery:
            for handle in ready:  # each by itself: a slow server keeps nobody from the chunks of others
                nursery.start_soon(self._settle_chunk, unclean[handle], handle)

    async def _settle_chunk(self, inode: int, handle: int) -> None:
        async with self._at_once:
            with put_off_when_full():
                found = await self._equalizing.make_equal([handle], unless_leased=True)
                if handle in found and not found[handle].servers:
                    await self._give_up(inode, handle)

    def _is_free(self, handle: int) -> bool:
        """Nobody has a lease on it, and nobody is missing who may come back with its replica as it is."""
        if self._leases.find(handle) is not None:
            return False
        current = [self._servers.by_id.get(server.id) for server in self._servers.locations.get(handle, ())]
        return all(server is None or not server.gone or not self._servers.counts(server) for server in current)

    async def _give_up(self, inode: int, handle: int, *, leased: bool = False) -> None:
        try:
            await self._lengths.drop_unused(inode, handle, leased=leased)
        except GfsError as error:
            if error.code is not Code.STALE_INODE:
                log.info("event=chunk_not_settled chunk=%016x error=%r", handle, str(error))

    async def _empty_grants(self) -> None:
        """New chunks that were granted at servers which are to be emptied, and not written as yet, become holes: else a
        server that has nothing and may be switched off would still take what is written there."""
        draining, now = self._servers.draining, self._env.clock.boottime()
        if not draining or now < self._grants_at:
            return
        found = [lease for lease in self._leases.fresh() if any(member.id in draining for member in lease.replicas)]
        unused = [lease for lease in found if self._is_unused(lease.handle)][:_IN_ONE_GO]
        async with trio.open_nursery() as nursery:
            for lease in unused:
                nursery.start_soon(self._empty_grant, lease.inode, lease.handle)
        if any(self._leases.find(lease.handle) is lease for lease in unused):
            self._grants_at = self._env.clock.boottime() + _RETRY_SECONDS  # somebody did not answer

    def _is_unused(self, handle: int) -> bool:
        chunk = find_chunk(self._state.tables, handle)
        return chunk is not None and not chunk.used

    async def _empty_grant(self, inode: int, handle: int) -> None:
        async with self._at_once:
            await self._give_up(inode, handle, leased=True)

    async def _compare_chunks(self) -> None:
        """A slice of the chunks of servers whose power failed: where replicas differ, they are made equal to the best.

        Only while all of them answer. A new version without the one that lost nothing would make the loss the truth.
        """
        servers, now = self._servers, self._env.clock.boottime()
        if not self._compare and servers.uncompared and now >= self._compare_at:
            self._compare = sorted(servers.uncompared)  # the newest chunks first: most of the others were synced
            self._compare_at = now + _RETRY_SECONDS
        some = [handle for handle in self._compare[-_COMPARED_IN_ONE_GO:] if self._is_comparable(handle)]
        del self._compare[-_COMPARED_IN_ONE_GO:]
        differing = await self._equalizing.doubtful(some)
        servers.uncompared.difference_update(set(some).difference(differing))
        differing = [handle for handle in differing if self._is_comparable(handle)]  # somebody may not have answered
        found = await self._equalizing.make_equal(differing, unless_leased=True, tries=1)
        servers.uncompared.difference_update([handle for handle, fenced in found.items() if fenced.equal])

    def _is_comparable(self, handle: int) -> bool:
        servers = self._servers
        known = servers.replicas(handle)
        return servers.heard_all and self._leases.find(handle) is None and all(map(servers.is_up, known))

    async def _settle_files(self) -> None:
        now = self._env.clock.boottime()
        unsettled = self._lengths.unsettled
        self._files_due = {inode: self._files_due.get(inode, now + self._patience) for inode in unsettled}
        ready = [inode for inode, due in self._files_due.items() if due <= now]
        self._files_due.update(dict.fromkeys(ready, now + _RETRY_SECONDS))
        for inode in ready:
            await self._lengths.settle_abandoned([inode])
