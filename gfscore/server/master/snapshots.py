"""Instant copies of files and trees [0113]-[0116]: end the leases, then duplicate the metadata in one record."""

from __future__ import annotations

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import FileType, load
from gfscore.metadata.locks import inode_key, path_reads
from gfscore.metadata.lookup import check_new_name, find, open_directory
from gfscore.metadata.snapshot import pending_below, snapshot
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.data import Data
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.locking import LEASES, Keys, Locks, name_keys
from gfscore.server.master.sessions import Item, Sessions, Told
from gfscore.server.master.state import MasterState


class Snapshots:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, locks: Locks, sessions: Sessions, lengths: Lengths,
        data: Data,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._lengths = lengths
        self._data = data

    async def snapshot(self, request: pb.SnapshotRequest, context: CallContext) -> pb.AttrReply:
        """Handler of `Snapshot`. No lease is given out, and nothing is created below the source, until it is done."""
        try:
            return await self._snapshot(request, context)
        except GfsError:
            done = self._done_before(request)
            if done is None:
                raise
            return done  # whatever has become of the source since, the copy was made

    def _done_before(self, request: pb.SnapshotRequest) -> pb.AttrReply | None:
        outcome = self._calls.outcome(request.id)
        return None if outcome is None else pb.AttrReply(attr=attr_of(load(self._state.tables, outcome[0])))

    async def _snapshot(self, request: pb.SnapshotRequest, context: CallContext) -> pb.AttrReply:
        session = self._sessions.of_change(request.id, context)
        source, new_parent = request.source, request.new_parent
        tables = self._state.tables

        def keys() -> Keys:
            reads, writes = name_keys(tables, (new_parent, request.new_name), writes=[LEASES])
            if load(tables, source).type is FileType.DIRECTORY:
                path = path_reads(tables, source)
                return [key for key in reads if key != path[-1]] + path[:-1], [*writes, path[-1]]
            return reads, [*writes, inode_key(source)]

        told: Told = {}
        async with self._locks.hold(keys):
            done = self._done_before(request)
            if done is not None:
                return done
            self._refuse_early(request)
            # A file whose length is not pending has no writer: its lease, if any, is in nobody's hands.
            pending = pending_below(tables, source)
            if pending:
                await self._lengths.settle(pending)
            tx = self._state.begin()
            record = snapshot(
                tx, source=source, new_parent=new_parent, new_name=request.new_name, now_ns=self._env.clock.wall_ns()
            )
            directory = load(tx, new_parent)
            self._calls.commit(tx, request.id, record.inode)
            items = [Item(inode=new_parent, names=[request.new_name], attr=True)]
            told = self._sessions.told(items, session)
            self._sessions.watch_any(session, record)
            self._sessions.watch_directory(session, new_parent)
        reply = pb.AttrReply(attr=attr_of(record), parent=attr_of(directory))
        return await self._calls.told(reply, told)  # type: ignore[no-any-return]

    def _refuse_early(self, request: pb.SnapshotRequest) -> None:
        """Do not disturb ten thousand leases for a destination that cannot be. Raises what the snapshot would."""
        tables = self._state.tables
        check_new_name(request.new_parent, request.new_name)
        open_directory(self._state.begin(), request.new_parent)
        if find(tables, request.new_parent, request.new_name) is not None:
            raise GfsError(Code.EXISTS, f"{request.new_name!r} exists already")
