"""The environment of a real process: its clocks, its disk, its threads, its network.

The only place that ties the pieces together; the pieces know nothing of one another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from gfscore.env.interfaces import Env
from gfscore.env.real_clock import RealClock
from gfscore.env.real_disk import RealDisk

if TYPE_CHECKING:
    from gfscore.rpc.transport import Transport

T = TypeVar("T")

_THREADS_MAX = 16


class ThreadRunner:
    """Runs blocking calls in threads, a bounded number at once. Implements `IoRunner`.

    A call that has begun is waited for even when its caller is cancelled: its buffers stay its own until it is done.
    """

    __slots__ = ("_limiter",)

    def __init__(self, threads_max: int = _THREADS_MAX) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        return await trio.to_thread.run_sync(
            partial(function, *args) if args else function, limiter=self._limiter, abandon_on_cancel=False
        )


def real_env(root: Path, *, transport: Transport | None = None) -> Env:
    """The environment of this process with its files below `root`; `transport` defaults to the real network."""
    if transport is None:
        from gfscore.rpc.real import RealTransport  # here: a process without a network need not load gRPC

        transport = RealTransport()
    return Env(
        clock=RealClock(), random=SystemRandom(), disk=RealDisk(root), run_io=ThreadRunner(), transport=transport
    )
