"""Granting leases: permission for a client to write or append to one chunk [0079]-[0081], [0092].

Fresh chunks need no conversation with chunkservers (rule 13); a lease that exists is answered again; everything else
raises the version on the replicas first. Locks: the file is read, the chunk written.
"""

from __future__ import annotations

import logging

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import (
    ChunkRecord,
    add_fresh_chunk,
    handle_at,
    last_index,
    load_chunk,
    mark_pending,
    replace_fresh_chunk,
    replace_shared_chunk,
)
from gfscore.metadata.inodes import InodeRecord, load_file
from gfscore.metadata.locks import chunk_key, inode_key
from gfscore.metadata.policies import Policy, effective
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.fencing import Fenced, Fencing
from gfscore.server.master.grants import GrantSigner
from gfscore.server.master.leases import GrantedLease, LeaseBook
from gfscore.server.master.locking import LEASES, Keys, Locks
from gfscore.server.master.servers import Replicas, Servers
from gfscore.server.master.sessions import Item, Sessions, Told
from gfscore.server.master.state import MasterState
from gfscore.server.master.trash import refuse_in_trash

log = logging.getLogger(__name__)


class Leasing:
    """The handler of `Lease`, and what `Create` needs of it."""

    def __init__(
        self, state: MasterState, env: Env, locks: Locks, sessions: Sessions, servers: Servers,
        leases: LeaseBook, fencing: Fencing, signer: GrantSigner, defaults: Policy,
        chunk_size: int,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._fencing = fencing
        self._signer = signer
        self._defaults = defaults
        self._chunk_size = chunk_size

    # ------------------------------------------------------------ fresh chunks, without an await

    def place(self, t: Transaction, inode: int, avoid: list[str]) -> tuple[Policy, Replicas]:
        """Where a new chunk of the file goes. Raises NO_SPACE, NO_SERVERS (also while the servers are coming back)."""
        policy = effective(t, inode, self._defaults)
        if self._servers.gathering(policy.replication):
            raise GfsError(Code.NO_SERVERS, "the chunkservers are still coming back after the master's start")
        return policy, self._servers.place(policy.replication, avoid)

    def granted(
        self, record: InodeRecord, index: int, handle: int, version: int, replicas: Replicas, policy: Policy,
        *, fresh: bool, avoided: list[str] | tuple[str, ...] = (),
    ) -> GrantedLease:  # fmt: skip
        """Sign a lease and write it into the book. The state has the chunk already."""
        floor = min(max(record.size - index * self._chunk_size, 0), self._chunk_size)
        primary = replicas[0]
        grant = self._signer.sign(
            handle, version, primary.id, primary.epoch, [server.message for server in replicas], policy,
            fresh=fresh, length_floor=floor,
        )  # fmt: skip
        lease = GrantedLease(
            record.inode, index, handle, version, replicas, grant,
            fresh=fresh, granted_at=self._env.clock.boottime(), avoided=avoided,
        )  # fmt: skip
        self._leases.add(lease)
        return lease

    # ------------------------------------------------------------ the call

    async def lease(self, request: pb.LeaseRequest, context: CallContext) -> pb.LeaseReply:
        """Handler of `Lease`. Raises NO_SERVERS, NO_SPACE, NOT_READY (no replica can be reached), STALE_INODE,
        IS_DIRECTORY, NOT_PERMITTED (in the trash)."""
        session = self._sessions.of_change(request.id, context)
        client = session.client_id if session is not None else 0
        if not client:
            raise GfsError(Code.INVALID, "a lease is for a client with a session: say hello first")

        await self._servers.wait_gathered(self._defaults.replication)

        def keys() -> Keys:
            handle = handle_at(self._state.tables, request.inode, self._index(request))
            return [LEASES, inode_key(request.inode)], [chunk_key(handle)] if handle else []

        async with self._locks.hold(keys):
            self._sessions.of_change(request.id, context)  # it may have ended while this waited
            before = load_file(self._state.tables, request.inode)
            refuse_in_trash(self._state.tables, before, session)
            index = self._index(request)
            if not before.length_pending:
                self._leases.all_known.add(request.inode)
                self._leases.left.discard(request.inode)
            with self._leases.looking(request.inode):
                lease, chunks_changed = await self._find_or_grant(request, before, index)
            lease.granted_at = self._env.clock.boottime()
            lease.repeated = lease.repeated or client in lease.given
            lease.given.add(client)
            if not load_file(self._state.tables, request.inode).length_pending:
                tx = self._state.begin()
                mark_pending(tx, request.inode)
                self._state.commit(tx)
            former = self._leases.writers.add(request.inode, client, request.id.request_id)
            self._sessions.watch(session, request.inode)
            ended = self._sessions.end_again(session)
        sole_writer = self._leases.is_sole_writer(request.inode, client)
        reply = pb.LeaseReply(
            grant=lease.grant,
            index=index,
            sole_writer=sole_writer,
            writer_since=self._leases.writers.since(request.inode, client),
        )
        item = Item(
            inode=request.inode, attr=not before.length_pending, chunks=chunks_changed, writers=former is not None
        )
        told: Told = {}
        if item.attr or item.chunks or item.writers:
            # Before this answer has reached who asks, another client may get a grant of the file, and write.
            told = self._sessions.told([item], session if sole_writer else None)
        await self._tell(request.inode, told)
        if ended:
            raise GfsError(Code.UNKNOWN_SESSION, f"client {client} has no session here any more: say hello again")
        return reply

    async def _tell(self, inode: int, told: Told) -> None:
        """Returns when all have forgotten what this lease has changed, and whatever changed in the file before.

        Who gets a grant changes the file without a word to the master: nobody may take for right by then what an
        earlier change made wrong.
        """
        earlier = self._sessions.being_told(inode)
        if told:
            await self._sessions.tell(told)
        for known in earlier:
            await known.wait()

    def _index(self, request: pb.LeaseRequest) -> int:
        """Which chunk is meant. The last one is where the file ends, a hole there included."""
        tables, index = self._state.tables, request.index
        if not request.last and not (request.existing and not handle_at(tables, request.inode, index)):
            return index
        size = load_file(tables, request.inode).size
        last = max(last_index(tables, request.inode), (size - 1) // self._chunk_size, 0)
        return index if request.last and index == last + 1 else last

    async def _find_or_grant(
        self, request: pb.LeaseRequest, record: InodeRecord, index: int
    ) -> tuple[GrantedLease, bool]:
        """The lease, and whether the chunk, its version or its servers are others than before."""
        handle = handle_at(self._state.tables, record.inode, index)
        if not handle:
            return self._fill_hole(record, index, list(request.avoid)), True
        chunk = load_chunk(self._state.tables, handle)
        # A length that reaches into the chunk is that of acknowledged bytes, which the client may have forgotten since.
        unused = record.size <= index * self._chunk_size and self._nothing_acknowledged(handle, chunk, request)
        if request.failed_handle == handle and unused:
            return self._replace_fresh(record, index, handle, list(request.avoid)), True
        if chunk.references > 1:
            new_handle, copy = await self._fencing.copy(record.inode, index, handle, avoid=list(request.avoid))
            if not new_handle:
                return self._unshare_unused(record, index, handle, list(request.avoid)), True
            policy = effective(self._state.tables, record.inode, self._defaults)
            replicas = self._servers.as_set(copy.best_first(request.avoid))
            record = load_file(self._state.tables, record.inode)
            return self.granted(record, index, new_handle, copy.version, replicas, policy, fresh=False), True
        lease = self._leases.find(handle)
        elsewhere = request.failed_handle not in (0, handle)  # the complaint is of a chunk that was replaced already
        if lease is not None and not lease.broken and (elsewhere or request.stale_version != lease.version):
            return lease, False
        return await self._grant_again(request, record, index, handle, chunk, lease), True

    def _nothing_acknowledged(self, handle: int, chunk: ChunkRecord, request: pb.LeaseRequest) -> bool:
        """Nobody but the client that gives the fresh chunk up ever had a grant on it.

        A grant that was given before a restart is in nobody's book: then others may have written under it.
        """
        lease = self._leases.find(handle)
        return (
            lease is not None
            and lease.fresh
            and chunk.version == 1
            and chunk.references == 1
            and lease.given <= {request.id.client_id}
            and not lease.repeated
        )

    def _fill_hole(self, record: InodeRecord, index: int, avoid: list[str]) -> GrantedLease:
        tx = self._state.begin()
        policy, replicas = self.place(tx, record.inode, avoid)
        handle = add_fresh_chunk(tx, record.inode, index, policy.replication, _numbers(replicas))
        return self._commit_fresh(tx, record, index, handle, replicas, policy)

    def _unshare_unused(self, record: InodeRecord, index: int, shared: int, avoid: list[str]) -> GrantedLease:
        """A chunk that was shared before its first use holds nothing to copy: this file gets a fresh one."""
        tx = self._state.begin()
        policy, replicas = self.place(tx, record.inode, avoid)
        handle = replace_shared_chunk(tx, record.inode, index, shared, _numbers(replicas), copied=False)
        return self._commit_fresh(tx, record, index, handle, replicas, policy)

    def _replace_fresh(self, record: InodeRecord, index: int, failed: int, avoid: list[str]) -> GrantedLease:
        tx = self._state.begin()
        policy, replicas = self.place(tx, record.inode, avoid)
        handle = replace_fresh_chunk(tx, record.inode, index, failed, _numbers(replicas))
        lease = self._commit_fresh(tx, record, index, handle, replicas, policy)
        self._leases.drop(failed, clean=True)
        self._servers.freed([failed])
        return lease

    def _commit_fresh(
        self, tx: Transaction, record: InodeRecord, index: int, handle: int, replicas: Replicas, policy: Policy
    ) -> GrantedLease:
        self._state.commit(tx)
        self._servers.set_replicas(handle, list(replicas))
        return self.granted(record, index, handle, 1, replicas, policy, fresh=True)

    async def _grant_again(
        self, request: pb.LeaseRequest, record: InodeRecord, index: int, handle: int, chunk: ChunkRecord,
        lease: GrantedLease | None,
    ) -> GrantedLease:  # fmt: skip
        """A new version with whoever answers. A server complained of stays if it answers, but not a second time."""
        complaint = set(request.avoid) if lease is not None and request.stale_version == lease.version else set()
        complaint |= lease.failed if lease is not None else set()
        again = complaint & lease.avoided if lease is not None else set()
        if request.avoid or request.stale_version:
            self._servers.waited_for.add(handle)
        fenced = (await self._fencing.fence([handle], exclude=again))[handle]
        if not fenced.servers:
            length_known = record.size > index * self._chunk_size
            used = load_chunk(self._state.tables, handle).used
            if not used and await self._nobody_wrote(handle, fenced, length_known):
                return self._replace_fresh(record, index, handle, list(request.avoid))
            raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} can be reached: is its chunkserver up?")
        former = lease.primary.id if lease is not None else ""
        replicas = self._servers.as_set(fenced.best_first(complaint | set(request.avoid), former))
        policy = effective(self._state.tables, record.inode, self._defaults)
        record = load_file(self._state.tables, record.inode)
        kept = [server.id for server in replicas if server.id in complaint]
        return self.granted(record, index, handle, fenced.version, replicas, policy, fresh=False, avoided=kept)

    async def _nobody_wrote(self, handle: int, fenced: Fenced, length_known: bool) -> bool:
        """Whether a fresh chunk was never used, and its grant, which may be in many hands, is worth nothing.

        One member that never had the chunk is enough: what is acknowledged is on all, and by answering it has sworn
        never to create it. Every member has to say so where the file's length says that there may be data
        (`length_known`). One that is damaged or stale somewhere has been used.
        """
        if fenced.missing and not length_known and handle not in self._servers.stale:
            return True
        return await self._fencing.never_used(handle, unanimous=length_known)


def _numbers(replicas: Replicas) -> list[int]:
    return [server.number for server in replicas]
