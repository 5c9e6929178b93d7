"""A lease at work: mutations are put in order, applied here and on every secondary at the same time [0101]-[0103].

A few batches are under way at once; what arrives meanwhile queues and goes together. Whoever submits a mutation may
find itself running the next batch for others too: there is no task behind a lease that could outlive it.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import VerifiedGrant, check_primary
from gfscore.replica.lease import Lease, LeaseState
from gfscore.rpc.transport import PendingCall
from gfscore.server.chunkserver.applying import apply_in_order
from gfscore.server.chunkserver.mutation import Mutation, describe

if TYPE_CHECKING:
    from gfscore.server.chunkserver.node import Node
    from gfscore.server.chunkserver.replicas import Replica

log = logging.getLogger(__name__)

BATCHES_MAX = 2  # under way at once: one is being applied while the answers to the other come in
BATCH_MUTATIONS_MAX = 32
BATCH_BYTES_MAX = 4 * 1024 * 1024
APPLY_SECONDS = 10.0


class _Job:
    """A submitted mutation. `batch` is set when its submitter is to run it."""

    __slots__ = ("batch", "error", "event", "length", "mutation")

    def __init__(self, mutation: Mutation) -> None:
        self.mutation = mutation
        self.event: trio.Event | None = None
        self.batch: _Batch | None = None
        self.error: GfsError | None = None
        self.length = 0


class _Batch:
    __slots__ = ("jobs", "serial")

    def __init__(self, jobs: list[_Job], serial: int) -> None:
        self.jobs = jobs
        self.serial = serial  # of the first


class Primary:
    """The primary's side of one lease on one replica."""

    def __init__(self, node: Node, replica: Replica, grant: VerifiedGrant, message: pb.Grant) -> None:
        self.lease = Lease(grant, node.env.clock.boottime())
        self.ready = trio.Event()  # reconciled, or failed
        self.secondaries = [server for server in grant.replicas if server.server_id != node.server_id]
        self.grant_message = message
        self.appends: dict[int, trio.Event] = {}  # by client: set when the append in flight is over
        self.padded: trio.Event | None = None
        self._node = node
        self._replica = replica
        self._queue: deque[_Job] = deque()
        self._running = 0
        self._quiet: trio.Event | None = None

    async def submit(self, mutation: Mutation) -> int:
        """Have it applied everywhere; the chunk's length in bytes afterwards.

        Its place in the order is taken before the first await. Raises GfsError(REPLICA_FAILED) when a secondary missed
        it, or what went wrong here; the lease has failed then [0103].
        """
        job = _Job(mutation)
        self.lease.in_flight += 1
        if self._running < BATCHES_MAX:
            self._running += 1
            batch = self._make_batch([job])
        else:
            job.event = trio.Event()
            self._queue.append(job)
            await job.event.wait()
            if job.batch is None:
                return _outcome(job)
            batch = job.batch
        # Whoever asked may be gone by now: the mutation is finished all the same, nothing stays half-applied (rule 8).
        with trio.CancelScope(shield=True):
            await self._run(batch)
        return _outcome(job)

    async def quiet(self) -> None:
        """Wait until nothing is under way. With the lease ended before, nothing will be again."""
        while self._running:
            if self._quiet is None:
                self._quiet = trio.Event()
            await self._quiet.wait()

    # ------------------------------------------------------------ batches

    def _make_batch(self, jobs: list[_Job]) -> _Batch:
        serial = self.lease.next_serial()
        for _ in range(len(jobs) - 1):
            self.lease.next_serial()
        return _Batch(jobs, serial)

    async def _run(self, batch: _Batch) -> None:
        try:
            await self._apply_everywhere(batch)
        except GfsError as error:
            _fail(batch.jobs, error)
        except Exception:
            log.exception("event=mutation_failed chunk=%016x", self._replica.handle)
            self.lease.fail()
            _fail(batch.jobs, GfsError(Code.INTERNAL, "a mutation failed, see the log of the primary"))
        finally:
            self.lease.in_flight -= len(batch.jobs)
            for job in batch.jobs:
                if job.event is not None:
                    job.event.set()
            self._next_batch()

    def _next_batch(self) -> None:
        """Hand this one's place to what queued up meanwhile."""
        queue = self._queue
        if queue and self.lease.state is not LeaseState.SERVING:
            refused = list(queue)
            queue.clear()
            self.lease.in_flight -= len(refused)
            _fail(refused, self.refusal())
            for job in refused:
                assert job.event is not None
                job.event.set()
        if not queue:
            self._running -= 1
            if not self._running and self._quiet is not None:
                self._quiet.set()
                self._quiet = None
            return
        jobs = [queue.popleft()]
        size = len(jobs[0].mutation.data or b"")
        while queue and len(jobs) < BATCH_MUTATIONS_MAX:
            size += len(queue[0].mutation.data or b"")
            if size > BATCH_BYTES_MAX:
                break
            jobs.append(queue.popleft())
        leader = jobs[0]
        leader.batch = self._make_batch(jobs)
        assert leader.event is not None
        leader.event.set()

    def refusal(self) -> GfsError:
        """Why no more mutations are taken."""
        try:
            self.lease.check(self._node.env.clock.boottime())
        except GfsError as error:
            return error
        return GfsError(Code.NOT_PRIMARY, "the lease has ended")

    async def _apply_everywhere(self, batch: _Batch) -> None:
        node, lease, grant = self._node, self.lease, self.lease.grant
        if lease.state is not LeaseState.SERVING:
            raise self.refusal()
        try:
            check_primary(grant, node.server_id, node.session, node.env.clock.boottime())
        except GfsError:
            lease.revoke()
            raise
        mutations = [job.mutation for job in batch.jobs]
        failed: dict[str, GfsError] = {}
        local_errors: list[GfsError] = []
        asked: dict[str, PendingCall] = {}
        complete = False
        # No task for each: all are asked first, then this server does its part, then the answers are taken.
        with trio.move_on_after(APPLY_SECONDS):
            await self._ask_secondaries(mutations, batch.serial, asked, failed)
            try:
                length = await apply_in_order(node, self._replica, grant, batch.serial, mutations)
                for job in batch.jobs:
                    job.length = length
            except GfsError as error:
                local_errors.append(error)
            for server_id, pending in list(asked.items()):
                try:
                    await pending.result(APPLY_SECONDS)
                except GfsError as error:
                    failed[server_id] = error
                del asked[server_id]
            complete = True
        if not complete:
            late = GfsError(Code.REPLICA_FAILED, f"not applied everywhere within {APPLY_SECONDS:g} s")
            local_errors.append(late)
            failed.update(dict.fromkeys(asked, late))
        if local_errors or failed:
            self._failed(local_errors, failed, batch.serial)

    async def _ask_secondaries(
        self, mutations: list[Mutation], serial: int, asked: dict[str, PendingCall], failed: dict[str, GfsError]
    ) -> None:
        """Send `Apply` to each; into `asked` come the calls under way, by server."""
        if not self.secondaries:
            return
        peers = self._node.peers
        request, payload = describe(mutations, self.grant_message, serial)
        for server in self.secondaries:
            address = (server.host, server.port)
            try:
                channel = peers.connected(address) or await peers.control(address)
                asked[server.server_id] = await channel.begin("Apply", request, *payload)
            except GfsError as error:
                failed[server.server_id] = error

    def _failed(self, local_errors: list[GfsError], failed: dict[str, GfsError], serial: int) -> None:
        for server_id, error in failed.items():
            log.warning(
                "event=secondary_failed chunk=%016x version=%d serial=%d server=%s error=%r",
                self._replica.handle, self.lease.grant.version, serial, server_id, str(error),
            )  # fmt: skip
            self.lease.fail(server_id)
        if local_errors:
            self.lease.fail()
            log.warning("event=mutation_failed chunk=%016x error=%r", self._replica.handle, str(local_errors[0]))
        self._node.report_failure(self._replica, self.lease)
        if local_errors:
            raise local_errors[0]
        raise GfsError(Code.REPLICA_FAILED, f"not applied by {', '.join(failed)}")


def _fail(jobs: list[_Job], error: GfsError) -> None:
    for job in jobs:
        job.error = error


def _outcome(job: _Job) -> int:
    if job.error is not None:
        # A fresh one: the same error goes to several tasks, and each adds its own traceback.
        raise GfsError(job.error.code, job.error.message)
    return job.length
