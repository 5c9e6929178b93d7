"""A server is drained: it ends up empty, and nothing is lost on the way."""

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
from gfscore.server.master.state import MasterState

QUICK: dict[str, Any] = {"suspect_seconds": 3.0, "down_seconds": 6.0}


async def test_draining_empties_a_server_and_survives_a_restart(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(3).randbytes(9 * CHUNK_BYTES // 2)
    async with memory_cluster(chunkservers=4, clone_bytes_per_second=100_000) as cluster:
        async with cluster.client() as client:
            paths = Paths(client, 1, 1)
            await paths.write("/file", data)
            await paths.write("/open", b"abc")
            reply = await client.operator.drain((await client.status())["chunkservers"][0]["address"])
            drained = reply["id"]
            assert reply["state"] == "draining"
            await cluster.restart("master")
        async with cluster.client("again") as client:
            paths = Paths(client, 1, 1)

            def row(status: dict[str, Any]) -> dict[str, Any]:
                found = [row for row in status["chunkservers"] if row["id"] == drained]
                return found[0] if found else {"state": "not back yet"}

            seen = await until(client, lambda status: row(status)["state"] == "draining", "draining")
            assert row(seen)["chunks_left"] == row(seen)["chunks"]
            await paths.write("/new", bytes(2 * CHUNK_BYTES))
            status = await until(client, lambda status: row(status)["state"] == "drained", "it to be empty")
            assert row(status)["chunks"] == 0
            await until(client, healed, "health")
            assert await paths.read("/file") == data
            for path in ("/file", "/open", "/new"):
                await check_equal(cluster, client, path, 3)
            await client.operator.drain(drained, cancel=True)
            await until(client, lambda status: row(status)["state"] == "up", "the end of it")


@pytest.mark.parametrize("appended", [False, True])
async def test_what_is_written_when_the_servers_of_its_grant_are_drained_goes_elsewhere(
    appended: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A new file is open for long before its first byte; what is acknowledged must not go with servers that are off."""
    async with memory_cluster(chunkservers=6, **QUICK) as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        chunk = (await client.file_info(file.inode))["chunks"][0]
        drained = {replica["chunkserver"]: replica["address"].split(":")[0] for replica in chunk["replicas"]}
        await trio.sleep(20)
        for server in drained:
            await client.operator.drain(server)

        def empty(status: dict[str, Any]) -> bool:
            return all(row["state"] == "drained" for row in status["chunkservers"] if row["id"] in drained)

        await until(client, empty, "three empty servers", 30)
        if appended:
            assert await file.append(b"acknowledged") == 0
        else:
            await file.write(0, b"acknowledged")
            await file.fsync()
        for host in drained.values():
            await cluster.kill(host)
        await file.close()
        async with cluster.client("reader", timeout_seconds=20) as reader:
            assert await Paths(reader).read("/log") == b"acknowledged"


async def test_the_room_of_a_server_that_is_drained_is_not_free(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        for disk in cluster.disks.values():
            disk.capacity = 30 * CHUNK_BYTES
        await trio.sleep(3)
        before = await client.statfs()
        await client.operator.drain((await client.status())["chunkservers"][0]["id"])
        after = await client.statfs()
        assert after.free_bytes < 0.8 * before.free_bytes and after.total_bytes == before.total_bytes


async def test_a_drain_that_was_refused_is_not_in_force_and_can_be_asked_for_again(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no room in the log is forgotten by the next start: it must not look as if it had worked."""
    async with memory_cluster() as cluster:
        async with cluster.client() as client:
            server = (await client.status())["chunkservers"][0]["id"]

            def full(self: MasterState, size: int, batch: object) -> None:
                raise GfsError(Code.NO_SPACE, "the disk of the master is full")

            with monkeypatch.context() as patch, pytest.raises(GfsError):
                patch.setattr(MasterState, "_need_room", full)
                await client.operator.drain(server)
            assert (await client.status())["chunkservers"][0]["state"] == "up"
            await client.operator.drain(server)
            await cluster.restart("master")
        async with cluster.client("again") as client:
            await until(client, lambda s: any(row["state"] == "drained" for row in s["chunkservers"]), "emptiness")


async def test_draining_one_of_as_many_as_the_goal_keeps_the_replicas(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=3) as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", b"abc")
        server = (await client.status())["chunkservers"][0]["id"]
        await client.operator.drain(server)
        await trio.sleep(100)
        status = await client.status()
        assert status["chunkservers"][0]["state"] == "draining" and status["chunkservers"][0]["chunks_left"] == 1
        await check_equal(cluster, client, "/file", 3)


async def test_an_appended_file_leaves_a_draining_server_too(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/log", b"")
        file = await client.open((await paths.stat("/log")).inode, write=True, append=True)
        records = [b"record %05d" % number for number in range(1200)]
        offsets = []
        drained = ""
        for number, record in enumerate(records):
            offsets.append(await file.append(record))
            if number == 100:
                servers = (await check_equal(cluster, client, "/log", 3))[0]
                rows = (await client.status())["chunkservers"]
                drained = next(row["id"] for row in rows if row["address"].startswith(min(servers)))
                await client.operator.drain(drained)
            await trio.sleep(0.05)
        await file.close()
        log = await paths.read("/log")
        assert [log[offset : offset + 12] for offset in offsets] == records
        assert len(log) == 12 * len(records)
        status = await until(client, lambda s: any(r["state"] == "drained" for r in s["chunkservers"]), "emptiness")
        assert [row["id"] for row in status["chunkservers"] if row["state"] == "drained"] == [drained]
        await check_equal(cluster, client, "/log", 3)


@pytest.mark.parametrize("given_up_by", ["draining", "a lower goal"])
async def test_a_replica_that_was_given_up_stays_when_it_has_become_the_last_one(
    given_up_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Its server is down when that is decided, and comes back when those with the other replicas are gone."""
    async with memory_cluster(chunkservers=3, replication=2) as cluster, cluster.client(caching=False) as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", b"data" * 1000)
        await leases_given_back()
        hosts = sorted(state[0] for state in (await replicas_of(cluster, client, "/f"))[0])
        ids = {row["address"].partition(":")[0]: row["id"] for row in (await client.status())["chunkservers"]}
        silent = max(hosts, key=lambda host: ids[host])  # all else being equal, its replica is the surplus one
        if given_up_by == "draining":
            await client.operator.drain(ids[silent])
        await cluster.kill(silent)
        if given_up_by == "a lower goal":
            await client.set_policy((await paths.stat("/f")).inode, {"replication": "1"})
        await trio.sleep(20)
        for host in cluster.names:
            if host != silent:
                await cluster.kill(host)
        await trio.sleep(60)
        await cluster.start(silent)
        await trio.sleep(60)
        assert await paths.read("/f") == b"data" * 1000
