"""The raw bytes behind a message: already here, or still arriving. Both are `transport.PayloadReader`s."""

from __future__ import annotations

from typing import Protocol

import trio

from gfscore.checksum import Buffer


class Receiver(Protocol):
    """The connection that a payload arrives on."""

    async def receive_some(self, view: memoryview) -> int: ...


class Received:
    """A payload that is already here."""

    __slots__ = ("_position", "_view", "size")

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._position = 0
        self.size = len(view)

    async def read_into(self, view: memoryview) -> int:
        count = min(len(view), self.size - self._position)
        view[:count] = self._view[self._position : self._position + count]
        self._position += count
        return count

    async def read_all(self) -> Buffer:
        return self._view


class Arriving:
    """A payload that is still coming; the connection's reader is parked until it is taken or dropped."""

    __slots__ = ("_connection", "_left", "done", "size")

    def __init__(self, connection: Receiver, size: int) -> None:
        self._connection = connection
        self._left = size
        self.size = size
        self.done = trio.Event()

    async def read_into(self, view: memoryview) -> int:
        if not self._left:
            return 0
        count = await self._connection.receive_some(view[: min(len(view), self._left)])
        self._left -= count
        if not self._left:
            self.done.set()
        return count

    async def read_all(self) -> Buffer:
        view = memoryview(bytearray(self._left))
        position = 0
        while position < len(view):
            position += await self.read_into(view[position:])
        return view

    async def drop(self) -> None:
        scratch = memoryview(bytearray(min(self._left, 64 * 1024)))
        while self._left:
            await self.read_into(scratch)
        self.done.set()
