"""The fence, the session and the life of a lease."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfscore.ids import ChunkHandle, ChunkVersion, Epoch, ServerId
from gfscore.replica.append import AppendAt, AppendSlot, Duplicate
from gfscore.replica.grants import ReplicaAddress, Session, VerifiedGrant, check_primary, check_version
from gfscore.replica.lease import Lease, LeaseState

GRANT = VerifiedGrant(
    handle=ChunkHandle(7),
    version=ChunkVersion(3),
    primary=ServerId("a"),
    primary_epoch=Epoch(9),
    replicas=(ReplicaAddress(ServerId("a"), "h", 1), ReplicaAddress(ServerId("b"), "h", 2)),
    fresh=True,
    length_floor=0,
    chunk_size=1 << 20,
    pad_byte=0,
    sync=False,
)


def session(epoch: int = 9, sent_at: float = 0.0) -> Session:
    made = Session()
    made.registered(Epoch(epoch), 60.0, sent_at)
    return made


def serving(length: int = 0) -> Lease:
    lease = Lease(GRANT, 0.0)
    lease.serve(length)
    return lease


def refused(code: Code, lease: Lease) -> None:
    with pytest.raises(GfsError) as caught:
        lease.check(1.0)
    assert caught.value.code is code


def test_a_session_counts_from_the_sending_of_the_heartbeat_that_was_answered() -> None:
    held = session(sent_at=100.0)
    assert held.valid(159.9) and not held.valid(160.0)
    held.heard(Epoch(9), 130.0)
    assert held.valid(189.9) and not held.valid(190.0)
    held.heard(Epoch(9), 120.0)  # an answer that was overtaken shortens nothing
    assert held.valid(189.9)
    held.heard(Epoch(8), 500.0)  # of an earlier session
    assert not held.valid(200.0)


@pytest.mark.parametrize(
    ("grant", "held", "now", "code"),
    [
        (replace(GRANT, primary=ServerId("b")), session(), 1.0, Code.NOT_PRIMARY),
        (GRANT, session(epoch=10), 1.0, Code.BAD_GRANT),
        (GRANT, session(), 60.0, Code.BAD_GRANT),
    ],
)
def test_a_grant_for_another_server_session_or_time_is_refused(
    grant: VerifiedGrant, held: Session, now: float, code: Code
) -> None:
    with pytest.raises(GfsError) as caught:
        check_primary(grant, "a", held, now)
    assert caught.value.code is code


def test_a_grant_that_holds_passes_and_another_version_is_stale() -> None:
    check_primary(GRANT, "a", session(), 59.0)
    check_version(GRANT, 3)
    for version in (2, 4):
        with pytest.raises(GfsError) as caught:
            check_version(GRANT, version)
        assert caught.value.code is Code.STALE_VERSION


def test_no_mutation_before_reconciliation_and_none_after_the_end() -> None:
    lease = Lease(GRANT, 0.0)
    refused(Code.NOT_READY, lease)
    lease.serve(10)
    lease.check(1.0)
    lease.fail("b")
    refused(Code.REPLICA_FAILED, lease)
    lease.revoke()
    lease.serve(10)
    assert lease.state is LeaseState.FAILED and lease.failed_servers == {"b"}


def test_revoked_is_not_primary() -> None:
    lease = serving()
    lease.revoke()
    refused(Code.NOT_PRIMARY, lease)


def test_a_mutation_that_fails_after_the_revocation_is_not_forgotten() -> None:
    """Who revoked the lease would take the replicas for equal."""
    lease = serving()
    lease.in_flight = 1
    lease.revoke()
    lease.fail("s2")
    assert lease.state is LeaseState.FAILED and lease.failed_servers == {"s2"}


def test_only_an_idle_lease_without_work_in_flight_is_given_back() -> None:
    lease = serving()
    lease.check(10.0)
    lease.in_flight = 1
    assert not lease.release_if_idle(100.0, 60.0)
    lease.in_flight = 0
    assert not lease.release_if_idle(69.9, 60.0)
    assert lease.release_if_idle(70.0, 60.0)
    refused(Code.NOT_PRIMARY, lease)
    assert not lease.release_if_idle(200.0, 60.0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 1000)), max_size=60))
def test_planned_appends_never_overlap(records: list[tuple[int, int]]) -> None:
    lease = serving(length=50)
    sequences = dict.fromkeys(range(4), 0)
    end = 50
    for client, size in records:
        sequences[client] += 1
        decision = lease.plan_append(client, sequences[client], size, 0, None)
        assert decision == AppendAt(end)
        end += size


def test_the_retry_of_an_append_in_flight_gets_its_offset() -> None:
    lease = serving()
    assert lease.plan_append(1, 1, 100, 0, None) == AppendAt(0)
    assert lease.plan_append(2, 1, 100, 0, None) == AppendAt(100)
    assert lease.pending_append(1, 1)
    assert lease.plan_append(1, 1, 100, 0, None) == Duplicate(0)
    lease.append_finished(1, 1)
    assert not lease.pending_append(1, 1)
    assert lease.plan_append(1, 1, 100, 0, AppendSlot(1, 0, 100)) == Duplicate(0)


@pytest.mark.parametrize("extents", [[], [(0, 0)], [(0, 5)], [((1 << 20) - 5, 10)], [(0, 5), (10, 6)]])
def test_extents_that_do_not_fit_chunk_or_data_are_refused(extents: list[tuple[int, int]]) -> None:
    with pytest.raises(GfsError) as caught:
        serving().check_extents(extents, 10)
    assert caught.value.code is Code.INVALID
