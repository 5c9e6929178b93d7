"""The network of a simulated world: delays, cut links, broken connections, repeated calls; the same for the same seed.

Bytes travel through the real framing (`StreamConnection`); only the stream below it is simulated. What is on its way
stays in order within a connection, as TCP has it, and overtakes freely between connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any

import trio
from processes import Process

from gfscore.checksum import Buffer, crc32c
from gfscore.errors import Code, GfsError
from gfscore.rpc.stream import StreamConnection
from gfscore.rpc.transport import Channel, PendingCall, Service

CONNECT_SECONDS = 3.0
_REPEATED_SECONDS = 5.0


class Link:
    """One direction between two hosts. Times in seconds, shares from 0 to 1."""

    __slots__ = ("break_share", "cut", "delay_max", "repeat_share")

    def __init__(self) -> None:
        self.cut = False  # nothing arrives; what was sent waits, as TCP sends it again and again
        self.delay_max = 0.0  # each message waits up to so long
        self.break_share = 0.0  # so many messages break their connection, before or after they are delivered
        self.repeat_share = 0.0  # so many control calls arrive twice


class SimStream:
    """One end of a connection. Implements `ByteStream`."""

    __slots__ = ("_arrived", "_changed", "_last", "_on_way", "closed", "network", "other", "owner", "peer")

    def __init__(self, network: Network, owner: Process, peer: str) -> None:
        self.network = network
        self.owner = owner
        self.peer = peer
        self.closed = False
        self.other: SimStream = self
        self._on_way: deque[tuple[float, bytes]] = deque()  # towards this end: (arrives at, bytes)
        self._arrived = bytearray()
        self._changed = trio.Event()
        self._last = 0.0

    async def send(self, parts: list[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        await self.owner.running()
        if self.closed or (self.other.closed and not self._cut_towards_me()):
            raise BrokenPipeError("the peer closed the stream")
        self.network.send(self, b"".join(parts))

    async def receive_into(self, view: memoryview) -> int:
        if self._arrived or self._on_way:
            await trio.lowlevel.checkpoint()  # whoever finds nothing waits anyway
        while True:
            await self.owner.running()
            if self.closed:
                raise OSError("the stream was closed here")
            if self._arrived:
                count = min(len(view), len(self._arrived))
                view[:count] = self._arrived[:count]
                del self._arrived[:count]
                return count
            now = trio.current_time()
            until = float("inf")
            if not self._cut_towards_me():
                if self._on_way:
                    until = self._on_way[0][0]
                    if until <= now:
                        self._arrived += self._on_way.popleft()[1]
                        self.network.delivered(self, len(self._arrived))
                        continue
                elif self.other.closed:
                    return 0
            self._changed = trio.Event()
            if until == float("inf"):
                await self._changed.wait()
            else:
                with trio.move_on_at(until):
                    await self._changed.wait()

    def arrive(self, data: bytes, at: float) -> None:
        self._last = max(self._last, at)
        self._on_way.append((self._last, data))
        self._changed.set()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._changed.set()
            self.other._changed.set()
            self.network.forget(self)

    def lose(self) -> None:
        """What is on its way to this end never arrives."""
        self._on_way.clear()

    def wake(self) -> None:
        self._changed.set()

    def _cut_towards_me(self) -> bool:
        return self.network.link(self.other.owner.host, self.owner.host).cut


class _Listener:
    def __init__(self, owner: Process, services: Mapping[str, Service], nursery: trio.Nursery) -> None:
        self.owner = owner
        self.services = services
        self.nursery = nursery


class Network:
    """All hosts and links. `note` is told of everything that can be observed."""

    def __init__(self, random: Random, note: Callable[..., None], nursery: trio.Nursery) -> None:
        self.base_delay = 0.0  # of every link, seconds at most
        self.random = random
        self._note = note
        self._nursery = nursery
        self._links: dict[tuple[str, str], Link] = {}
        self._listeners: dict[tuple[str, int], _Listener] = {}
        self._streams: dict[SimStream, None] = {}
        self._next_port = 20000
        self._link_changed = trio.Event()

    def link(self, source: str, target: str) -> Link:
        found = self._links.get((source, target))
        if found is None:
            found = self._links[source, target] = Link()
        return found

    def links_changed(self) -> None:
        """Call it after every change of a link."""
        self._link_changed.set()
        self._link_changed = trio.Event()
        for stream in list(self._streams):
            stream.wake()

    def heal(self) -> None:
        """Every link as good as new."""
        self._links.clear()
        self.base_delay = 0.0
        self.links_changed()

    def process_died(self, process: Process) -> None:
        """Its ports are free and its connections end; of what it sent last, some is still delivered."""
        for address in [a for a, listener in self._listeners.items() if listener.owner is process]:
            del self._listeners[address]
        for stream in [s for s in self._streams if s.owner is process]:
            if self.random.random() < 0.5:
                stream.other.lose()
            stream.close()

    def break_connections(self, first: str, second: str) -> None:
        """As when a switch restarts."""
        for stream in list(self._streams):
            if (stream.owner.host, stream.other.owner.host) == (first, second):
                stream.lose()
                stream.other.lose()
                stream.close()
                stream.other.close()

    # ------------------------------------------------------------ for streams

    def send(self, stream: SimStream, data: bytes) -> None:
        source, target = stream.owner.host, stream.other.owner.host
        link = self.link(source, target)
        delay = link.delay_max or self.base_delay
        at = trio.current_time() + (self.random.random() * delay if delay else 0.0)
        self._note("send", source, target, len(data), crc32c(data))
        if link.break_share and self.random.random() < link.break_share:
            if self.random.random() < 0.5:
                stream.other.arrive(data, at)  # it arrives, and its answer never comes back
                stream.lose()
                self._nursery.start_soon(self._break_later, stream, at - trio.current_time() + 0.01)
                return
            stream.close()
            stream.other.close()
            raise BrokenPipeError("the connection broke")
        stream.other.arrive(data, at)

    async def _break_later(self, stream: SimStream, seconds: float) -> None:
        await trio.sleep(seconds)
        stream.lose()
        stream.close()
        stream.other.close()

    def delivered(self, stream: SimStream, size: int) -> None:
        self._note("got", stream.other.owner.host, stream.owner.host, size)

    def forget(self, stream: SimStream) -> None:
        self._streams.pop(stream, None)

    # ------------------------------------------------------------ for transports

    async def connect(
        self, process: Process, host: str, port: int, service: str, callbacks: Mapping[str, Service]
    ) -> StreamConnection:
        await trio.lowlevel.checkpoint()
        await process.running()
        there = self.link(process.host, host), self.link(host, process.host)
        if any(link.cut for link in there):
            with trio.move_on_after(CONNECT_SECONDS):
                while any(link.cut for link in there):
                    await self._link_changed.wait()
                    there = self.link(process.host, host), self.link(host, process.host)
            if any(link.cut for link in there):
                raise GfsError(Code.UNREACHABLE, f"cannot connect to {host}:{port}: no answer")
        delay = there[0].delay_max or self.base_delay
        if delay:
            await trio.sleep(self.random.random() * delay)
        listener = self._listeners.get((host, port))
        if listener is None or process.dead:
            raise GfsError(Code.UNREACHABLE, f"cannot connect to {host}:{port}: refused")
        near = SimStream(self, process, f"{host}:{port}")
        far = SimStream(self, listener.owner, process.host)
        near.other, far.other = far, near
        self._streams[near] = self._streams[far] = None
        connection = StreamConnection(near, service, callbacks)
        listener.nursery.start_soon(StreamConnection(far, "ClientCallback", listener.services).run)
        self._nursery.start_soon(connection.run)
        self._note("connect", process.host, host, port)
        return connection

    async def listen(
        self, process: Process, port: int, services: Mapping[str, Service], task_status: trio.TaskStatus[int]
    ) -> None:
        if port == 0:
            self._next_port += 1
            port = self._next_port
        address = (process.host, port)
        if address in self._listeners:
            raise GfsError(Code.BUSY, f"cannot listen on {process.host}:{port}: the port is in use")
        async with trio.open_nursery() as nursery:
            mine = self._listeners[address] = _Listener(process, services, nursery)
            try:
                task_status.started(port)
                await trio.sleep_forever()
            finally:
                if self._listeners.get(address) is mine:
                    del self._listeners[address]


class SimTransport:
    """The network as one process sees it. Implements `Transport`; the host it is told to listen on is its own."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    async def serve_streams(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        await self._network.listen(self._process, port, services, task_status)

    async def serve_control(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        await self._network.listen(self._process, port, services, task_status)

    async def open_stream(
        self, host: str, port: int, service: str, *, callbacks: Mapping[str, Service] | None = None
    ) -> Channel:
        return await self._network.connect(self._process, host, port, service, callbacks or {})

    def local_host(self) -> str:
        return self._process.host

    def control_channel(self, host: str, port: int, service: str) -> Channel:
        return _ControlChannel(self._network, self._process, host, port, service)


class _ControlChannel:
    """Connects by itself, and again, as a gRPC channel does; sometimes a call arrives twice."""

    def __init__(self, network: Network, process: Process, host: str, port: int, service: str) -> None:
        self._network = network
        self._process = process
        self._address = (host, port, service)
        self._connection: StreamConnection | None = None
        self._closed = trio.Event()

    async def call(
        self, method: str, request: Any, *payload: Buffer, timeout: float, reply_into: memoryview | None = None
    ) -> tuple[Any, memoryview]:
        if self._connection is None or self._connection.closed:
            self._connection = await self._network.connect(self._process, *self._address, callbacks={})
        connection = self._connection
        network = self._network
        share = network.link(self._process.host, self._address[0]).repeat_share
        if share and network.random.random() < share:
            copy = type(request)()
            copy.CopyFrom(request)
            network._nursery.start_soon(self._again, connection, method, copy, payload)
        return await connection.call(method, request, *payload, timeout=timeout, reply_into=reply_into)

    async def _again(
        self, connection: StreamConnection, method: str, request: Any, payload: tuple[Buffer, ...]
    ) -> None:
        """The same request once more, now or a little later; nobody waits for the answer."""
        await trio.sleep(self._network.random.random() * 2.0)
        with suppress(GfsError):
            await connection.call(method, request, *payload, timeout=_REPEATED_SECONDS)

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
