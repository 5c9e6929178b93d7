"""Reading and making names: Lookup, GetAttr, List, Readlink, Create, Link."""

from __future__ import annotations

from typing import Any

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata import create as creating
from gfscore.metadata import link as linking
from gfscore.metadata import lookup as looking
from gfscore.metadata.attributes import read_link
from gfscore.metadata.chunks import add_fresh_chunk
from gfscore.metadata.inodes import FileType, InodeRecord, load, load_directory
from gfscore.metadata.locks import inode_key
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.data import Data
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.leasing import Leasing
from gfscore.server.master.locking import LEASES, Keys, name_keys
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Item, Session, Sessions, Told
from gfscore.server.master.state import MasterState

LIST_ENTRIES_MAX = 1000


class Namespace:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, sessions: Sessions, servers: Servers, leases: LeaseBook,
        leasing: Leasing, data: Data,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._leasing = leasing
        self._data = data

    # ------------------------------------------------------------ reading

    def lookup(self, request: pb.LookupRequest, context: CallContext) -> Any:
        """Handler of `Lookup`."""
        session = self._sessions.of_stream(context)

        def keys() -> Keys:
            reads, writes = name_keys(self._state.tables, (request.parent, request.name))
            return reads + writes, []

        def operation() -> tuple[Any, Told]:
            tables = self._state.tables
            self._sessions.watch_directory(session, request.parent)
            record = load(tables, looking.lookup(tables, request.parent, request.name))
            self._sessions.watch_any(session, record)
            return self._data.attr_reply(record, session), {}

        return self._calls.quick(keys, operation)

    def get_attr(self, request: pb.InodeRequest, context: CallContext) -> Any:
        """Handler of `GetAttr`."""
        session = self._sessions.of_stream(context)

        def operation() -> tuple[Any, Told]:
            record = load(self._state.tables, request.inode)
            self._sessions.watch_any(session, record)
            return self._data.attr_reply(record, session), {}

        return self._calls.quick(lambda: ([inode_key(request.inode)], []), operation)

    def list(self, request: pb.ListRequest, context: CallContext) -> pb.ListReply:
        """Handler of `List`: a page of entries with their attributes."""
        session = self._sessions.of_stream(context)
        tables = self._state.tables
        limit = min(request.limit or LIST_ENTRIES_MAX, LIST_ENTRIES_MAX)
        parent = load_directory(tables, request.inode).parent
        rows, more = looking.list_page(tables, request.inode, request.after, limit)
        self._sessions.watch_directory(session, request.inode)
        reply = pb.ListReply(more=more, parent=parent)
        entries = reply.entries
        for name, inode in rows:
            record = load(tables, inode)
            self._sessions.watch_any(session, record)
            entries.add(name=name, attr=attr_of(record))
        return reply

    def read_link(self, request: pb.InodeRequest, context: CallContext) -> pb.ReadlinkReply:
        """Handler of `Readlink`."""
        return pb.ReadlinkReply(target=read_link(self._state.tables, request.inode))

    # ------------------------------------------------------------ Create

    def create(self, request: pb.CreateRequest, context: CallContext) -> Any:
        """Handler of `Create`: an inode, its name and, for a file, its first chunk with a lease."""
        session = self._sessions.of_change(request.id, context)
        parent, name = request.parent, request.name

        def keys() -> Keys:
            reads = [LEASES] if request.with_chunk else []
            return name_keys(self._state.tables, (parent, name), reads=reads)

        def operation() -> tuple[Any, Told]:
            known = self._calls.outcome(request.id)
            if known is not None:
                return self._created_before(known, session), {}
            if not request.exclusive and int(request.type) == FileType.FILE:
                existing = looking.find(self._state.tables, parent, name)
                if existing is not None:
                    return self._existing(existing, session), {}
            reply = self._create(request, session)
            if self._sessions.watched(parent, session):
                items = [Item(inode=parent, names=[name], attr=True)]
                return reply, self._sessions.told(items, session)
            return reply, {}

        return self._calls.quick(keys, operation)

    def _create(self, request: pb.CreateRequest, session: Session | None) -> pb.CreateReply:
        tx = self._state.begin()
        try:
            kind = FileType(request.type)
        except ValueError:
            raise GfsError(Code.INVALID, f"no file type {request.type}") from None
        record = creating.create(
            tx,
            parent=request.parent,
            name=request.name,
            type=kind,
            mode=request.mode,
            uid=request.caller.uid,
            gid=request.caller.gid,
            now_ns=self._env.clock.wall_ns(),
            rdev=request.rdev,
            target=request.target,
        )
        inode = record.inode
        self._sessions.watch_any(session, record)
        self._sessions.watch_directory(session, request.parent)
        reply = pb.CreateReply(attr=attr_of(record), parent=attr_of(load(tx, request.parent)))
        if request.with_chunk and kind is FileType.FILE and session is not None:
            self._first_chunk(tx, request, record, reply, session)
        else:
            self._calls.commit(tx, request.id, inode, 0)
        return reply

    def _first_chunk(
        self, tx: Transaction, request: pb.CreateRequest, record: InodeRecord, reply: pb.CreateReply, session: Session
    ) -> None:
        """Commit the new file with a first chunk, without one where no server can take it."""
        try:
            policy, replicas = self._leasing.place(tx, record.inode, list(request.avoid))
        except GfsError as error:
            if error.code not in (Code.NO_SERVERS, Code.NO_SPACE):
                raise
            self._calls.commit(tx, request.id, record.inode, 0)
            return
        handle = add_fresh_chunk(tx, record.inode, 0, policy.replication, [server.number for server in replicas])
        self._calls.commit(tx, request.id, record.inode, handle)
        self._servers.set_replicas(handle, list(replicas))
        lease = self._leasing.granted(record, 0, handle, 1, replicas, policy, fresh=True)
        lease.given.add(session.client_id)
        self._leases.writers.add(record.inode, session.client_id, request.id.request_id)
        self._leases.all_known.add(record.inode)
        reply.attr.length_pending = True
        reply.grant.CopyFrom(lease.grant)
        reply.writer_since = request.id.request_id

    def _created_before(self, outcome: tuple[int, ...], session: Session | None) -> pb.CreateReply:
        """The answer to a retry: what was created, as it is now, with the grant if that is still good."""
        inode, handle = outcome
        reply = pb.CreateReply(attr=attr_of(load(self._state.tables, inode)))
        lease = self._leases.find(handle) if handle else None
        if lease is not None and session is not None and inode in self._leases.writers.inodes(session.client_id):
            reply.grant.CopyFrom(lease.grant)
            reply.writer_since = self._leases.writers.since(inode, session.client_id)
        return reply

    def _existing(self, inode: int, session: Session | None) -> pb.CreateReply:
        record = load(self._state.tables, inode)
        self._sessions.watch_any(session, record)
        reply = pb.CreateReply(attr=attr_of(record), existed=True)
        return reply

    # ------------------------------------------------------------ Link

    def link(self, request: pb.LinkRequest, context: CallContext) -> Any:
        """Handler of `Link`: another name for a file."""
        session = self._sessions.of_change(request.id, context)

        def keys() -> Keys:
            return name_keys(
                self._state.tables, (request.new_parent, request.new_name), writes=[inode_key(request.inode)]
            )

        def operation() -> tuple[Any, Told]:
            if self._calls.outcome(request.id) is not None:
                return pb.AttrReply(attr=attr_of(load(self._state.tables, request.inode))), {}
            tx = self._state.begin()
            record = linking.link(
                tx, request.inode, new_parent=request.new_parent, new_name=request.new_name,
                now_ns=self._env.clock.wall_ns(),
            )  # fmt: skip
            directory = load(tx, request.new_parent)
            self._calls.commit(tx, request.id, request.inode)
            self._sessions.watch_any(session, record)
            self._sessions.watch_directory(session, request.new_parent)
            items = [
                Item(inode=request.new_parent, names=[request.new_name], attr=True),
                Item(inode=request.inode, attr=True),
            ]
            return pb.AttrReply(attr=attr_of(record), parent=attr_of(directory)), self._sessions.told(items, session)

        return self._calls.quick(keys, operation)
