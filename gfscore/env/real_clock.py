"""The machine's clocks. CLOCK_BOOTTIME goes on while the machine is suspended: no lease is believed too long."""

from __future__ import annotations

import time

import trio


class RealClock:
    """Implements `Clock`."""

    __slots__ = ()

    def boottime(self) -> float:
        """Seconds since the machine started, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump."""
        return time.time_ns()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
