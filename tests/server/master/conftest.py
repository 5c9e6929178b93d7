"""A master in one process on the in-memory twins, clients that speak the wire, and chunkservers that do as told.

Tests ask for `autojump_clock` themselves: pytest-trio looks for it among a test's own arguments only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any

import pytest
import trio

from gfscore.env.memory import memory_env
from gfscore.env.memory_clock import MemoryClock
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.memory import MemoryNetwork
from gfscore.rpc.transport import Channel
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.server import run_master

CHUNK_SIZE = 1 << 20
CONTROL_PORT = 7100


class TwinServer:
    """A chunkserver's side of the conversation: replicas are (version, length) in a dictionary."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.replicas: dict[int, tuple[int, int]] = {}
        self.leases: dict[int, int] = {}  # handles of which this is the primary → length there
        self.epoch = 0
        self.incarnation = 1
        self.doubt = 0  # of all its replicas, and of those that it lacks
        self.collected: list[int] = []
        self.asked: list[str] = []
        self.before: Callable[[str], Awaitable[None]] | None = None  # called before each answer
        self.service: dict[str, Any] = {
            "Prepare": self._prepare, "Revoke": self._revoke, "Clone": self._clone, "Inspect": self._inspect,
            "Info": self._info,
        }  # fmt: skip
        self._channel = world.network.transport(name).control_channel("m", CONTROL_PORT, "Master")

    async def call(self, method: str, request: Any) -> Any:
        reply, _ = await self._channel.call(method, request, timeout=20)
        return reply

    async def register(self, cluster_id: str = "", report: bool = True) -> None:
        request = pb.RegisterRequest(
            protocol=1, cluster_id=cluster_id, server_id=self.name, incarnation=self.incarnation,
            address=pb.Address(host=self.name, port=1, control_port=2), rack="r", total_bytes=1 << 40,
        )  # fmt: skip
        reply = await self.call("Register", request)
        self.epoch = reply.epoch
        self.leases.clear()
        if report:
            await self.beat(first=True)

    async def beat(self, first: bool = False, **changes: Any) -> pb.HeartbeatReply:
        """A heartbeat that reports all replicas; what is to be collected is."""
        request = pb.HeartbeatRequest(
            server_id=self.name, epoch=self.epoch, total_bytes=1 << 40, free_bytes=1 << 40,
            chunk_count=len(self.replicas), first_report=first, last_of_first=first,
            report=[pb.ChunkReport(handle=h, version=v, length=n) for h, (v, n) in self.replicas.items()], **changes,
        )  # fmt: skip
        reply: pb.HeartbeatReply = await self.call("Heartbeat", request)
        for handle in reply.collect:
            self.replicas.pop(handle, None)
            self.collected.append(handle)
        return reply

    async def keep_beating(self) -> None:
        while True:
            await trio.sleep(1)
            try:
                await self.beat()
            except GfsError as error:
                if error.code is Code.UNKNOWN_SESSION:
                    await self.register(self.world.cluster_id)

    async def _asked(self, method: str) -> None:
        self.asked.append(method)
        if self.before is not None:
            await self.before(method)

    async def _prepare(self, request: pb.PrepareRequest, context: Any) -> pb.PrepareReply:
        await self._asked("Prepare")
        reply = pb.PrepareReply()
        for item in request.items:
            version, length = self.replicas.get(item.handle, (0, 0))
            if not version:
                reply.items.add(error=Code.UNKNOWN_CHUNK, doubt=self.doubt)
                continue
            if version not in (item.old_version, item.version):
                reply.items.add(error=Code.STALE_VERSION, version=version, length=length)
                continue
            if version != item.version and item.HasField("truncate"):
                length = min(length, item.truncate)
            self.leases.pop(item.handle, None)
            self.replicas[item.handle] = (item.version, length)
            reply.items.add(version=item.version, length=length)
        return reply

    async def _clone(self, request: pb.CloneRequest, context: Any) -> pb.PrepareReply:
        await self._asked("Clone")
        reply = pb.PrepareReply()
        for item in request.items:
            version, length = self.replicas.get(item.handle, (0, 0))
            if not version:
                reply.items.add(error=Code.UNKNOWN_CHUNK)
                continue
            if version != item.version:
                reply.items.add(error=Code.STALE_VERSION, version=version)
                continue
            length = min(length, item.truncate) if item.HasField("truncate") else length
            self.replicas[item.new_handle] = (item.new_version, length)
            reply.items.add(version=item.new_version, length=length, doubt=self.doubt)
        return reply

    async def _revoke(self, request: pb.RevokeRequest, context: Any) -> pb.RevokeReply:
        await self._asked("Revoke")
        reply = pb.RevokeReply()
        for handle in request.handles:
            length = self.leases.pop(handle, None)
            if length is not None:
                reply.chunks.add(handle=handle, version=self.replicas[handle][0], length=length)
        return reply

    async def _inspect(self, request: pb.InspectRequest, context: Any) -> pb.InspectReply:
        await self._asked("Inspect")
        reply = pb.InspectReply()
        for handle in request.handles:
            if handle not in self.replicas:
                reply.items.add(handle=handle, error=Code.UNKNOWN_CHUNK)
                continue
            version, length = self.replicas[handle]
            reply.items.add(handle=handle, version=version, length=length, path=f"/{self.name}/{handle}")
        return reply

    async def _info(self, request: pb.Empty, context: Any) -> pb.ServerInfoReply:
        return pb.ServerInfoReply(server_id=self.name, cluster_id=self.world.cluster_id)


class TwinClient:
    """A mount's session. `heard` are the invalidations in order; `held` is answered to them."""

    def __init__(self, world: World, name: str, caching: bool) -> None:
        self.world = world
        self.name = name
        self.caching = caching
        self.heard: list[pb.InvalidateRequest.Item] = []
        self.held: set[int] = set()
        self.before_answer: Callable[[], Awaitable[None]] | None = None
        self.client_id = 0
        self.hello = pb.HelloReply()
        self.requests = 0
        self.channel: Channel | None = None

    async def connect(self, held: list[int] | None = None, written: list[int] | None = None) -> TwinClient:
        transport = self.world.network.transport(self.name)
        self.channel = await transport.open_stream(
            "m", self.world.stream_port, "Master", callbacks={"ClientCallback": {"Invalidate": self._invalidate}}
        )
        request = pb.HelloRequest(
            protocol=1, name=self.name, client_id=self.client_id, held_inodes=held or [], caching=self.caching,
            written_inodes=written or [],
        )  # fmt: skip
        self.hello = await self.call("Hello", request)
        self.client_id = self.hello.client_id
        return self

    async def _invalidate(self, request: pb.InvalidateRequest, context: Any) -> pb.InvalidateReply:
        self.heard += request.items
        if self.before_answer is not None:
            await self.before_answer()
        return pb.InvalidateReply(held=[i.inode for i in request.items if i.unlinked and i.inode in self.held])

    async def call(self, method: str, request: Any) -> Any:
        assert self.channel is not None
        reply, _ = await self.channel.call(method, request, timeout=30)
        return reply

    async def change(self, method: str, request: Any, request_id: int = 0) -> Any:
        if not request_id:
            self.requests += 1
            request_id = self.requests
        request.id.CopyFrom(pb.RequestId(client_id=self.client_id, request_id=request_id))
        return await self.call(method, request)

    async def create(self, name: bytes, parent: int = 1, kind: int = 1, with_chunk: bool = False) -> pb.CreateReply:
        request = pb.CreateRequest(
            parent=parent,
            name=name,
            type=kind,  # type: ignore[arg-type]
            mode=0o644,
            with_chunk=with_chunk,
            exclusive=True,
        )
        reply: pb.CreateReply = await self.change("Create", request)
        return reply

    async def lookup(self, name: bytes, parent: int = 1) -> pb.AttrReply:
        reply: pb.AttrReply = await self.call("Lookup", pb.LookupRequest(parent=parent, name=name))
        return reply

    async def unlink(self, name: bytes, parent: int = 1, **more: Any) -> pb.UnlinkReply:
        reply: pb.UnlinkReply = await self.change("Unlink", pb.UnlinkRequest(parent=parent, name=name, **more))
        return reply

    async def commit(self, inode: int, size: int, release: bool = True) -> None:
        request = pb.CommitRequest()
        request.lengths.add(inode=inode, size=size, release=release)
        await self.change("Commit", request)

    async def lease(self, inode: int, index: int = 0, **more: Any) -> tuple[pb.LeaseReply, pb.GrantBody]:
        reply = await self.change("Lease", pb.LeaseRequest(inode=inode, index=index, **more))
        return reply, pb.GrantBody.FromString(reply.grant.body)

    async def chunks(self, inode: int) -> list[int]:
        """The handles of the file's chunks."""
        info = await self.call("FileInfo", pb.FileInfoRequest(inode=inode))
        return [chunk.handle for chunk in info.chunks]


class World:
    """The network, one master that can be killed, and its neighbours."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = MemoryNetwork()
        self.disk = MemoryDisk()
        self.clock = MemoryClock()  # of the master
        self.config = MasterConfig(
            host="m", port=CONTROL_PORT, chunk_size=CHUNK_SIZE, lease_seconds=20, trash_seconds=0
        )
        self.stream_port = 0
        self.cluster_id = ""
        self.servers: list[TwinServer] = []
        self._master: trio.CancelScope | None = None
        self._starts = 0

    async def start_master(self) -> None:
        self._starts += 1

        async def run(*, task_status: trio.TaskStatus[Any]) -> None:
            with trio.CancelScope() as scope:
                self._master = scope
                transport = self.network.transport("m")
                env = memory_env(transport, disk=self.disk, clock=self.clock, seed=self._starts)
                try:
                    await run_master(self.config, env, task_status=task_status)
                except* Killed:
                    pass  # it was dead already when it wanted the disk

        _, self.stream_port = await self.nursery.start(run)

    async def kill_master(self) -> None:
        """As by power loss: connections break, what was not flushed is gone."""
        assert self._master is not None
        scope, self._master = self._master, None
        self.network.crash("m")
        self.disk.crash(Random(self._starts))
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()

    async def restart_master(self) -> None:
        await self.kill_master()
        await self.start_master()

    async def client(self, name: str, caching: bool = True) -> TwinClient:
        client = await TwinClient(self, name, caching).connect()
        self.cluster_id = client.hello.cluster_id
        return client

    async def server(self, name: str, beating: bool = True) -> TwinServer:
        server = TwinServer(self, name)
        self.servers.append(server)

        async def serve(*, task_status: trio.TaskStatus[int]) -> None:
            transport = self.network.transport(name)
            await transport.serve_control(name, 2, {"Chunkserver": server.service}, task_status=task_status)

        await self.nursery.start(serve)
        await server.register()
        if beating:
            self.nursery.start_soon(server.keep_beating)
        return server

    async def three_servers(self) -> dict[str, TwinServer]:
        return {name: await self.server(name) for name in ("a", "b", "c")}

    def written(self, body: pb.GrantBody, length: int) -> None:
        """As if a client had written `length` bytes under this grant."""
        for server in self.servers:
            if any(replica.id == server.name for replica in body.replicas):
                server.replicas[body.handle] = (body.version, length)
                if server.name == body.primary:
                    server.leases[body.handle] = length


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        with trio.fail_after(600):
            await world.start_master()
        try:
            yield world
        finally:
            nursery.cancel_scope.cancel()
