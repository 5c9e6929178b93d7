"""What `gfs fsck` does, on a cluster in memory: every problem named, and none that is only a change under way."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from cluster_probes import DATA_START, QUIET, fsck, host_of, leases_given_back, replica_path
from memory_cluster import CHUNK_BYTES, MemoryCluster, memory_cluster

from gfscore.client import ROOT_INODE, Client
from gfscore.client.paths import Paths
from gfscore.client.verify import Verifier
from gfscore.ids import BLOCK_BYTES
from gfscore.server.master import admin
from gfscore.storage import chunk_format as fmt


async def found(client: Client, verifier: Verifier) -> list[tuple[str, int, str, str]]:
    return [
        (problem.path, problem.index, problem.kind, await host_of(client, problem.server) if problem.server else "")
        for problem in verifier.problems
    ]


async def swap(cluster: MemoryCluster, host: str, path: str, contents: bytes) -> None:
    """Another file in the place of a chunk's, while its server is down."""
    await cluster.kill(host)
    cluster.disks[host].put(path, contents)
    await cluster.start(host)
    await trio.sleep(3)


async def test_links_and_snapshots_are_verified_once_and_all_is_well(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(server_options=QUIET, clones_max=0) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.makedirs("/d")
        await paths.write("/d/f", bytes(2 * CHUNK_BYTES + 5))
        await paths.write("/d/g", b"x")
        await client.link((await paths.stat("/d/g")).inode, ROOT_INODE, b"link")
        await paths.snapshot("/d", "/e")
        verifier = await fsck(client)
        assert (verifier.chunks, verifier.replicas, verifier.problems) == (4, 12, [])
        assert set(verifier.replicas_by_server.values()) == {4}


async def test_a_file_of_any_size_is_verified_and_told_of(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pages, as one answer cannot hold more; and holes are nothing to tell, however many there are."""
    monkeypatch.setattr(admin, "_FILE_INFO_CHUNKS", 2)
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/fine", bytes(5 * CHUNK_BYTES))
        await paths.write("/sparse", b"x", 1_000_000 * CHUNK_BYTES)
        cluster.disks["cs1"].corrupt(await replica_path(client, "/fine", 4), DATA_START + 7)
        cluster.disks["cs2"].corrupt(await replica_path(client, "/sparse", -1), DATA_START)
        verifier = await fsck(client)
        assert verifier.files == 2
        assert await found(client, verifier) == [
            ("/fine", 4, "corrupt", "cs1"),
            ("/sparse", 1_000_000, "corrupt", "cs2"),
        ]
        told = await client.file_info((await paths.stat("/fine")).inode)
        assert [chunk["index"] for chunk in told["chunks"]] == [0, 1, 2, 3, 4] and told["length"] == 5 * CHUNK_BYTES


async def test_what_a_server_has_that_was_not_heard_of_is_not_called_lost(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(replication=1, server_options=QUIET) as cluster:
        async with cluster.client() as client:
            paths = Paths(client, 1, 1)
            await paths.write("/f", b"data")
            await leases_given_back()
            chunk = (await client.file_info((await paths.stat("/f")).inode))["chunks"][0]
            host = chunk["replicas"][0]["address"].split(":")[0]
        await cluster.kill(host)
        await cluster.restart("master")
        async with cluster.client("again") as client:
            await trio.sleep(40)
            assert (await client.status())["chunks"]["lost"] == 0
            (problem,) = (await fsck(client)).problems
            assert problem.kind == "unreachable" and chunk["replicas"][0]["chunkserver"] in problem.message
            await client.operator.forget_server(chunk["replicas"][0]["chunkserver"])
            assert (await client.status())["chunks"]["lost"] == 1
            assert [problem.kind for problem in (await fsck(client)).problems] == ["lost"]


async def test_every_kind_of_problem_is_named_by_its_path(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(1)
    async with memory_cluster(server_options=QUIET, clones_max=0) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        for name in ("block", "header", "table", "gone", "lost", "fine"):
            await paths.write(f"/{name}", rng.randbytes(CHUNK_BYTES + 2 * BLOCK_BYTES))
        disks = cluster.disks
        disks["cs1"].corrupt(await replica_path(client, "/block", 1), DATA_START + 7)
        disks["cs2"].corrupt(await replica_path(client, "/header"), fmt.PAGE_BYTES + 7)
        disks["cs3"].corrupt(await replica_path(client, "/table"), fmt.TABLE_START + 7)
        disks["cs1"].unlink(await replica_path(client, "/gone"))
        for name in cluster.names:
            disks[name].corrupt(await replica_path(client, "/lost"), DATA_START + 7)
        assert sorted(await found(client, await fsck(client))) == [
            ("/block", 1, "corrupt", "cs1"),
            ("/gone", 0, "missing", "cs1"),
            ("/header", 0, "corrupt", "cs2"),
            *(("/lost", 0, "corrupt", name) for name in cluster.names),
            ("/lost", 0, "lost", ""),
            ("/table", 0, "corrupt", "cs3"),
        ]
        assert (await fsck(client, "/fine")).problems == []


async def test_damage_that_is_repaired_while_it_looks_is_named(autojump_clock: trio.testing.MockClock) -> None:
    """The repair begins with what fsck itself finds, and is often done before a second look."""
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", bytes(CHUNK_BYTES))
        path = await replica_path(client, "/f")
        await leases_given_back()
        cluster.disks["cs1"].corrupt(path, DATA_START + 7)
        cluster.disks["cs2"].unlink(path)
        verifier = client.verifier(lambda _more, _verified: None)
        await verifier.check("/f", (await paths.stat("/f")).inode)
        assert await found(client, verifier) == [("/f", 0, "corrupt", "cs1"), ("/f", 0, "missing", "cs2")]
        with trio.fail_after(60):
            while (await fsck(client)).problems:
                await trio.sleep(1)
        await verifier.settle()
        assert await found(client, verifier) == [("/f", 0, "corrupt", "cs1")]


async def test_a_server_that_is_down_and_what_it_missed(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(server_options=QUIET, clones_max=0) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", bytes(1000))
        await paths.write("/other", bytes(1000))
        await cluster.kill("cs2")
        assert await found(client, await fsck(client)) == [
            ("/f", 0, "unreachable", "cs2"),
            ("/other", 0, "unreachable", "cs2"),
        ]
        await paths.write("/f", b"new", 10)
        await cluster.start("cs2")
        await trio.sleep(3)
        assert await found(client, await fsck(client)) == [("/f", 0, "stale", "cs2")]


async def test_too_few_and_too_many_replicas(autojump_clock: trio.testing.MockClock) -> None:
    two = memory_cluster(chunkservers=2, replication=3, server_options=QUIET, clones_max=0)
    async with two as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/f", bytes(1000))
        assert await found(client, await fsck(client)) == [("/f", 0, "under_replicated", "")]
    two = memory_cluster(chunkservers=2, replication=1, server_options=QUIET, clones_max=0)
    async with two as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/f", bytes(1000))
        path = await replica_path(client, "/f")
        have, other = sorted(cluster.names, key=lambda name: path not in cluster.disks[name].paths())
        await leases_given_back()
        await swap(cluster, other, path, cluster.disks[have].contents(path))
        assert await found(client, await fsck(client)) == [("/f", 0, "over_replicated", "")]


async def test_replicas_that_differ_are_found_when_no_lease_is_active_and_become_equal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(server_options=QUIET, clones_max=0) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", bytes(3 * BLOCK_BYTES))
        path = await replica_path(client, "/f")
        older = cluster.disks["cs2"].contents(path)
        await paths.write("/f", b"new", BLOCK_BYTES)
        version = (await client.file_info((await paths.stat("/f")).inode))["chunks"][0]["version"]
        await leases_given_back()
        await swap(cluster, "cs2", path, older)
        verifier = await fsck(client)
        assert await found(client, verifier) == [("/f", 0, "unequal", "")]
        ((inode, index),) = verifier.unequal()
        await client.reconcile(inode, index)
        await verifier.recheck()
        assert verifier.problems == []
        await leases_given_back()
        info = await client.file_info(inode)
        assert info["chunks"][0]["version"] > version and info["length"] == 3 * BLOCK_BYTES
        assert (await fsck(client)).problems == []
        attr = await paths.stat("/f")
        assert not attr.length_pending and attr.size == 3 * BLOCK_BYTES


async def test_what_is_well_at_a_second_look_is_no_problem(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(server_options=QUIET, clones_max=0) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", bytes(3 * BLOCK_BYTES))
        path = await replica_path(client, "/f")
        older = cluster.disks["cs2"].contents(path)
        await paths.write("/f", b"new", BLOCK_BYTES)
        await leases_given_back()
        await swap(cluster, "cs2", path, older)
        verifier = client.verifier(lambda more, done: None)
        inode = (await paths.stat("/f")).inode
        await verifier.check("/f", inode)
        assert [problem.kind for problem in verifier.problems] == ["unequal"]
        await client.reconcile(inode, 0)
        await verifier.settle()
        assert verifier.problems == []


async def test_no_false_alarm_while_files_are_written_made_and_deleted(autojump_clock: trio.testing.MockClock) -> None:
    four = memory_cluster(chunkservers=4, server_options=QUIET, clones_max=0)
    async with four as cluster, cluster.client("writer") as writer, cluster.client("checker") as checker:
        paths = Paths(writer, 1, 1)
        _, unwritten = await writer.create_file(ROOT_INODE, b"unwritten", 0o644, 1, 1)
        stop = trio.Event()

        async def append() -> None:
            while not stop.is_set():
                await paths.append("/log", b"record" * 5000)
                await trio.sleep(0.01)

        async def overwrite() -> None:
            rng = random.Random(2)
            _, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
            while not stop.is_set():
                await file.write(rng.randrange(CHUNK_BYTES), rng.randbytes(1000))
                await file.flush()
                await trio.sleep(0.01)
            await file.close()

        async def come_and_go() -> None:
            number = 0
            while not stop.is_set():
                await paths.write(f"/t{number}", bytes(100))
                if number >= 3:
                    await paths.remove(f"/t{number - 3}")
                number += 1
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            for work in (append, overwrite, come_and_go):
                nursery.start_soon(work)
            await trio.sleep(1)
            for _ in range(5):
                verifier = await fsck(checker)
                assert verifier.problems == [] and verifier.replicas >= 6
            stop.set()
        await unwritten.close()
