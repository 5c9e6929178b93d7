"""The environment of a real process: its clocks, its disk, its threads, its network.

The only place that ties the pieces together; the pieces know nothing of one another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import SystemRandom
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from gfscore.env.interfaces import Env
from gfscore.env.real_clock import RealClock
from gfscore.env.real_disk import RealDisk

if TYPE_CHECKING:
    from gfscore.rpc.transport import Transport

T = TypeVar("T")

_THREADS_MAX = 16
_QUICK_SECONDS_MAX = 0.02
_SLOW_SECONDS_MIN = 0.1
_SLOW_SECONDS_MAX = 5.0


class ThreadRunner:
    """Runs blocking calls in threads, a bounded number at once. Implements `IoRunner`.

    A call that has begun is waited for even when its caller is cancelled: its buffers stay its own until it is done.
    """

    __slots__ = ("_limiter", "_slow")

    def __init__(self, threads_max: int = _THREADS_MAX) -> None:
        self._limiter = trio.CapacityLimiter(threads_max)
        self._slow: dict[str, _Slow] = {}

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        return await trio.to_thread.run_sync(
            partial(function, *args) if args else function, limiter=self._limiter, abandon_on_cancel=False
        )

    async def quick(self, function: Callable[..., T], /, *args: Any) -> T:
        slow = self._slow.get(function.__qualname__)
        started = perf_counter()
        if slow is not None and started < slow.until:
            return await self(function, *args)
        try:
            return function(*args)
        finally:
            ended = perf_counter()
            if ended - started > _QUICK_SECONDS_MAX:
                if slow is None:
                    slow = self._slow[function.__qualname__] = _Slow()
                slow.happened(ended)


class _Slow:
    """A kind of call that was found slow: how long it goes to threads. A disk that is slow again soon doubles that."""

    __slots__ = ("seconds", "until")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.until = 0.0

    def happened(self, now: float) -> None:
        if now - self.until > _SLOW_SECONDS_MAX:
            self.seconds = 0.0
        self.seconds = min(max(self.seconds * 2, _SLOW_SECONDS_MIN), _SLOW_SECONDS_MAX)
        self.until = now + self.seconds


def real_env(root: Path, *, transport: Transport | None = None) -> Env:
    """The environment of this process with its files below `root`; `transport` defaults to the real network."""
    if transport is None:
        from gfscore.rpc.real import RealTransport  # here: a process without a network need not load gRPC

        transport = RealTransport()
    return Env(
        clock=RealClock(), random=SystemRandom(), disk=RealDisk(root), run_io=ThreadRunner(), transport=transport
    )
