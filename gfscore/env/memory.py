"""The environment of one simulated node: everything in memory, in one thread, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from gfscore.env.interfaces import Env
from gfscore.env.memory_clock import MemoryClock
from gfscore.env.memory_disk import MemoryDisk

if TYPE_CHECKING:
    from gfscore.rpc.transport import Transport

T = TypeVar("T")


class InlineRunner:
    """Runs blocking calls where they are, after letting others run, when the `disk` answers. Implements `IoRunner`."""

    __slots__ = ("_disk",)

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self._disk = disk or MemoryDisk()

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        await trio.lowlevel.checkpoint()
        await self._disk.answers()
        return function(*args)

    async def quick(self, function: Callable[..., T], /, *args: Any) -> T:
        await self._disk.answers()
        return function(*args)


def memory_env(
    transport: Transport, *, disk: MemoryDisk | None = None, clock: MemoryClock | None = None, seed: int = 0
) -> Env:
    """One node: its own disk (the old one to restart a node), the `transport` of its host, randomness of `seed`."""
    disk = disk or MemoryDisk()
    return Env(
        clock=clock or MemoryClock(),
        random=Random(seed),
        disk=disk,
        run_io=InlineRunner(disk),
        transport=transport,
    )
