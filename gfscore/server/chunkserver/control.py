"""What the master asks over gRPC: new versions, the end of leases, copies, deletions, and how things are.

Everything that changes names the epoch of this server's session: a master that speaks of another one is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.lease import LeaseState
from gfscore.replica.reconcile import POWER_LOST
from gfscore.rpc.transport import CallContext
from gfscore.storage.chunk_store import Chunk
from gfscore.storage.chunk_verify import PIECE_BYTES as VERIFY_BYTES
from gfscore.storage.chunk_verify import describe_damage, verify_headers, verify_piece

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.primary import Primary
    from gfscore.server.chunkserver.replicas import Replica

_PAGE_BYTES = 4096
_AT_ONCE_MAX = 16


class Control:
    """Handlers of one server."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._at_once = trio.CapacityLimiter(_AT_ONCE_MAX)

    async def prepare(self, request: pb.PrepareRequest, context: CallContext) -> pb.PrepareReply:
        """Handler of `Prepare`: each replica to its new version, durable before the answer (rule 1)."""
        self._check_epoch(request.epoch)
        items = [pb.PrepareReply.Item() for _ in request.items]

        async def one(item: pb.PrepareRequest.Item, answer: pb.PrepareReply.Item) -> None:
            truncate = item.truncate if item.HasField("truncate") else None
            async with self._at_once:
                try:
                    replica = await self._node.replicas.prepare(item.handle, item.version, item.old_version, truncate)
                    answer.version, answer.length = replica.chunk.version, replica.chunk.length
                    answer.doubt = replica.doubt
                    answer.digest = await self._node.io.run(replica.chunk.digest)
                except GfsError as error:
                    self._answer_error(item.handle, answer, error)

        async with trio.open_nursery() as nursery:
            for item, answer in zip(request.items, items, strict=True):
                nursery.start_soon(one, item, answer)
        return pb.PrepareReply(items=items)

    async def clone(self, request: pb.CloneRequest, context: CallContext) -> pb.PrepareReply:
        """Handler of `Clone`: local copies under new handles [0116]."""
        self._check_epoch(request.epoch)
        items = [pb.PrepareReply.Item() for _ in request.items]

        async def one(item: pb.CloneRequest.Item, answer: pb.PrepareReply.Item) -> None:
            truncate = item.truncate if item.HasField("truncate") else None
            async with self._at_once:
                try:
                    replica = await self._node.replicas.clone(
                        item.handle, item.version, item.new_handle, item.new_version, truncate
                    )
                    answer.version, answer.length = replica.chunk.version, replica.chunk.length
                    answer.doubt = replica.doubt
                except GfsError as error:
                    self._answer_error(item.handle, answer, error)

        async with trio.open_nursery() as nursery:
            for item, answer in zip(request.items, items, strict=True):
                nursery.start_soon(one, item, answer)
        return pb.PrepareReply(items=items)

    async def revoke(self, request: pb.RevokeRequest, context: CallContext) -> pb.RevokeReply:
        """Handler of `Revoke`: answers when nothing is under way any more (rule 6), with the final lengths."""
        self._check_epoch(request.epoch)
        replicas = self._node.replicas
        ended: list[tuple[Replica, Primary]] = []
        for handle in request.handles:
            replica = replicas.loaded(handle)
            if replica is None or replica.primary is None:
                if replica is None and handle not in replicas.index:
                    replicas.revoke_unseen(handle)
                continue
            replica.primary.lease.revoke()
            ended.append((replica, replica.primary))
        reports = []
        for replica, primary in ended:
            await primary.quiet()
            report = replicas.report(replica.handle)
            if report is not None:
                report.unequal = primary.lease.state is LeaseState.FAILED
                report.mtime_ns = replica.mtime_ns
                reports.append(report)
        return pb.RevokeReply(chunks=reports)

    async def collect(self, request: pb.CollectRequest, context: CallContext) -> pb.Empty:
        """Handler of `Collect`: delete replicas."""
        self._check_epoch(request.epoch)
        for handle in request.handles:
            await self._node.replicas.collect(handle)
        return pb.Empty()

    async def inspect(self, request: pb.InspectRequest, context: CallContext) -> pb.InspectReply:
        """Handler of `Inspect`: how replicas are, read and verified if asked for."""
        return pb.InspectReply(items=[await self._inspect(handle, request) for handle in request.handles])

    async def info(self, request: pb.Empty, context: CallContext) -> pb.ServerInfoReply:
        """Handler of `Info`."""
        node = self._node
        return pb.ServerInfoReply(
            server_id=node.server_id,
            cluster_id=node.identity.cluster_id,
            incarnation=node.identity.incarnation,
            chunks=len(node.replicas.index),
            resident_bytes=int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES,
            calls=node.calls,
            scrub_percent=node.scrub.percent,
            scrub_finished_ns=node.scrubbed.finished_ns,
            scrub_bad=node.replicas.bad_found,
        )

    async def _inspect(self, handle: int, request: pb.InspectRequest) -> pb.InspectReply.Item:
        item = pb.InspectReply.Item(handle=handle)
        node = self._node
        try:
            replica = await node.replicas.get(handle)
            chunk = replica.chunk
            item.version, item.length, item.mtime_ns = chunk.version, chunk.length, replica.mtime_ns
            item.path = node.env.disk.real_path(chunk.path)
            item.primary = replica.primary is not None and replica.primary.lease.state is LeaseState.SERVING
            if request.verify:
                await self._verify(chunk)
            elif chunk.doubtful:
                raise GfsError(Code.CHECKSUM_MISMATCH, "a header page is damaged")
            if request.verify or request.digest:
                # After the data: what is compared with other replicas is as new as can be.
                item.version, item.length, item.digest = chunk.version, chunk.length, await node.io.run(chunk.digest)
        except GfsError as error:
            item.error, item.message = error.code, error.message
            node.replicas.found_damage(handle, error)
        return item

    async def _verify(self, chunk: Chunk) -> None:
        """Read and check all of it, piece by piece. Raises GfsError(CHECKSUM_MISMATCH) and says what is bad."""
        run, store, replicas = self._node.io.run, self._node.store, self._node.replicas
        good = await run(verify_headers, chunk, store)
        bad: list[int] = []
        start = 0
        while start < chunk.length:
            bad += await run(verify_piece, chunk, store, start)
            start += VERIFY_BYTES
        if bad or not good:
            raise GfsError(Code.CHECKSUM_MISMATCH, describe_damage(bad))
        chunk.corrupt = False
        replicas.mark_sound(chunk.handle)

    def _answer_error(self, handle: int, answer: pb.PrepareReply.Item, error: GfsError) -> None:
        replicas = self._node.replicas
        replicas.found_damage(handle, error)
        answer.error = error.code
        if error.code is Code.UNKNOWN_CHUNK and replicas.may_have_lost(handle):
            answer.doubt = POWER_LOST
        if replicas.loaded(handle) is not None:
            answer.version, answer.length = replicas.current(handle) or (0, 0)

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._node.session.epoch:
            raise GfsError(Code.UNKNOWN_SESSION, f"epoch {epoch} is not the epoch of this server's session")
