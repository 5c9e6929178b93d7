"""Calls into the chunk store, in a thread or right here, with one eye on a failed sync (rule 20)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from gfscore.env.interfaces import IoRunner
from gfscore.errors import Code, GfsError
from gfscore.storage.chunk_store import StoreFailed

T = TypeVar("T")


def is_damage(error: GfsError) -> bool:
    """The stored bytes are wrong, or the disk cannot give them back: the replica has to be replaced [00127].

    Other errors of the operating system, such as too many open files, say nothing about the replica.
    """
    if error.code is Code.IO:
        cause = error.__cause__
        return not isinstance(cause, OSError) or cause.errno == errno.EIO
    return error.code is Code.CHECKSUM_MISMATCH


class StoreIo:
    """`on_failed` is told when the disk did not confirm a sync: the process has to end. Callers see SHUTTING_DOWN."""

    __slots__ = ("_on_failed", "_run_io")

    def __init__(self, run_io: IoRunner, on_failed: Callable[[BaseException], None]) -> None:
        self._run_io = run_io
        self._on_failed = on_failed

    async def run(self, function: Callable[..., T], /, *args: Any) -> T:
        """In a thread. Raises GfsError."""
        try:
            return await self._run_io(function, *args)
        except StoreFailed as error:
            raise self._failed(error) from error

    async def quick(self, function: Callable[..., T], /, *args: Any) -> T:
        """Right here as long as the disk is quick, see `IoRunner.quick`. Raises GfsError."""
        try:
            return await self._run_io.quick(function, *args)
        except StoreFailed as error:
            raise self._failed(error) from error

    def now(self, function: Callable[..., T], /, *args: Any) -> T:
        """On the event loop: only for what does not wait for the disk. Raises GfsError."""
        try:
            return function(*args)
        except StoreFailed as error:
            raise self._failed(error) from error

    def _failed(self, error: StoreFailed) -> GfsError:
        self._on_failed(error)
        return GfsError(Code.SHUTTING_DOWN, f"this chunkserver ends: {error}")
