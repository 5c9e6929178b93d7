"""A fresh grant makes no replica anew where one was: what is acknowledged under it would be on none that counts."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import EAGER, QUIET, chunk_path, chunks_of, fsck, host_of, replica_path, states, until, wait_until
from memory_cluster import memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges
from gfscore.client.paths import Paths
from gfscore.server.chunkserver import server

QUICK: dict[str, Any] = {"suspect_seconds": 3.0, "down_seconds": 6.0}


@pytest.mark.parametrize("replication", [1, 2])
@pytest.mark.parametrize("caching", [False, True])
async def test_a_write_after_the_primary_was_drained_is_on_all_replicas(
    replication: int, caching: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        memory_cluster(chunkservers=3, replication=replication, server_options=QUIET, **QUICK) as cluster,
        cluster.client("admin") as admin,
        cluster.client(caching=caching) as client,
    ):
        _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        await file.write(0, b"a" * 1000)
        await file.flush()
        chunk = (await client.file_info(file.inode))["chunks"][0]
        drained = chunk["primary"]
        grant = client._chunks.known_grant(file.inode, 0)
        assert grant is not None and grant.body.fresh
        await admin.operator.drain(drained)

        def empty(status: dict[str, Any]) -> bool:
            return all(row["state"] == "drained" for row in status["chunkservers"] if row["id"] == drained)

        await until(admin, empty, "an empty server", 30)
        await file.write(1000, b"b" * 1000)
        await file.fsync()  # acknowledged: on the disks of all replicas
        await file.close()
        await trio.sleep(3)
        async with cluster.client("reader", timeout_seconds=20) as reader:
            data = await Paths(reader).read("/log")
            assert data == b"a" * 1000 + b"b" * 1000, (len(data), data[990:1010])


async def test_a_piece_that_is_pushed_while_the_primary_is_drained_is_on_all_replicas(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The writer is called back, but one piece has its grant in hand already and is slow to be pushed."""
    async with (
        memory_cluster(chunkservers=3, replication=2, server_options=QUIET, **QUICK) as cluster,
        cluster.client("admin") as admin,
        cluster.client() as client,
    ):
        _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        await file.write(0, b"a" * 1000)
        await file.flush()
        drained = (await client.file_info(file.inode))["chunks"][0]["primary"]
        push, go_on = client._mutator.push, trio.Event()

        async def slow(*args: Any) -> int:
            result = await push(*args)
            await go_on.wait()  # the answer of the last server of the chain is late
            return result

        client._mutator.push = slow  # type: ignore[method-assign]
        await file.write(1000, b"b" * 100_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.sleep(1)
            await admin.operator.drain(drained)

            def empty(status: dict[str, Any]) -> bool:
                return all(row["state"] == "drained" for row in status["chunkservers"] if row["id"] == drained)

            await until(admin, empty, "an empty server", 30)
            go_on.set()
        await file.close()
        await trio.sleep(3)
        async with cluster.client("reader", timeout_seconds=20) as reader:
            data = await Paths(reader).read("/log")
            assert data == b"a" * 1000 + b"b" * 100_000, (len(data), data[990:1010])


async def test_what_is_written_after_the_primary_lost_its_file_is_on_all_replicas(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The file of the primary's replica is gone, which a check finds while the lease is in use."""
    async with (
        memory_cluster(chunkservers=3, server_options=QUIET, clones_max=0, **QUICK) as cluster,
        cluster.client("admin") as admin,
        cluster.client() as client,
    ):
        _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        for number in range(3):
            await file.write(number * 1000, b"a" * 1000)
            await file.flush()
        primary = await host_of(client, (await client.file_info(file.inode))["chunks"][0]["primary"])
        name = await replica_path(client, "/log")
        nodes = [replica for replica in NODES if replica.address.host == primary]
        store = nodes[0].store
        chunk = store.get(int(name.rsplit("/", 1)[1], 16))
        assert chunk.close_if_idle()  # as when many other chunks were used meanwhile
        cluster.disks[primary].unlink(name)
        await fsck(admin)  # or the scrub, or another reader: the server notices that it lost the file
        for number in range(3, 6):  # each is retried by itself until it is acknowledged
            await file.write(number * 1000, b"b" * 1000)
            await file.fsync()
        await file.close()
        await trio.sleep(30)
        async with cluster.client("reader", timeout_seconds=20) as reader:
            data = await Paths(reader).read("/log")
            assert data == b"a" * 3000 + b"b" * 3000, (len(data), data[::1000])


async def _lose_the_primarys_file(cluster: Any, client: Any, path: str) -> str:
    """Which server that was."""
    [chunk] = (await chunks_of(client, [path])).values()
    [address] = [r["address"] for r in chunk["replicas"] if r["chunkserver"] == chunk["primary"]]
    name = address.split(":")[0]
    cluster.disks[name].unlink(chunk_path(int(chunk["handle"], 16)))
    return str(name)


@pytest.mark.parametrize("how", ["snapshot", "truncate", "writer"])
async def test_what_two_replicas_have_is_not_dropped_because_the_primary_lost_its_file(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    data = b"acknowledged" * 1000
    async with (
        memory_cluster(server_options=EAGER, lease_seconds=20.0, trash_seconds=0) as cluster,
        cluster.client("reader") as reader,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, data)
        await file.fsync()
        name = await _lose_the_primarys_file(cluster, reader, "/f")

        async def missing() -> bool:
            return (await states(reader, ["/f"]))["/f", 0, name] == "missing"

        await wait_until(missing)
        if how == "snapshot":
            await Paths(reader).snapshot("/f", "/copy")
        elif how == "truncate":
            inode = (await Paths(reader).stat("/f")).inode
            await reader.setattr(inode, AttrChanges(size=len(data) + 5))
            data += bytes(5)
        else:
            cluster.network.disconnect("writer", "master")
            await trio.sleep(60)
        assert await Paths(reader).read("/f") == data
        cluster.network.reconnect("writer", "master")


async def test_an_append_after_the_primary_lost_its_file_is_on_all_replicas(
    autojump_clock: trio.testing.MockClock,
) -> None:
    first, second = b"first" * 1000, b"second" * 100
    async with (
        memory_cluster(server_options=EAGER, lease_seconds=20.0, trash_seconds=0) as cluster,
        cluster.client("reader") as reader,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.append(first)
        name = await _lose_the_primarys_file(cluster, reader, "/f")

        async def missing() -> bool:
            return (await states(reader, ["/f"]))["/f", 0, name] == "missing"

        await wait_until(missing)
        at = await file.append(second)
        await file.close()
        await trio.sleep(90)
        read = bytes(await Paths(reader).read("/f"))
        assert read[: len(first)] == first
        assert read[at : at + len(second)] == second


NODES: list[Any] = []


@pytest.fixture(autouse=True)
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Noted(server.Node):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            NODES.append(self)

    monkeypatch.setattr(server, "Node", Noted)
    yield
    NODES.clear()
