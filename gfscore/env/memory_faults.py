"""Faults for the in-memory disk: what fails, when, and how. Counts every call that reaches the disk.

It decides only whether a call goes wrong; what then is on the disk is `memory_disk`'s affair.
"""

from __future__ import annotations

import os
from collections.abc import Callable

PAGE_BYTES = 4096


class Killed(BaseException):
    """The process that made the call is dead, as after SIGKILL. Nothing in the process may catch it and carry on."""


class DiskFaults:
    """A plan of faults. Calls are counted from 1; `calls` is how many there were since `reset`."""

    def __init__(self) -> None:
        self.calls = 0
        self.on_call: Callable[[str, str], None] | None = None  # (operation, path) of each call; may raise
        self._fail_at: dict[int, int] = {}
        self._fail_kind: dict[str, int] = {}
        self._kill_at = 0
        self._kill_pages = 0

    def reset(self) -> None:
        """Forget the plan and count from 1 again."""
        self.calls = 0
        self.on_call = None
        self._fail_at.clear()
        self._fail_kind.clear()
        self._kill_at = 0

    def fail_call(self, number: int, error: int) -> None:
        """Call `number` from now on (1 is the next) raises OSError(error) and does nothing."""
        self._fail_at[self.calls + number] = error

    def fail_operation(self, operation: str, error: int | None) -> None:
        """Every call of this operation ("pwrite", "fdatasync", …) raises OSError(error); None ends it."""
        if error is None:
            self._fail_kind.pop(operation, None)
        else:
            self._fail_kind[operation] = error

    def kill_at(self, number: int, pages: int = 0) -> None:
        """Call `number` from now on kills the process; a write then still does its first `pages` pages.

        A page that is only touched in part counts as a page. Any other operation is not done at all.
        """
        self._kill_at = self.calls + number
        self._kill_pages = pages

    def check(self, operation: str, path: str) -> None:
        """Count a call that is not a write. Raises OSError or Killed as planned."""
        self.calls += 1
        if self.on_call is not None:
            self.on_call(operation, path)
        if self.calls == self._kill_at:
            raise Killed(f"killed at call {self.calls}: {operation} {path}")
        self._fail(operation, path)

    def check_write(self, path: str, offset: int, size: int) -> int:
        """Count a write; the bytes of it that take place: `size`, or fewer if the process dies in it."""
        self.calls += 1
        if self.on_call is not None:
            self.on_call("pwrite", path)
        if self.calls == self._kill_at:
            first_page_end = (offset // PAGE_BYTES + self._kill_pages) * PAGE_BYTES
            return min(size, max(0, first_page_end - offset)) if self._kill_pages else 0
        self._fail("pwrite", path)
        return size

    @property
    def dying(self) -> bool:
        """True in the call that kills."""
        return self.calls == self._kill_at

    def _fail(self, operation: str, path: str) -> None:
        error = self._fail_at.pop(self.calls, None) or self._fail_kind.get(operation)
        if error is not None:
            raise OSError(error, os.strerror(error), path)
