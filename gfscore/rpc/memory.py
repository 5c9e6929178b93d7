"""The in-memory twin of the network: every node of a simulated cluster shares one `MemoryNetwork`.

Calls run through the same framing as over TCP, only the bytes stay in the process; gRPC's place is taken by the
same framing. Links can be cut, in one direction too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from gfscore.checksum import Buffer
from gfscore.errors import Code, GfsError
from gfscore.rpc.bytestream import MemoryStream
from gfscore.rpc.stream import StreamConnection
from gfscore.rpc.transport import Channel, PendingCall, Service


class MemoryNetwork:
    """Listening ports by (host, port), and which hosts cannot reach which."""

    def __init__(self) -> None:
        self.cut: set[tuple[str, str]] = set()  # (from, to): new connections fail, old ones are closed
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._next_port = 20000
        self._connections: list[tuple[str, str, StreamConnection]] = []

    def transport(self, host: str) -> MemoryTransport:
        """The network as the node `host` sees it."""
        return MemoryTransport(self, host)

    def disconnect(self, first: str, second: str) -> None:
        """Cut both directions and break what is connected."""
        self.cut |= {(first, second), (second, first)}
        self._break(lambda source, target: {source, target} == {first, second})

    def reconnect(self, first: str, second: str) -> None:
        self.cut -= {(first, second), (second, first)}

    def crash(self, host: str) -> None:
        """All connections of `host` break, as when its process is killed."""
        self._break(lambda source, target: host in (source, target))

    def _break(self, chosen: Any) -> None:
        for source, target, connection in list(self._connections):
            if chosen(source, target):
                connection.close()
        self._connections = [entry for entry in self._connections if not entry[2].closed]

    def connect(
        self, source: str, host: str, port: int, service: str, callbacks: Mapping[str, Service]
    ) -> StreamConnection:
        listener = self._listeners.get((host, port))
        if listener is None or (source, host) in self.cut:
            raise GfsError(Code.UNREACHABLE, f"cannot connect to {host}:{port}: refused")
        near, far = MemoryStream.pair(source, f"{host}:{port}")
        connection = StreamConnection(near, service, callbacks)
        listener.nursery.start_soon(StreamConnection(far, "ClientCallback", listener.services).run)
        self._connections = [entry for entry in self._connections if not entry[2].closed]
        self._connections.append((source, host, connection))
        return connection

    async def listen(
        self, host: str, port: int, services: Mapping[str, Service], task_status: trio.TaskStatus[int]
    ) -> None:
        if port == 0:
            self._next_port += 1
            port = self._next_port
        if (host, port) in self._listeners:
            raise GfsError(Code.BUSY, f"cannot listen on {host}:{port}: the port is in use")
        async with trio.open_nursery() as nursery:
            self._listeners[host, port] = _Listener(services, nursery)
            try:
                task_status.started(port)
                await trio.sleep_forever()
            finally:
                del self._listeners[host, port]


class _Listener:
    def __init__(self, services: Mapping[str, Service], nursery: trio.Nursery) -> None:
        self.services = services
        self.nursery = nursery


class MemoryTransport:
    """See `transport.Transport`. The host given when listening is ignored: a node listens on its own name."""

    def __init__(self, network: MemoryNetwork, host: str) -> None:
        self._network = network
        self._host = host

    async def serve_streams(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        await self._network.listen(self._host, port, services, task_status)

    async def serve_control(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        await self._network.listen(self._host, port, services, task_status)

    async def open_stream(
        self, host: str, port: int, service: str, *, callbacks: Mapping[str, Service] | None = None
    ) -> Channel:
        await trio.lowlevel.checkpoint()
        connection = self._network.connect(self._host, host, port, service, callbacks or {})
        trio.lowlevel.spawn_system_task(connection.run, name=f"memory stream to {host}:{port}")
        return connection

    def local_host(self) -> str:
        return self._host

    def control_channel(self, host: str, port: int, service: str) -> Channel:
        return _MemoryControlChannel(self._network, self._host, host, port, service)


class _MemoryControlChannel:
    """Connects by itself, and again, as a gRPC channel does."""

    def __init__(self, network: MemoryNetwork, source: str, host: str, port: int, service: str) -> None:
        self._network = network
        self._address = (source, host, port, service)
        self._connection: StreamConnection | None = None
        self._closed = trio.Event()

    async def call(
        self, method: str, request: Any, *payload: Buffer, timeout: float, reply_into: memoryview | None = None
    ) -> tuple[Any, memoryview]:
        if self._connection is None or self._connection.closed:
            self._connection = self._network.connect(*self._address, callbacks={})
            trio.lowlevel.spawn_system_task(self._connection.run)
        return await self._connection.call(method, request, *payload, timeout=timeout, reply_into=reply_into)

    async def begin(self, method: str, request: Any, *payload: Buffer) -> PendingCall:
        raise GfsError(Code.NOT_SUPPORTED, "control calls are made whole")

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def aclose(self) -> None:
        self._closed.set()
        if self._connection is not None:
            await self._connection.aclose()
