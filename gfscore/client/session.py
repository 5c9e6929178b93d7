"""The client's session with the master: one framed stream, kept up, on which calls go one way and invalidations come
the other.

Every change carries a request id, so that repeating it after a broken connection, or to a restarted master, does it
once (rule 21). What is retried and for how long is decided here and nowhere else in the client.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import trio

from gfscore.client.deadline import pause_seconds
from gfscore.client.options import ClientOptions
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PROTOCOL_VERSION
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import Channel, Handler

log = logging.getLogger(__name__)

# Waiting may help with these; every other error is the answer.
_TRY_AGAIN = frozenset({Code.UNREACHABLE, Code.SHUTTING_DOWN, Code.NOT_READY, Code.NO_SERVERS, Code.UNKNOWN_SESSION})

# Done a second time, these change nothing, and no name or attribute in any case.
_REPEATABLE = frozenset({"Lease", "Commit", "Release"})

_GOODBYE_SECONDS = 1.0


class MasterSession:
    """See the module. `on_lost` is called when the master no longer covers what this client has cached.

    `open_inodes` tells which files are open here, for reading only and for writing; `on_held` which of them lost their
    last name while this client could not be asked, and are held by the master now.
    """

    def __init__(
        self, host: str, port: int, env: Env, options: ClientOptions, invalidate: Handler, on_lost: Callable[[], None],
        open_inodes: Callable[[], tuple[list[int], list[int]]], on_held: Callable[[Sequence[int]], None],
    ) -> None:  # fmt: skip
        self.address = f"{host}:{port}"
        self.client_id = 0
        self.hello = pb.HelloReply()
        self.calls: Counter[str] = Counter()
        self.held: set[int] = set()  # unlinked inodes that are open here
        self._host, self._port = host, port
        self._env = env
        self._options = options
        self._invalidate = invalidate
        self._on_lost = on_lost
        self._open_inodes = open_inodes
        self._on_held = on_held
        self._closing = False
        self._channel: Channel | None = None
        self._connecting = trio.Lock()
        self._stream_port = 0
        self._last_request = 0
        self._outstanding: dict[int, None] = {}

    async def call(self, method: str, request: Any, *, seconds: float | None = None) -> Any:
        """One call, repeated while that can help, for `seconds` at most (default: the client's timeout).

        Raises GfsError: the master's answer, or TIMED_OUT with the last reason.
        """
        self.calls[method] += 1
        seconds = seconds or self._options.timeout_seconds
        started = trio.current_time()
        channel = self._channel
        unsure = False
        if channel is not None and not channel.closed:
            try:
                reply, _ = await channel.call(method, request, timeout=min(self._options.attempt_seconds, seconds))
                return reply
            except GfsError as error:
                if error.code not in _TRY_AGAIN:
                    raise
                unsure = error.code is Code.UNREACHABLE
        return await self._call_again(method, request, seconds, started, unsure)

    async def change(self, method: str, request: Any) -> Any:
        """A call that changes something: done once, however often it must be sent.

        Whoever gives up waiting for the answer does not know what was done, and the master calls nobody back for a
        change of his own: then the stream is given up too, and with it all that is cached.
        """
        self._last_request += 1
        request_id = self._last_request
        self._outstanding[request_id] = None
        answered = False
        try:
            if not self.client_id:
                await self.connected()
            request.id.client_id = self.client_id
            request.id.request_id = request_id
            request.id.done_below = next(iter(self._outstanding))
            reply = await self.call(method, request)
            answered = True
            return reply
        except GfsError as error:
            answered = error.code is not Code.TIMED_OUT
            raise
        finally:
            del self._outstanding[request_id]
            if not answered and method not in _REPEATABLE and self._channel is not None:
                with trio.CancelScope(shield=True):
                    await self._channel.aclose()

    async def _call_again(self, method: str, request: Any, seconds: float, started: float, unsure: bool) -> Any:
        """Until `seconds` after `started`. `unsure`: it was sent before and not answered."""
        attempt = 0
        reason = GfsError(Code.UNREACHABLE, f"no answer from the master at {self.address}")
        with trio.CancelScope(deadline=started + seconds):
            while True:
                channel = None
                try:
                    channel = await self.connected()
                    reply, _ = await channel.call(method, request, timeout=self._options.attempt_seconds)
                    return reply
                except GfsError as error:
                    if error.code not in _TRY_AGAIN:
                        raise
                    reason = error
                    unsure = unsure or (channel is not None and error.code is Code.UNREACHABLE)
                    if error.code is Code.UNKNOWN_SESSION:
                        self._ask_in_new_session(method, request, unsure)
                attempt += 1
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        raise GfsError(Code.TIMED_OUT, f"gave up {method} after {seconds:g} s: {reason}")

    def _ask_in_new_session(self, method: str, change: Any, unsure: bool) -> None:
        """The session in which it was asked for is over, and with it the master's memory of what was done (rule 21)."""
        if unsure and method not in _REPEATABLE:
            raise GfsError(Code.TIMED_OUT, f"{method} was not answered before the session ended: it was done, or not")
        change.id.client_id = self.client_id

    async def connected(self) -> Channel:
        """A live stream with a greeted master. Raises GfsError(UNREACHABLE, WRONG_PROTOCOL…)."""
        async with self._connecting:
            if self._channel is None or self._channel.closed:
                self._channel = await self._connect()
            return self._channel

    async def _connect(self) -> Channel:
        if not self._stream_port:
            await self._ask_stream_port()
        try:
            channel = await self._env.transport.open_stream(
                self._host, self._stream_port, "Master", callbacks={"ClientCallback": {"Invalidate": self._invalidate}}
            )
        except GfsError:
            self._stream_port = 0  # a restarted master may have another one
            raise
        reading, writing = self._open_inodes()
        request = pb.HelloRequest(
            protocol=PROTOCOL_VERSION,
            name=self._options.name,
            client_id=self.client_id,
            held_inodes=self.held,
            caching=self._options.caching,
            read_inodes=reading,
            written_inodes=writing,
        )
        try:
            reply, _ = await channel.call("Hello", request, timeout=self._options.attempt_seconds)
        except BaseException:
            with trio.CancelScope(shield=True):
                await channel.aclose()
            raise
        if self.client_id and not reply.resumed:
            self._on_lost()
        self.client_id = reply.client_id
        self.hello = reply
        if reply.held:
            self._on_held(reply.held)
        return channel

    async def _ask_stream_port(self) -> None:
        control = self._env.transport.control_channel(self._host, self._port, "Master")
        try:
            request = pb.HelloRequest(protocol=PROTOCOL_VERSION, name=self._options.name)
            reply, _ = await control.call("Hello", request, timeout=self._options.attempt_seconds)
        finally:
            with trio.CancelScope(shield=True):
                await control.aclose()
        self._stream_port = reply.address.port

    async def keep_connected(self) -> None:
        """Reconnect whenever the stream breaks, so that invalidations reach this client. Runs until cancelled."""
        attempt = 0
        while True:
            try:
                channel = await self.connected()
                attempt = 0
                await channel.wait_closed()
                if not self._closing:
                    log.info("event=master_stream_closed master=%s", self.address)
                    self._on_lost()  # what others change from now on is called back to nobody
            except GfsError as error:
                attempt += 1
                log.warning("event=master_unreachable master=%s error=%r", self.address, str(error))
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))

    async def aclose(self) -> None:
        self._closing = True
        if self._channel is not None:
            if not self._channel.closed and self._options.caching:
                await self._say_goodbye(self._channel)
            await self._channel.aclose()

    async def _say_goodbye(self, channel: Channel) -> None:
        """A greeting without caches and open files: else the master keeps what others unlink, in case we come back."""
        request = pb.HelloRequest(protocol=PROTOCOL_VERSION, name=self._options.name, client_id=self.client_id)
        with suppress(GfsError):  # the master finds out when the session is over
            await channel.call("Hello", request, timeout=_GOODBYE_SECONDS)
