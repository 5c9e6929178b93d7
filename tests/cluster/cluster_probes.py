"""What tests ask of a whole cluster, and do to it, beside the calls of a client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from memory_cluster import CHUNK_BYTES, MemoryCluster

from gfscore.client import Client, Code, FileType, GfsError
from gfscore.client.paths import Paths
from gfscore.client.verify import Verifier
from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.ids import BLOCK_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.storage import chunk_format as fmt

DATA_START = fmt.data_start(CHUNK_BYTES)
# Of the scrub.
QUIET = {"scrub_bytes_per_second": 0}
EAGER = {"scrub_bytes_per_second": 1 << 30, "scrub_pause_seconds": 2.0}


async def until(client: Client, condition: Any, what: str, seconds: float = 200) -> dict[str, Any]:
    """The first status that fulfils the condition, within simulated `seconds`."""
    status: dict[str, Any] = {}
    with trio.move_on_after(seconds):
        while True:
            status = await client.status()
            if condition(status):
                return status
            await trio.sleep(0.5)
    raise AssertionError(f"waited {seconds} s for {what}: {status}")


async def wait_until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Simulated seconds."""
    with trio.fail_after(seconds):
        while not await condition():
            await trio.sleep(0.5)


def healed(status: dict[str, Any]) -> bool:
    chunks, repairing = status["chunks"], status["repairing"]
    return chunks["healthy"] == chunks["total"] > 0 and not repairing["queued"] and not repairing["running"]


async def leases_given_back() -> None:
    """Every lease, by who has written nothing for long (simulated)."""
    await trio.sleep(150)


async def host_of(client: Client, server_id: str) -> str:
    servers = (await client.status())["chunkservers"]
    return next(str(server["address"]).split(":")[0] for server in servers if server["id"] == server_id)


def chunk_path(handle: int) -> str:
    return f"chunks/{handle & 0xFF:02x}/{handle:016x}"


async def replica_path(client: Client, path: str, index: int = 0) -> str:
    info = await client.file_info((await Paths(client).stat(path)).inode)
    return chunk_path(int(info["chunks"][index]["handle"], 16))


async def chunks_of(client: Client, paths: list[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """(path, index) → what `fileinfo` says."""
    return {
        (path, chunk["index"]): chunk
        for path in paths
        for chunk in (await client.file_info((await Paths(client).stat(path)).inode))["chunks"]
    }


async def states(client: Client, paths: list[str]) -> dict[tuple[str, int, str], str]:
    """(path, chunk index, host) → state of each replica."""
    found = {}
    for path in paths:
        info = await client.file_info((await Paths(client).stat(path)).inode)
        for chunk in info["chunks"]:
            for replica in chunk["replicas"]:
                found[path, chunk["index"], replica["address"].split(":")[0]] = replica["state"]
    return found


async def replicas_of(cluster: MemoryCluster, client: Client, path: str) -> list[list[tuple[Any, ...]]]:
    """Per chunk: (server, length, tail checksum, checksums of all blocks, append table) of each replica."""
    inode = (await Paths(client).stat(path)).inode
    found = []
    transport = memory_env(cluster.network.transport("checker"), seed=1).transport
    for chunk in (await client.file_info(inode))["chunks"]:
        states: list[tuple[Any, ...]] = []
        for replica in chunk["replicas"]:
            host, _, port = replica["address"].rpartition(":")
            stream = await transport.open_stream(host, int(port), "ChunkData")
            request = pb.BlocksRequest(handle=int(chunk["handle"], 16), version=chunk["version"])
            reply, table = await stream.call("Blocks", request, timeout=5)
            states.append((host, reply.length, reply.tail_checksum, bytes(table), reply.clients))
            await stream.aclose()
        found.append(states)
    return found


async def check_equal(cluster: MemoryCluster, client: Client, path: str, goal: int) -> list[set[str]]:
    """Every chunk has `goal` replicas, byte-equal, on different servers; which."""
    chunks = await replicas_of(cluster, client, path)
    for states in chunks:
        assert len(states) == goal == len({state[0] for state in states})
        assert all(state[1:] == states[0][1:] for state in states)
    return [{state[0] for state in states} for states in chunks]


async def fsck(client: Client, path: str = "/") -> Verifier:
    done = [0, 0]

    def progress(more: int, verified: int) -> None:
        done[0] += more
        done[1] += verified

    verifier = client.verifier(progress)
    async for name, attr in Paths(client).walk(path):
        if attr.type == FileType.FILE:
            await verifier.check("/" + name.decode(), attr.inode)
    await verifier.settle()
    assert done[0] == done[1]
    return verifier


def fill_disk(disk: MemoryDisk, left: int = 0) -> None:
    total, free = disk.space()
    disk.capacity = total - free + left


async def fill_master(client: Client, directory: int) -> int:
    """Attributes, smaller and smaller ones, until there is no room; how many were set."""
    count = 0
    for size in (60_000, 2_000, 10):
        for number in range(1000):
            try:
                await client.setxattr(directory, b"user.%d" % (number % 2), bytes([number % 251]) * size)
                count += 1
            except GfsError as error:
                assert error.code is Code.NO_SPACE
                break
        else:
            raise AssertionError("the disk never got full")
    return count


async def leave_unequal(cluster: MemoryCluster, client: Client, path: str, *, cut: bool = False) -> str:
    """The writer dies, and so does the primary, before what it had applied came to the others; which one it is.
    `cut`: it has lost its end too, so that it is not the one that others are made equal to."""
    file = await client.open((await Paths(client).stat(path)).inode, write=True)
    await file.write(0, b"w" * 100)
    await file.flush()
    chunk = (await client.file_info(file.inode))["chunks"][0]
    primary = await host_of(client, chunk["primary"])
    name = await replica_path(client, path)
    shorter = cluster.disks[primary].contents(name)
    await file.write(0, b"w" * 3 * BLOCK_BYTES)
    await file.flush()
    older = cluster.disks[primary].contents(name)
    await file.write(BLOCK_BYTES, b"half done")
    await file.flush()
    cluster.network.crash("client")
    cluster.network.disconnect("client", "master")
    await cluster.kill(primary)
    cluster.disks[primary].put(name, shorter if cut else older)
    return primary
