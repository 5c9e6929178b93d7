"""One file, two clients that change it in turn, and a model of what it has to be after each step, on both.

Answers of chunkservers are lost, servers are restarted, and one client at a time loses its master, for a second or for
longer than its session lasts, while the other one goes on.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import CHUNK_BYTES, MemoryCluster, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, GfsError, OpenFile
from gfscore.client.paths import Paths

STEPS = 30
EDGES = [
    chunks * CHUNK_BYTES + more for chunks in range(4) for more in (-CHUNK_BYTES // 4, -1, 0, 1, CHUNK_BYTES // 4)
][2:]
SIZES = [1, 100, 64 * 1024, 64 * 1024 + 1, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4]
CHANGES = ["write", "append", "append", "cut"]
OTHERS = ["fsync", "reopen", "away", "away", "restart", "wait"]


class History:
    def __init__(self, cluster: MemoryCluster, clients: list[Client], inode: int, seed: int) -> None:
        self.model = bytearray()
        self.steps: list[tuple[Any, ...]] = []
        self.files: list[OpenFile] = []
        self._cluster = cluster
        self._clients = clients
        self._inode = inode
        self._random = random.Random(seed)

    def lose_answers(self, client: Client) -> None:
        call = client._servers.call

        async def lossy(*args: Any, **options: Any) -> Any:
            answer = await call(*args, **options)
            if self._random.random() < 0.08:
                raise GfsError(Code.UNREACHABLE, "the answer is lost")
            return answer

        client._servers.call = lossy  # type: ignore[method-assign]

    async def step(self) -> None:
        who = self._random.randrange(2)
        await getattr(self, self._random.choice(CHANGES + OTHERS))(who)
        for client in self._clients:
            assert (await client.getattr(self._inode)).size == len(self.model), self.steps[-4:]
        assert await Paths(self._random.choice(self._clients)).read("/f") == self.model, self.steps[-4:]

    def _note(self, offset: int, data: bytes) -> None:
        self.model.extend(bytes(max(offset + len(data) - len(self.model), 0)))
        self.model[offset : offset + len(data)] = data

    async def write(self, who: int) -> None:
        offset, data = self._random.choice(EDGES), self._random.randbytes(self._random.choice(SIZES))
        await self.files[who].write(offset, data)
        await self.files[who].flush()
        self._note(offset, data)
        self.steps.append(("write", who, offset, len(data)))

    async def append(self, who: int) -> None:
        data = self._random.randbytes(self._random.choice(SIZES))
        end = len(self.model)
        offset = await self.files[who].append(data)
        self._note(offset, data)
        self.steps.append(("append", who, end, offset, len(data)))
        assert offset == end or (offset % CHUNK_BYTES == 0 and end < offset < end + len(data)), self.steps[-4:]

    async def cut(self, who: int) -> None:
        size = self._random.choice(EDGES)
        await self._clients[who].setattr(self._inode, AttrChanges(size=size))
        del self.model[size:]
        self._note(size, b"")
        self.steps.append(("cut", who, size))

    async def fsync(self, who: int) -> None:
        await self.files[who].fsync()
        self.steps.append(("fsync", who))

    async def reopen(self, who: int) -> None:
        await self.files[who].close()
        self.files[who] = await self._clients[who].open(self._inode, write=True)
        self.steps.append(("reopen", who))

    async def away(self, who: int) -> None:
        name, seconds = self._clients[who]._options.name, self._random.choice([1, 30, 130])
        self._cluster.network.disconnect(name, "master")
        await getattr(self, self._random.choice(CHANGES))(1 - who)
        await trio.sleep(seconds)
        self._cluster.network.reconnect(name, "master")
        await trio.sleep(3)
        self.steps.append(("away", who, seconds))

    async def restart(self, _: int) -> None:
        name = self._random.choice(["master", *self._cluster.names])
        await self._cluster.restart(name)
        self.steps.append(("restart", name))

    async def wait(self, _: int) -> None:
        await trio.sleep(2)


@pytest.mark.parametrize("seed", range(8))
async def test_a_file_is_what_two_clients_made_of_it(seed: int, autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        history = History(cluster, [one, two], attr.inode, seed)
        history.files = [file, await two.open(attr.inode, write=True)]
        history.lose_answers(one)
        history.lose_answers(two)
        for _ in range(STEPS):
            await history.step()
