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
from gfscore.rpc.transport import CallContext

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
            reports.append(
                pb.ChunkReport(handle=replica.handle, version=replica.chunk.version, length=replica.chunk.length)
            )
        return pb.RevokeReply(chunks=reports)

    async def collect(self, request: pb.CollectRequest, context: CallContext) -> pb.Empty:
        """Handler of `Collect`: delete replicas."""
        self._check_epoch(request.epoch)
        for handle in request.handles:
            await self._node.replicas.collect(handle)
        return pb.Empty()

    async def inspect(self, request: pb.InspectRequest, context: CallContext) -> pb.InspectReply:
        """Handler of `Inspect`: how replicas are, read and verified if asked for."""
        return pb.InspectReply(items=[await self._inspect(handle, request.verify) for handle in request.handles])

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
        )

    async def _inspect(self, handle: int, verify: bool) -> pb.InspectReply.Item:
        item = pb.InspectReply.Item(handle=handle)
        node = self._node
        try:
            replica = await node.replicas.get(handle)
            chunk = replica.chunk
            item.version, item.length = chunk.version, chunk.length
            item.path = node.env.disk.real_path(chunk.path)
            item.primary = replica.primary is not None and replica.primary.lease.state is LeaseState.SERVING
            if verify:
                bad = await node.io.run(chunk.verify)
                if bad or chunk.corrupt:
                    raise GfsError(Code.CHECKSUM_MISMATCH, f"{len(bad)} blocks do not match their checksums")
        except GfsError as error:
            item.error, item.message = error.code, error.message
            if error.code is Code.CHECKSUM_MISMATCH:
                node.replicas.mark_corrupt(handle)
        return item

    def _answer_error(self, handle: int, answer: pb.PrepareReply.Item, error: GfsError) -> None:
        answer.error = error.code
        replica = self._node.replicas.loaded(handle)
        if replica is not None:
            answer.version, answer.length = replica.chunk.version, replica.chunk.length

    def _check_epoch(self, epoch: int) -> None:
        if epoch != self._node.session.epoch:
            raise GfsError(Code.UNKNOWN_SESSION, f"epoch {epoch} is not the epoch of this server's session")
