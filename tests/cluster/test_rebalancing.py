"""Replicas move to where they belong: racks, new servers, disks that others fill; and that comes to an end."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import check_equal, healed, leases_given_back, replicas_of, until
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client.paths import Paths
from gfscore.storage import chunk_format as fmt

QUICK: dict[str, Any] = {"suspect_seconds": 3.0, "down_seconds": 6.0}


async def test_all_replicas_in_one_rack_get_one_in_another(autojump_clock: trio.testing.MockClock) -> None:
    racks = {"cs1": "near", "cs2": "near", "cs3": "near"}
    async with memory_cluster(
        chunkservers=3, replication=2, racks={**racks, "cs4": "far"}
    ) as cluster, cluster.client() as client:  # fmt: skip
        await Paths(client, 1, 1).write("/file", bytes(3 * CHUNK_BYTES))
        await trio.sleep(10)
        await cluster.start("cs4")
        await trio.sleep(30)
        await until(client, healed, "health")
        for servers in await check_equal(cluster, client, "/file", 2):
            assert "cs4" in servers


async def test_a_new_server_is_filled_gently(autojump_clock: trio.testing.MockClock) -> None:
    capacity = 40 * 1024 * 1024
    async with memory_cluster(
        chunkservers=3, replication=2, rebalance_moves_max=1, clone_bytes_per_second=2 * CHUNK_BYTES
    ) as cluster, cluster.client() as client:  # fmt: skip
        for disk in cluster.disks.values():
            disk.capacity = 2 * capacity
        paths = Paths(client, 1, 1)
        data = random.Random(7).randbytes(18 * CHUNK_BYTES)
        await paths.write("/file", data)
        await leases_given_back()
        cluster.disks["cs4"] = type(cluster.disks["cs1"])()
        cluster.disks["cs4"].capacity = 2 * capacity
        await cluster.start("cs4")
        most = 0
        for _ in range(120):
            status = await client.status()
            most = max(most, status["repairing"]["running"])
            await trio.sleep(0.25)
        await trio.sleep(100)
        status = await until(client, healed, "health")
        chunks = sorted(row["chunks"] for row in status["chunkservers"])
        assert most == 1 and sum(chunks) == 36 and chunks[0] >= 5, (most, chunks)
        assert await paths.read("/file") == data
        await check_equal(cluster, client, "/file", 2)


async def test_nothing_is_moved_to_a_disk_that_others_have_filled(autojump_clock: trio.testing.MockClock) -> None:
    """Nor is it tried again and again: that alone kept the master busy for ever."""
    async with memory_cluster(chunkservers=2, replication=1) as cluster, cluster.client() as client:
        for disk in cluster.disks.values():
            disk.capacity = 40 * CHUNK_BYTES
        cluster.disks["cs1"].put("backup", bytes(37 * CHUNK_BYTES))  # not ours
        await trio.sleep(3)
        await Paths(client, 1, 1).write("/file", random.Random(7).randbytes(12 * CHUNK_BYTES))
        await trio.sleep(30)
        total, free = cluster.disks["cs1"].space()
        assert free >= total // 20


async def test_a_new_server_is_filled_although_one_chunk_cannot_be_repaired(
    autojump_clock: trio.testing.MockClock,
) -> None:
    scrub = {"scrub_bytes_per_second": 1 << 30, "scrub_pause_seconds": 1.0}
    async with memory_cluster(3, replication=2, server_options=scrub) as cluster, cluster.client() as client:
        for disk in cluster.disks.values():
            disk.capacity = 80 * CHUNK_BYTES
        paths = Paths(client, 1, 1)
        await paths.write("/file", random.Random(7).randbytes(18 * CHUNK_BYTES))
        await paths.write("/bad", bytes(1000))
        await leases_given_back()
        handle = int((await client.file_info((await paths.stat("/bad")).inode))["chunks"][0]["handle"], 16)
        for host, *_ in (await replicas_of(cluster, client, "/bad"))[0]:
            cluster.disks[host].corrupt(f"chunks/{handle & 0xFF:02x}/{handle:016x}", fmt.data_start(CHUNK_BYTES) + 5)
        await until(client, lambda status: status["chunks"]["lost"] == 1, "it to be noticed")
        cluster.disks["cs4"] = type(cluster.disks["cs1"])()
        cluster.disks["cs4"].capacity = 80 * CHUNK_BYTES
        await cluster.start("cs4")
        await trio.sleep(200)
        assert min(row["chunks"] for row in (await client.status())["chunkservers"]) >= 5


async def test_moves_come_to_an_end_on_small_disks_too(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_cluster(chunkservers=3, replication=1) as cluster, cluster.client() as client:
        for disk in cluster.disks.values():
            disk.capacity = 10 * CHUNK_BYTES
        await trio.sleep(3)
        await Paths(client, 1, 1).write("/file", random.Random(7).randbytes(4 * CHUNK_BYTES))
        await leases_given_back()
        caplog.set_level(logging.INFO)
        await trio.sleep(60)
        assert not [record for record in caplog.records if "event=replicated" in record.message]
