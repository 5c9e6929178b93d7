"""Connections to chunkservers, and which replica is the closest [0098]-[0099]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import trio

from gfscore.checksum import Buffer
from gfscore.env import Env
from gfscore.errors import GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import Channel

AVOID_SECONDS = 5.0  # a server that failed is asked last for so long


def distance(host: str, rack: str, server: pb.Server) -> int:
    """How far `server` is: 0 same host, 1 same rack, then by how much of the IPv4 address is shared [0099]."""
    other = server.address.host
    if other == host or other.startswith("127."):
        return 0
    if rack and rack == server.rack:
        return 1
    shared = 0
    for ours, theirs in zip(host.split("."), other.split("."), strict=False):
        if ours != theirs:
            break
        shared += 1
    return 6 - shared


class Chunkservers:
    """One connection per server and lane. A lane keeps large transfers out of the way of small ones."""

    def __init__(self, env: Env, rack: str, attempt_seconds: float) -> None:
        self._env = env
        self._rack = rack
        self._host = env.transport.local_host()
        self._attempt_seconds = attempt_seconds
        self._channels: dict[tuple[str, int, str], Channel] = {}
        self._connecting: dict[tuple[str, int, str], trio.Lock] = {}
        self._failed_at: dict[str, float] = {}

    async def call(
        self,
        lane: str,
        server: pb.Server,
        method: str,
        request: Any,
        *payload: Buffer,
        reply_into: memoryview | None = None,
        seconds: float | None = None,
    ) -> tuple[Any, memoryview]:
        """One call of ChunkData. Raises GfsError."""
        address = server.address
        key = (address.host, address.port, lane)
        channel = self._channels.get(key)
        try:
            if channel is None or channel.closed:
                channel = await self._connect(key)
            return await channel.call(
                method, request, *payload, timeout=seconds or self._attempt_seconds, reply_into=reply_into
            )
        except GfsError as error:
            if error.retryable:
                self._failed_at[server.id] = self._env.clock.boottime()
            raise

    async def _connect(self, key: tuple[str, int, str]) -> Channel:
        async with self._connecting.setdefault(key, trio.Lock()):
            channel = self._channels.get(key)
            if channel is None or channel.closed:
                host, port, _ = key
                channel = await self._env.transport.open_stream(host, port, "ChunkData")
                self._channels[key] = channel
            return channel

    def nearest_first(self, servers: Iterable[pb.Server], spread: int = 0) -> list[pb.Server]:
        """By distance; servers that failed just now last; equally close ones in an order that `spread` rotates."""
        now = self._env.clock.boottime()
        candidates: Sequence[pb.Server] = list(servers)
        if len(candidates) > 1:
            turn = spread % len(candidates)
            candidates = [*candidates[turn:], *candidates[:turn]]

        def key(server: pb.Server) -> tuple[bool, int]:
            failed = now - self._failed_at.get(server.id, -AVOID_SECONDS) < AVOID_SECONDS
            return failed, distance(self._host, self._rack, server)

        return sorted(candidates, key=key)

    async def aclose(self) -> None:
        for channel in self._channels.values():
            await channel.aclose()
        self._channels.clear()
