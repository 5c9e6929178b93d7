"""The beginning of a client's session, its signs of life, and what its end leaves behind."""

from __future__ import annotations

import trio

from gfscore.errors import Code, GfsError
from gfscore.ids import PROTOCOL_VERSION
from gfscore.metadata.inodes import load
from gfscore.metadata.keys import pack8
from gfscore.metadata.tables import INODES
from gfscore.metadata.trash import find_info
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.removing import Removing
from gfscore.server.master.sessions import Session, Sessions
from gfscore.server.master.state import MasterState


class Clients:
    """`greeting` is what every Hello is answered with, apart from what is the client's own."""

    def __init__(
        self, state: MasterState, sessions: Sessions, leases: LeaseBook, lengths: Lengths, removing: Removing,
        greeting: pb.HelloReply, nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self.greeting = greeting
        self._state = state
        self._sessions = sessions
        self._leases = leases
        self._lengths = lengths
        self._removing = removing
        self._nursery = nursery
        sessions.on_expired = self._expired

    def hello(self, request: pb.HelloRequest, context: CallContext) -> pb.HelloReply:
        """Handler of `Hello`. Raises WRONG_PROTOCOL."""
        if request.protocol != PROTOCOL_VERSION:
            raise GfsError(
                Code.WRONG_PROTOCOL,
                f"the client speaks protocol {request.protocol}, the master {PROTOCOL_VERSION}: "
                "install the same version on both",
            )
        session, resumed = self._sessions.hello(request, context)
        before = session.held
        session.held = self._still_held(session, request)
        released = before - session.held
        if released:
            self._removing.drop_orphans(list(released))
        reply = pb.HelloReply()
        reply.CopyFrom(self.greeting)
        reply.client_id = session.client_id
        reply.resumed = resumed
        reply.held.extend(session.held.difference(request.held_inodes))
        return reply

    def _still_held(self, session: Session, request: pb.HelloRequest) -> set[int]:
        """Files without a name that the client has open: those it knows of, and those that others unlinked while it was
        away. What it has open is watched again, so that it is asked about what is unlinked from now on.
        """
        held = set(request.held_inodes)
        written = set(request.written_inodes)
        tables = self._state.tables
        for inode in (*request.read_inodes, *request.written_inodes):
            if tables.get(INODES, pack8(inode)) is None:
                continue
            record = load(tables, inode)
            self._sessions.watch_any(session, record)
            # A file in the trash may have been opened there, for reading: that does not make it one to be written.
            unlinked = not record.nlink and (inode in written or find_info(tables, inode) is None)
            if unlinked or inode in session.held:
                held.add(inode)
        return held

    def ping(self, request: pb.Empty, context: CallContext) -> pb.Empty:
        """Handler of `Ping`."""
        return pb.Empty()

    def _expired(self, session: Session) -> None:
        abandoned = self._leases.drop_client(session.client_id)
        if abandoned:
            self._nursery.start_soon(self._lengths.settle_abandoned, abandoned)
        self._removing.drop_orphans(list(session.held))
