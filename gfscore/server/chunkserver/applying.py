"""Applying mutations to the local replica in serial order, on primary and secondaries alike [0101]-[0102].

Version and turn are checked under the replica's lock, at the moment of applying, not on arrival (rule 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gfscore.errors import Code, GfsError
from gfscore.replica.grants import VerifiedGrant, check_version
from gfscore.replica.reconcile import NO_DOUBT, RESTARTED
from gfscore.replica.serial import Turn
from gfscore.server.chunkserver.mutation import Mutation
from gfscore.storage.chunk_store import Chunk

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.replicas import Replica

QUICK_BYTES_MAX = 64 * 1024  # up to here a mutation costs less than the way to a thread and back
STRAGGLER_SECONDS = 2.0  # how long a mutation waits for the one before it


async def apply_in_order(
    node: Node, replica: Replica, grant: VerifiedGrant, serial: int, mutations: Sequence[Mutation]
) -> int:
    """Apply `mutations`, numbered from `serial`, when it is their turn; the chunk's length in bytes afterwards.

    Those that were applied before are skipped. Raises GfsError: STALE_VERSION, SERIAL_GAP, or what the disk says; after
    a failure the replica takes no more mutations of this version.
    """
    try:
        return await _apply_in_turn(node, replica, grant, serial, mutations)
    except GfsError as error:
        node.replicas.found_damage(replica.handle, error)
        raise


async def _apply_in_turn(
    node: Node, replica: Replica, grant: VerifiedGrant, serial: int, mutations: Sequence[Mutation]
) -> int:
    while True:
        check_version(grant, replica.chunk.version)
        if replica.gate.check(serial) is Turn.LATER:
            await replica.wait_turn(STRAGGLER_SECONDS)
            continue
        await replica.take_lock()
        try:
            check_version(grant, replica.chunk.version)
            if replica.gate.check(serial) is not Turn.LATER:
                return await _apply_locked(node, replica, grant, serial, mutations)
        finally:
            replica.lock.release()
            replica.wake()


async def _apply_locked(
    node: Node, replica: Replica, grant: VerifiedGrant, serial: int, mutations: Sequence[Mutation]
) -> int:
    gate = replica.gate
    last = serial + len(mutations) - 1
    if gate.applied >= last:
        gate.check(last)
        return gate.result(last)
    if gate.closed:
        raise GfsError(Code.SERIAL_GAP, "this replica takes no mutations of this version any more")
    new = mutations[gate.applied + 1 - serial :]
    chunk = replica.chunk
    try:
        run = node.io.quick if sum(mutation.cost for mutation in new) <= QUICK_BYTES_MAX else node.io.run
        length = await run(_apply_all, chunk, new, grant.pad_byte)
    except BaseException:
        gate.close()
        replica.doubt = max(replica.doubt, RESTARTED)
        raise
    for number in range(gate.applied + 1, last + 1):
        gate.done(number, length)
    replica.mtime_ns = node.env.clock.wall_ns()
    replica.doubt = NO_DOUBT
    return length


def _apply_all(chunk: Chunk, mutations: Sequence[Mutation], pad_byte: int) -> int:
    for mutation in mutations:
        mutation.apply(chunk, pad_byte)
    return chunk.length
