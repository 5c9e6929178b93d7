"""Copies of whole chunks between servers: equal, durable, verified, never taken for a replica too early (rule 10)."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
import trio

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.reconcile import NO_DOUBT, POWER_LOST

HANDLE = 77


async def filled(cluster: Any, size: int) -> bytes:
    """A chunk on a and b, with an append table."""
    grant = cluster.grant(HANDLE, hosts="ab")
    data = Random(size).randbytes(size)
    for start in range(0, size, 300_000):
        await cluster.write(grant, [(start, data[start : start + 300_000])])
    await cluster.append(grant, b"a record", 5, client=9)
    return data + b"a record"


async def replicate(cluster: Any, version: int = 1, **fields: Any) -> pb.ReplicateReply:
    request = pb.ReplicateRequest(handle=HANDLE, version=version, source=cluster.master.by_host["a"], **fields)
    return await cluster.control("c", "Replicate", request)  # type: ignore[no-any-return]


async def test_a_finished_copy_is_a_replica_and_survives_a_kill(cluster: Any, autojump_clock: Any) -> None:
    data = await filled(cluster, 700_001)
    reply = await replicate(cluster, finish=True)
    assert (reply.source_error, reply.length, reply.copied_bytes) == (0, len(data), len(data))
    assert await cluster.equal(HANDLE, hosts="abc") == data
    assert not (await replicate(cluster, finish=True)).copied_bytes  # asked again: there already
    await cluster.restart_server("c")
    assert await cluster.equal(HANDLE, hosts="abc") == data


async def test_an_unfinished_copy_is_nothing_and_is_gone_after_a_restart(cluster: Any, autojump_clock: Any) -> None:
    await filled(cluster, 500_000)
    assert (await replicate(cluster)).copied_bytes == 500_008
    with pytest.raises(GfsError) as caught:
        await cluster.read("c", HANDLE)
    assert caught.value.code is Code.UNKNOWN_CHUNK
    await cluster.restart_server("c")
    assert not [path for path in cluster.disks["c"].listdir(f"chunks/{HANDLE:02x}")]


async def test_what_changed_meanwhile_is_copied_when_it_is_finished(cluster: Any, autojump_clock: Any) -> None:
    data = bytearray(await filled(cluster, 5 * BLOCK_BYTES + 100))
    await replicate(cluster)
    grant = cluster.grant(HANDLE, hosts="ab")
    await cluster.write(grant, [(BLOCK_BYTES + 3, b"changed")])
    data[BLOCK_BYTES + 3 : BLOCK_BYTES + 10] = b"changed"
    offset = (await cluster.append(grant, b"one more", 6, client=9)).offset
    assert offset == len(data)
    await cluster.prepare(HANDLE, 2, hosts="ab")
    reply = await replicate(cluster, 2, finish=True)
    assert 0 < reply.copied_bytes <= 3 * BLOCK_BYTES and not reply.source_error
    assert await cluster.equal(HANDLE, 2, hosts="abc") == bytes(data) + b"one more"
    # The append table came along: the retry of an append is recognised at the new replica.
    await cluster.prepare(HANDLE, 3)
    retried = await cluster.append(cluster.grant(HANDLE, 3, hosts="cab"), b"one more", 6, client=9, host="c")
    assert retried.offset == offset


async def test_a_new_replica_takes_no_mutation_of_an_older_grant(cluster: Any, autojump_clock: Any) -> None:
    await filled(cluster, 1000)
    await replicate(cluster, finish=True)
    request = pb.ApplyRequest(
        grant=cluster.grant(HANDLE, hosts="abc"), serial=1, extents=[pb.Extent(offset=0, length=1)],
        checksum=crc32c(b"x"),
    )  # fmt: skip
    with pytest.raises(GfsError) as caught:
        await cluster.call("c", "Apply", request, b"x")
    assert caught.value.code is Code.SERIAL_GAP
    assert (await cluster.read("c", HANDLE))[:1] == (await cluster.read("a", HANDLE))[:1]


async def test_an_older_replica_is_replaced_and_a_newer_one_is_not(cluster: Any, autojump_clock: Any) -> None:
    grant = cluster.grant(HANDLE)
    await cluster.write(grant, [(0, b"on all three")])
    await cluster.prepare(HANDLE, 2, hosts="ab")
    await cluster.write(cluster.grant(HANDLE, 2, hosts="ab"), [(0, b"ON")])
    assert await cluster.read("c", HANDLE) == b"on all three"
    await replicate(cluster, 2, finish=True)
    assert await cluster.equal(HANDLE, 2, hosts="abc") == b"ON all three"
    await cluster.prepare(HANDLE, 3, hosts="c")
    with pytest.raises(GfsError) as caught:
        await replicate(cluster, 2, finish=True)
    assert caught.value.code is Code.STALE_VERSION
    assert await cluster.read("c", HANDLE, 3) == b"ON all three"


async def test_a_corrupt_source_is_found_before_anything_is_a_replica(cluster: Any, autojump_clock: Any) -> None:
    await filled(cluster, 900_000)
    path = next(p for p in (f"chunks/{HANDLE:02x}/{HANDLE:016x}",) if cluster.disks["a"].exists(p))
    file = cluster.disks["a"].open(path)
    file.pwrite(b"not what was written", 400_000)
    file.close()
    await cluster.restart_server("a")
    reply = await replicate(cluster, finish=True)
    assert reply.source_error == Code.CHECKSUM_MISMATCH
    with pytest.raises(GfsError):
        await cluster.read("c", HANDLE)


async def test_a_source_that_is_gone_or_has_nothing_is_named(cluster: Any, autojump_clock: Any) -> None:
    assert (await replicate(cluster, finish=True)).source_error == Code.UNKNOWN_CHUNK
    await filled(cluster, 1000)
    assert (await replicate(cluster, 2, finish=True)).source_error == Code.STALE_VERSION
    source = pb.Server()
    source.CopyFrom(cluster.master.by_host["a"])
    await cluster.kill_server("a")
    request = pb.ReplicateRequest(handle=HANDLE, version=1, source=source, finish=True)
    assert (await cluster.control("c", "Replicate", request)).source_error == Code.UNREACHABLE


@pytest.mark.parametrize("why", ["unreachable", "stale", "not there"])
async def test_a_source_that_fails_is_not_the_only_one(cluster: Any, autojump_clock: Any, why: str) -> None:
    data = await filled(cluster, 300_000)
    version = 1
    if why == "unreachable":
        cluster.network.disconnect("a", "c")
    elif why == "stale":
        await cluster.prepare(HANDLE, 2, hosts="b")
        version = 2
    else:
        await cluster.control("a", "Collect", pb.CollectRequest(handles=[HANDLE]))
    reply = await replicate(cluster, version, finish=True, others=[cluster.master.by_host["b"]])
    assert (reply.source_error, reply.length) == (0, len(data))
    assert await cluster.equal(HANDLE, version, hosts="bc") == data


async def test_a_full_disk_ends_the_copy_and_takes_nothing(cluster: Any, autojump_clock: Any) -> None:
    data = await filled(cluster, 900_000)
    disk = cluster.disks["c"]
    disk.capacity = disk.capacity - disk.space()[1] + 400_000
    free = disk.space()[1]
    with pytest.raises(GfsError) as caught:
        await replicate(cluster, finish=True)
    assert caught.value.code is Code.NO_SPACE
    assert disk.space()[1] == free
    disk.capacity += 2_000_000
    await replicate(cluster, finish=True)
    assert await cluster.equal(HANDLE, hosts="abc") == data


async def test_a_limited_copy_takes_its_time(cluster: Any, autojump_clock: Any) -> None:
    await filled(cluster, 800_000)
    began = trio.current_time()
    await replicate(cluster, finish=True, bytes_per_second=100_000)
    assert 8 <= trio.current_time() - began < 12


async def test_a_replica_that_is_being_deleted_is_not_taken_for_the_copy(cluster: Any, autojump_clock: Any) -> None:
    """Its disk is slow: the master believed in a second replica, and could have the other one deleted then."""
    data = await filled(cluster, 100_000)
    await replicate(cluster, finish=True)
    cluster.disk_time["c"].seconds = 5.0
    cluster.master.collect[cluster.id("c")] = [HANDLE]
    await trio.sleep(2)
    with pytest.raises(GfsError) as caught:
        await replicate(cluster, finish=True)
    assert caught.value.code is Code.BUSY
    await trio.sleep(10)
    cluster.disk_time["c"].seconds = 0.0
    assert (await replicate(cluster, finish=True)).copied_bytes == len(data)
    assert await cluster.equal(HANDLE, hosts="abc") == data


async def test_a_wish_to_delete_the_older_replica_spares_the_copy_that_takes_its_place(
    cluster: Any, autojump_clock: Any
) -> None:
    grant = cluster.grant(HANDLE)
    await cluster.write(grant, [(0, b"on all three")])
    await cluster.prepare(HANDLE, 2, hosts="ab")
    await replicate(cluster, 2)
    cluster.disk_time["c"].seconds = 3.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(replicate, cluster, 2, finish=True))
        await trio.sleep(7)  # the copy is being put in place
        cluster.master.collect[cluster.id("c")] = [HANDLE]
    await trio.sleep(10)
    cluster.disk_time["c"].seconds = 0.0
    assert await cluster.equal(HANDLE, 2, hosts="abc") == b"on all three"


async def test_a_copy_is_as_doubtful_as_its_source(cluster: Any, autojump_clock: Any) -> None:
    """What a power cut took from the source, the copy lacks too: it must not become primary over a better one."""
    grant = cluster.grant(HANDLE, hosts="ab")
    await cluster.write(grant, [(0, b"on the disk")], sync=True)
    await cluster.kill_server("a")
    cluster.disks["a"].crash(Random(1))
    await cluster.start_server("a")
    await replicate(cluster, finish=True)
    assert [item.doubt for item in await cluster.prepare(HANDLE, 2, hosts="abc")] == [POWER_LOST, NO_DOUBT, POWER_LOST]
