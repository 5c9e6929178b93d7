"""What a client had written when it disappeared counts, whoever goes on writing the file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from memory_cluster import MemoryCluster, memory_cluster

from gfscore.client import ROOT_INODE, Client, OpenFile

LEASE_SECONDS = 5.0
COMMITTED_SECONDS = 5.0
LONG, SHORT = b"x" * 1000, b"y" * 50


@asynccontextmanager
async def two_writers(made_by: str) -> AsyncIterator[tuple[MemoryCluster, Client, OpenFile, OpenFile]]:
    """The cluster, a client that stays, its handle of a file, and that of a client `gone`, which writes too."""
    async with (
        memory_cluster(lease_seconds=LEASE_SECONDS) as cluster,
        cluster.client("maker") as maker,
        cluster.client("stays") as stays,
        cluster.client("gone") as gone,
    ):
        attr, theirs = await (maker if made_by == "another" else gone).create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        if made_by == "another":
            await theirs.close()
            await trio.sleep(COMMITTED_SECONDS)
            theirs = await gone.open(attr.inode, write=True)
        ours = await stays.open(attr.inode, write=True)
        yield cluster, stays, ours, theirs
        cluster.network.reconnect("gone", "master")


async def write(file: OpenFile, data: bytes) -> None:
    await file.write(0, data)
    await file.flush()


def disappears(cluster: MemoryCluster) -> None:
    cluster.network.crash("gone")
    cluster.network.disconnect("gone", "master")


async def length_is(cluster: MemoryCluster, client: Client, inode: int, wanted: int) -> None:
    async with cluster.client("observer", caching=False) as observer:
        assert [(await each.getattr(inode)).size for each in (client, observer)] == [wanted] * 2


@pytest.mark.parametrize("made_by", ["itself", "another"])
async def test_who_goes_on_writing_does_not_cut_what_the_other_wrote(
    made_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The last one's close was taken for the length of the file: of 1000 bytes 50 were left."""
    async with two_writers(made_by) as (cluster, stays, ours, theirs):
        await write(ours, SHORT)
        await write(theirs, LONG)
        disappears(cluster)
        for _ in range(20):
            await trio.sleep(LEASE_SECONDS / 5)  # so that the lease stays
            await write(ours, SHORT)
        await length_is(cluster, stays, ours.inode, len(LONG))
        await ours.close()
        await trio.sleep(COMMITTED_SECONDS)
        await length_is(cluster, stays, ours.inode, len(LONG))


@pytest.mark.parametrize("made_by", ["itself", "another"])
@pytest.mark.parametrize("away_seconds", [0, 1, 3, 5, 7, 9, 11])
async def test_who_begins_to_write_before_that_is_settled_does_not_cut_it(
    away_seconds: float, made_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with two_writers(made_by) as (cluster, stays, ours, theirs):
        await write(theirs, LONG)
        disappears(cluster)
        await trio.sleep(2)
        for name in cluster.names:
            await cluster.kill(name)
        await trio.sleep(away_seconds)
        for name in cluster.names:
            await cluster.start(name)
        await write(ours, SHORT)
        await length_is(cluster, stays, ours.inode, len(LONG))
        await ours.close()
        await trio.sleep(COMMITTED_SECONDS)
        await length_is(cluster, stays, ours.inode, len(LONG))


async def test_who_begins_to_write_after_it_is_settled_asks_for_the_length(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It had seen the file while the other one wrote, and was called back about nothing since."""
    async with two_writers("itself") as (cluster, stays, ours, theirs):
        await write(theirs, LONG)
        await stays.getattr(ours.inode)
        disappears(cluster)
        await trio.sleep(60)
        await write(ours, SHORT)
        assert len(await ours.read(0, 2 * len(LONG))) == len(LONG)
        await length_is(cluster, stays, ours.inode, len(LONG))
        await ours.close()
        await trio.sleep(COMMITTED_SECONDS)
        await length_is(cluster, stays, ours.inode, len(LONG))


async def test_who_closes_after_it_is_settled_asks_for_the_length(autojump_clock: trio.testing.MockClock) -> None:
    """The master settled the length because it was asked for after the servers' restart."""
    async with two_writers("itself") as (cluster, stays, ours, theirs):
        await write(ours, SHORT)
        await write(theirs, LONG)
        await stays.getattr(ours.inode)
        for name in cluster.names:
            await cluster.restart(name)
        await trio.sleep(0.5)
        async with cluster.client("observer", caching=False) as observer:
            assert (await observer.getattr(ours.inode)).size == len(LONG)
        disappears(cluster)
        await trio.sleep(20)
        await ours.close()
        await trio.sleep(COMMITTED_SECONDS)
        await length_is(cluster, stays, ours.inode, len(LONG))
