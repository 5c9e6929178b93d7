"""How long files are: what writers commit, and the truth where nobody commits it (any more).

A writer that disappears, a restart, a snapshot or a truncation makes the master ask the replicas itself. Locks are
the caller's: the file is written, or all leases are.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import (
    drop_fresh_chunk,
    enumerate_chunks,
    find_chunk,
    handle_at,
    index_of,
    last_chunks,
    last_index,
    load_chunk,
)
from gfscore.metadata.inodes import InodeRecord, load_file
from gfscore.metadata.lengths import commit_length
from gfscore.metadata.locks import inode_key
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.chunk_calls import ChunkCalls, Length
from gfscore.server.master.equalizing import Equalizing
from gfscore.server.master.fencing import REPORT_WAIT_SECONDS, Fencing
from gfscore.server.master.leases import GrantedLease, LeaseBook
from gfscore.server.master.locking import LEASES, Keys, Locks
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.sessions import Item, Sessions, Told
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_DRIFT = 1.05
_TAIL_CHUNKS = 4  # of which some server has a replica


@dataclass(slots=True)
class _Open:
    """A file whose length is being settled: its last chunks (index, handle), in one of which it ends, its leases."""

    inode: int
    tail: list[tuple[int, int]]
    leases: list[GrantedLease]

    def handles(self) -> set[int]:
        return {handle for _, handle in self.tail} | {lease.handle for lease in self.leases}


class _Place(NamedTuple):
    """A chunk of a file, at `place` (chunks from its start)."""

    inode: int
    place: int
    handle: int


class Lengths:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, locks: Locks, sessions: Sessions, servers: Servers,
        leases: LeaseBook, fencing: Fencing, equalizing: Equalizing, chunk_calls: ChunkCalls, chunk_size: int,
        lease_seconds: float,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._fencing = fencing
        self._equalizing = equalizing
        self._chunk_calls = chunk_calls
        self._chunk_size = chunk_size
        self.unsettled: set[int] = set()  # files with a pending length that perhaps nobody writes any more
        # Until then a chunkserver that has not registered yet may hold a lease of the master before (rule 5).
        self._old_leases_until = env.clock.boottime() + lease_seconds * _DRIFT

    # ------------------------------------------------------------ Commit

    def commit(self, request: pb.CommitRequest, context: CallContext) -> Any:
        """Handler of `Commit`. Files that are gone are passed over."""
        session = self._sessions.of_change(request.id, context)
        client = session.client_id if session is not None else 0

        def keys() -> Keys:
            return [inode_key(length.inode) for length in request.lengths], []

        def operation() -> tuple[pb.CommitReply, Told]:
            if self._calls.outcome(request.id) is not None:
                return pb.CommitReply(pending=[length.inode for length in request.lengths]), {}
            reply = pb.CommitReply()
            tx = self._state.begin()
            items: list[Item] = []
            now_ns = self._env.clock.wall_ns()
            writers = self._leases.writers
            released: list[int] = []
            settled: list[int] = []
            unused: list[int] = []
            for length in request.lengths:
                try:
                    counts = self.counts(length.inode, request.id)
                    set_at = self._leases.times_set.get(length.inode, 0)
                    if length.unsure and length.inode in writers.inodes(client):
                        self._leases.left.add(length.inode)  # as if it had disappeared
                    nobody_left = length.release and writers.is_last(length.inode, client, request.id.request_id)
                    if nobody_left and not self._is_settled(length.inode):
                        self.unsettled.add(length.inode)
                        nobody_left = False
                    record = commit_length(
                        tx,
                        length.inode,
                        length.size if counts else 0,
                        now_ns=now_ns,
                        mtime_ns=length.mtime_ns if counts and length.mtime_ns > set_at else 0,
                        release=nobody_left,
                    )
                    if record.length_pending or not counts:
                        reply.pending.append(length.inode)
                    if length.release:
                        released.append(length.inode)
                    if nobody_left:
                        settled.append(length.inode)
                        if self._take_back(tx, length.inode, length.unused_chunk, client):
                            unused.append(length.unused_chunk)
                except GfsError as error:
                    if error.code is not Code.STALE_INODE:
                        raise
                    continue
                if self._sessions.watched(length.inode, session):
                    items.append(Item(inode=length.inode, attr=True))
            self._calls.commit(tx, request.id)
            for inode in released:
                writers.release(inode, client, request.id.request_id)
            for inode in settled:
                self._leases.all_known.discard(inode)
                self._leases.times_set.pop(inode, None)
            for handle in unused:
                self._leases.drop(handle, clean=True)
            self._servers.freed(unused)
            return reply, self._sessions.told(items, session)

        return self._calls.quick(keys, operation)

    def _is_settled(self, inode: int) -> bool:
        """The length that the last writer commits is the truth.

        Of a file that was written before this master started, others may write on; a writer that disappeared may have
        written behind the last one; and where a lease broke, replicas may differ: they are asked before anybody else is
        told the length. While servers are asked on behalf of the next writer, the length stays open.
        """
        leases = self._leases
        return leases.knows_length(inode) and leases.is_clean(inode) and not leases.is_looking(inode)

    def _take_back(self, tx: Transaction, inode: int, handle: int, client: int) -> bool:
        """The first chunk, granted with the file and used by nobody: no replica of it was ever made. Whether it goes.

        Only where no other client ever had the grant: one that did may have written, and have released since.
        """
        lease = self._leases.find(handle)
        alone = lease is not None and lease.fresh and lease.given <= {client}
        return alone and drop_fresh_chunk(tx, inode, 0, handle)

    def counts(self, inode: int, request_id: pb.RequestId) -> bool:
        """Whether the length that a writer commits is true: a file that was cut since it wrote must not grow back.

        Not that of one who became a writer later than he asked, and, after a restart, not before he has asked for a
        lease again: then the replicas know the length.
        """
        return 0 < self._leases.writers.since(inode, request_id.client_id) <= request_id.request_id

    # ------------------------------------------------------------ asking the replicas

    def unknown(self, inode: int) -> bool:
        """The length is pending and no primary can be asked for it: it has to be settled before it is told."""
        index = last_index(self._state.tables, inode)
        if index < 0:
            return True
        return self._leases.find(handle_at(self._state.tables, inode, index)) is None

    async def settle_one(self, inode: int) -> None:
        """Settle the length of one file, with the locks that it takes. Raises NOT_READY, STALE_INODE."""
        async with self._locks.hold(lambda: ([LEASES], [inode_key(inode)])):
            if load_file(self._state.tables, inode).length_pending and self.unknown(inode):
                await self.settle([inode])

    async def settle_abandoned(self, inodes: Iterable[int]) -> None:
        """Their last writer is gone. What cannot be settled now is settled when somebody asks, or tried again later."""
        for inode in inodes:
            self.unsettled.add(inode)
            try:
                async with self._locks.hold(lambda inode=inode: ([LEASES], [inode_key(inode)])):  # type: ignore[misc]
                    if not self._leases.writers.writers(inode):
                        await self.settle([inode])
                        self.unsettled.discard(inode)
            except GfsError as error:
                if error.code is Code.STALE_INODE:
                    self.unsettled.discard(inode)
                log.info("event=length_not_settled inode=%d error=%r", inode, str(error))

    async def drop_unused(self, inode: int, handle: int, *, leased: bool = False) -> None:
        """Make a hole again of a chunk that no server has or will have, with the locks that it takes. `leased`: also
        one that somebody may be about to write; its servers refuse that then, and the writer asks for another one."""
        async with self._locks.hold(lambda: ([LEASES], [inode_key(inode)])):
            index = index_of(self._state.tables, inode, handle)
            if index < 0 or (self._leases.find(handle) is not None and not leased):
                return
            if not await self._fencing.never_used(handle):
                return
            tx = self._state.begin()
            if drop_fresh_chunk(tx, inode, index, handle):
                self._state.commit(tx)
                self._servers.freed([handle])
            self._leases.drop(handle, clean=True)

    async def settle(self, inodes: list[int]) -> None:
        """End all leases on files whose length is pending, and make the state's lengths the truth: all replicas of
        their chunks are equal then, and fresh chunks that nobody used are holes again.

        Raises NOT_READY when not enough replicas can be asked, STALE_INODE; nothing is committed then.
        """
        files = [file for file in map(self._open, inodes) if file is not None]
        if not files:
            self._leases.left.difference_update(inodes)
            return
        held: dict[ServerState, list[int]] = {}
        for file in files:
            for lease in file.leases:
                held.setdefault(lease.primary, []).append(lease.handle)
        lengths, silent = await self._chunk_calls.revoke(held) if held else ({}, set())
        unused = await self._unused(files, lengths, silent)
        for lease in [lease for file in files for lease in file.leases]:
            if lease.handle in lengths and (lengths[lease.handle].unequal or lease.broken):
                del lengths[lease.handle]
        revoked = set(lengths)
        for file in files:
            unused += await self._never_used(file, lengths)
        await self._make_equal(files, lengths)
        await self._inspect([handle for file in files for _, handle in file.tail], lengths)
        dropped: list[int] = []
        tx = self._state.begin()
        now_ns = self._env.clock.wall_ns()
        for file in files:
            ends = [index * self._chunk_size + lengths[h].length for index, h in file.tail if lengths[h].length]
            changed_ns = max((lengths[h].mtime_ns for h in file.handles() if h in lengths), default=0)
            mtime_ns = self._leases.counted_mtime(load_file(tx, file.inode), changed_ns)
            commit_length(tx, file.inode, max(ends, default=0), now_ns=now_ns, mtime_ns=mtime_ns, release=True)
        for inode, index, handle in unused:
            if drop_fresh_chunk(tx, inode, index, handle):
                dropped.append(handle)
        self._state.commit(tx)
        self._servers.freed(dropped)
        self._leases.left.difference_update(inodes)
        for file in files:
            for lease in file.leases:
                self._leases.drop(lease.handle, clean=lease.handle in revoked)
        for handle in dropped:
            self._leases.settled(handle)

    def _open(self, inode: int) -> _Open | None:
        record = load_file(self._state.tables, inode)
        if not record.length_pending:
            return None
        return _Open(inode, self.tail(record), self._leases.of_inode(inode))

    def tail(self, record: InodeRecord) -> list[tuple[int, int]]:
        """(index, handle) of the chunks in which a file with a pending length may end. More than one, because writers
        ask for chunks ahead of time; those that no server has yet may be any number, and what was acknowledged is
        before them."""
        return last_chunks(self._state.tables, record, record.size // self._chunk_size, _TAIL_CHUNKS)

    async def _unused(self, files: list[_Open], lengths: dict[int, Length], silent: set[ServerState]) -> list[_Place]:
        """Fresh chunks that their primary has never seen; since the revocation it will not take their grants."""
        asked: dict[ServerState, list[int]] = {}
        places: dict[int, _Place] = {}
        for file in files:
            for lease in file.leases:
                if lease.fresh and lease.handle not in lengths and lease.primary not in silent:
                    if load_chunk(self._state.tables, lease.handle).used:
                        continue  # its primary has lost it; others have it
                    asked.setdefault(lease.primary, []).append(lease.handle)
                    places[lease.handle] = _Place(file.inode, lease.index, lease.handle)
        found = await self._chunk_calls.inspect(asked) if asked else {}
        unused = [
            places[handle] for handle, items in found.items() if all(i.error == Code.UNKNOWN_CHUNK for _, i in items)
        ]
        lengths.update((place.handle, Length(1, 0)) for place in unused)
        return unused

    async def _never_used(self, file: _Open, lengths: dict[int, Length]) -> list[_Place]:
        """Chunks whose lease is over, or was given by the master before, and in which nothing was acknowledged."""
        found = []
        for index, handle in enumerate_chunks(self._state.tables, file.inode):
            if handle in lengths or load_chunk(self._state.tables, handle).used:
                continue
            if self._leases.find(handle) is None and await self._fencing.never_used(handle):
                found.append(_Place(file.inode, index, handle))
                lengths[handle] = Length(1, 0)
        return found

    async def _make_equal(self, files: list[_Open], lengths: dict[int, Length]) -> None:
        """End every lease that was not revoked and may still be alive, and make equal what may differ."""
        handles: set[int] = set()
        unsure: list[int] = []
        for file in files:
            # Its primary did not answer, or has not used the lease yet and would still take the grant.
            handles.update(lease.handle for lease in file.leases)
            handles.update(self._leases.unclean_of(file.inode))
            if file.inode not in self._leases.all_known:
                # A shared chunk has had no lease since it was made equal.
                own = [h for _, h in enumerate_chunks(self._state.tables, file.inode) if not self._is_shared(h)]
                if self.old_leases_possible:
                    handles.update(own)
                else:
                    unsure += own
        handles.update(await self._equalizing.doubtful([handle for handle in unsure if handle not in lengths]))
        handles.difference_update(lengths)
        if not handles:
            return
        for handle, result in (await self._equalizing.make_equal(sorted(handles))).items():
            if not result.equal and find_chunk(self._state.tables, handle) is not None:
                raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} can be reached: is its server up?")
            lengths[handle] = Length(result.version, result.length)

    def _is_shared(self, handle: int) -> bool:
        chunk = find_chunk(self._state.tables, handle)
        return chunk is None or chunk.references > 1

    @property
    def old_leases_possible(self) -> bool:
        """A chunkserver that has not come back since this master started may hold a lease of before (rule 5)."""
        return not self._servers.heard_all and self._env.clock.boottime() < self._old_leases_until

    async def _inspect(self, handles: list[int], lengths: dict[int, Length]) -> None:
        """Add to `lengths` those that no primary told: of the longest replica with the recorded version."""
        tables = self._state.tables
        unasked = [handle for handle in handles if handle not in lengths]
        if not unasked:
            return
        await self._servers.wait_for(unasked, REPORT_WAIT_SECONDS)
        by_server: dict[ServerState, list[int]] = {}
        for handle in unasked:
            for server in self._fencing.candidates(handle) or self._servers.damaged(handle):
                by_server.setdefault(server, []).append(handle)
        found = await self._chunk_calls.inspect(by_server)
        for handle in unasked:
            chunk = find_chunk(tables, handle)
            items = [item for _, item in found.get(handle, ())]
            version = chunk.version if chunk is not None else 0
            good = [item for item in items if not item.error and item.version == version]
            if good:
                length, mtime_ns = max(item.length for item in good), max(item.mtime_ns for item in good)
                lengths[handle] = Length(version, length, mtime_ns=mtime_ns)
            elif await self._fencing.never_used(handle):
                lengths[handle] = Length(1, 0)
            else:
                raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} can be reached: is its server up?")
