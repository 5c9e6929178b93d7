"""Where data is: locations for readers, and attributes with what it takes to learn a length that is pending [0087]."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import find_chunk, mapping_get
from gfscore.metadata.inodes import InodeRecord, load, load_file
from gfscore.metadata.locks import inode_key
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.fencing import REPORT_WAIT_SECONDS
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.locking import Keys, Locks
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Session, Sessions, Told
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_RANGES_MAX = 1000
_CHUNKS_MAX = 4096  # in one answer


class Data:
    """The handler of `Locate`, and attribute answers for everybody else."""

    def __init__(
        self, state: MasterState, calls: Calls, locks: Locks, sessions: Sessions, servers: Servers, leases: LeaseBook,
        lengths: Lengths,
    ) -> None:  # fmt: skip
        self._state = state
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._lengths = lengths

    def locate(self, request: pb.LocateRequest, context: CallContext) -> Any:
        """Handler of `Locate`. What is wrong with one file is told in its part of the answer."""
        if len(request.ranges) > _RANGES_MAX:
            raise GfsError(Code.INVALID, f"{len(request.ranges)} ranges are more than {_RANGES_MAX}")
        session = self._sessions.of_stream(context)

        def keys() -> Keys:
            return [inode_key(wanted.inode) for wanted in request.ranges], []

        def operation() -> tuple[Any, Told]:
            reply = self._located(request, session)
            missing = self._unlocated(reply)
            return (self._locate_later(request, session, missing) if missing else reply), {}

        return self._calls.quick(keys, operation)

    async def _locate_later(
        self, request: pb.LocateRequest, session: Session | None, missing: list[int]
    ) -> pb.LocateReply:
        """After a restart the servers first have to report what they hold."""
        await self._servers.wait_for(missing, REPORT_WAIT_SECONDS)
        reply = self._located(request, session)
        if not self._servers.heard_all:
            for file in reply.files:
                if any(chunk.handle and not chunk.replicas for chunk in file.chunks):
                    file.error = Code.NOT_READY
        return reply

    def _unlocated(self, reply: pb.LocateReply) -> list[int]:
        if self._servers.heard_all:
            return []
        return [c.handle for file in reply.files for c in file.chunks if c.handle and not c.replicas]

    def _located(self, request: pb.LocateRequest, session: Session | None) -> pb.LocateReply:
        reply = pb.LocateReply()
        left = _CHUNKS_MAX
        for wanted in request.ranges:
            file = reply.files.add(inode=wanted.inode)
            try:
                record = load_file(self._state.tables, wanted.inode)
            except GfsError as error:
                file.error = error.code
                continue
            file.attr.CopyFrom(attr_of(record))
            count = min(wanted.count, left)
            file.chunks.extend(self.locations(record.inode, wanted.first, count))
            left -= len(file.chunks)
            self._sessions.watch(session, record.inode)
        return reply

    def locations(self, inode: int, first: int, count: int) -> Iterator[pb.ChunkLocation]:
        """`count` chunks from index `first` on, up to the last one; holes have no handle. Live replicas come first."""
        tables = self._state.tables
        for index, handle in enumerate(mapping_get(tables, inode, first, count), first):
            chunk = find_chunk(tables, handle) if handle else None
            if chunk is None:
                yield pb.ChunkLocation(index=index)
                continue
            replicas = self._servers.replicas(handle) or self._servers.damaged(handle)
            if not replicas and not chunk.used and self._servers.heard_all and not self._servers.locations.get(handle):
                yield pb.ChunkLocation(index=index)  # granted by the master before, and never used
                continue
            if not all(map(self._servers.is_up, replicas)):
                replicas.sort(key=lambda server: (server.gone, not self._servers.is_up(server)))
                if not self._servers.is_up(replicas[0]):
                    self._servers.waited_for.add(handle)
            lease = self._leases.find(handle)
            yield pb.ChunkLocation(
                index=index,
                handle=handle,
                version=chunk.version,
                replicas=[server.message for server in replicas],
                primary=lease.primary.id if lease is not None else "",
                unused=not chunk.used,
            )

    # ------------------------------------------------------------ attributes

    def attr_reply(self, record: InodeRecord, session: Session | None) -> Any:
        """The attributes of `record`, with its last chunk where the length is pending for this session.

        A coroutine for it when the length has to be settled first.
        """
        if not record.length_pending:
            return pb.AttrReply(attr=attr_of(record))
        if session is not None and self._leases.is_sole_writer(record.inode, session.client_id):
            return self._for_writer(pb.AttrReply(attr=attr_of(record)), session)
        if self._lengths.unknown(record.inode):
            return self._settled_reply(record.inode, session)
        return self._pending_reply(record, session)

    def _for_writer(self, reply: pb.AttrReply, session: Session | None) -> pb.AttrReply:
        if session is not None:
            reply.writer_since = self._leases.writers.since(reply.attr.inode, session.client_id)
        return reply

    def _pending_reply(self, record: InodeRecord, session: Session | None) -> pb.AttrReply:
        tail = self._lengths.tail(record)
        chunks: list[pb.ChunkLocation] = []
        if tail:
            chunks = [c for c in self.locations(record.inode, tail[0][0], tail[-1][0] - tail[0][0] + 1) if c.handle]
        floor = self._leases.mtime_floor(record)
        return self._for_writer(pb.AttrReply(attr=attr_of(record), chunks=chunks, mtime_floor_ns=floor), session)

    async def _settled_reply(self, inode: int, session: Session | None) -> pb.AttrReply:
        try:
            await self._lengths.settle_one(inode)
        except GfsError as error:
            if error.code is Code.STALE_INODE:
                raise
            log.warning("event=length_not_settled inode=%d error=%r", inode, str(error))
        record = load(self._state.tables, inode)
        if not record.length_pending:
            return pb.AttrReply(attr=attr_of(record))
        return self._pending_reply(record, session)
