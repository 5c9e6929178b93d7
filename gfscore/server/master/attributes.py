"""Attributes, sizes, extended attributes and policies of inodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata import policies, xattrs
from gfscore.metadata.attributes import set_attributes
from gfscore.metadata.chunks import file_handles, handle_at, load_chunk
from gfscore.metadata.inodes import FileType, load, load_file
from gfscore.metadata.keys import pack8
from gfscore.metadata.lengths import Truncated, commit_length, truncate
from gfscore.metadata.locks import chunk_key, inode_key
from gfscore.metadata.tables import INODES
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.data import Data
from gfscore.server.master.fencing import Fencing
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.locking import LEASES, Keys, Locks
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Item, Session, Sessions, Told
from gfscore.server.master.state import MasterState
from gfscore.server.master.trash import refuse_in_trash


class Attributes:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, locks: Locks, sessions: Sessions, servers: Servers,
        leases: LeaseBook, fencing: Fencing, lengths: Lengths, data: Data, defaults: policies.Policy, chunk_size: int,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._fencing = fencing
        self._lengths = lengths
        self._data = data
        self._defaults = defaults
        self._chunk_size = chunk_size

    # ------------------------------------------------------------ SetAttr

    def set_attr(self, request: pb.SetAttrRequest, context: CallContext) -> Any:
        """Handler of `SetAttr`. A new size ends the leases that it concerns and cuts the replicas first."""
        session = self._sessions.of_change(request.id, context)
        if request.HasField("size"):
            return self._set_size(request, session)

        def operation() -> tuple[Any, Told]:
            if self._calls.outcome(request.id) is None:
                tx = self._state.begin()
                self._set_plain(tx, request, session)
                self._calls.commit(tx, request.id, request.inode)
            record = load(self._state.tables, request.inode)
            self._sessions.watch_any(session, record)
            items = []
            if self._sessions.watched(request.inode, session):
                items.append(Item(inode=request.inode, attr=True, times=_sets_mtime(request)))
            return self._data.attr_reply(record, session), self._sessions.told(items, session)

        return self._calls.quick(lambda: self._keys(request.inode), operation)

    @staticmethod
    def _keys(inode: int) -> Keys:
        return [], [inode_key(inode)]

    def _set_plain(self, tx: Transaction, request: pb.SetAttrRequest, session: Session | None) -> None:
        """Everything but the size."""
        now_ns = self._env.clock.wall_ns()
        if request.written and session is not None and self._lengths.counts(request.inode, request.id):
            # Before the time is set: who finds these bytes later takes them for written later.
            commit_length(tx, request.inode, request.written, now_ns=now_ns, mtime_ns=0)
        atime_ns = request.atime_ns if request.HasField("atime_ns") else None
        mtime_ns = request.mtime_ns if request.HasField("mtime_ns") else None
        record = set_attributes(
            tx,
            request.inode,
            now_ns=now_ns,
            mode=request.mode if request.HasField("mode") else None,
            uid=request.uid if request.HasField("uid") else None,
            gid=request.gid if request.HasField("gid") else None,
            atime_ns=now_ns if request.atime_now else atime_ns,
            mtime_ns=now_ns if request.mtime_now else mtime_ns,
            ctime_ns=request.ctime_ns if request.HasField("ctime_ns") else None,
        )
        refuse_in_trash(tx, record, session)
        if _sets_mtime(request) and (record.length_pending or self._leases.writers.writers(request.inode)):
            self._leases.times_set[request.inode] = now_ns

    async def _set_size(self, request: pb.SetAttrRequest, session: Session | None) -> pb.AttrReply:
        inode = request.inode

        def keys() -> Keys:
            handle = handle_at(self._state.tables, inode, request.size // self._chunk_size)
            return [LEASES], [inode_key(inode), *([chunk_key(handle)] if handle else [])]

        async with self._locks.hold(keys):
            if self._calls.outcome(request.id) is None:
                await self._cut(request, session)
            record = load(self._state.tables, inode)
            self._sessions.watch_any(session, record)
        items = [Item(inode=inode, attr=True, chunks=True, writers=True, cut=True)]
        reply = pb.AttrReply(attr=attr_of(record))
        return await self._calls.told(reply, self._sessions.told(items, session))  # type: ignore[no-any-return]

    async def _cut(self, request: pb.SetAttrRequest, session: Session | None) -> None:
        inode, size = request.inode, request.size
        record = load_file(self._state.tables, inode)
        refuse_in_trash(self._state.tables, record, session)
        alone = session is not None and self._leases.is_sole_writer(inode, session.client_id)
        if record.length_pending and not (size == 0 and alone and not self._lengths.old_leases_possible):
            await self._lengths.settle([inode])
        plan = self._state.begin()
        planned = truncate(plan, inode, size, chunk_size=self._chunk_size, now_ns=self._env.clock.wall_ns())
        if planned.boundary is not None:
            self._state.need_room_for(plan)
            await self._cut_boundary(inode, planned)
        for lease in self._leases.of_inode(inode):
            # The next grant tells its primary where appends begin now. Until then it is held: not to be forgotten.
            lease.broken = True
        tx = self._state.begin()
        done = truncate(tx, inode, size, chunk_size=self._chunk_size, now_ns=self._env.clock.wall_ns())
        self._forget_other_writers(inode, session)
        record = load_file(tx, inode)
        if record.length_pending:  # nobody holds a lease any more: the size is the truth
            commit_length(tx, inode, size, now_ns=record.mtime_ns, release=True)
        if _more_than_size(request):
            self._set_plain(tx, request, session)
        self._calls.commit(tx, request.id, inode)
        for handle in done.freed_chunks:
            self._leases.drop(handle, clean=True)
        self._servers.freed(done.freed_chunks)

    def _forget_other_writers(self, inode: int, session: Session | None) -> None:
        """What they wrote before the cut is no length of the file any more; to write again they ask for a lease."""
        for client in list(self._leases.writers.writers(inode)):
            if session is None or client != session.client_id:
                self._leases.writers.remove(inode, client)

    async def _cut_boundary(self, inode: int, planned: Truncated) -> None:
        """The chunk in which the file will end loses the bytes behind that end, on all replicas."""
        assert planned.boundary is not None
        index, handle, keep = planned.boundary
        chunk = load_chunk(self._state.tables, handle)
        if chunk.references > 1:
            await self._fencing.copy(inode, index, handle, truncate=keep)
            return
        fenced = (await self._fencing.fence([handle], truncate=keep))[handle]
        unused = not chunk.used and (fenced.missing or await self._fencing.never_used(handle))
        if not fenced.servers and not unused:
            raise GfsError(Code.NOT_READY, f"no replica of chunk {handle:016x} can be reached: is its server up?")

    # ------------------------------------------------------------ extended attributes

    def get_xattr(self, request: pb.XattrRequest, context: CallContext) -> pb.XattrReply:
        """Handler of `GetXattr`."""
        return pb.XattrReply(value=xattrs.get_xattr(self._state.tables, request.inode, request.name))

    def list_xattr(self, request: pb.XattrRequest, context: CallContext) -> pb.XattrReply:
        """Handler of `ListXattr`."""
        return pb.XattrReply(names=xattrs.list_xattrs(self._state.tables, request.inode))

    def set_xattr(self, request: pb.XattrRequest, context: CallContext) -> Any:
        """Handler of `SetXattr`."""

        def change(tx: Transaction, now_ns: int) -> None:
            xattrs.set_xattr(
                tx, request.inode, request.name, request.value, now_ns=now_ns,
                create=request.create, replace=request.replace,
            )  # fmt: skip

        return self._changed(request, context, change)

    def remove_xattr(self, request: pb.XattrRequest, context: CallContext) -> Any:
        """Handler of `RemoveXattr`."""

        def change(tx: Transaction, now_ns: int) -> None:
            xattrs.remove_xattr(tx, request.inode, request.name, now_ns=now_ns)

        return self._changed(request, context, change)

    def _changed(
        self, request: pb.XattrRequest, context: CallContext, change: Callable[[Transaction, int], None]
    ) -> Any:
        session = self._sessions.of_change(request.id, context)

        def operation() -> tuple[pb.Empty, Told]:
            if self._calls.outcome(request.id) is not None:
                return pb.Empty(), {}
            tx = self._state.begin()
            refuse_in_trash(tx, load(tx, request.inode), session)
            change(tx, self._env.clock.wall_ns())
            self._calls.commit(tx, request.id)
            return pb.Empty(), self._sessions.told([Item(inode=request.inode, attr=True)], session)

        return self._calls.quick(lambda: self._keys(request.inode), operation)

    # ------------------------------------------------------------ policies

    def policy(self, request: pb.PolicyRequest, context: CallContext) -> Any:
        """Handler of `Policy`: set what is named, answer what holds."""
        session = self._sessions.of_change(request.id, context)

        def operation() -> tuple[pb.PolicyReply, Told]:
            told: Told = {}
            if request.values and self._calls.outcome(request.id) is None:
                tx = self._state.begin()
                refuse_in_trash(tx, load(tx, request.inode), session)
                values = dict(request.values)
                policies.set_policy(tx, request.inode, values, now_ns=self._env.clock.wall_ns())
                self._calls.commit(tx, request.id)
                for lease in self._leases.of_inode(request.inode):
                    lease.broken = True  # the next grant carries the new pad byte and durability
                if "replication" in values:
                    self._servers.dirty.update(self._chunks_of(request.inode))
                told = self._sessions.told([Item(inode=request.inode, attr=True, chunks=True)], session)
            return pb.PolicyReply(values=policies.as_text(self._policy_in(request.inode, request.parent))), told

        return self._calls.quick(lambda: self._keys(request.inode), operation)

    def _policy_in(self, inode: int, parent: int) -> policies.Policy:
        tables = self._state.tables
        record = load(tables, inode)
        if record.type is FileType.DIRECTORY or not parent or tables.get(INODES, pack8(parent)) is None:
            return policies.effective(tables, inode, self._defaults)
        return policies.effective_in(tables, record, load(tables, parent), self._defaults)

    def _chunks_of(self, inode: int) -> list[int]:
        record = load(self._state.tables, inode)
        return file_handles(self._state.tables, record) if record.type is FileType.FILE else []


def _more_than_size(request: pb.SetAttrRequest) -> bool:
    return (
        any(request.HasField(name) for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"))
        or request.atime_now
        or request.mtime_now
    )


def _sets_mtime(request: pb.SetAttrRequest) -> bool:
    return bool(request.mtime_now) or request.HasField("mtime_ns")
