"""The handlers that change chunks: `Write` and `Append` at the primary, `Apply` at a secondary [0101]-[0111]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.append import AppendAt, AppendSlot, Duplicate, TooLarge
from gfscore.replica.grants import VerifiedGrant, check_primary, check_version
from gfscore.replica.lease import Lease, LeaseState
from gfscore.rpc.transport import CallContext
from gfscore.server.chunkserver.applying import apply_in_order
from gfscore.server.chunkserver.mutation import APPEND, COPY, PAD, SYNC, WRITE, Mutation, parse
from gfscore.server.chunkserver.primary import Primary
from gfscore.server.chunkserver.pushes import PUSH_BYTES_MAX
from gfscore.server.chunkserver.reconcile import start_lease

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.replicas import Replica


class Mutations:
    """Handlers of one server."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # ------------------------------------------------------------ the primary

    async def write(self, request: pb.WriteRequest, context: CallContext) -> pb.WriteReply:
        """Handler of `Write`. Without extents and with `sync` it only syncs. Raises GfsError."""
        grant, replica, primary = await self._serving(request.grant)
        lease = primary.lease
        if not request.extents:
            if not request.sync:
                raise GfsError(Code.INVALID, "a write without extents")
            return pb.WriteReply(length=await self._sync(replica, primary))
        mutation = Mutation(WRITE, sync=request.sync)
        mutation.extents = [(extent.offset, extent.length) for extent in request.extents]
        mutation.client_id = request.client_id
        await self._load(mutation, request.push_id, request.checksum, context)
        # From here to `submit` no await: the plan and the place in the order belong together.
        self._check(lease, replica, grant)
        assert mutation.data is not None
        lease.check_extents(mutation.extents, len(mutation.data))
        self._claim(mutation)
        lease.planned_write(mutation.extents)
        try:
            length = await primary.submit(mutation)
        finally:
            mutation.release()
        return pb.WriteReply(length=length)

    async def append(self, request: pb.AppendRequest, context: CallContext) -> pb.AppendReply:
        """Handler of `Append`. An empty record with `sync` only syncs. Raises GfsError."""
        grant, replica, primary = await self._serving(request.grant)
        lease = primary.lease
        sync = request.sync or grant.sync
        if not request.length and not request.push_id and not context.payload.size and request.sync:
            return pb.AppendReply(length=await self._sync(replica, primary))
        mutation = Mutation(APPEND, sync=sync)
        mutation.client_id, mutation.sequence = request.client_id, request.sequence
        await self._load(mutation, request.push_id, request.checksum, context)
        assert mutation.data is not None
        size = len(mutation.data)
        if request.length != size:
            raise GfsError(Code.INVALID, f"a record of {request.length} bytes came with {size} bytes")
        # From here to `submit` no await.
        self._check(lease, replica, grant)
        slot = replica.chunk.append_slot(request.client_id)
        decision = lease.plan_append(
            request.client_id, request.sequence, size, grant.length_floor, None if slot is None else AppendSlot(*slot)
        )
        if isinstance(decision, AppendAt):
            mutation.extents = [(decision.offset, size)]
            self._claim(mutation)
            length = await self._submit_append(primary, mutation)
            return pb.AppendReply(offset=decision.offset, length=length)
        if isinstance(decision, Duplicate):
            length = await self._answer_again(replica, primary, request, sync)
            return pb.AppendReply(offset=decision.offset, length=length)
        if isinstance(decision, TooLarge):
            raise GfsError(
                Code.MESSAGE_TOO_LARGE, f"a record of {size} bytes; at most {decision.bytes_max} fit this chunk size"
            )
        await self._pad(primary)
        return pb.AppendReply(next_chunk=True, length=grant.chunk_size)

    async def _submit_append(self, primary: Primary, mutation: Mutation) -> int:
        finished = trio.Event()
        primary.appends[mutation.client_id] = finished
        try:
            return await primary.submit(mutation)
        finally:
            mutation.release()
            primary.lease.append_finished(mutation.client_id, mutation.sequence)
            if primary.appends.get(mutation.client_id) is finished:
                del primary.appends[mutation.client_id]
            finished.set()

    async def _answer_again(self, replica: Replica, primary: Primary, request: pb.AppendRequest, sync: bool) -> int:
        """A retry: wait for the first attempt if that is still under way, and be as durable as was asked."""
        if primary.lease.pending_append(request.client_id, request.sequence):
            await primary.appends[request.client_id].wait()
        if primary.lease.state is not LeaseState.SERVING:
            raise primary.refusal()
        return await self._sync(replica, primary) if sync else replica.chunk.length

    async def _pad(self, primary: Primary) -> None:
        """Fill the chunk on all replicas, once; rule 15."""
        lease = primary.lease
        if primary.padded is None:
            if lease.planned_length >= lease.grant.chunk_size and not lease.in_flight:
                return
            primary.padded = trio.Event()
            lease.planned_pad()
            try:
                await primary.submit(Mutation(PAD))
            finally:
                primary.padded.set()
        else:
            await primary.padded.wait()
        if lease.state is not LeaseState.SERVING:
            raise primary.refusal()

    async def _sync(self, replica: Replica, primary: Primary) -> int:
        self._check(primary.lease, replica, primary.lease.grant)
        return await primary.submit(Mutation(SYNC, sync=True))

    async def reconcile(self, request: pb.ReconcileRequest, context: CallContext) -> pb.ReconcileReply:
        """Handler of `Reconcile`: make the others equal to this replica (rule 9), for a master that has no writer for
        the chunk. The lease is over afterwards. Raises GfsError."""
        _, replica, primary = await self._serving(request.grant)
        failed = sorted(primary.lease.failed_servers)
        if not failed and primary.lease.state is not LeaseState.SERVING:
            raise primary.refusal()
        primary.lease.revoke()
        await primary.quiet()
        return pb.ReconcileReply(length=replica.chunk.length, failed=failed)

    def _check(self, lease: Lease, replica: Replica, grant: VerifiedGrant) -> None:
        """Whether mutations are taken at this moment; raises GfsError."""
        now = self._node.env.clock.boottime()
        check_primary(grant, self._node.server_id, self._node.session, now)
        check_version(grant, replica.chunk.version)
        lease.check(now)

    async def _serving(self, message: pb.Grant) -> tuple[VerifiedGrant, Replica, Primary]:
        """The lease that `message` grants, taken into use if this is its first use. Raises GfsError."""
        node = self._node
        grant = node.grants.verify(message)
        check_primary(grant, node.server_id, node.session, node.env.clock.boottime())
        if grant.chunk_size != node.store.chunk_size:
            raise GfsError(Code.BAD_GRANT, f"the grant is for chunks of {grant.chunk_size} bytes")
        node.replicas.check_not_revoked(grant)
        replica = await node.replicas.for_grant(grant)
        try:
            check_version(grant, replica.chunk.version)
            node.replicas.check_sound(replica)
        except GfsError as error:
            node.replicas.found_damage(grant.handle, error)
            raise
        primary = replica.primary
        if primary is None or primary.lease.grant.version != grant.version:
            primary = replica.primary = Primary(node, replica, grant, message)
            await start_lease(node, replica, primary)
        elif not primary.ready.is_set():
            await primary.ready.wait()
        return grant, replica, primary

    async def _load(self, mutation: Mutation, push_id: int, checksum: int, context: CallContext) -> None:
        """The bytes, pushed before or inline. Pushed ones stay in the buffer until `_claim`."""
        if push_id:
            pushed = self._node.pushes.peek(mutation.client_id, push_id)
            mutation.push_id = push_id
            mutation.data = pushed.view
        else:
            if context.payload.size > PUSH_BYTES_MAX:
                raise GfsError(Code.MESSAGE_TOO_LARGE, "data of this size is pushed")
            mutation.use_inline(memoryview(await context.payload.read_all()), checksum)

    def _claim(self, mutation: Mutation) -> None:
        if mutation.push_id:
            mutation.use_push(mutation.push_id, self._node.pushes.take(mutation.client_id, mutation.push_id))

    # ------------------------------------------------------------ a secondary

    async def apply(self, request: pb.ApplyRequest, context: CallContext) -> pb.WriteReply:
        """Handler of `Apply`: what the primary says, in its order. Raises GfsError."""
        node = self._node
        grant = node.grants.verify(request.grant)
        if not grant.names(node.server_id) or grant.primary == node.server_id:
            raise GfsError(Code.BAD_GRANT, f"this server is no secondary of chunk {grant.handle}")
        if grant.chunk_size != node.store.chunk_size:
            raise GfsError(Code.BAD_GRANT, f"the grant is for chunks of {grant.chunk_size} bytes")
        payload = memoryview(await context.payload.read_all())
        replica = await node.replicas.for_grant(grant)
        if request.kind == COPY:
            return pb.WriteReply(length=await self._copy(replica, grant, request, payload))
        mutations = parse(request, payload, grant.chunk_size)
        try:
            for mutation in mutations:
                if mutation.push_id:
                    mutation.use_push(mutation.push_id, node.pushes.take(mutation.client_id, mutation.push_id))
                    if mutation.data is not None:
                        _check_size(mutation)
            length = await apply_in_order(node, replica, grant, request.serial, mutations)
        finally:
            for mutation in mutations:
                mutation.release()
        return pb.WriteReply(length=length)

    async def _copy(self, replica: Replica, grant: VerifiedGrant, request: pb.ApplyRequest, payload: memoryview) -> int:
        """One step of a reconciliation: only before the first mutation of this version."""
        if request.serial or len(request.extents) != 1:
            raise GfsError(Code.INVALID, "a copy has one extent and no serial number")
        offset, size = request.extents[0].offset, request.extents[0].length
        if size > len(payload) or offset + size > request.length or request.length > grant.chunk_size:
            raise GfsError(Code.INVALID, "a copy that fits neither its payload nor the chunk")
        await replica.take_lock()
        try:
            check_version(grant, replica.chunk.version)
            if replica.gate.applied or replica.gate.closed:
                raise GfsError(Code.SERIAL_GAP, "a reconciliation comes before all mutations")
            await self._node.io.run(
                replica.chunk.replace, offset, payload[:size], request.length, bytes(payload[size:])
            )
            return replica.chunk.length
        except GfsError as error:
            self._node.replicas.found_damage(replica.handle, error)
            raise
        finally:
            replica.lock.release()


def _check_size(mutation: Mutation) -> None:
    assert mutation.data is not None
    if len(mutation.data) != sum(length for _, length in mutation.extents):
        raise GfsError(Code.INVALID, f"{len(mutation.data)} bytes were pushed for extents of another size")
