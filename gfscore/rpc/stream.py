"""Calls in both directions over one byte stream: many in flight, replies in any order.

One task at a time reads; whoever has read a request serves it and leaves the reading to another; whoever sends takes
the send lock. A payload of up to 64 KiB is read before its handler starts; a larger one is handed to the handler as it
arrives (a push is forwarded while it is received, [00100]) and the connection reads on when the handler has taken it.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import outcome
import trio
from google.protobuf.message import DecodeError

from gfscore.checksum import Buffer
from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc import frame
from gfscore.rpc.bytestream import ByteStream
from gfscore.rpc.methods import BY_NUMBER, Method, method_named
from gfscore.rpc.payload import Arriving, Received
from gfscore.rpc.transport import Handler, Service
from gfscore.rpc.waiting import SentCall, StreamingCall, Waiter

log = logging.getLogger(__name__)

PREFETCHED_PAYLOAD_BYTES = 64 * 1024
SEND_SECONDS = 30.0  # a peer that takes no byte for so long is gone
CALLS_MAX = 1024  # of one peer at once; then nothing more is read from it
_BUFFER_BYTES = 256 * 1024
_EMPTY = memoryview(b"")
_ZEROS = memoryview(bytes(64 * 1024))


_NO_PAYLOAD = Received(_EMPTY)


class _Context:
    """One call being answered. See `transport.CallContext`."""

    __slots__ = ("_connection", "parts", "payload", "release")

    def __init__(self, connection: StreamConnection, payload: Received | Arriving) -> None:
        self._connection = connection
        self.payload = payload
        self.parts: tuple[Buffer, ...] = ()
        self.release: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        return self._connection.peer

    @property
    def session(self) -> StreamConnection:
        return self._connection

    def reply_payload(self, *parts: Buffer) -> None:
        self.parts = parts

    def on_sent(self, release: Callable[[], None]) -> None:
        self.release = release


class _Call:
    """A request that came in."""

    __slots__ = ("call_id", "context", "handler", "method", "request")

    def __init__(self, method: Method, call_id: int, handler: Handler, request: Any, context: _Context) -> None:
        self.method = method
        self.call_id = call_id
        self.handler = handler
        self.request = request
        self.context = context


class StreamConnection:
    """Both ends of a framed stream; a `Channel` for calls to `service` of the peer."""

    def __init__(self, stream: ByteStream, service: str, services: Mapping[str, Service]) -> None:
        self.peer = stream.peer
        self.service = service
        self.attachments: dict[str, Any] = {}  # what a server remembers about this peer, e.g. its session
        self._stream = stream
        self._handlers: dict[int, Handler] = {
            method_named(name, method).number: handler
            for name, table in services.items()
            for method, handler in table.items()
        }
        self._waiters: dict[int, Waiter] = {}
        self._next_id = 0
        self.send_lock = trio.Lock()
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0  # unread bytes are _view[_start:_end]
        self._end = 0
        self._closed = trio.Event()
        self._serving = 0  # calls of the peer that are not answered yet
        self._fewer_calls = trio.Event()
        self._send_deadline = math.inf
        self._watching = trio.CancelScope()  # ends when the next deadline is there

    # ------------------------------------------------------------ calling

    async def call(
        self, method: str, request: Any, *payload: Buffer, timeout: float, reply_into: memoryview | None = None
    ) -> tuple[Any, memoryview]:
        """See `transport.Channel.call`. Its time is kept by `_watch`: a cancel scope would cost more than the rest."""
        call_id, waiter = await self._ask(method, request, payload, reply_into)
        return await self.answer(call_id, waiter, timeout)

    async def begin(self, method: str, request: Any, *payload: Buffer) -> SentCall:
        """See `transport.Channel.begin`."""
        call_id, waiter = await self._ask(method, request, payload, None)
        return SentCall(self, call_id, waiter)

    async def _ask(
        self, method: str, request: Any, payload: tuple[Buffer, ...], reply_into: memoryview | None
    ) -> tuple[int, Waiter]:
        entry = method_named(self.service, method)
        call_id = self._new_id()
        header = request.SerializeToString(deterministic=True)
        waiter = self.expect(call_id, entry, reply_into)
        sent = False
        try:
            size = sum(map(len, payload))
            prefix = frame.pack_prefix(frame.REQUEST, entry.number, call_id, len(header), size)
            await self._send([prefix + header, *payload])
            sent = True
        finally:
            if not sent:
                self.forget(call_id, waiter)
        return call_id, waiter

    @asynccontextmanager
    async def call_streaming(
        self, method: str, request: Any, size: int, timeout: float
    ) -> AsyncIterator[StreamingCall]:
        """A call whose `size` bytes of payload are sent piece by piece: `send(view)` … then `result()`.

        Leaving the context early sends zeros for what is missing, so that the stream stays in step; the checksums
        in the request make the receiver discard it.
        """
        entry = method_named(self.service, method)
        call_id = self._new_id()
        header = request.SerializeToString(deterministic=True)
        with trio.move_on_after(timeout) as scope:
            if self._closed.is_set():
                raise self._gone()
            await self._take_turn()
            streaming = StreamingCall(self, call_id, entry, size)
            try:
                prefix = frame.pack_prefix(frame.REQUEST, entry.number, call_id, len(header), size)
                await self.send_locked([prefix + header])
                yield streaming
            finally:
                if streaming.left and not self._closed.is_set():
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                        while streaming.left:
                            await streaming.send(_ZEROS[: min(streaming.left, len(_ZEROS))])
                    if streaming.left:
                        self.close()
                streaming.unlock()
                self.forget(call_id, streaming.waiter)
        if scope.cancelled_caught:
            raise GfsError(Code.UNREACHABLE, f"{self.peer} did not take {method} within {timeout:g} s")

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Calls in flight fail with UNREACHABLE."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._stream.close()
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            waiter.wake(outcome.Error(self._gone()))

    def _gone(self) -> GfsError:
        return GfsError(Code.UNREACHABLE, f"the connection to {self.peer} is gone")

    def _new_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFFFFFF
        return self._next_id

    def expect(self, call_id: int, entry: Method, into: memoryview | None) -> Waiter:
        if self._closed.is_set():
            raise self._gone()
        waiter = Waiter(entry, into)
        self._waiters[call_id] = waiter
        return waiter

    async def answer(self, call_id: int, waiter: Waiter, timeout: float) -> tuple[Any, memoryview]:
        """Raises GfsError: the peer's, or UNREACHABLE after `timeout` seconds."""
        waiter.deadline = trio.current_time() + timeout
        self._wake_watch(waiter.deadline)
        try:
            return await waiter.wait()
        finally:
            self.forget(call_id, waiter)

    def forget(self, call_id: int, waiter: Waiter) -> None:
        self._waiters.pop(call_id, None)
        if waiter.receiving:
            # The caller gave up while its buffer was being filled: it must not be written to any more.
            self.close()

    # ------------------------------------------------------------ sending

    async def _take_turn(self) -> None:
        try:
            self.send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self.send_lock.acquire()

    async def _send(self, parts: list[Buffer]) -> None:
        await self._take_turn()
        try:
            await self.send_locked(parts)
        finally:
            self.send_lock.release()

    async def send_locked(self, parts: list[Buffer]) -> None:
        complete = False
        self._send_deadline = trio.current_time() + SEND_SECONDS
        self._wake_watch(self._send_deadline)
        try:
            await self._stream.send(parts)
            complete = True
            self._send_deadline = math.inf
        except (OSError, trio.ClosedResourceError) as error:
            raise GfsError(Code.UNREACHABLE, f"the connection to {self.peer} broke: {error}") from error
        finally:
            if not complete:
                self.close()  # half a frame may be out: the stream is out of step

    # ------------------------------------------------------------ receiving

    async def run(self) -> None:
        """Read and dispatch until the connection ends. Never raises for what the peer does."""
        try:
            # What the peer asked for is finished even when it goes: a client that dies leaves nothing half-applied.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                await self._read_on(nursery, None)
        finally:
            self.close()

    async def _watch(self) -> None:
        """Ends calls that were not answered in time, and the connection when the peer takes nothing any more."""
        while not self._closed.is_set():
            deadlines = [waiter.deadline for waiter in self._waiters.values()]
            # One that is over before then is looked at in vain, once: most calls have the same timeout.
            with trio.CancelScope(deadline=min([self._send_deadline, *deadlines])) as self._watching:
                await self._closed.wait()
            now = trio.current_time()
            if now >= self._send_deadline:
                log.warning("event=peer_stuck peer=%s", self.peer)
                self.close()
            for call_id, waiter in list(self._waiters.items()):
                if now >= waiter.deadline:
                    error = GfsError(Code.UNREACHABLE, f"{self.peer} did not answer {waiter.method.name} in time")
                    self.forget(call_id, waiter)
                    waiter.wake(outcome.Error(error))

    def _wake_watch(self, deadline: float) -> None:
        if deadline < self._watching.deadline:
            self._watching.deadline = deadline

    async def _read_on(self, nursery: trio.Nursery, after: trio.Event | None) -> None:
        """Read until a request comes; then another task reads on, and this one serves it without a hop.

        So handlers also begin in the order in which their requests arrived, though trio starts tasks in random order.
        """
        try:
            if after is not None:
                await after.wait()
            call = None
            while call is None and not self._closed.is_set():
                call = await self._read_frame()
        except (EOFError, OSError, trio.ClosedResourceError):
            self.close()
            return
        except (GfsError, DecodeError) as error:
            log.warning("event=bad_message peer=%s error=%r", self.peer, str(error))
            self.close()
            return
        if call is not None:
            nursery.start_soon(self._read_on, nursery, self._room(call))
            await self._serve(call)

    def _room(self, call: _Call) -> trio.Event | None:
        """What the reader has to wait for: a payload that the handler takes itself, or the end of older calls."""
        payload = call.context.payload
        if isinstance(payload, Arriving):
            return payload.done
        if self._serving < CALLS_MAX:
            return None
        if self._fewer_calls.is_set():
            self._fewer_calls = trio.Event()
        return self._fewer_calls

    async def receive_some(self, view: memoryview) -> int:
        """Some of the bytes that come next, from the buffer first."""
        if self._start < self._end:
            count = min(len(view), self._end - self._start)
            view[:count] = self._view[self._start : self._start + count]
            self._start += count
            return count
        try:
            count = await self._stream.receive_into(view)
        except (OSError, trio.ClosedResourceError) as error:
            self.close()
            raise GfsError(Code.UNREACHABLE, f"the connection to {self.peer} broke: {error}") from error
        if count == 0:
            self.close()
            raise GfsError(Code.UNREACHABLE, f"{self.peer} closed the connection")
        return count

    async def _fill(self, size: int) -> None:
        """Have at least `size` unread bytes in the buffer (size is at most the buffer's)."""
        if self._start == self._end:
            self._start = self._end = 0
        if self._start + size > len(self._view):
            unread = self._end - self._start
            self._buffer[:unread] = self._buffer[self._start : self._end]
            self._start, self._end = 0, unread
        while self._end - self._start < size:
            count = await self._stream.receive_into(self._view[self._end :])
            if count == 0:
                raise EOFError
            self._end += count

    async def _receive_exactly(self, view: memoryview) -> None:
        position = 0
        while position < len(view):
            position += await self.receive_some(view[position:])

    async def _take(self, size: int) -> memoryview:
        """`size` bytes of their own."""
        if not size:
            return _EMPTY
        view = memoryview(bytearray(size))
        await self._receive_exactly(view)
        return view

    async def _read_frame(self) -> _Call | None:
        """The next frame: a call to serve, or None for a reply, which is delivered."""
        await self._fill(frame.PREFIX_BYTES)
        kind, number, call_id, header_bytes, payload_bytes = frame.unpack_prefix(self._view, self._start)
        self._start += frame.PREFIX_BYTES
        if header_bytes <= len(self._view):
            if self._end - self._start < header_bytes:
                await self._fill(header_bytes)
            header = self._view[self._start : self._start + header_bytes]
            self._start += header_bytes
        else:
            header = await self._take(header_bytes)
        if kind != frame.REQUEST:
            await self._read_reply(kind, call_id, header, payload_bytes)
            return None
        handler = self._handlers.get(number)
        if handler is None:
            raise GfsError(Code.BAD_MESSAGE, f"no method number {number} is served here")
        method = BY_NUMBER[number]
        request = method.request.FromString(header)
        payload: Received | Arriving = _NO_PAYLOAD
        if payload_bytes > PREFETCHED_PAYLOAD_BYTES:
            payload = Arriving(self, payload_bytes)
        elif payload_bytes:
            payload = Received(await self._take(payload_bytes))
        return _Call(method, call_id, handler, request, _Context(self, payload))

    async def _serve(self, call: _Call) -> None:
        context = call.context
        payload = context.payload
        self._serving += 1
        reply: Any
        try:
            kind = frame.REPLY
            try:
                reply = call.handler(call.request, context)
                if inspect.isawaitable(reply):
                    reply = await reply
                parts = context.parts
            except Exception as error:
                kind, reply, parts = frame.ERROR, self._error_reply(call.method, error), ()
            if isinstance(payload, Arriving) and not payload.done.is_set():
                await payload.drop()
            header = reply.SerializeToString(deterministic=True)
            prefix = frame.pack_prefix(kind, call.method.number, call.call_id, len(header), sum(map(len, parts)))
            await self._send([prefix + header, *parts])
        except GfsError as error:
            log.debug("event=reply_lost method=%s peer=%s error=%r", call.method.name, self.peer, str(error))
        finally:
            self._serving -= 1
            self._fewer_calls.set()
            if isinstance(payload, Arriving):
                payload.done.set()
            if context.release is not None:
                context.release()

    def _error_reply(self, method: Method, error: Exception) -> pb.Error:
        if isinstance(error, GfsError):
            return pb.Error(code=error.code, message=error.message)
        log.error("event=handler_failed method=%s peer=%s", method.name, self.peer, exc_info=error)
        return pb.Error(code=Code.INTERNAL, message=f"{method.name} failed, see the log of the server")

    async def _read_reply(self, kind: int, call_id: int, header: memoryview, payload_bytes: int) -> None:
        waiter = self._waiters.get(call_id)
        if waiter is None:  # the caller gave up
            await Arriving(self, payload_bytes).drop()
            return
        if kind == frame.ERROR:
            error = pb.Error.FromString(bytes(header))
            result: outcome.Outcome[Any] = outcome.Error(GfsError(code_from_wire(error.code), error.message))
            await Arriving(self, payload_bytes).drop()
        else:
            reply = waiter.method.reply.FromString(header)
            payload = _EMPTY
            if payload_bytes:
                into = waiter.into
                if into is None or len(into) < payload_bytes:
                    into = memoryview(bytearray(payload_bytes))
                payload = into[:payload_bytes]
                waiter.receiving = True
                await self._receive_exactly(payload)
                waiter.receiving = False
            result = outcome.Value((reply, payload))
        if self._waiters.pop(call_id, None) is waiter:
            waiter.wake(result)
