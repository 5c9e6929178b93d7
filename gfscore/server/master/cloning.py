"""One clone, and one replica given up: what makes either safe while clients go on writing (rules 2, 8, 10).

A chunk without a lease cannot change under its version, so a copy of that version is a replica. A chunk with one is
copied first; then the lease is ended, and what changed meanwhile is copied again before anybody gets the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.metadata.chunks import find_chunk, load_chunk
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.chunk_calls import ChunkCalls
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.fencing import Fencing
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.sessions import Item, Sessions
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_BYTES_PER_SECOND_MIN = 1 << 20  # a clone that is slower than this is given up
_CALL_SECONDS = 20.0
_FINISH_SECONDS = 10.0  # writers of the chunk wait meanwhile


class SourceFailed(GfsError):
    """The source is at fault, not the destination."""


class Cloning:
    def __init__(
        self, state: MasterState, config: MasterConfig, servers: Servers, sessions: Sessions, leases: LeaseBook,
        lengths: Lengths, fencing: Fencing, calls: ChunkCalls,
    ) -> None:  # fmt: skip
        self._state = state
        self._config = config
        self._servers = servers
        self._sessions = sessions
        self._leases = leases
        self._lengths = lengths
        self._fencing = fencing
        self._calls = calls

    def _leased(self, handle: int) -> bool:
        """Somebody may change the chunk without asking anew."""
        return self._lengths.old_leases_possible or self._leases.find(handle) is not None

    async def clone(self, handle: int, source: ServerState, destination: ServerState) -> int:
        """Make a replica at `destination`; how many bytes were copied. Raises GfsError, SourceFailed."""
        version = load_chunk(self._state.tables, handle).version
        if not self._leased(handle):
            reply = await self._replicate(handle, version, source, destination, finish=True)
            self._add(handle, version, destination)
            return reply.copied_bytes
        lease = self._leases.find(handle)
        copied = (await self._replicate(handle, version, source, destination, finish=False)).copied_bytes
        async with self._fencing.exclusive([handle]):
            if self._leased(handle) and not await self._revoke(handle):
                fenced = (await self._fencing.fence_held([handle]))[handle]
                if not fenced.servers:
                    raise SourceFailed(Code.NOT_READY, f"no replica of chunk {handle:016x} took a new version")
                source = source if source in fenced.servers else fenced.servers[0]
            version = load_chunk(self._state.tables, handle).version
            reply = await self._replicate(handle, version, source, destination, finish=True, hurry=True)
            self._add(handle, version, destination)
        if lease is not None:
            await self._sessions.tell(self._sessions.told([Item(inode=lease.inode, chunks=True)], None))
        return copied + reply.copied_bytes

    async def _revoke(self, handle: int) -> bool:
        """Take the lease back, which is cheaper than a new version. False when its primary does not answer (rule 6), or
        has not used the lease yet: it knows of nothing to revoke then, and would still take the grant."""
        lease = self._leases.find(handle)
        if lease is None or self._lengths.old_leases_possible or not self._servers.is_up(lease.primary):
            return False
        lengths, _ = await self._calls.revoke({lease.primary: [handle]})
        if handle not in lengths or lengths[handle].unequal or lease.broken:
            return False
        self._leases.drop(handle, clean=True)
        return True

    async def _replicate(
        self,
        handle: int,
        version: int,
        source: ServerState,
        destination: ServerState,
        *,
        finish: bool,
        hurry: bool = False,
    ) -> pb.ReplicateReply:
        limit = self._config.clone_bytes_per_second
        seconds = _CALL_SECONDS + self._config.chunk_size / (limit or _BYTES_PER_SECOND_MIN)
        if hurry:
            seconds, limit = _FINISH_SECONDS, 0
        known = [*self._servers.replicas(handle), *self._servers.damaged(handle)]
        others = [server.message for server in known if server.id != source.id and self._servers.is_up(server)]
        await self._state.flushed()  # the version that the destination is told must not be forgotten
        request = pb.ReplicateRequest(
            handle=handle, version=version, source=source.message, bytes_per_second=limit, finish=finish,
            epoch=destination.epoch, others=others,
        )  # fmt: skip
        try:
            reply, _ = await destination.channel.call("Replicate", request, timeout=seconds)
        except GfsError as error:
            if error.code is Code.UNREACHABLE:
                destination.suspect = True
            raise
        if reply.source_error:
            code = code_from_wire(reply.source_error)
            if code is Code.CHECKSUM_MISMATCH:
                self._servers.remove_replica(handle, source.id, -1)
            elif code is Code.UNKNOWN_CHUNK and version > 1:
                log.warning("event=replica_missing chunk=%016x server=%s", handle, source.id)
                self._servers.lacks(handle, source.id)
            raise SourceFailed(code, reply.message)
        return reply  # type: ignore[no-any-return]

    def _add(self, handle: int, version: int, destination: ServerState) -> None:
        """Believe the copy, unless the chunk has changed or gone, or the server has begun anew."""
        chunk = find_chunk(self._state.tables, handle)
        if chunk is None:
            destination.collect.add(handle)
            raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {handle:016x} was deleted")
        if chunk.version != version:
            self._servers.remove_replica(handle, destination.id, version)
            raise GfsError(Code.STALE_VERSION, f"chunk {handle:016x} has version {chunk.version} now")
        if self._servers.alive(destination.id, destination.epoch) is None:
            raise GfsError(Code.UNKNOWN_SESSION, f"{destination.id} has begun a new session")
        destination.collect.discard(handle)
        self._servers.add_replica(handle, destination)

    async def drop(self, handle: int, victim: ServerState, is_surplus: Callable[[], bool]) -> None:
        """Give up the replica of `victim`, if it is still one too many when nobody can change that. Raises GfsError."""
        async with self._fencing.exclusive([handle]):
            if not is_surplus():
                return
            if self._leased(handle):
                # Its primary counts on this replica: it learns of the smaller set through a new version.
                fenced = (await self._fencing.fence_held([handle], exclude={victim.id}))[handle]
                if not fenced.servers or victim in fenced.servers:
                    raise GfsError(Code.NOT_READY, f"chunk {handle:016x} has no other replica that answers")
                return  # what is stale is collected once there are enough others
            self._servers.give_up_replica(handle, victim.id)
