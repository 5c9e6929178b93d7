"""What must not join a cluster is refused, with one line that names the cause and the remedy (rule 22)."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from memory_cluster import MASTER_PORT, MemoryCluster, memory_cluster

import gfscore.client.session
import gfscore.server.chunkserver.session
import gfscore.server.master.clients
import gfscore.server.master.servers
from gfscore.client import Code, GfsError
from gfscore.client.paths import Paths
from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.server import run_chunkserver


async def refusal(cluster: MemoryCluster, disk: MemoryDisk, host: str = "copy") -> GfsError:
    """What a chunkserver on `disk` ends with, within a minute."""
    config = ChunkserverConfig(master=f"master:{MASTER_PORT}", host=host)
    with trio.fail_after(60), pytest.raises(GfsError) as refused:
        await run_chunkserver(config, memory_env(cluster.network.transport(host), disk=disk, seed=3))
    assert "\n" not in str(refused.value)
    return refused.value


async def test_a_copied_directory_is_refused_while_the_original_is_alive(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", b"data")
        error = await refusal(cluster, cluster.disks["cs1"].copy())
        assert error.code is Code.BUSY and "is alive at cs1" in str(error) and "Stop that one first" in str(error)
        assert await Paths(client).read("/file") == b"data"
        await Paths(client).append("/file", b"more")


async def test_an_old_copy_is_refused_after_the_original_was_restarted_and_died(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        old = cluster.disks["cs1"].copy()
        await Paths(client, 1, 1).write("/file", b"data")
        for _ in range(2):
            await cluster.restart("cs1")
            await trio.sleep(3)
        await cluster.kill("cs1")
        error = await refusal(cluster, old)
        assert error.code is Code.BUSY and "was restored from one" in str(error)
        await cluster.start("cs1")
        await trio.sleep(3)
        assert await Paths(client).read("/file") == b"data"


async def test_a_copy_of_a_server_whose_disk_hangs_is_refused_too(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster:
        copy = cluster.disks["cs1"].copy()
        cluster.disks["cs1"].hang()
        try:
            assert (await refusal(cluster, copy)).code is Code.BUSY
        finally:
            cluster.disks["cs1"].resume()


async def test_chunks_without_an_identity_are_not_taken_for_a_new_server(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", b"data")
        await cluster.kill("cs1")
        disk = cluster.disks["cs1"]
        before = [path for path in disk.paths() if path.startswith("chunks/")]
        disk.unlink("identity")
        error = await refusal(cluster, disk, "cs1")
        assert error.code is Code.IO and "'identity'" in str(error) and "use an empty directory" in str(error)
        assert [path for path in disk.paths() if path.startswith("chunks/")] == before


@pytest.mark.parametrize("older", ["chunkserver", "client", "master"])
async def test_another_version_of_the_protocol_is_refused(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    async with memory_cluster() as cluster:
        if older == "master":
            monkeypatch.setattr(gfscore.server.master.servers, "PROTOCOL_VERSION", 0)
            monkeypatch.setattr(gfscore.server.master.clients, "PROTOCOL_VERSION", 0)
        elif older == "chunkserver":
            monkeypatch.setattr(gfscore.server.chunkserver.session, "PROTOCOL_VERSION", 0)
        else:
            monkeypatch.setattr(gfscore.client.session, "PROTOCOL_VERSION", 0)
        if older != "client":
            error = await refusal(cluster, MemoryDisk())
            assert error.code is Code.WRONG_PROTOCOL and "install the same version on both" in str(error)
        if older != "chunkserver":
            with trio.fail_after(60), pytest.raises((GfsError, BaseExceptionGroup)) as refused:
                async with cluster.client("other"):
                    pass
            found: BaseException = refused.value
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            assert isinstance(found, GfsError) and found.code is Code.WRONG_PROTOCOL
            assert "install the same version on both" in str(found)


async def test_a_server_of_another_cluster_is_refused_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", b"data")
        await cluster.kill("cs1")
        disk = cluster.disks["cs1"]
        lines = disk.contents("identity").decode().splitlines()
        lines = ["cluster_id=another" if line.startswith("cluster_id=") else line for line in lines]
        disk.put("identity", "\n".join(lines).encode())
        before = disk.paths()
        error = await refusal(cluster, disk, "cs1")
        assert error.code is Code.WRONG_CLUSTER and "belongs to cluster another" in str(error)
        assert set(disk.paths()) >= set(before)
