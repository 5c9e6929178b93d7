"""Making the secondaries byte-equal to a new primary, before its first mutation (rule 9)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from gfscore.errors import GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import ReplicaAddress, check_version
from gfscore.replica.reconcile import BlockState, plan_copy
from gfscore.server.chunkserver.mutation import COPY

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.primary import Primary
    from gfscore.server.chunkserver.replicas import Replica

log = logging.getLogger(__name__)

_BLOCKS_SECONDS = 5.0
_COPY_SECONDS = 20.0


async def start_lease(node: Node, replica: Replica, primary: Primary) -> None:
    """Take the lease into use: reconcile, then serve. Sets `primary.ready` however it ends; raises nothing.

    On failure the lease has failed, and the servers at fault are reported.
    """
    lease = primary.lease
    try:
        if replica.gate.closed:
            # Found on the disk after a restart: what it applied under this version is not known any more.
            lease.fail()
            return
        if not lease.grant.fresh:
            with trio.CancelScope(shield=True):
                await _reconcile(node, replica, primary)
        if not lease.ended:
            lease.serve(replica.chunk.length)
    except GfsError as error:
        log.warning("event=reconcile_failed chunk=%016x error=%r", replica.handle, str(error))
        node.replicas.found_damage(replica.handle, error)
        lease.fail()
    finally:
        if lease.failed_servers:
            node.report_failure(replica, lease)
        primary.ready.set()


async def _reconcile(node: Node, replica: Replica, primary: Primary) -> None:
    if not primary.secondaries:
        return
    length, tail_checksum, table = await node.io.run(replica.chunk.block_checksums)
    mine = BlockState(length, tail_checksum, table, replica.chunk.append_table_bytes())
    async with trio.open_nursery() as nursery:
        for server in primary.secondaries:
            nursery.start_soon(_make_equal, node, replica, primary, server, mine)


async def _make_equal(node: Node, replica: Replica, primary: Primary, server: ReplicaAddress, mine: BlockState) -> None:
    grant = primary.lease.grant
    try:
        channel = await node.peers.control((server.host, server.port))
        reply, table = await channel.call(
            "Blocks", pb.BlocksRequest(handle=grant.handle, version=grant.version), timeout=_BLOCKS_SECONDS
        )
        theirs = BlockState(reply.length, reply.tail_checksum, bytes(table), reply.clients)
        steps = plan_copy(mine, theirs)
        for step in steps:
            check_version(grant, replica.chunk.version)
            request = pb.ApplyRequest(
                grant=primary.grant_message, serial=0, kind=COPY, length=step.length_after,
                extents=[pb.Extent(offset=step.offset, length=step.size)],
            )  # fmt: skip
            try:
                buffer = await node.io.run(replica.chunk.read_pooled, step.offset, step.size)
            except GfsError as error:
                # Not the other one's fault: this replica must not be the one that the others are made equal to.
                log.warning("event=reconcile_failed chunk=%016x error=%r", grant.handle, str(error))
                node.replicas.found_damage(grant.handle, error)
                primary.lease.fail()
                return
            try:
                await channel.call("Apply", request, buffer.view, mine.clients, timeout=_COPY_SECONDS)
            finally:
                buffer.release()
        if steps:
            log.info(
                "event=reconciled chunk=%016x version=%d server=%s copied_bytes=%d",
                grant.handle, grant.version, server.server_id, sum(step.size for step in steps),
            )  # fmt: skip
    except GfsError as error:
        log.warning(
            "event=reconcile_failed chunk=%016x version=%d server=%s error=%r",
            grant.handle, grant.version, server.server_id, str(error),
        )  # fmt: skip
        primary.lease.fail(server.server_id)
