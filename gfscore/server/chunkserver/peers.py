"""Streams to other chunkservers: one per peer for control messages, and a few for pushes.

Apart, because a piece on its way would hold up the small messages behind it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, cast

import trio

from gfscore.checksum import Buffer
from gfscore.rpc.transport import Channel, Transport

_SERVICE = "ChunkData"
_IDLE_PUSH_STREAMS_MAX = 4  # kept per peer

PeerAddress = tuple[str, int]


class StreamingCall(Protocol):
    """A call whose payload is sent piece by piece."""

    async def send(self, view: Buffer) -> None: ...

    async def result(self) -> Any: ...


class PushChannel(Protocol):
    """A stream that can carry a payload while it is received."""

    @property
    def closed(self) -> bool: ...

    def call_streaming(
        self, method: str, request: Any, size: int, timeout: float
    ) -> AbstractAsyncContextManager[StreamingCall]: ...

    async def aclose(self) -> None: ...


class Peers:
    """Opens streams when they are needed, again after they broke."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._control: dict[PeerAddress, Channel] = {}
        self._opening: dict[PeerAddress, trio.Lock] = {}
        self._idle: dict[PeerAddress, list[PushChannel]] = {}

    def connected(self, address: PeerAddress) -> Channel | None:
        """The stream for control messages, when it is there."""
        channel = self._control.get(address)
        return channel if channel is not None and not channel.closed else None

    async def control(self, address: PeerAddress) -> Channel:
        """The stream for control messages. Raises GfsError(UNREACHABLE)."""
        channel = self.connected(address)
        if channel is None:
            async with self._opening.setdefault(address, trio.Lock()):
                channel = self.connected(address)
                if channel is None:
                    channel = await self._transport.open_stream(*address, _SERVICE)
                    self._control[address] = channel
        return channel

    @asynccontextmanager
    async def push(self, address: PeerAddress) -> AsyncIterator[PushChannel]:
        """A stream of one's own for one push. Raises GfsError(UNREACHABLE)."""
        idle = self._idle.setdefault(address, [])
        channel = None
        while idle and channel is None:
            channel = idle.pop()
            if channel.closed:
                channel = None
        if channel is None:
            channel = cast(PushChannel, await self._transport.open_stream(*address, _SERVICE))
        complete = False
        try:
            yield channel
            complete = True
        finally:
            if complete and not channel.closed and len(idle) < _IDLE_PUSH_STREAMS_MAX:
                idle.append(channel)
            else:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await channel.aclose()

    async def aclose(self) -> None:
        """Close every stream."""
        channels: list[Channel | PushChannel] = [*self._control.values()]
        for idle in self._idle.values():
            channels += idle
        self._control.clear()
        self._idle.clear()
        for channel in channels:
            await channel.aclose()
