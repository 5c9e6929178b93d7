"""The primary's side of one lease: its life, the serial numbers it gives out, and the state it plans with.

    RECONCILING ──> SERVING ──> FAILED      a replica missed a mutation, or this one could not apply it
         │             ├──────> REVOKED     the master took it back, or a newer version replaced it (──> FAILED)
         └──> FAILED   └──────> RELEASED    idle, given back

Nothing leads back: a lease that ended is replaced by one with a new version. Mutations are planned one after the
other without waiting for earlier ones; when one fails the lease fails, so a plan never has to be taken back.
"""

from __future__ import annotations

from enum import Enum, auto

from gfscore.errors import Code, GfsError
from gfscore.replica.append import AppendAt, AppendSlot, Decision, decide_append
from gfscore.replica.grants import VerifiedGrant


class LeaseState(Enum):
    RECONCILING = auto()
    SERVING = auto()
    FAILED = auto()
    REVOKED = auto()
    RELEASED = auto()


_REFUSALS = {
    LeaseState.FAILED: (Code.REPLICA_FAILED, "a replica missed a mutation: ask the master for a new lease"),
    LeaseState.REVOKED: (Code.NOT_PRIMARY, "the lease was revoked"),
    LeaseState.RELEASED: (Code.NOT_PRIMARY, "the lease was idle and has been given back"),
    LeaseState.RECONCILING: (Code.NOT_READY, "the replicas are being made equal"),
}


class Lease:
    """One lease at its primary. Times are seconds of the lease clock, sizes bytes."""

    __slots__ = ("_pending", "failed_servers", "grant", "in_flight", "last_used", "planned_length", "serial", "state")

    def __init__(self, grant: VerifiedGrant, now: float) -> None:
        self.grant = grant
        self.state = LeaseState.RECONCILING
        self.last_used = now
        self.in_flight = 0  # mutations that are planned and not finished
        self.serial = 0  # the last one given out
        self.planned_length = 0
        self.failed_servers: set[str] = set()
        self._pending: dict[int, AppendSlot] = {}  # appends in flight, by client

    @property
    def ended(self) -> bool:
        """Whether it will never take a mutation again."""
        return self.state in (LeaseState.FAILED, LeaseState.REVOKED, LeaseState.RELEASED)

    def serve(self, length: int) -> None:
        """All replicas are equal and `length` bytes long: mutations may begin."""
        if self.state is LeaseState.RECONCILING:
            self.state = LeaseState.SERVING
            self.planned_length = length

    def fail(self, server_id: str | None = None) -> None:
        """`server_id` (None: the primary itself) missed a mutation; nothing may follow it under this lease [0103].

        Also one that was on its way when the lease was revoked: then the replicas differ, and who revoked has to know.
        """
        if server_id is not None:
            self.failed_servers.add(server_id)
        if self.state is not LeaseState.RELEASED:
            self.state = LeaseState.FAILED

    def revoke(self) -> None:
        """The master takes it back. Before the replicas were made equal they differ, and who revokes has to know."""
        if self.state is LeaseState.RECONCILING:
            self.state = LeaseState.FAILED
        elif self.state is not LeaseState.FAILED:
            self.state = LeaseState.REVOKED

    def release_if_idle(self, now: float, idle_seconds: float) -> bool:
        """Give it back when nothing was asked of it for `idle_seconds`; True when that happened just now."""
        if self.state is not LeaseState.SERVING or self.in_flight or now - self.last_used < idle_seconds:
            return False
        self.state = LeaseState.RELEASED
        return True

    def check(self, now: float) -> None:
        """Raises GfsError unless mutations are taken: REPLICA_FAILED, NOT_PRIMARY or NOT_READY."""
        if self.state is not LeaseState.SERVING:
            code, message = _REFUSALS[self.state]
            raise GfsError(code, f"chunk {self.grant.handle}: {message}")
        self.last_used = now

    # ------------------------------------------------------------ planning

    def next_serial(self) -> int:
        """The next place in the order of mutations [0101]."""
        self.serial += 1
        return self.serial

    def check_extents(self, extents: list[tuple[int, int]], data_length: int) -> None:
        """Raises GfsError(INVALID) unless the (offset, length) pairs lie in the chunk and add up to the data."""
        total = 0
        for offset, length in extents:
            if not length or offset + length > self.grant.chunk_size:
                raise GfsError(Code.INVALID, f"extent of {length} bytes at {offset} is empty or leaves the chunk")
            total += length
        if total != data_length or not extents:
            raise GfsError(Code.INVALID, f"extents of {total} bytes for {data_length} bytes of data")

    def planned_write(self, extents: list[tuple[int, int]]) -> None:
        """A write of these extents has its place in the order."""
        for offset, length in extents:
            self.planned_length = max(self.planned_length, offset + length)

    def plan_append(
        self, client_id: int, sequence: int, record_length: int, floor: int, slot: AppendSlot | None
    ) -> Decision:
        """Where this record goes, after everything planned before; see `decide_append`. `slot`: from the replica."""
        pending = self._pending.get(client_id)
        if pending is not None and (slot is None or pending.sequence > slot.sequence):
            slot = pending
        decision = decide_append(self.planned_length, floor, self.grant.chunk_size, record_length, slot, sequence)
        if isinstance(decision, AppendAt):
            self.planned_length = decision.offset + record_length
            self._pending[client_id] = AppendSlot(sequence, decision.offset, record_length)
        return decision

    def pending_append(self, client_id: int, sequence: int) -> bool:
        """Whether this very append is still on its way to the replicas."""
        pending = self._pending.get(client_id)
        return pending is not None and pending.sequence == sequence

    def append_finished(self, client_id: int, sequence: int) -> None:
        """All replicas have it, or the lease has failed: the replica's own slot tells from now on."""
        if self.pending_append(client_id, sequence):
            del self._pending[client_id]

    def planned_pad(self) -> None:
        """The chunk is being filled up to its end."""
        self.planned_length = self.grant.chunk_size
