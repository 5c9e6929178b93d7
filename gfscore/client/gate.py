"""A gate that many pass at the same time, and that one may keep closed for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Gate:
    __slots__ = ("_changed", "_inside", "closed")

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def wait_open(self) -> None:
        while self.closed:
            await self._changed.park()

    async def enter(self) -> None:
        """Inside from here to `leave`, while the gate is open: whoever closes it waits for that. No context manager:
        every append passes, and most find the gate open."""
        if self.closed:
            await self.wait_open()
        self._inside += 1

    def leave(self) -> None:
        self._inside -= 1
        if self.closed:
            self._changed.unpark_all()

    @asynccontextmanager
    async def closing(self) -> AsyncIterator[None]:
        """Nobody is inside."""
        await self.wait_open()
        self.closed = True
        try:
            while self._inside:
                await self._changed.park()
            yield
        finally:
            self.closed = False
            self._changed.unpark_all()
