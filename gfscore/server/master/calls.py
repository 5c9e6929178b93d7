"""What every call has in common: counting, locks for quick operations, idempotency, and the flush before the answer.

A handler returns its reply, or a coroutine for it when it has to wait. Whatever it answers, an error too, leaves
this process only when everything that was applied before is on the disk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from types import CoroutineType
from typing import Any

from gfscore.errors import GfsError
from gfscore.metadata import requests
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext, Handler
from gfscore.server.master.locking import Keys, Locks
from gfscore.server.master.sessions import Sessions, Told
from gfscore.server.master.state import MasterState

Operation = Callable[[], tuple[Any, Told]]
"""Decides and applies without an await: the reply, and who has to be told before it goes out."""


class Calls:
    def __init__(self, state: MasterState, locks: Locks, sessions: Sessions) -> None:
        self.counts: Counter[str] = Counter()
        self._repeated: set[tuple[int, int]] = set()  # (client, request) of changes that were carried out before
        self._state = state
        self._locks = locks
        self._sessions = sessions

    def service(self, handlers: Mapping[str, Callable[[Any, CallContext], Any]]) -> dict[str, Handler]:
        """The handlers as they are served."""
        return {name: self._served(name, handler) for name, handler in handlers.items()}

    def _served(self, name: str, handler: Callable[[Any, CallContext], Any]) -> Handler:
        counts, state = self.counts, self._state

        def call(request: Any, context: CallContext) -> Any:
            counts[name] += 1
            try:
                reply = handler(request, context)
            except GfsError as error:
                if not state.pending and not self._repeated:
                    raise
                return self._await_flushed(self._raise(error), request)
            if isinstance(reply, CoroutineType) or self._repeated:
                return self._await_flushed(reply, request)
            if state.pending:
                return self._flushed(reply)
            return reply

        return call

    async def _await_flushed(self, reply: Coroutine[Any, Any, Any] | Any, request: Any) -> Any:
        try:
            while isinstance(reply, CoroutineType):  # what had to queue may then find that it has to wait
                reply = await reply
            return reply
        finally:
            if self._repeated:
                await self._others_know(request)
            await self._state.flushed()

    async def _others_know(self, request: Any) -> None:
        """A change that was carried out before is perhaps repeated because somebody is still being told of it."""
        request_id = getattr(request, "id", None)
        if isinstance(request_id, pb.RequestId) and _key(request_id) in self._repeated:
            self._repeated.discard(_key(request_id))
            for known in self._sessions.being_told():
                await known.wait()

    async def _flushed(self, reply: Any) -> Any:
        await self._state.flushed()
        return reply

    async def _raise(self, error: GfsError) -> Any:
        raise error

    # ------------------------------------------------------------ for handlers

    def quick(self, keys: Callable[[], Keys], operation: Operation) -> Any:
        """Run `operation` at once if the locks are free, else when they are; the reply, or a coroutine for it."""
        done, result = self._locks.try_run(keys, operation)
        if not done:
            return self._queued(keys, operation)
        assert result is not None
        reply, told = result
        return self.told(reply, told) if told else reply

    async def _queued(self, keys: Callable[[], Keys], operation: Operation) -> Any:
        async with self._locks.hold(keys):
            reply, told = operation()
        return await self.told(reply, told)

    async def told(self, reply: Any, told: Told) -> Any:
        """The reply, once the others have forgotten what changed. The flush goes on meanwhile."""
        if told:
            await self._sessions.tell(told)
        return reply

    def outcome(self, request_id: pb.RequestId) -> tuple[int, ...] | None:
        """What came of this very request before, if it was carried out (rule 21). Raises BAD_MESSAGE for a late one."""
        if not request_id.client_id or not request_id.request_id:
            return None
        found = requests.outcome(self._state.tables, request_id.client_id, request_id.request_id)
        if found is not None:
            self._repeated.add(_key(request_id))
        return found

    def commit(self, tx: Transaction, request_id: pb.RequestId, *outcome: int) -> None:
        """Apply a change, with its outcome in the same record."""
        if request_id.client_id and request_id.request_id:
            requests.remember(tx, request_id.client_id, request_id.request_id, request_id.done_below, outcome)
        self._state.commit(tx)


def _key(request_id: pb.RequestId) -> tuple[int, int]:
    return request_id.client_id, request_id.request_id
