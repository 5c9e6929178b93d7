"""pyfuse3's workers take turns at reading requests; this makes a turn cheap.

pyfuse3 asks for each request under a `trio.Lock`, which costs two rounds of the scheduler even where nobody waits: a
tenth of all that a small operation takes. Its `trio` module can be replaced (so it runs on asyncio); only the lock is.
"""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import outcome
import pyfuse3
import trio


class Turn:
    """A lock for a few workers of one thread: first come, first served, and no await where it is free."""

    __slots__ = ("_taken", "_waiting")

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        if not self._taken:
            self._taken = True
            return
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: Any) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def __aexit__(self, *_: object) -> None:
        if self._waiting:
            trio.lowlevel.reschedule(self._waiting.popleft(), outcome.Value(None))
        else:
            self._taken = False


def install() -> None:
    """Let pyfuse3 use `Turn`. Once, before its main loop runs."""
    names = {name: getattr(trio, name) for name in ("ClosedResourceError", "lowlevel", "open_nursery")}
    pyfuse3.trio = SimpleNamespace(**names, Lock=Turn)  # type: ignore[attr-defined]
