"""A whole cluster in one process: real servers and clients on the in-memory disks, network and clock."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
import trio.testing

from gfscore.checksum import crc32c
from gfscore.client import Client, ClientOptions, open_client
from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.rpc.memory import MemoryNetwork
from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.server import run_chunkserver
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.server import run_master

MASTER_PORT = 7100
CHUNK_BYTES = 1024 * 1024


class MemoryCluster:
    """Nodes by name: `master`, `cs1`, `cs2`… A killed node keeps its disk and comes back with it."""

    def __init__(
        self, nursery: trio.Nursery, chunkservers: int, replication: int,
        server_options: dict[str, Any] | None = None, **master_options: Any,
    ) -> None:  # fmt: skip
        self.network = MemoryNetwork()
        self.disks: dict[str, MemoryDisk] = {}
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}
        self._server_options = server_options or {}
        self._master_options = {"replication": replication, **master_options}
        self.racks: dict[str, str] = {}
        self.names = [f"cs{number + 1}" for number in range(chunkservers)]

    async def start(self, name: str) -> None:
        disk = self.disks.setdefault(name, MemoryDisk())
        env = memory_env(self.network.transport(name), disk=disk, seed=crc32c(name.encode()) & 0xFFFF)
        if name == "master":
            config: Any = MasterConfig(host="master", port=MASTER_PORT, chunk_size=CHUNK_BYTES, **self._master_options)
            role: Any = run_master
        else:
            rack = self.racks.get(name, "default")
            config = ChunkserverConfig(master=f"master:{MASTER_PORT}", host=name, rack=rack, **self._server_options)
            role = run_chunkserver
        await self._nursery.start(partial(self._run, name, role, config, env))

    async def _run(self, name: str, role: Any, config: Any, env: Any, *, task_status: Any) -> None:
        with trio.CancelScope() as self._scopes[name]:
            await role(config, env, task_status=task_status)

    async def kill(self, name: str) -> None:
        """Its connections break at once; what it wrote is on its disk."""
        self._scopes.pop(name).cancel()
        self.network.crash(name)
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def restart(self, name: str) -> None:
        await self.kill(name)
        await self.start(name)

    @asynccontextmanager
    async def client(self, name: str = "client", **options: Any) -> AsyncIterator[Client]:
        env = memory_env(self.network.transport(name), seed=7)
        async with open_client(f"master:{MASTER_PORT}", env=env, options=ClientOptions(name=name, **options)) as client:
            yield client


@asynccontextmanager
async def memory_cluster(
    chunkservers: int = 3, replication: int = 3, racks: dict[str, str] | None = None,
    server_options: dict[str, Any] | None = None, **master_options: Any,
) -> AsyncIterator[MemoryCluster]:  # fmt: skip
    async with trio.open_nursery() as nursery:
        cluster = MemoryCluster(nursery, chunkservers, replication, server_options, **master_options)
        cluster.racks = racks or {}
        await cluster.start("master")
        for name in cluster.names:
            await cluster.start(name)
        async with cluster.client("probe", caching=False) as probe:
            while True:
                status = await probe.status()
                if sum(server["state"] == "up" for server in status["chunkservers"]) == chunkservers:
                    break
                await trio.sleep(0.1)
        yield cluster
        nursery.cancel_scope.cancel()
