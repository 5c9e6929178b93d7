"""What dead writers and dead primaries leave behind is put right, though nobody asks for the file."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.testing
from cluster_probes import DATA_START, QUIET, fsck, host_of, leave_unequal, replica_path
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client
from gfscore.client.paths import Paths
from gfscore.errors import GfsError
from gfscore.ids import BLOCK_BYTES

LEASE = {"lease_seconds": 5.0}
SETTLED_SECONDS = 60.0


async def all_is_well(client: Client, seconds: float = SETTLED_SECONDS) -> None:
    problems = None
    with trio.move_on_after(seconds):
        while (problems := (await fsck(client)).problems) or (await client.status())["chunks"]["lost"]:
            await trio.sleep(1)
        return
    raise AssertionError(f"still not well: {problems}")


async def all_report(client: Client, seconds: float = SETTLED_SECONDS) -> None:
    with trio.fail_after(seconds):
        while (await client.status())["safe_mode"]["active"]:
            await trio.sleep(0.1)


async def settled(client: Client, path: str, seconds: float = SETTLED_SECONDS) -> None:
    with trio.fail_after(seconds):
        while (await Paths(client).stat(path)).length_pending:
            await trio.sleep(1)


@pytest.mark.parametrize("master_dies", [False, True])
async def test_a_mutation_that_was_half_done_when_writer_and_primary_died(
    master_dies: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        await Paths(client, 1, 1).write("/f", b"")
        primary = await leave_unequal(cluster, client, "/f")
        if master_dies:
            await cluster.restart("master")
        await cluster.start(primary)
        await all_is_well(observer)
        assert not (await Paths(observer).stat("/f")).length_pending
        name = await replica_path(observer, "/f")
        assert len({cluster.disks[host].contents(name)[DATA_START:] for host in cluster.names}) == 1
        cluster.network.reconnect("client", "master")


async def test_a_replica_that_is_away_while_a_new_master_settles_the_file(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its version is the recorded one, and those that answer agree: it was taken back as it was, once."""
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        await Paths(client, 1, 1).write("/f", b"")
        primary = await leave_unequal(cluster, client, "/f")
        await cluster.restart("master")
        await cluster.start(primary)
        await all_report(observer)
        await cluster.kill(primary)
        await settled(observer, "/f")
        await cluster.start(primary)
        await all_is_well(observer)
        cluster.network.reconnect("client", "master")


async def test_a_closed_file_is_settled_too(autojump_clock: trio.testing.MockClock) -> None:
    """The writer closed its file and is well; only then did the primary die, with a lease that nobody used."""
    async with memory_cluster(server_options=QUIET, **LEASE) as cluster, cluster.client(caching=False) as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", b"w" * 3 * BLOCK_BYTES)
        chunk = (await client.file_info((await paths.stat("/f")).inode))["chunks"][0]
        primary, name = await host_of(client, chunk["primary"]), await replica_path(client, "/f")
        older = cluster.disks[primary].contents(name)
        await paths.write("/f", b"half done", BLOCK_BYTES)
        await cluster.kill(primary)
        cluster.disks[primary].put(name, older)
        await cluster.start(primary)
        await all_is_well(client)


@pytest.mark.parametrize("restarted", [(), ("master",), ("cs1",), ("master", "cs1", "cs2", "cs3")])
async def test_a_chunk_inside_the_file_that_its_writer_never_wrote_is_a_hole(
    restarted: tuple[str, ...], autojump_clock: trio.testing.MockClock
) -> None:
    """It once counted as lost for ever: the length, set by a truncation, reaches over it."""
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        paths = Paths(client, 1, 1)
        await paths.write("/f", b"begin")
        inode = (await paths.stat("/f")).inode
        await client.setattr(inode, AttrChanges(size=4 * CHUNK_BYTES))
        await client.open(inode, write=True)
        for index in (1, 2):
            await client._chunks.grant(inode, index, None)
        cluster.network.crash("client")
        cluster.network.disconnect("client", "master")
        for name in restarted:
            await cluster.restart(name)
        await all_is_well(observer)
        await trio.sleep(SETTLED_SECONDS)
        chunks = (await observer.file_info(inode))["chunks"]
        assert [chunk["index"] for chunk in chunks if int(chunk["handle"], 16)] == [0]
        assert await Paths(observer).read("/f") == b"begin".ljust(4 * CHUNK_BYTES, b"\0")
        cluster.network.reconnect("client", "master")


async def test_a_chunk_that_nobody_used_becomes_a_hole_though_its_file_was_settled_before_that_was_sure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """While a server is away that might have it, nobody can know; and then the master starts again."""
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        paths = Paths(client, 1, 1)
        await paths.write("/f", b"begin")
        await paths.write("/f", b"end", 3 * CHUNK_BYTES)
        inode = (await paths.stat("/f")).inode
        await client.setattr(inode, AttrChanges(size=4 * CHUNK_BYTES))
        await client.open(inode, write=True)
        for index in (1, 2):
            await client._chunks.grant(inode, index, None)
        cluster.network.crash("client")
        cluster.network.disconnect("client", "master")
        await cluster.restart("master")
        await all_report(observer)
        await cluster.kill("cs1")
        await settled(observer, "/f")
        await cluster.restart("master")
        await cluster.start("cs1")
        await trio.sleep(SETTLED_SECONDS)
        chunks = (await observer.file_info(inode))["chunks"]
        assert [chunk["index"] for chunk in chunks if int(chunk["handle"], 16)] == [0, 3]
        assert await Paths(observer).read("/f") == (b"begin".ljust(3 * CHUNK_BYTES, b"\0") + b"end").ljust(
            4 * CHUNK_BYTES, b"\0"
        )
        cluster.network.reconnect("client", "master")


async def test_a_chunk_that_was_used_and_is_gone_everywhere_is_lost_and_no_hole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.flush()
        await trio.sleep(3)
        name = await replica_path(client, "/f")
        cluster.network.crash("client")
        cluster.network.disconnect("client", "master")
        for host in ("master", *cluster.names):
            await cluster.kill(host)
        for host in cluster.names:
            cluster.disks[host].unlink(name)
        for host in ("master", *cluster.names):
            await cluster.start(host)
        await trio.sleep(SETTLED_SECONDS)
        assert (await observer.status())["chunks"]["lost"] == 1
        assert [problem.kind for problem in (await fsck(observer)).problems] == ["lost"]
        cluster.network.reconnect("client", "master")


async def test_a_snapshot_does_not_wait_for_a_replica_that_cannot_be_made_equal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its disk is full: it leaves the set instead."""
    async with (
        memory_cluster(chunkservers=3, server_options=QUIET, clones_max=0, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        await Paths(client, 1, 1).write("/f", b"")
        behind = await leave_unequal(cluster, client, "/f", cut=True)
        cluster.disks[behind].capacity = 1
        await cluster.start(behind)
        await trio.sleep(3)
        await Paths(observer, 1, 1).snapshot("/f", "/g")
        data = await Paths(observer).read("/g")
        assert data[BLOCK_BYTES : BLOCK_BYTES + 9] == b"half done" and len(data) == 3 * BLOCK_BYTES
        cluster.network.reconnect("client", "master")


@pytest.mark.parametrize("settled_by", ["a write", "a look"])
async def test_a_chunk_that_nobody_used_holds_up_nothing_while_a_server_is_dead(
    settled_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """A new master does not wait for the dead one of its servers: another one can say that the chunk was never used."""
    async with (
        memory_cluster(chunkservers=4, server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        chunk = (await observer.file_info(attr.inode))["chunks"][0]
        dead = await host_of(observer, chunk["primary"])
        await trio.sleep(3)
        await cluster.kill(dead)
        if settled_by == "a look":
            cluster.network.crash("client")
            cluster.network.disconnect("client", "master")
        await cluster.restart("master")
        if settled_by == "a look":
            await settled(observer, "/f")
            assert not [c for c in (await observer.file_info(attr.inode))["chunks"] if int(c["handle"], 16)]
            cluster.network.reconnect("client", "master")
        else:
            await file.write(0, b"data")
            await file.flush()
            assert await Paths(observer).read("/f") == b"data"


async def test_a_chunk_that_only_a_dead_server_could_have_waits_for_it_or_for_the_operator(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster(server_options=QUIET, replication=1, **LEASE) as cluster,
        cluster.client("observer", caching=False, timeout_seconds=20) as observer,
        cluster.client() as client,
    ):
        attr, _ = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        server = (await observer.file_info(attr.inode))["chunks"][0]["primary"]
        await cluster.kill(await host_of(observer, server))
        cluster.network.crash("client")
        cluster.network.disconnect("client", "master")
        await cluster.restart("master")
        with pytest.raises(GfsError, match="how long"):
            await observer.getattr(attr.inode)
        await observer.operator.forget_server(server)
        assert (await observer.getattr(attr.inode)).size == 0
        cluster.network.reconnect("client", "master")


async def test_a_lease_that_is_given_back_says_nothing_of_the_chunks_behind_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The writer lives and is idle. The primary of its second chunk dies; the lease on the first one is given back."""
    async with (
        memory_cluster(server_options=QUIET, **LEASE) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        primaries = []
        for index in range(len(cluster.names) + 1):  # until the last two chunks have different primaries
            await file.write(index * CHUNK_BYTES, b"data")
            await file.flush()
            primaries = [chunk["primary"] for chunk in (await observer.file_info(attr.inode))["chunks"]]
            if len(set(primaries)) > 1:
                break
        size = (len(primaries) - 1) * CHUNK_BYTES + 4
        assert primaries[-1] not in primaries[:-1]
        await cluster.restart(await host_of(observer, primaries[-1]))
        await trio.sleep(SETTLED_SECONDS)
        assert (await observer.getattr(attr.inode)).size == size
        await file.close()


@pytest.mark.parametrize("seen_by", ["a reader", "a snapshot"])
async def test_chunks_that_were_granted_ahead_do_not_hide_what_was_acknowledged_before_them(
    seen_by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Another writer asked for five chunks behind it, and does not reach any chunkserver."""
    async with (
        memory_cluster(server_options=QUIET) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("appender") as appender,
        cluster.client("writer") as writer,
    ):
        attr, file = await appender.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        assert await file.append(b"record") == 0
        sparse = await writer.open(attr.inode, write=True)
        for host in cluster.names:
            cluster.network.disconnect("writer", host)

        async def write() -> None:
            with contextlib.suppress(GfsError):
                for index in range(1, 6):
                    await sparse.write(index * CHUNK_BYTES, b"x")
                await sparse.flush()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await trio.sleep(5)
            path = "/f"
            if seen_by == "a snapshot":
                await Paths(observer, 1, 1).snapshot("/f", "/g")
                path = "/g"
            assert await Paths(observer).read(path) == b"record"
            nursery.cancel_scope.cancel()
