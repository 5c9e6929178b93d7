"""Three chunkservers in one process on the in-memory twins, and a master that does what the test says.

Tests ask for `autojump_clock` themselves: pytest-trio looks for it among a test's own arguments only.
"""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
import trio

from gfscore.checksum import block_checksums, crc32c
from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.memory import MemoryNetwork
from gfscore.rpc.transport import Channel
from gfscore.server.chunkserver import ChunkserverConfig, run_chunkserver

SECRET = b"the cluster's secret"
CHUNK_SIZE = 1 << 20


class ScriptedMaster:
    """Registers everybody, remembers what it hears, collects what the test wants collected."""

    def __init__(self) -> None:
        self.cluster_id = "cluster-1"
        self.session_seconds = 60.0
        self.known: dict[str, int] = {}  # server id → epoch
        self.by_host: dict[str, pb.Server] = {}
        self.beats: list[pb.HeartbeatRequest] = []
        self.collect: dict[str, list[int]] = {}  # server id → handles
        self.before_reply: Callable[[], Awaitable[Any]] | None = None  # called once, in the next heartbeat
        self._epoch = 0  # handles and epochs come from one clock: chunks of the tests are younger than the sessions

    async def register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterReply:
        if request.cluster_id and request.cluster_id != self.cluster_id:
            raise GfsError(Code.WRONG_CLUSTER, "another cluster")
        self._epoch += 1
        self.known[request.server_id] = self._epoch
        self.by_host[request.address.host] = pb.Server(id=request.server_id, address=request.address)
        return pb.RegisterReply(
            cluster_id=self.cluster_id,
            epoch=self._epoch,
            secret=SECRET,
            chunk_size=CHUNK_SIZE,
            session_seconds=self.session_seconds,
            heartbeat_seconds=1.0,
            report_slice=2,
        )

    async def heartbeat(self, request: pb.HeartbeatRequest, context: Any) -> pb.HeartbeatReply:
        if self.known.get(request.server_id) != request.epoch:
            raise GfsError(Code.UNKNOWN_SESSION, "register again")
        self.beats.append(request)
        hook, self.before_reply = self.before_reply, None
        if hook is not None:
            await hook()
        return pb.HeartbeatReply(collect=self.collect.pop(request.server_id, []))

    def reported(self, server_id: str) -> dict[int, tuple[int, int]]:
        """handle → (version, length), as last reported by a server."""
        found = {}
        for beat in self.beats:
            if beat.server_id == server_id:
                found.update({chunk.handle: (chunk.version, chunk.length) for chunk in beat.report})
        return found


class SlowDisk:
    """An `IoRunner` whose calls take `seconds`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def __call__(self, function: Callable[..., Any], /, *args: Any) -> Any:
        await trio.sleep(self.seconds)
        return function(*args)

    async def quick(self, function: Callable[..., Any], /, *args: Any) -> Any:
        return await self(function, *args)


class Cluster:
    """Hosts a, b, c. The primary is `a` unless said otherwise."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork()
        self.master = ScriptedMaster()
        self.disks = {host: MemoryDisk() for host in "abc"}
        self.disk_time = {host: SlowDisk() for host in "abc"}
        self.client = self.network.transport("client")
        self.options: dict[str, Any] = {}  # of servers started from now on
        self._nursery = nursery
        self._scopes: dict[str, trio.CancelScope] = {}
        self._streams: dict[str, Channel] = {}

    async def start(self) -> None:
        handlers = {"Master": {"Register": self.master.register, "Heartbeat": self.master.heartbeat}}
        serve = self.network.transport("master").serve_control
        await self._nursery.start(serve, "", 7000, handlers)
        for host in "abc":
            await self.start_server(host)

    async def start_server(self, host: str) -> None:
        """Returns when it has registered."""
        self.master.by_host.pop(host, None)
        config = ChunkserverConfig(master="master:7000", advertise_host=host, **self.options)
        env = memory_env(self.network.transport(host), disk=self.disks[host], seed=ord(host))
        env = replace(env, run_io=self.disk_time[host])

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            with trio.CancelScope() as scope:
                self._scopes[host] = scope
                await run_chunkserver(config, env, task_status=task_status)

        await self._nursery.start(run)
        while host not in self.master.by_host:
            await trio.sleep(0.05)
        await trio.sleep(0.1)

    async def kill_server(self, host: str) -> None:
        """As by SIGKILL: nothing is tidied up on the disk."""
        self.disks[host].kill()
        self._scopes[host].cancel()
        self.network.crash(host)
        await trio.sleep(0.1)

    async def restart_server(self, host: str) -> None:
        await self.kill_server(host)
        await self.start_server(host)

    # ------------------------------------------------------------ what a master and a client do

    def id(self, host: str) -> str:
        return self.master.by_host[host].id

    def grant(self, handle: int, version: int = 1, *, hosts: str = "abc", **fields: Any) -> pb.Grant:
        servers = [self.master.by_host[host] for host in hosts]
        fields.setdefault("fresh", version == 1)
        fields.setdefault("chunk_size", CHUNK_SIZE)
        body = pb.GrantBody(
            handle=handle,
            version=version,
            primary=servers[0].id,
            primary_epoch=self.master.known[servers[0].id],
            replicas=servers,
            **fields,
        ).SerializeToString()
        return pb.Grant(body=body, signature=hmac.new(SECRET, body, sha256).digest())

    async def call(self, host: str, method: str, request: Any, *payload: Any, timeout: float = 30.0) -> Any:
        stream = self._streams.get(host)
        if stream is None or stream.closed:
            address = self.master.by_host[host].address
            stream = self._streams[host] = await self.client.open_stream(host, address.port, "ChunkData")
        reply, data = await stream.call(method, request, *payload, timeout=timeout)
        return (reply, bytes(data)) if method in ("Read", "Blocks") else reply

    async def control(self, host: str, method: str, request: Any) -> Any:
        """A call of the master's; the epoch is filled in."""
        if hasattr(request, "epoch") and not request.epoch:
            request.epoch = self.master.known[self.id(host)]
        port = self.master.by_host[host].address.control_port
        channel = self.network.transport("master").control_channel(host, port, "Chunkserver")
        reply, _ = await channel.call(method, request, timeout=30.0)
        await channel.aclose()
        return reply

    async def append(
        self, grant: pb.Grant, record: bytes, sequence: int, *, client: int = 1, host: str = "a"
    ) -> pb.AppendReply:
        request = pb.AppendRequest(
            grant=grant, client_id=client, sequence=sequence, length=len(record), checksum=crc32c(record)
        )
        reply: pb.AppendReply = await self.call(host, "Append", request, record)
        return reply

    async def write(self, grant: pb.Grant, parts: Sequence[tuple[int, bytes]], *, sync: bool = False) -> pb.WriteReply:
        data = b"".join(part for _, part in parts)
        extents = [pb.Extent(offset=offset, length=len(part)) for offset, part in parts]
        request = pb.WriteRequest(grant=grant, client_id=1, extents=extents, checksum=crc32c(data), sync=sync)
        reply: pb.WriteReply = await self.call("a", "Write", request, data)
        return reply

    async def push(self, push_id: int, data: bytes, *, hosts: str = "abc") -> None:
        chain = [self.master.by_host[host].address for host in hosts[1:]]
        request = pb.PushRequest(client_id=1, push_id=push_id, chain=chain, checksums=list(block_checksums(data)))
        await self.call(hosts[0], "Push", request, data)

    async def read(self, host: str, handle: int, version: int = 1) -> bytes:
        """The whole replica."""
        data = b""
        while True:
            request = pb.ReadRequest(handle=handle, version=version, offset=len(data), length=300_000)
            reply, piece = await self.call(host, "Read", request)
            if not piece:
                assert reply.length == len(data)
                return data
            assert reply.checksum == crc32c(piece)
            data += piece

    async def equal(self, handle: int, version: int = 1, *, hosts: str = "abc") -> bytes:
        """The contents, asserted to be the same everywhere, append table included."""
        contents = [await self.read(host, handle, version) for host in hosts]
        states = [await self.call(host, "Blocks", pb.BlocksRequest(handle=handle, version=version)) for host in hosts]
        for reply, _ in states:
            reply.doubt = 0  # how sure a server is of it may differ
        assert all(content == contents[0] for content in contents)
        assert all(state == states[0] for state in states)
        return contents[0]

    async def prepare(
        self, handle: int, version: int, *, hosts: str = "abc", **fields: Any
    ) -> list[pb.PrepareReply.Item]:
        item = pb.PrepareRequest.Item(handle=handle, version=version, old_version=version - 1, **fields)
        return [(await self.control(host, "Prepare", pb.PrepareRequest(items=[item]))).items[0] for host in hosts]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with trio.open_nursery() as nursery:
        running = Cluster(nursery)
        await running.start()
        yield running
        nursery.cancel_scope.cancel()
