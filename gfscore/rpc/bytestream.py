"""Byte streams: a TCP socket driven by trio, and its in-memory twin.

The socket is used directly, without trio's stream classes: a call that can be served at once costs one system
call, and bytes are received into the caller's buffer.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import Protocol

import trio

from gfscore.checksum import Buffer

SOCKET_BUFFER_BYTES = 2 * 1024 * 1024
PEER_LOST_SECONDS = 30  # a machine that answers nothing for so long is gone, also where nobody has anything to say
_PROBES = 4
_IMMEDIATE_RECEIVES_MAX = 32  # then let others run, however fast the peer sends


class ByteStream(Protocol):
    peer: str

    async def send(self, parts: list[Buffer]) -> None:
        """All bytes of all parts, in order. Callers take turns. Raises OSError."""
        ...

    async def receive_into(self, view: memoryview) -> int:
        """Some bytes, 0 at the end of the stream. Raises OSError."""
        ...

    def close(self) -> None: ...


class SocketStream:
    """A connected TCP socket."""

    __slots__ = ("_immediate", "_socket", "peer")

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _notice_lost_peer(connected)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._socket = connected
        self._immediate = 0
        host, port = connected.getpeername()[:2]
        self.peer = f"{host}:{port}"

    async def send(self, parts: list[Buffer]) -> None:
        try:
            sent = self._socket.sendmsg(parts)
        except BlockingIOError:
            sent = 0
        if sent == sum(map(len, parts)):
            return
        await self._send_rest(parts, sent)

    async def _send_rest(self, parts: list[Buffer], sent: int) -> None:
        rest: deque[memoryview] = deque(memoryview(part) for part in parts if len(part))
        while True:
            while rest and sent >= len(rest[0]):
                sent -= len(rest.popleft())
            if not rest:
                return
            if sent:
                rest[0] = rest[0][sent:]
            await trio.lowlevel.wait_writable(self._socket)
            try:
                sent = self._socket.sendmsg(rest)
            except BlockingIOError:
                sent = 0

    async def receive_into(self, view: memoryview) -> int:
        while True:
            try:
                received = self._socket.recv_into(view)
            except BlockingIOError:
                self._immediate = 0
                await trio.lowlevel.wait_readable(self._socket)
                continue
            self._immediate += 1
            if self._immediate >= _IMMEDIATE_RECEIVES_MAX:
                self._immediate = 0
                await trio.lowlevel.checkpoint()
            return received

    def close(self) -> None:
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()


def _notice_lost_peer(connected: socket.socket) -> None:
    """Have the kernel ask now and then whether the peer's machine is there: a crash or a cut cable says nothing."""
    pause = PEER_LOST_SECONDS // (_PROBES + 2)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PEER_LOST_SECONDS - _PROBES * pause)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, pause)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_LOST_SECONDS * 1000)


class MemoryStream:
    """One end of a stream inside the process; `pair()` makes both."""

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self._incoming = bytearray()
        self._changed = trio.Event()
        self._closed = False
        self._other: MemoryStream = self

    @classmethod
    def pair(cls, first_name: str, second_name: str) -> tuple[MemoryStream, MemoryStream]:
        """(the end that `first_name` holds, the end that `second_name` holds)."""
        first, second = cls(second_name), cls(first_name)
        first._other, second._other = second, first
        return first, second

    async def send(self, parts: list[Buffer]) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed or self._other._closed:
            raise BrokenPipeError("the peer closed the stream")
        for part in parts:
            self._other._incoming += part
        self._other._notify()

    async def receive_into(self, view: memoryview) -> int:
        await trio.lowlevel.checkpoint()
        while not self._incoming:
            if self._closed:
                raise OSError("the stream was closed here")
            if self._other._closed:
                return 0
            self._changed = trio.Event()
            await self._changed.wait()
        count = min(len(view), len(self._incoming))
        view[:count] = self._incoming[:count]
        del self._incoming[:count]
        return count

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._notify()
            self._other._notify()

    def _notify(self) -> None:
        self._changed.set()
