"""The handlers that only look: `Read`, `Length`, `Blocks`. Nothing leaves that was not verified [00127]."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES, PIECE_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import check_primary
from gfscore.replica.lease import LeaseState
from gfscore.rpc.transport import CallContext

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.replicas import Replica


class Reads:
    """Handlers of one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def read(self, request: pb.ReadRequest, context: CallContext) -> pb.ReadReply:
        """Handler of `Read`. Raises GfsError: UNKNOWN_CHUNK, STALE_VERSION (rule 12), CHECKSUM_MISMATCH."""
        if request.length > PIECE_BYTES:
            raise GfsError(Code.MESSAGE_TOO_LARGE, f"at most {PIECE_BYTES} bytes are read at once")
        with self._watched(request.handle):
            replica = await self._find(request.handle, request.version)
            chunk = replica.chunk
            length = chunk.length
            size = min(request.length, length - request.offset)
            if size < request.length and chunk.doubtful:
                raise GfsError(Code.CHECKSUM_MISMATCH, f"chunk {request.handle:016x}: how long it is here is not sure")
            if size <= 0:
                return pb.ReadReply(length=length)
            run = self._node.io.quick if size <= BLOCK_BYTES else self._node.io.run
            buffer = await run(chunk.read_pooled, request.offset, size)
        view = buffer.view
        context.reply_payload(view)
        context.on_sent(buffer.release)
        return pb.ReadReply(length=length, checksum=crc32c(view))

    async def length(self, request: pb.LengthRequest, context: CallContext) -> pb.LengthReply:
        """Handler of `Length`. Raises GfsError(NOT_PRIMARY) when the primary is asked for and is not here."""
        with self._watched(request.handle):
            replica = await self._find(request.handle, request.version)
            if request.primary:
                node, primary = self._node, replica.primary
                if primary is None or primary.lease.state not in (LeaseState.SERVING, LeaseState.RECONCILING):
                    raise GfsError(Code.NOT_PRIMARY, f"no lease on chunk {request.handle:016x} is held here")
                check_primary(primary.lease.grant, node.server_id, node.session, node.env.clock.boottime())
            if replica.chunk.doubtful:
                raise GfsError(Code.CHECKSUM_MISMATCH, f"chunk {request.handle:016x}: how long it is here is not sure")
            return pb.LengthReply(length=replica.chunk.length, version=replica.chunk.version, mtime_ns=replica.mtime_ns)

    async def blocks(self, request: pb.BlocksRequest, context: CallContext) -> pb.BlocksReply:
        """Handler of `Blocks`: the checksums of the replica, for a reconciliation."""
        with self._watched(request.handle):
            replica = await self._find(request.handle, request.version)
            await replica.take_lock()
            try:
                length, tail_checksum, table = await self._node.io.run(replica.chunk.block_checksums)
                clients = replica.chunk.append_table_bytes()
                doubtful = replica.chunk.doubtful
            finally:
                replica.lock.release()
        context.reply_payload(table)
        return pb.BlocksReply(
            length=length, tail_checksum=tail_checksum, clients=clients, doubtful=doubtful, doubt=replica.doubt
        )

    @contextmanager
    def _watched(self, handle: int) -> Iterator[None]:
        """What turns out damaged or missing inside is reported to the master at once [00127]."""
        try:
            yield
        except GfsError as error:
            self._node.replicas.found_damage(handle, error)
            raise

    async def _find(self, handle: int, version: int) -> Replica:
        replicas = self._node.replicas
        replica = replicas.loaded(handle) or await replicas.get(handle)
        if replica.chunk.corrupt and handle not in replicas.corrupt:
            replicas.mark_corrupt(handle, "a header page is damaged")
        if replica.chunk.version != version:
            raise GfsError(
                Code.STALE_VERSION, f"chunk {handle:016x} has version {replica.chunk.version} here, not {version}"
            )
        return replica
