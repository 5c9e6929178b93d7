"""The transport of real processes: TCP for framed streams, gRPC for control."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Mapping

import trio

from gfscore.errors import Code, GfsError
from gfscore.rpc.bytestream import SOCKET_BUFFER_BYTES, SocketStream
from gfscore.rpc.grpc_bridge import ControlChannel, serve_grpc
from gfscore.rpc.stream import StreamConnection
from gfscore.rpc.transport import Channel, Service

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
_ACCEPT_BACKLOG = 512


class RealTransport:
    """See `transport.Transport`."""

    async def serve_streams(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        listening = _listen(host, port)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started(listening.getsockname()[1])
                while True:
                    await trio.lowlevel.wait_readable(listening)
                    try:
                        accepted, _ = listening.accept()
                    except BlockingIOError:
                        continue
                    except OSError as error:
                        # Out of descriptors, or a connection that was reset while it queued.
                        log.warning("event=accept_failed error=%r", str(error))
                        await trio.sleep(0.1)
                        continue
                    with contextlib.suppress(OSError):  # reset before we looked at it
                        connection = StreamConnection(SocketStream(accepted), "ClientCallback", services)
                        nursery.start_soon(connection.run)
        finally:
            listening.close()

    async def serve_control(
        self, host: str, port: int, services: Mapping[str, Service], *, task_status: trio.TaskStatus[int]
    ) -> None:
        await serve_grpc(host, port, services, task_status=task_status)

    async def open_stream(
        self, host: str, port: int, service: str, *, callbacks: Mapping[str, Service] | None = None
    ) -> Channel:
        connecting = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            with trio.fail_after(CONNECT_SECONDS):
                connecting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
                await connecting.connect((host, port))
            connection = StreamConnection(
                SocketStream(socket.socket(fileno=connecting.detach())), service, callbacks or {}
            )
        except (OSError, trio.TooSlowError) as error:
            connecting.close()
            raise GfsError(Code.UNREACHABLE, f"cannot connect to {host}:{port}: {error or 'no answer'}") from error
        trio.lowlevel.spawn_system_task(connection.run, name=f"stream to {host}:{port}")
        return connection

    def local_host(self) -> str:
        try:
            return socket.gethostbyname(socket.gethostname())
        except OSError:
            return "127.0.0.1"

    def control_channel(self, host: str, port: int, service: str) -> Channel:
        return ControlChannel(host, port, service)


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setblocking(False)
        listening.bind((host, port))
        listening.listen(_ACCEPT_BACKLOG)
    except OSError as error:
        listening.close()
        raise GfsError(
            Code.BUSY, f"cannot listen on {host}:{port}: {error.strerror}; choose another port or end who has it"
        ) from error
    return listening
