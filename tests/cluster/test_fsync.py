"""What fsync was answered for is on the disks of all replicas."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges
from gfscore.client.paths import Paths


@pytest.mark.parametrize("how", ["write", "append", "opened again", "opened again to read"])
async def test_what_was_synced_survives_a_power_cut(how: str, autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(server_options={"scrub_bytes_per_second": 0}) as cluster:
        async with cluster.client() as client:
            attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
            for offset in (0, CHUNK_BYTES):
                if how == "append":
                    await file.append(b"record")
                else:
                    await file.write(offset, b"record")
            if how.startswith("opened again"):
                await file.close()
                await trio.sleep(5)
                file = await client.open(attr.inode, write=how == "opened again")
            await file.fsync()
            size = (await client.getattr(attr.inode)).size
            await file.close()
            for name in ("master", *cluster.names):
                await cluster.kill(name)
                cluster.disks[name].crash(random.Random(1))
            for name in ("master", *cluster.names):
                await cluster.start(name)
        async with cluster.client("again", timeout_seconds=30) as client:
            await trio.sleep(10)
            data = await Paths(client).read("/f")
            assert len(data) == size and bytes(data).startswith(b"record") and bytes(data).endswith(b"record")


async def test_a_sync_by_a_reader_leaves_no_lease_behind(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"data")
        reader = await client.open(attr.inode)
        await file.close()
        await reader.fsync()
        assert not (await observer.getattr(attr.inode)).length_pending
        assert client.info()["uncommitted"] == 0
        await reader.close()


async def test_a_sync_of_what_is_on_the_disks_asks_nobody(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.fsync()
        await file.close()
        await trio.sleep(5)
        file = await client.open((await client.lookup(ROOT_INODE, b"f")).inode, write=True)
        before = client.info()["calls"]
        await file.fsync()
        assert client.info()["calls"] == before
        await file.close()


async def test_a_sync_waits_for_another_one_that_has_taken_over_its_chunks(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two programs append to one log and sync it: neither may be told that its record is safe before it is."""
    async with memory_cluster() as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.append(b"record")
        write: Any = client._mutator.write
        synced = False

        async def slow(*args: Any, **options: Any) -> Any:
            nonlocal synced
            await trio.sleep(5)
            reply = await write(*args, **options)
            synced = True
            return reply

        client._mutator.write = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.sleep(1)
            await file.fsync()
            assert synced
        await file.close()


@pytest.mark.parametrize("who", ["one", "two"])
async def test_an_fsync_after_a_cut_makes_no_hole_before_the_next_record(
    who: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        while await file.append(bytes(200_000)) < CHUNK_BYTES:
            pass
        cutter = one if who == "one" else two
        await cutter.setattr(attr.inode, AttrChanges(size=0))
        await file.fsync()
        assert await file.append(b"first") == 0
        await file.close()
