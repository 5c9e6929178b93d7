"""Failed secondaries, new versions, reconciliation, revocation, restarts."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import pytest
import trio

from gfscore.checksum import crc32c
from gfscore.env.memory import memory_env
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.reconcile import NO_DOUBT, POWER_LOST, RESTARTED
from gfscore.server.chunkserver import ChunkserverConfig, run_chunkserver

CHUNK_SIZE = 1 << 20
BLOCK = 65536


async def refused(code: Code, call: Any) -> None:
    with pytest.raises(GfsError) as caught:
        await call
    assert caught.value.code is code, caught.value


def failed_reports(cluster: Any) -> list[tuple[int, str]]:
    return [
        (chunk.handle, server)
        for beat in cluster.master.beats
        for chunk, server in zip(beat.failed, beat.failed_servers, strict=True)
    ]


async def test_a_secondary_that_is_gone_fails_the_lease_and_is_reported(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"before", 1)
    gone = cluster.id("c")
    await cluster.kill_server("c")
    await refused(Code.REPLICA_FAILED, cluster.append(grant, b"lost", 2))
    await refused(Code.REPLICA_FAILED, cluster.append(grant, b"lost", 2))
    await trio.sleep(0.5)
    assert failed_reports(cluster) == [(5, gone)]
    assert all(item.error == 0 for item in await cluster.prepare(5, 2, hosts="ab"))
    again = cluster.grant(5, 2, hosts="ab")
    reply = await cluster.append(again, b"lost", 2)
    assert reply.offset == 6, "the retry finds what the first attempt left on the others"
    assert await cluster.equal(5, 2, hosts="ab") == b"beforelost"


async def test_a_record_that_only_a_secondary_has_disappears_in_the_reconciliation(
    autojump_clock: Any, cluster: Any
) -> None:
    await cluster.append(cluster.grant(5), b"before", 1)
    cluster.network.disconnect("a", "c")
    await refused(Code.REPLICA_FAILED, cluster.append(cluster.grant(5), b"half", 2))
    cluster.network.reconnect("a", "c")
    await cluster.prepare(5, 2)
    # c missed it and becomes the primary: what a and b have was never acknowledged.
    reply = await cluster.append(cluster.grant(5, 2, hosts="cab"), b"new!!", 1, client=2, host="c")
    assert reply.offset == 6
    assert await cluster.equal(5, 2) == b"beforenew!!"


async def test_a_replica_that_missed_much_is_made_equal_before_the_first_mutation(
    autojump_clock: Any, cluster: Any
) -> None:
    base = Random(1).randbytes(5 * BLOCK + 100)
    await cluster.write(cluster.grant(5), [(0, base[:60_000])])
    await cluster.prepare(5, 2, hosts="ab")
    await cluster.write(cluster.grant(5, 2, hosts="ab"), [(0, base)])
    item = pb.PrepareRequest.Item(handle=5, version=3, old_version=2)
    for host in "ab":
        await cluster.control(host, "Prepare", pb.PrepareRequest(items=[item]))
    item = pb.PrepareRequest.Item(handle=5, version=3, old_version=1)
    await cluster.control("c", "Prepare", pb.PrepareRequest(items=[item]))
    await cluster.append(cluster.grant(5, 3), b"end", 1)
    assert await cluster.equal(5, 3) == base + b"end"


async def test_an_old_primary_is_fenced_by_one_replica_with_a_newer_version(autojump_clock: Any, cluster: Any) -> None:
    old = cluster.grant(5)
    await cluster.append(old, b"one", 1)
    await cluster.prepare(5, 2, hosts="bc")  # a could not be reached
    await refused(Code.REPLICA_FAILED, cluster.append(old, b"two", 2))
    await cluster.append(cluster.grant(5, 2, hosts="bc"), b"three", 1, client=2, host="b")
    assert await cluster.equal(5, 2, hosts="bc") == b"onethree"
    await refused(Code.STALE_VERSION, cluster.read("a", 5, 2))


async def test_prepare_refuses_other_versions_and_can_be_repeated(autojump_clock: Any, cluster: Any) -> None:
    await cluster.append(cluster.grant(5), b"0123456789", 1)
    assert [item.error for item in await cluster.prepare(5, 4)] == [Code.STALE_VERSION] * 3
    assert [item.version for item in await cluster.prepare(5, 4)] == [1] * 3
    for _ in range(2):
        items = await cluster.prepare(5, 2, truncate=4)
        assert [(item.error, item.version, item.length) for item in items] == [(0, 2, 4)] * 3
    assert [item.error for item in await cluster.prepare(6, 2)] == [Code.UNKNOWN_CHUNK] * 3
    with pytest.raises(GfsError) as caught:
        await cluster.control("a", "Prepare", pb.PrepareRequest(epoch=99))
    assert caught.value.code is Code.UNKNOWN_SESSION
    assert await cluster.equal(5, 2) == b"0123"


async def test_who_said_that_it_lacks_a_chunk_never_creates_it(autojump_clock: Any, cluster: Any) -> None:
    """Neither as the primary nor as a secondary, nor after a restart: the master has put another in its place."""
    grant = cluster.grant(6)
    assert [item.error for item in await cluster.prepare(6, 2, hosts="b")] == [Code.UNKNOWN_CHUNK]
    await refused(Code.REPLICA_FAILED, cluster.append(grant, b"x", 1))
    assert 6 not in cluster.master.reported(cluster.id("b"))
    unused = cluster.grant(7)
    assert [item.error for item in await cluster.prepare(7, 2, hosts="a")] == [Code.UNKNOWN_CHUNK]
    await refused(Code.NOT_PRIMARY, cluster.append(unused, b"x", 1))


async def test_a_chunk_older_than_the_session_is_not_created(autojump_clock: Any, cluster: Any) -> None:
    await cluster.restart_server("b")
    await trio.sleep(2)
    old = cluster.master.known[cluster.id("b")] - 1
    await refused(Code.REPLICA_FAILED, cluster.append(cluster.grant(old), b"x", 1))


async def test_no_mutation_slips_in_behind_a_new_version(autojump_clock: Any, cluster: Any) -> None:
    """Rule 3: the version is checked when a mutation is applied, not when it arrives."""
    grant = cluster.grant(5)
    await cluster.append(grant, b"first", 1)
    record = b"second"
    request = pb.ApplyRequest(
        grant=grant, serial=2, kind=pb.ApplyRequest.APPEND, client_id=1, sequence=2,
        extents=[pb.Extent(offset=5, length=len(record))], checksum=crc32c(record),
    )  # fmt: skip
    lengths = []

    async def prepare() -> None:
        lengths.extend(item.length for item in await cluster.prepare(5, 2, hosts="b"))

    cluster.disk_time["b"].seconds = 0.1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prepare)
        await trio.sleep(0.05)  # the version is being raised
        await refused(Code.STALE_VERSION, cluster.call("b", "Apply", request, record))
    assert len(await cluster.read("b", 5, 2)) == lengths[0]


async def test_a_retry_is_not_acknowledged_before_the_first_attempt_is(autojump_clock: Any, cluster: Any) -> None:
    """Rule 17: a record is on all replicas before anybody hears of its offset."""
    grant = cluster.grant(5)
    await cluster.append(grant, b"before", 1)
    cluster.network.disconnect("a", "c")
    answers: list[Any] = []

    async def one() -> None:
        try:
            answers.append(await cluster.append(grant, b"record", 2))
        except GfsError as error:
            answers.append(error.code)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(one)
    assert answers == [Code.REPLICA_FAILED] * 3


async def test_a_revoked_lease_takes_nothing_even_when_it_was_never_used(autojump_clock: Any, cluster: Any) -> None:
    used, unused = cluster.grant(5), cluster.grant(6)
    await cluster.append(used, b"abc", 1)
    reply = await cluster.control("a", "Revoke", pb.RevokeRequest(handles=[5, 6]))
    assert [(chunk.handle, chunk.length) for chunk in reply.chunks] == [(5, 3)]
    await refused(Code.NOT_PRIMARY, cluster.append(used, b"d", 2))
    await refused(Code.NOT_PRIMARY, cluster.append(unused, b"d", 1))
    await refused(Code.UNKNOWN_CHUNK, cluster.read("a", 6))


async def test_a_revocation_is_answered_after_the_work_in_flight(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"first", 1)
    acknowledged = 5

    async def append(client: int) -> None:
        nonlocal acknowledged
        try:
            await cluster.append(grant, b"x" * 100, 1, client=client)
            acknowledged += 100
        except GfsError as error:
            assert error.code is Code.NOT_PRIMARY

    async with trio.open_nursery() as nursery:
        for client in range(10, 40):
            nursery.start_soon(append, client)
        for _ in range(12):
            await trio.lowlevel.checkpoint()
        reply = await cluster.control("a", "Revoke", pb.RevokeRequest(handles=[5]))
    assert reply.chunks[0].length == acknowledged
    assert len(await cluster.equal(5)) == acknowledged


async def test_a_revocation_says_that_a_mutation_in_flight_missed_a_server(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"first", 1)
    cluster.network.disconnect("a", "b")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refused, Code.REPLICA_FAILED, cluster.append(grant, b"second", 2))
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        reply = await cluster.control("a", "Revoke", pb.RevokeRequest(handles=[5]))
    assert reply.chunks[0].unequal


async def test_an_idle_lease_is_given_back_with_its_length(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"abc", 1)
    await trio.sleep(65)
    released = [(r.handle, r.length) for beat in cluster.master.beats for r in beat.released]
    assert released == [(5, 3)]
    await refused(Code.NOT_PRIMARY, cluster.append(grant, b"d", 2))


async def test_a_server_that_lost_its_master_stops_being_primary(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"abc", 1)
    cluster.network.disconnect("a", "master")
    await trio.sleep(50)
    await cluster.append(grant, b"def", 2)
    await trio.sleep(11)
    await refused(Code.BAD_GRANT, cluster.append(grant, b"ghi", 3))
    assert await cluster.read("a", 5) == b"abcdef", "reads go on"
    cluster.network.reconnect("a", "master")
    await trio.sleep(3)
    await cluster.append(grant, b"ghi", 3)


async def test_a_new_session_voids_the_leases_of_the_old_one(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"abc", 1)
    cluster.master.known.clear()  # the master restarted
    await trio.sleep(3)
    assert cluster.id("a") in cluster.master.known
    await refused(Code.BAD_GRANT, cluster.append(grant, b"d", 2))
    await cluster.prepare(5, 2)
    await cluster.append(cluster.grant(5, 2), b"d", 2)
    assert await cluster.equal(5, 2) == b"abcd"


@pytest.mark.parametrize("host", ["a", "b"])
async def test_after_a_restart_a_replica_waits_for_a_new_version(autojump_clock: Any, cluster: Any, host: str) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"abc", 1)
    server = cluster.id(host)
    await cluster.restart_server(host)
    assert cluster.id(host) == server
    with pytest.raises(GfsError):
        await cluster.append(grant, b"d", 2)
    with pytest.raises(GfsError):
        await cluster.append(cluster.grant(5), b"d", 2)
    await trio.sleep(1)
    assert cluster.master.reported(server)[5][0] == 1
    await cluster.prepare(5, 2)
    await cluster.append(cluster.grant(5, 2), b"d", 2)
    assert await cluster.equal(5, 2) == b"abcd"
    assert (await cluster.append(cluster.grant(5, 2), b"d", 2)).offset == 3


async def test_clones_are_independent_and_reported(autojump_clock: Any, cluster: Any) -> None:
    await cluster.append(cluster.grant(5), b"shared", 1)
    item = pb.CloneRequest.Item(handle=5, version=1, new_handle=6, new_version=1)
    for _ in range(2):
        for host in "abc":
            reply = await cluster.control(host, "Clone", pb.CloneRequest(items=[item]))
            assert [(i.error, i.length) for i in reply.items] == [(0, 6)]
    await cluster.append(cluster.grant(6, fresh=False), b"+new", 2)
    assert await cluster.equal(6) == b"shared+new"
    assert await cluster.equal(5) == b"shared"
    await trio.sleep(2)
    assert 6 in cluster.master.reported(cluster.id("c"))


async def test_a_clone_is_as_doubtful_as_what_it_was_made_of(autojump_clock: Any, cluster: Any) -> None:
    await cluster.write(cluster.grant(5), [(0, b"synced")], sync=True)
    doubts = []
    for number, power_fails in enumerate((None, False, True)):
        if power_fails is not None:
            await cluster.kill_server("b")
            if power_fails:
                cluster.disks["b"].crash(Random(1))
            await cluster.start_server("b")
        item = pb.CloneRequest.Item(handle=5, version=1, new_handle=6 + number, new_version=1)
        doubts.append((await cluster.control("b", "Clone", pb.CloneRequest(items=[item]))).items[0].doubt)
    assert doubts == [NO_DOUBT, RESTARTED, POWER_LOST]


async def test_what_the_master_does_not_know_is_collected_unless_it_changed_since(
    autojump_clock: Any, cluster: Any
) -> None:
    for handle in (5, 6):
        await cluster.append(cluster.grant(handle), b"x", 1)
    cluster.master.collect[cluster.id("a")] = [5]
    await trio.sleep(2)
    await refused(Code.UNKNOWN_CHUNK, cluster.read("a", 5))
    assert await cluster.read("a", 6) == b"x"
    await cluster.control("a", "Collect", pb.CollectRequest(handles=[6, 7]))
    await refused(Code.UNKNOWN_CHUNK, cluster.read("a", 6))
    info = await cluster.control("a", "Info", pb.Empty())
    assert info.chunks == 0 and info.calls["Append"] == 2


async def test_a_collection_that_answers_an_older_state_deletes_nothing(autojump_clock: Any, cluster: Any) -> None:
    await cluster.append(cluster.grant(5), b"x", 1)

    await cluster.kill_server("b")
    await cluster.kill_server("c")
    cluster.master.before_reply = lambda: cluster.prepare(5, 2, hosts="a")
    cluster.master.collect[cluster.id("a")] = [5]
    await trio.sleep(3)
    assert not cluster.master.collect, "the heartbeat was answered"
    assert await cluster.read("a", 5, 2) == b"x"


async def test_the_first_report_lists_everything_in_slices(autojump_clock: Any, cluster: Any) -> None:
    for handle in range(11, 16):
        await cluster.append(cluster.grant(handle), b"x" * handle, 1)
    cluster.master.beats.clear()
    await cluster.restart_server("b")
    await trio.sleep(0.5)
    beats = [beat for beat in cluster.master.beats if beat.server_id == cluster.id("b") and beat.first_report]
    assert [len(beat.report) for beat in beats] == [2, 2, 1]
    assert [beat.last_of_first for beat in beats] == [False, False, True]
    assert cluster.master.reported(cluster.id("b")) == {handle: (1, handle) for handle in range(11, 16)}


async def test_a_flipped_byte_is_never_served_and_is_reported(autojump_clock: Any, cluster: Any) -> None:
    await cluster.write(cluster.grant(5), [(0, bytes(100_000))])
    path = next(path for path in cluster.disks["b"].paths() if path.endswith(f"{5:016x}"))
    cluster.disks["b"].corrupt(path, len(cluster.disks["b"].contents(path)) - 10)
    await refused(Code.CHECKSUM_MISMATCH, cluster.read("b", 5))
    await trio.sleep(1)
    assert any(r.corrupt for beat in cluster.master.beats for r in beat.report if beat.server_id == cluster.id("b"))
    item = (await cluster.control("b", "Inspect", pb.InspectRequest(handles=[5], verify=True))).items[0]
    assert item.error == Code.CHECKSUM_MISMATCH
    item = (await cluster.control("a", "Inspect", pb.InspectRequest(handles=[5], verify=True))).items[0]
    assert (item.error, item.length, item.primary) == (0, 100_000, True)


@pytest.mark.parametrize(("host", "code"), [("a", Code.NO_SPACE), ("b", Code.REPLICA_FAILED)])
async def test_a_full_disk_fails_the_mutation_and_nothing_else(
    autojump_clock: Any, cluster: Any, host: str, code: Code
) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"before", 1)
    cluster.disks[host].faults.fail_operation("pwrite", errno.ENOSPC)
    await refused(code, cluster.append(grant, b"lost", 1, client=2))
    cluster.disks[host].faults.fail_operation("pwrite", None)
    await cluster.prepare(5, 2)
    hosts = "abc" if host == "a" else "bac"
    await cluster.append(cluster.grant(5, 2, hosts=hosts), b"after", 1, client=3, host=host)
    assert await cluster.equal(5, 2) == b"beforeafter"


async def test_a_failed_sync_ends_the_process(autojump_clock: Any, cluster: Any) -> None:
    """Rule 20."""
    env = memory_env(cluster.network.transport("d"), seed=4)
    config = ChunkserverConfig(master="master:7000", advertise_host="d")
    ended: list[BaseException] = []

    async def run(*, task_status: Any) -> None:
        try:
            await run_chunkserver(config, env, task_status=task_status)
        except Exception as error:
            ended.append(error)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        await trio.sleep(0.5)
        grant = cluster.grant(5, hosts="d")
        await cluster.append(grant, b"x", 1, host="d")
        env.disk.faults.fail_operation("fdatasync", errno.EIO)
        with pytest.raises(GfsError):
            await cluster.call("d", "Write", pb.WriteRequest(grant=grant, sync=True))
        with trio.fail_after(5):
            while not ended:
                await trio.sleep(0.1)
    assert "fdatasync" in str(ended[0])


async def test_directories_of_others_are_refused(autojump_clock: Any, cluster: Any) -> None:
    config = ChunkserverConfig(master="master:7000", advertise_host="a2")
    with pytest.raises(GfsError) as caught:
        await run_chunkserver(config, memory_env(cluster.network.transport("a2"), disk=cluster.disks["a"]))
    assert caught.value.code is Code.BUSY
    await cluster.kill_server("a")
    cluster.master.cluster_id = "cluster-2"
    with pytest.raises(GfsError) as caught:
        await run_chunkserver(config, memory_env(cluster.network.transport("a2"), disk=cluster.disks["a"]))
    assert caught.value.code is Code.WRONG_CLUSTER


async def test_who_lost_power_is_no_witness_for_chunks_of_before(cluster: Any, autojump_clock: Any) -> None:
    """It says that it does not have them; whether it ever had them nobody knows. What was granted since it is sure of,
    also after it has registered again."""
    master = cluster.master
    await cluster.kill_server("a")
    cluster.disks["a"].crash(Random(1))
    master._epoch = 100
    await cluster.start_server("a")

    async def doubts() -> list[int]:
        items = [(await cluster.prepare(handle, 2, hosts="a"))[0] for handle in (50, 150)]
        assert [item.error for item in items] == [Code.UNKNOWN_CHUNK] * 2
        return [item.doubt for item in items]

    assert await doubts() == [POWER_LOST, NO_DOUBT]
    master._epoch = 200
    session = master.known.pop(master.by_host["a"].id)  # its next heartbeat is refused
    with trio.fail_after(30):
        while master.known.get(master.by_host["a"].id, session) == session:
            await trio.sleep(0.5)
    assert await doubts() == [POWER_LOST, NO_DOUBT]
