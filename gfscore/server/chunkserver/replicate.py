"""Copying a chunk from another server when the master asks for it: re-replication and moves [0069]-[0074].

The source verifies what it sends, this side verifies what arrives, and a finished copy equals the source by the
checksums of all its blocks; only a block that is damaged there comes from another server. The append table travels
along, so that a retry is recognised here too (rule 14).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import trio

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.reconcile import BlockState, CopyStep, plan_copy, with_checksums
from gfscore.rpc.transport import CallContext, Channel
from gfscore.storage.buffers import PooledBuffer
from gfscore.storage.chunk_copy import IncomingCopy
from gfscore.storage.chunk_store import Chunk

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node

log = logging.getLogger(__name__)

_AHEAD = 4  # pieces asked for before the first of them is written
_CALL_SECONDS = 10.0
_KEPT_SECONDS = 120.0  # an unfinished copy that nobody asks for any more
_ROUNDS_MAX = 4  # of looking for differences, when nothing should change any more


class SourceFailed(Exception):
    """Not this server is at fault, but the one that is copied from."""

    def __init__(self, error: GfsError) -> None:
        super().__init__(str(error))
        self.error = error


class Replication:
    """The handler of `Replicate`, and the copies that are not finished."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._copies: dict[int, IncomingCopy] = {}
        self._used: dict[int, float] = {}  # handle → boottime of the last request
        self._busy: set[int] = set()

    async def replicate(self, request: pb.ReplicateRequest, context: CallContext) -> pb.ReplicateReply:
        """Handler of `Replicate`. Raises GfsError: UNKNOWN_SESSION, BUSY, NO_SPACE, STALE_VERSION (a newer is here).

        What the source is to blame for is in the reply.
        """
        node, handle = self._node, request.handle
        if request.epoch != node.session.epoch:
            raise GfsError(Code.UNKNOWN_SESSION, f"epoch {request.epoch} is not the epoch of this server's session")
        if handle in self._busy:
            raise GfsError(Code.BUSY, f"chunk {handle:016x} is being copied already")
        if handle in node.replicas.collecting:
            # What is here is no replica any more, and what came now might go with it.
            raise GfsError(Code.BUSY, f"chunk {handle:016x} is being deleted here")
        if node.replicas.version_here(handle) == request.version:
            replica = await node.replicas.get(handle)  # the answer to an earlier request was lost
            return pb.ReplicateReply(length=replica.chunk.length)
        self._busy.add(handle)
        reply = pb.ReplicateReply()
        try:
            await self._copy(request, reply)
        except SourceFailed as failed:
            reply.source_error, reply.message = failed.error.code, failed.error.message
        except GfsError:
            await self._drop(handle)
            raise
        finally:
            self._busy.discard(handle)
            self._used[handle] = node.env.clock.boottime()
        return reply

    async def expire(self) -> None:
        """Drop what the master has forgotten. Called now and then."""
        limit = self._node.env.clock.boottime() - _KEPT_SECONDS
        for handle, used in list(self._used.items()):
            if used < limit and handle not in self._busy:
                await self._drop(handle)
                del self._used[handle]

    async def _drop(self, handle: int) -> None:
        copy = self._copies.pop(handle, None)
        if copy is not None:
            await self._node.io.run(copy.drop)

    async def _copy(self, request: pb.ReplicateRequest, reply: pb.ReplicateReply) -> None:
        node, handle = self._node, request.handle
        copy = self._copies.get(handle)
        if copy is None:
            copy = self._copies[handle] = await node.io.run(IncomingCopy, node.store, handle, request.version)
        servers = [request.source, *request.others]
        failure: SourceFailed | None = None
        for number, source in enumerate(servers):
            others = servers[:number] + servers[number + 1 :]
            try:
                doubt = await self._copy_from(source, others, request, reply, copy)
                break
            except SourceFailed as error:
                failure = failure or error
        else:
            assert failure is not None
            raise failure
        reply.length = await node.io.run(lambda: copy.chunk.length)
        if request.finish:
            await node.replicas.take_copy(copy, request.version, doubt)
            del self._copies[handle]
            node.beat_soon()
            log.info(
                "event=replicated chunk=%016x version=%d source=%s bytes=%d",
                handle, request.version, request.source.id, reply.length,
            )  # fmt: skip

    async def _copy_from(
        self, source: pb.Server, others: list[pb.Server], request: pb.ReplicateRequest, reply: pb.ReplicateReply,
        copy: IncomingCopy,
    ) -> int:  # fmt: skip
        """How much the source may lack, see `gfscore.replica.reconcile`."""
        node = self._node
        try:
            async with node.peers.push(_address(source)) as stream:
                transfer = _Transfer(node, cast(Channel, stream), others, request, reply, copy.chunk)
                await transfer.run()
                return transfer.doubt
        except GfsError as error:
            if error.code is Code.UNREACHABLE:  # the connection could not even be opened
                raise SourceFailed(error) from error
            raise


def _address(server: pb.Server) -> tuple[str, int]:
    return server.address.host, server.address.port


class _Transfer:
    """One request: the bytes that this side lacks, several pieces under way at once. Counts into `reply`."""

    def __init__(
        self, node: Node, source: Channel, others: list[pb.Server], request: pb.ReplicateRequest,
        reply: pb.ReplicateReply, chunk: Chunk,
    ) -> None:  # fmt: skip
        self._node = node
        self._source = source
        self._others = others
        self._request = request
        self._reply = reply
        self.doubt = 0  # of the source
        self._chunk = chunk
        self._mended: dict[int, int] = {}  # block that the source could not read → its checksum elsewhere
        self._began = node.env.clock.boottime()

    async def run(self) -> None:
        """Without `finish` one pass, with it until both are equal. Raises SourceFailed, GfsError."""
        theirs = await self._their_state()
        for number in range(_ROUNDS_MAX):
            steps = plan_copy(theirs, await self._node.io.run(self._my_state))
            if not steps:
                return
            await self._take(steps, theirs.clients)
            if not self._request.finish:
                return
            if number:  # the first round brings the bytes, the second the append table
                theirs = await self._their_state()
        if plan_copy(theirs, await self._node.io.run(self._my_state)):
            raise SourceFailed(GfsError(Code.NOT_READY, "the replica changes while it is copied"))

    def _my_state(self) -> BlockState:
        length, tail, table = self._chunk.block_checksums()
        return BlockState(length, tail, table, self._chunk.append_table_bytes())

    async def _their_state(self) -> BlockState:
        request = pb.BlocksRequest(handle=self._request.handle, version=self._request.version)
        reply, table = await _ask(self._source, "Blocks", request, None)
        if reply.doubtful:
            raise SourceFailed(GfsError(Code.CHECKSUM_MISMATCH, "how much the source has is not sure"))
        self.doubt = reply.doubt
        return with_checksums(BlockState(reply.length, reply.tail_checksum, bytes(table), reply.clients), self._mended)

    async def _take(self, steps: list[CopyStep], clients: bytes) -> None:
        """Carry out the steps in their order, a few of them asked for ahead."""
        ahead: deque[_Piece] = deque()
        failure: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                try:
                    await self._pump(nursery, iter(steps), ahead, clients)
                except (SourceFailed, GfsError) as error:
                    failure = error
                    nursery.cancel_scope.cancel()
        finally:
            # A cancelled fetch closes its stream only when that is given back: until then its buffer is not reused.
            for piece in ahead:
                if piece.here.is_set():
                    piece.buffer.release()
        if failure is not None:
            raise failure

    async def _pump(
        self, nursery: trio.Nursery, steps: Iterator[CopyStep], ahead: deque[_Piece], clients: bytes
    ) -> None:
        while True:
            while len(ahead) < _AHEAD and (step := next(steps, None)) is not None:
                piece = _Piece(step, self._node.pool.acquire(step.size))
                ahead.append(piece)
                nursery.start_soon(self._fetch, piece)
            if not ahead:
                return
            await ahead[0].here.wait()
            if ahead[0].failure is not None:
                raise ahead[0].failure
            await self._node.io.run(self._store, ahead[0], clients)
            self._reply.copied_bytes += ahead[0].step.size
            ahead.popleft().buffer.release()
            await self._pace()

    async def _fetch(self, piece: _Piece) -> None:
        step = piece.step
        try:
            if step.size:
                view = piece.buffer.view[: step.size]
                try:
                    piece.checksum = await self._read(self._source, step.offset, view)
                except SourceFailed as failed:
                    if failed.error.code is not Code.CHECKSUM_MISMATCH or not self._others:
                        raise
                    piece.checksum = await self._put_together(step.offset, view)
                piece.data = view
        except SourceFailed as error:
            piece.failure = error
        piece.here.set()

    async def _read(self, source: Channel, offset: int, view: memoryview) -> int:
        """Fill `view`; the checksum that came with the bytes. Raises SourceFailed."""
        request = pb.ReadRequest(
            handle=self._request.handle, version=self._request.version, offset=offset, length=len(view)
        )
        reply, data = await _ask(source, "Read", request, view)
        if len(data) != len(view):
            raise SourceFailed(GfsError(Code.NOT_READY, "the replica became shorter while it was copied"))
        return int(reply.checksum)

    async def _put_together(self, offset: int, view: memoryview) -> int:
        """As `_read`, block by block, each from the first server that has it undamaged."""
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            try:
                checksum = await self._read(self._source, offset + start, block)
            except SourceFailed as failed:
                checksum = await self._read_elsewhere(offset + start, block, failed)
                self._mended[(offset + start) // BLOCK_BYTES] = checksum
            if crc32c(block) != checksum:
                raise _changed_on_the_way()
        return crc32c(view)

    async def _read_elsewhere(self, offset: int, block: memoryview, failure: SourceFailed) -> int:
        for other in self._others:
            try:
                async with self._node.peers.push(_address(other)) as stream:
                    return await self._read(cast(Channel, stream), offset, block)
            except (SourceFailed, GfsError) as error:
                log.info("event=block_not_there server=%s offset=%d error=%r", other.id, offset, str(error))
        raise failure

    def _store(self, piece: _Piece, clients: bytes) -> None:
        """In a thread."""
        step = piece.step
        if crc32c(piece.data) != piece.checksum:
            raise _changed_on_the_way()
        if step.size and step.offset >= self._chunk.length:
            self._chunk.write([(step.offset, piece.data)])
        else:
            self._chunk.replace(step.offset, piece.data, step.length_after, clients)

    async def _pace(self) -> None:
        """Not faster than the master allows."""
        limit = self._request.bytes_per_second
        if limit:
            clock = self._node.env.clock
            ahead = self._began + self._reply.copied_bytes / limit - clock.boottime()
            if ahead > 0:
                await clock.sleep(ahead)


async def _ask(source: Channel, method: str, request: Any, into: memoryview | None) -> tuple[Any, memoryview]:
    try:
        return await source.call(method, request, timeout=_CALL_SECONDS, reply_into=into)
    except GfsError as error:
        raise SourceFailed(error) from error


def _changed_on_the_way() -> SourceFailed:
    return SourceFailed(GfsError(Code.UNREACHABLE, "bytes were changed on their way from the source"))


class _Piece:
    """What one step copies. `here`: it has arrived."""

    __slots__ = ("buffer", "checksum", "data", "failure", "here", "step")

    def __init__(self, step: CopyStep, buffer: PooledBuffer) -> None:
        self.step = step
        self.buffer = buffer
        self.data = memoryview(b"")
        self.checksum = 0
        self.here = trio.Event()
        self.failure: SourceFailed | None = None
