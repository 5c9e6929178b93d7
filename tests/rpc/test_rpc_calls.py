"""Calls over the three transports: the same handlers, the same behaviour."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc import frame
from gfscore.rpc.bytestream import PEER_LOST_SECONDS, SocketStream
from gfscore.rpc.memory import MemoryNetwork
from gfscore.rpc.real import RealTransport
from gfscore.rpc.transport import CallContext


def make_transport(name: str) -> Any:
    return RealTransport() if name == "real" else MemoryNetwork().transport("node")


async def read(request: pb.ReadRequest, context: CallContext) -> pb.ReadReply:
    if request.handle == 404:
        raise GfsError(Code.UNKNOWN_CHUNK, "no such chunk")
    if request.handle == 500:
        raise RuntimeError("a bug")
    context.reply_payload(bytes([request.handle & 0xFF]) * request.length)
    return pb.ReadReply(length=request.length)


async def push(request: pb.PushRequest, context: CallContext) -> pb.Empty:
    total = 0
    view = memoryview(bytearray(100_000))
    while count := await context.payload.read_into(view):
        total += sum(view[:count])
    assert total == request.push_id
    return pb.Empty()


def length(request: pb.LengthRequest, context: CallContext) -> pb.LengthReply:
    return pb.LengthReply(length=request.handle * 2)


SERVICES = {"ChunkData": {"Read": read, "Push": push, "Length": length}}


async def with_server(name: str, body: Callable[[Any, int], Awaitable[None]]) -> None:
    transport = make_transport(name)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            host = "127.0.0.1" if name == "real" else "node"
            port = await nursery.start(partial(transport.serve_streams, host, 0, SERVICES))
            channel = await transport.open_stream(host, port, "ChunkData")
            await body(channel, port)
            await channel.aclose()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["real", "memory"])
async def test_many_calls_at_once_get_their_own_replies(name: str) -> None:
    async def body(channel: Any, port: int) -> None:
        async def one(handle: int) -> None:
            reply, payload = await channel.call("Read", pb.ReadRequest(handle=handle, length=handle * 1000), timeout=10)
            assert reply.length == handle * 1000
            assert bytes(payload) == bytes([handle]) * (handle * 1000)
            reply, _ = await channel.call("Length", pb.LengthRequest(handle=handle), timeout=10)
            assert reply.length == handle * 2

        async with trio.open_nursery() as nursery:
            for handle in range(1, 60):
                nursery.start_soon(one, handle)

    await with_server(name, body)


@pytest.mark.parametrize("name", ["real", "memory"])
async def test_errors_cross_with_code_and_text_and_the_connection_lives(name: str) -> None:
    async def body(channel: Any, port: int) -> None:
        with pytest.raises(GfsError, match="no such chunk") as caught:
            await channel.call("Read", pb.ReadRequest(handle=404), timeout=5)
        assert caught.value.code is Code.UNKNOWN_CHUNK
        with pytest.raises(GfsError) as caught:
            await channel.call("Read", pb.ReadRequest(handle=500), timeout=5)
        assert caught.value.code is Code.INTERNAL
        reply, _ = await channel.call("Length", pb.LengthRequest(handle=4), timeout=5)
        assert reply.length == 8

    await with_server(name, body)


@pytest.mark.parametrize("name", ["real", "memory"])
async def test_large_payloads_stream_into_the_handler(name: str) -> None:
    data = bytes(range(256)) * 8192  # 2 MiB

    async def body(channel: Any, port: int) -> None:
        await channel.call("Push", pb.PushRequest(push_id=sum(data)), data, timeout=10)
        async with channel.call_streaming("Push", pb.PushRequest(push_id=sum(data)), len(data), 10) as call:
            for offset in range(0, len(data), 300_000):
                await call.send(memoryview(data)[offset : offset + 300_000])
            await call.result()

    await with_server(name, body)


@pytest.mark.parametrize("name", ["real", "memory"])
async def test_a_streaming_call_given_up_half_way_leaves_the_stream_in_step(name: str) -> None:
    async def body(channel: Any, port: int) -> None:
        with pytest.raises(KeyError):
            async with channel.call_streaming("Push", pb.PushRequest(push_id=7), 1 << 20, 10) as call:
                await call.send(b"x" * 1000)
                raise KeyError
        reply, _ = await channel.call("Length", pb.LengthRequest(handle=21), timeout=5)
        assert reply.length == 42

    await with_server(name, body)


async def test_garbage_ends_that_connection_only() -> None:
    async def body(channel: Any, port: int) -> None:
        unknown_method = frame.pack_prefix(0, 9999, 1, 0, 0)
        no_protobuf = frame.pack_prefix(0, 768, 1, 4, 0) + b"\xff" * 4
        huge = frame.pack_prefix(0, 768, 1, 0, 0xFFFFFFFF)
        for garbage in (b"GET / HTTP/1.1\r\n\r\n" * 4, b"\xff" * 64, unknown_method, no_protobuf, huge):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(garbage)
            with trio.fail_after(5):
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    if not await stream.receive_some(100):
                        raise EOFError
            await stream.aclose()
        reply, _ = await channel.call("Length", pb.LengthRequest(handle=1), timeout=5)
        assert reply.length == 2

    await with_server("real", body)


async def test_calls_in_flight_fail_when_the_peer_goes() -> None:
    network = MemoryNetwork()
    transport = network.transport("server")

    async def never(request: Any, context: CallContext) -> Any:
        await trio.sleep_forever()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            services = {"ChunkData": {"Read": never}}
            port = await nursery.start(partial(transport.serve_streams, "", 0, services))
            channel = await network.transport("client").open_stream("server", port, "ChunkData")
            async with trio.open_nursery() as calls:

                async def call() -> None:
                    with pytest.raises(GfsError) as caught:
                        await channel.call("Read", pb.ReadRequest(), timeout=60)
                    assert caught.value.code is Code.UNREACHABLE

                calls.start_soon(call)
                await trio.testing.wait_all_tasks_blocked()
                network.crash("server")
            assert channel.closed
            nursery.cancel_scope.cancel()


async def test_grpc_carries_replies_and_errors() -> None:
    async def getattr_(request: pb.InodeRequest, context: CallContext) -> pb.AttrReply:
        if request.inode == 2:
            raise GfsError(Code.STALE_INODE, "inode 2 is gone")
        return pb.AttrReply(attr=pb.Attr(inode=request.inode, size=5))

    transport = RealTransport()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            services = {"Master": {"GetAttr": getattr_}}
            port = await nursery.start(partial(transport.serve_control, "127.0.0.1", 0, services))
            channel = transport.control_channel("127.0.0.1", port, "Master")
            reply, _ = await channel.call("GetAttr", pb.InodeRequest(inode=1), timeout=5)
            assert reply.attr.size == 5
            with pytest.raises(GfsError, match="inode 2 is gone") as caught:
                await channel.call("GetAttr", pb.InodeRequest(inode=2), timeout=5)
            assert caught.value.code is Code.STALE_INODE
            with pytest.raises(GfsError) as caught:
                await channel.call("Status", pb.Empty(), timeout=5)
            assert caught.value.code is Code.UNREACHABLE
            with pytest.raises(GfsError, match="in use"):
                await nursery.start(partial(transport.serve_control, "127.0.0.1", port, services))
            await channel.aclose()
            nursery.cancel_scope.cancel()


def test_a_peer_whose_machine_is_gone_is_noticed_though_nobody_has_anything_to_say() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        near = socket.create_connection(listening.getsockname())
        with near:
            SocketStream(near)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle, pause, probes = (
                near.getsockopt(socket.IPPROTO_TCP, option)
                for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            )
            assert idle + pause * probes == PEER_LOST_SECONDS
