"""What the rest of the system knows of the network: calls and byte streams, nothing of how they travel.

A *service* is a table of handlers for one proto service; a *channel* calls one. Both exist over gRPC
(control), over framed TCP streams (data, and the session of a mount with its master) and in memory
(the twin that a whole cluster in one process uses). `google.protobuf` messages are the arguments.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from gfscore.checksum import Buffer

Handler = Callable[[Any, "CallContext"], Awaitable[Any]]
Service = Mapping[str, Handler]
"""Handlers by method name. A GfsError is the answer; any other exception is logged and answered INTERNAL."""


class CallContext(Protocol):
    """Who calls, and the raw bytes that came with the call."""

    @property
    def peer(self) -> str: ...

    @property
    def session(self) -> Channel | None:
        """For calling back on the same connection, while it lasts; None over gRPC."""
        ...

    @property
    def payload(self) -> PayloadReader:
        """The raw bytes behind the message. Read completely before the handler returns, or dropped."""
        ...

    def reply_payload(self, *parts: Buffer) -> None:
        """Raw bytes to send behind the reply. The buffers stay untouched until `on_sent` of the reply."""
        ...

    def on_sent(self, release: Callable[[], None]) -> None:
        """Call `release` when the reply is out (or lost): the time to reuse its buffers."""
        ...


class PayloadReader(Protocol):
    @property
    def size(self) -> int: ...

    async def read_into(self, view: memoryview) -> int:
        """Some of the payload, as it arrives; 0 at its end."""
        ...

    async def read_all(self) -> Buffer: ...


class PendingCall(Protocol):
    """A call that was sent."""

    async def result(self, timeout: float) -> Any:
        """The reply. Raises GfsError. Once, and whoever does not ask for it closes the connection at some time."""
        ...


class Channel(Protocol):
    """Calls to one service of one peer. Raises GfsError; UNREACHABLE when no answer can be expected."""

    async def call(
        self, method: str, request: Any, *payload: Buffer, timeout: float, reply_into: memoryview | None = None
    ) -> tuple[Any, memoryview]:
        """The reply and its payload (inside `reply_into` when given and large enough)."""
        ...

    async def begin(self, method: str, request: Any, *payload: Buffer) -> PendingCall:
        """Send a call and come back for the answer later. Framed streams only."""
        ...

    @property
    def closed(self) -> bool: ...

    async def wait_closed(self) -> None: ...

    async def aclose(self) -> None: ...


class Transport(Protocol):
    """The network of one process."""

    async def serve_streams(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        """Serve framed streams until cancelled; starts with the port (useful for port 0)."""
        ...

    async def serve_control(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        """Serve gRPC until cancelled; starts with the port."""
        ...

    async def open_stream(
        self, host: str, port: int, service: str, *, callbacks: Mapping[str, Service] | None = None
    ) -> Channel:
        """Connect a framed stream for calls to `service`; `callbacks` are services the peer may call on it."""
        ...

    def local_host(self) -> str:
        """The address of this machine as others see it, as far as it is known without asking anybody."""
        ...

    def control_channel(self, host: str, port: int, service: str) -> Channel:
        """A gRPC channel (connects by itself, and again)."""
        ...
