"""The one place where gRPC and trio meet.

Calls out: `future()` and a callback that hops back with `TrioToken.run_sync_soon`. Calls in: gRPC's thread pool
runs the handler in trio through `trio.from_thread`. No asyncio anywhere in the process.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# The C library's own log lines say again, on stderr, what is raised here as an error.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import outcome
import trio

from gfscore.checksum import Buffer
from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.rpc.methods import Method, method_named
from gfscore.rpc.transport import Handler, PendingCall, Service

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX = 16 * 1024 * 1024
_HANDLER_THREADS = 16
_STOP_SECONDS = 0.5
_OPTIONS = [
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
]
_ERROR_KEY = "gfs-code"


def _path(method: Method) -> str:
    return f"/gfs.{method.service}/{method.name}"


class ControlChannel:
    """Calls to one service over gRPC. See `transport.Channel`."""

    def __init__(self, host: str, port: int, service: str) -> None:
        self.peer = f"{host}:{port}"
        self._service = service
        self._channel = grpc.insecure_channel(self.peer, options=_OPTIONS)
        self._calls: dict[str, grpc.UnaryUnaryMultiCallable[Any, Any]] = {}
        self._closed = trio.Event()

    async def call(
        self, method: str, request: Any, *payload: Buffer, timeout: float, reply_into: memoryview | None = None
    ) -> tuple[Any, memoryview]:
        assert not payload and reply_into is None, "gRPC carries messages only"
        if self._closed.is_set():
            raise GfsError(Code.UNREACHABLE, f"the channel to {self.peer} was closed")
        token = trio.lowlevel.current_trio_token()
        task = trio.lowlevel.current_task()
        waiting = True
        future = self._call_for(method).future(request, timeout=timeout)

        def wake() -> None:
            nonlocal waiting
            if waiting:
                waiting = False
                trio.lowlevel.reschedule(task, outcome.capture(future.result))

        def done(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(wake)

        def abort(_: Any) -> trio.lowlevel.Abort:
            nonlocal waiting
            waiting = False
            future.cancel()
            return trio.lowlevel.Abort.SUCCEEDED

        future.add_done_callback(done)
        try:
            reply = await trio.lowlevel.wait_task_rescheduled(abort)
        except (grpc.RpcError, grpc.FutureCancelledError, grpc.FutureTimeoutError) as error:
            raise self._translate(method, error, timeout) from None
        return reply, memoryview(b"")

    async def begin(self, method: str, request: Any, *payload: Buffer) -> PendingCall:
        raise GfsError(Code.NOT_SUPPORTED, "gRPC calls are made whole")

    def _call_for(self, name: str) -> grpc.UnaryUnaryMultiCallable[Any, Any]:
        call = self._calls.get(name)
        if call is None:
            method = method_named(self._service, name)
            call = self._channel.unary_unary(
                _path(method),
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.reply.FromString,
            )
            self._calls[name] = call
        return call

    def _translate(self, method: str, error: Exception, timeout: float) -> GfsError:
        if not isinstance(error, grpc.Call):
            return GfsError(Code.UNREACHABLE, f"{self.peer} did not answer {method}")
        for key, value in error.trailing_metadata() or ():
            if key == _ERROR_KEY:
                return GfsError(code_from_wire(int(value)), error.details() or "")
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return GfsError(Code.UNREACHABLE, f"{self.peer} did not answer {method} within {timeout:g} s")
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return GfsError(Code.MESSAGE_TOO_LARGE, f"{method}: {error.details()}")
        return GfsError(Code.UNREACHABLE, f"cannot reach {self.peer}: {error.details() or error.code().name}")

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def aclose(self) -> None:
        self._closed.set()
        await trio.to_thread.run_sync(self._channel.close)


class _GrpcContext:
    """See `transport.CallContext`; gRPC has no payload and no way back."""

    __slots__ = ("peer",)
    session = None

    def __init__(self, peer: str) -> None:
        self.peer = peer


def _behaviour(method: Method, handler: Handler, token: trio.lowlevel.TrioToken) -> Callable[[Any, Any], Any]:
    async def in_trio(request: Any, peer: str) -> Any:
        reply = handler(request, _GrpcContext(peer))  # type: ignore[arg-type]
        return await reply if inspect.isawaitable(reply) else reply

    def behaviour(request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return trio.from_thread.run(in_trio, request, context.peer(), trio_token=token)
        except GfsError as error:
            code, message = error.code, error.message
        except (trio.RunFinishedError, trio.Cancelled):
            code, message = Code.SHUTTING_DOWN, "this server is shutting down"
        except Exception:
            log.exception("event=handler_failed method=%s peer=%s", method.name, context.peer())
            code, message = Code.INTERNAL, f"{method.name} failed, see the log of the server"
        context.set_trailing_metadata(((_ERROR_KEY, str(int(code))),))
        context.abort(grpc.StatusCode.UNKNOWN, message)

    return behaviour


async def serve_grpc(
    host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
) -> None:
    """Serve until cancelled. Raises GfsError(BUSY) when the port is taken."""
    token = trio.lowlevel.current_trio_token()
    server = grpc.server(ThreadPoolExecutor(_HANDLER_THREADS, thread_name_prefix="grpc"), options=_OPTIONS)
    for service, table in services.items():
        handlers = {}
        for name, handler in table.items():
            method = method_named(service, name)
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                _behaviour(method, handler, token),
                request_deserializer=method.request.FromString,
                response_serializer=method.reply.SerializeToString,
            )
        server.add_registered_method_handlers(f"gfs.{service}", handlers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(f"gfs.{service}", handlers),))
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError:
        bound = 0
    if not bound:
        raise GfsError(
            Code.BUSY, f"cannot listen on {host}:{port}: the port is in use; choose another port or end who has it"
        )
    server.start()
    try:
        task_status.started(bound)
        await trio.sleep_forever()
    finally:
        # Handlers that wait in trio are cancelled with us; the pool's threads must not outlive the loop.
        stopped = server.stop(_STOP_SECONDS)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(stopped.wait, _STOP_SECONDS * 2)
