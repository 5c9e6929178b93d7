"""A whole cluster that heals itself: servers die, come back, are drained; goals change; masters restart."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import check_equal, healed, leases_given_back, replicas_of, until
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, Code, GfsError
from gfscore.client.paths import Paths
from gfscore.ids import TRASH_INODE

QUICK: dict[str, Any] = {"suspect_seconds": 3.0, "down_seconds": 6.0}


async def test_a_server_dies_for_good_while_others_append(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(1).randbytes(7 * CHUNK_BYTES // 2)
    async with memory_cluster(chunkservers=5, **QUICK) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/file", data)
        await paths.write("/log", b"")
        inode = (await paths.stat("/log")).inode
        done = trio.Event()
        offsets: list[int] = []

        async def append() -> None:
            file = await client.open(inode, write=True, append=True)
            while not done.is_set():
                offsets.append(await file.append(b"<%06d>" % len(offsets) * 500))
                await trio.sleep(0.05)
            await file.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(append)
            await trio.sleep(1)
            await cluster.kill("cs2")
            await until(client, lambda status: not healed(status), "the loss to be noticed")
            await until(client, healed, "all chunks back at their goal")
            seen = len(offsets)
            await trio.sleep(1)
            assert len(offsets) > seen, "appends went on"
            done.set()
        await trio.sleep(10)  # simulated: what was stale is collected
        assert await paths.read("/file") == data
        log = await paths.read("/log")
        for number, offset in enumerate(offsets):
            assert log[offset : offset + 4000] == b"<%06d>" % number * 500
        for path in ("/file", "/log"):
            assert all("cs2" not in servers for servers in await check_equal(cluster, client, path, 3))


async def test_two_die_at_once_and_chunks_with_one_copy_come_first(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(
        chunkservers=6, clones_max=1, clones_per_server_max=1, clone_bytes_per_second=400_000, **QUICK
    ) as cluster, cluster.client() as client:  # fmt: skip
        paths = Paths(client, 1, 1)
        for number in range(40):
            await paths.write(f"/f{number}", bytes([number]) * 100_000)
        await leases_given_back()
        before = {number: (await replicas_of(cluster, client, f"/f{number}"))[0] for number in range(40)}
        for name in ("cs1", "cs2"):
            await cluster.kill(name)
        lost = {number: sum(state[0] in ("cs1", "cs2") for state in states) for number, states in before.items()}
        assert {1, 2} <= set(lost.values())
        await until(client, lambda status: status["repairing"]["running"], "the first clone")

        async def at_risk() -> tuple[int, int]:
            """Chunks with one live replica, and those that had two left and have three again."""
            one = again = 0
            for number in range(40):
                chunk = (await client.file_info((await paths.stat(f"/f{number}")).inode))["chunks"][0]
                good = sum(replica["state"] == "good" for replica in chunk["replicas"])
                one += good == 1
                again += lost[number] == 1 and good == 3
            return one, again

        seen = set()
        while not healed(await client.status()):
            seen.add(await at_risk())
            await trio.sleep(0.3)
        assert all(again == 0 for one, again in seen if one > 1), sorted(seen)  # one may be under way
        assert any(one > 1 for one, _ in seen)
        for number in range(40):
            assert await paths.read(f"/f{number}") == bytes([number]) * 100_000
            await check_equal(cluster, client, f"/f{number}", 3)


async def test_the_dead_server_comes_back_and_what_is_too_many_goes(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(2).randbytes(5 * CHUNK_BYTES)
    async with memory_cluster(chunkservers=4, **QUICK) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/file", data)
        await cluster.kill("cs1")
        await until(client, lambda status: not healed(status), "the loss to be noticed")
        await until(client, healed, "all chunks back at their goal")
        await cluster.start("cs1")
        await until(client, lambda s: all(row["state"] == "up" for row in s["chunkservers"]), "its return")
        await until(client, healed, "the surplus to go")
        await trio.sleep(5)
        status = await until(client, healed, "health")
        assert sum(row["chunks"] for row in status["chunkservers"]) == 3 * 5
        await check_equal(cluster, client, "/file", 3)
        assert await paths.read("/file") == data


async def test_a_replica_that_is_gone_when_its_server_comes_back_is_made_anew_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Nobody else can take it: there are as many servers as replicas wanted."""
    async with memory_cluster(chunkservers=3, **QUICK) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", b"data" * 1000)
        await leases_given_back()
        handle = int((await client.file_info((await paths.stat("/f")).inode))["chunks"][0]["handle"], 16)
        await cluster.kill("cs2")
        cluster.disks["cs2"].unlink(f"chunks/{handle & 0xFF:02x}/{handle:016x}")
        await cluster.start("cs2")
        await trio.sleep(30)
        await until(client, healed, "three replicas")
        await check_equal(cluster, client, "/f", 3)


async def test_a_short_absence_moves_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=4, down_seconds=20.0) as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", bytes(3 * CHUNK_BYTES))
        before = await check_equal(cluster, client, "/file", 3)
        await cluster.kill("cs1")
        await trio.sleep(12)
        assert not (await client.status())["repairing"]["queued"]
        await cluster.start("cs1")
        await trio.sleep(20)
        assert await check_equal(cluster, client, "/file", 3) == before


async def test_a_goal_is_raised_and_lowered(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(4).randbytes(2 * CHUNK_BYTES + 5)
    async with memory_cluster(chunkservers=5) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/file", data)
        inode = (await paths.stat("/file")).inode
        for goal in (5, 2, 1, 4):
            await client.set_policy(inode, {"replication": str(goal)})
            await until(client, healed, f"{goal} replicas")
            await trio.sleep(5)
            status = await until(client, healed, f"{goal} replicas")
            assert sum(row["chunks"] for row in status["chunkservers"]) == 3 * goal
            await check_equal(cluster, client, "/file", goal)
            assert await paths.read("/file") == data


async def test_a_master_that_has_just_started_neither_clones_nor_deletes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    options = {"safe_mode_seconds": 50.0, **QUICK}
    async with memory_cluster(chunkservers=5, **options) as cluster:
        async with cluster.client() as client:
            paths = Paths(client, 1, 1)
            await paths.write("/file", bytes(4 * CHUNK_BYTES))
            names = {row["address"].partition(":")[0]: row["id"] for row in (await client.status())["chunkservers"]}
            await cluster.kill("cs1")
            await cluster.kill("master")
            await cluster.start("master")
        async with cluster.client("again") as client:
            await trio.sleep(40)
            status = await client.status()
            assert status["safe_mode"]["active"] and names["cs1"] in status["safe_mode"]["reason"]
            assert not status["repairing"]["queued"] and status["unheard"] == [names["cs1"]]
            assert status["chunks"]["under_replicated"]
            await until(client, healed, "clones after the safe mode's time")
            # A goal that falls: still nothing is deleted, until the operator says that cs1 is gone for ever.
            inode = (await Paths(client).stat("/file")).inode
            held = sum(row["chunks"] for row in (await client.status())["chunkservers"])
            await client.set_policy(inode, {"replication": "2"})
            await trio.sleep(60)
            status = await client.status()
            assert sum(row["chunks"] for row in status["chunkservers"]) == held >= 12
            assert status["safe_mode"]["active"] and status["chunks"]["over_replicated"] == 4
            with pytest.raises(GfsError) as caught:
                await client.operator.forget_server(names["cs2"])
            assert caught.value.code is Code.BUSY
            assert await client.operator.forget_server(names["cs1"]) == names["cs1"]
            status = await until(client, healed, "what is too many to go")
            assert not status["safe_mode"]["active"] and not status["unheard"]
            await check_equal(cluster, client, "/file", 2)


async def test_a_corrupt_replica_is_replaced_from_a_good_one(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(6).randbytes(300_000)
    scrub = {"scrub_bytes_per_second": 1 << 30, "scrub_pause_seconds": 1.0}
    async with memory_cluster(chunkservers=3, server_options=scrub) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/file", data)
        handle = int((await client.file_info((await paths.stat("/file")).inode))["chunks"][0]["handle"], 16)
        file = cluster.disks["cs2"].open(f"chunks/{handle & 0xFF:02x}/{handle:016x}")
        file.pwrite(b"rotten", 200_000)
        file.close()
        await until(client, lambda s: any(cs["scrub"]["bad"] for cs in s["chunkservers"]), "the scrub to find it")
        await until(client, healed, "three good replicas on three servers")
        await trio.sleep(3)
        await check_equal(cluster, client, "/file", 3)


async def test_an_orphan_chunk_is_cloned_too(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=4, **QUICK) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        _, file = await client.create_file(ROOT_INODE, b"open", 0o644, 1, 1)
        await file.write(0, b"still open")
        await file.flush()
        await client.unlink(ROOT_INODE, b"open")
        await paths.write("/other", b"x")
        await cluster.kill("cs1")
        await until(client, lambda status: not healed(status), "the loss to be noticed")
        await until(client, healed, "all chunks back at their goal")
        assert bytes(await file.read(0, 100)) == b"still open"
        await file.close()


async def test_a_clone_made_under_a_lease_gets_what_is_appended_afterwards(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The lease is ended before the copy is a replica: else its primary would go on without it (rule 10)."""
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/log", b"")
        inode = (await Paths(client).stat("/log")).inode
        file = await client.open(inode, write=True, append=True)
        await file.append(b"before")
        await client.set_policy(inode, {"replication": "4"})
        await file.append(b"under the new lease")
        while len((await replicas_of(cluster, client, "/log"))[0]) < 4:
            await file.append(b"while it is copied")
            await trio.sleep(0.01)
        await file.append(b"and after")
        await check_equal(cluster, client, "/log", 4)
        await file.close()


async def test_a_file_made_while_a_server_had_no_room_gets_its_last_replica_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(chunkservers=3) as cluster, cluster.client() as client:
        disk = cluster.disks["cs3"]
        room, disk.capacity = disk.capacity, 1
        await trio.sleep(5)
        await Paths(client, 1, 1).write("/f", b"data")
        assert len((await replicas_of(cluster, client, "/f"))[0]) == 2
        await trio.sleep(20)
        disk.capacity = room
        with trio.fail_after(60):
            while len((await replicas_of(cluster, client, "/f"))[0]) < 3:
                await trio.sleep(1)
        await check_equal(cluster, client, "/f", 3)


@pytest.mark.parametrize("how", ["refused", "silent"])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_source_that_the_destination_cannot_copy_from_is_not_taken_again_and_again(
    which: int, how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_cluster(chunkservers=4, **QUICK) as cluster, cluster.client(caching=False) as client:
        await Paths(client, 1, 1).write("/f", b"data" * 1000)
        await leases_given_back()
        hosts = sorted(state[0] for state in (await replicas_of(cluster, client, "/f"))[0])
        (free,) = set(cluster.names).difference(hosts)
        await cluster.kill(hosts[2])
        if how == "refused":
            cluster.network.disconnect(hosts[which], free)
        else:
            cluster.disks[hosts[which]].hang()
        inode = (await Paths(client).stat("/f")).inode
        try:
            with trio.fail_after(120):
                while free not in str((await client.file_info(inode))["chunks"][0]["replicas"]):
                    await trio.sleep(1)
        finally:
            cluster.disks[hosts[which]].resume()


async def test_deleted_files_come_last(autojump_clock: trio.testing.MockClock) -> None:
    """Those in the trash have their replicas made up for when nothing else is left to do [0071]."""
    async with memory_cluster(
        chunkservers=4, clones_max=1, clones_per_server_max=1, clone_bytes_per_second=400_000, **QUICK
    ) as cluster, cluster.client() as client:  # fmt: skip
        paths = Paths(client, 1, 1)
        for number in range(30):
            await paths.write(f"/f{number}", bytes([number]) * 100_000)
        await leases_given_back()
        for number in range(0, 30, 2):
            await paths.remove(f"/f{number}")
        kept = [entry.attr.inode for entry in await paths.list("/")]
        trash = [entry.attr.inode for entry in await paths.list_inode(TRASH_INODE)]
        assert len(kept) == len(trash) == 15
        await cluster.kill("cs1")
        await until(client, lambda status: status["repairing"]["running"], "the first clone")

        async def missing(inodes: list[int]) -> int:
            found = 0
            for inode in inodes:
                chunk = (await client.file_info(inode))["chunks"][0]
                found += sum(replica["state"] == "good" for replica in chunk["replicas"]) < 3
            return found

        seen = []
        while not healed(await client.status()):
            seen.append((await missing(kept), await missing(trash)))
            await trio.sleep(0.3)
        most = max(there for _, there in seen)
        assert most > 3
        assert all(there >= most - 1 for here, there in seen if here > 1), seen  # one may be under way
