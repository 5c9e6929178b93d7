"""The in-memory twin of the clock: trio's own time, which a test's `trio.testing.MockClock` drives.

Several nodes of a simulated cluster may each have a wall clock that is off by something else.
"""

from __future__ import annotations

import trio

_START_NS = 1_700_000_000_000_000_000  # an arbitrary date: the same in every run


class MemoryClock:
    """Implements `Clock`. `wall_offset_ns` may be set at any time, as an operator or NTP would."""

    __slots__ = ("wall_offset_ns",)

    def __init__(self, wall_offset_ns: int = 0) -> None:
        self.wall_offset_ns = wall_offset_ns

    def boottime(self) -> float:
        """Seconds of trio's clock; inside a trio run only."""
        return trio.current_time()

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch: trio's clock from a fixed date on, plus this node's offset."""
        return _START_NS + int(trio.current_time() * 1e9) + self.wall_offset_ns

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
