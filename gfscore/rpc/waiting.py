"""The caller's side of a call on a stream: waiting for the reply, and calls that are sent in more than one step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import outcome
import trio

from gfscore.checksum import Buffer
from gfscore.rpc.methods import Method

if TYPE_CHECKING:
    from gfscore.rpc.stream import StreamConnection

Answer = tuple[Any, memoryview]
"""The reply and its payload."""


class Waiter:
    """A call whose reply is awaited: by a task, or, when the reply was faster than that, kept."""

    __slots__ = ("_early", "_task", "deadline", "into", "method", "receiving")

    def __init__(self, method: Method, into: memoryview | None) -> None:
        self.method = method
        self.into = into
        self.deadline = math.inf  # trio's clock; the connection wakes it with an error then
        self.receiving = False  # the payload is being put into the caller's buffer
        self._task: trio.lowlevel.Task | None = None
        self._early: outcome.Outcome[Answer] | None = None

    async def wait(self) -> Answer:
        """Raises GfsError: the peer's answer, or UNREACHABLE when the connection ends."""
        if self._early is not None:
            return self._early.unwrap()
        self._task = trio.lowlevel.current_task()
        answer: Answer = await trio.lowlevel.wait_task_rescheduled(self._abort)
        return answer

    def wake(self, result: outcome.Outcome[Answer]) -> None:
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, result)
            self._task = None
        else:
            self._early = result

    def _abort(self, _: Any) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class SentCall:
    """See `StreamConnection.begin`."""

    __slots__ = ("_call_id", "_connection", "_waiter")

    def __init__(self, connection: StreamConnection, call_id: int, waiter: Waiter) -> None:
        self._connection = connection
        self._call_id = call_id
        self._waiter = waiter

    async def result(self, timeout: float) -> Any:
        """The reply. Raises GfsError."""
        reply, _ = await self._connection.answer(self._call_id, self._waiter, timeout)
        return reply


class StreamingCall:
    """See `StreamConnection.call_streaming`."""

    def __init__(self, connection: StreamConnection, call_id: int, method: Method, size: int) -> None:
        self._connection = connection
        self.waiter = connection.expect(call_id, method, None)
        self._locked = True
        self.left = size

    async def send(self, view: Buffer) -> None:
        """The next bytes of the payload."""
        assert len(view) <= self.left, "more payload than announced"
        await self._connection.send_locked([view])
        self.left -= len(view)
        if not self.left:
            self.unlock()

    async def result(self) -> Any:
        """The reply, once all of the payload was sent."""
        assert not self.left, "the payload is not complete"
        reply, _ = await self.waiter.wait()
        return reply

    def unlock(self) -> None:
        """Let others send. Repeating is fine."""
        if self._locked:
            self._locked = False
            self._connection.send_lock.release()
