"""Pushing data to the replicas and asking the primary to apply it [0097]-[00103]: one attempt, no policy."""

from __future__ import annotations

from typing import Any

from gfscore.checksum import crc32c
from gfscore.client.chunks import ChunkGrant
from gfscore.client.chunkservers import Chunkservers
from gfscore.client.dirty import payload_checksums
from gfscore.proto import gfs_pb2 as pb

INLINE_BYTES_MAX = 64 * 1024  # up to here the data rides with the control message [00112]


class Mutator:
    def __init__(self, servers: Chunkservers) -> None:
        self._servers = servers
        self._last_push = 0
        self._last_append = 0
        self.client_id = 0

    def next_sequence(self) -> int:
        """The number of a new append. One series for all files of the client: a chunk remembers the latest of a client
        for longer than a client remembers a file, and a snapshot takes the memory to another file.
        """
        self._last_append += 1
        return self._last_append

    async def push(self, grant: ChunkGrant, parts: list[memoryview]) -> int:
        """Send the bytes down the chain of replicas, closest first; returns when all have them. The push's id."""
        self._last_push += 1
        push_id = self._last_push
        first, *rest = self._servers.nearest_first(grant.body.replicas, grant.body.handle)
        request = pb.PushRequest(
            client_id=self.client_id,
            push_id=push_id,
            chain=[server.address for server in rest],
            checksums=payload_checksums(parts),
        )
        await self._servers.call("push", first, "Push", request, *parts)
        return push_id

    async def write(
        self, grant: ChunkGrant, extents: list[tuple[int, int]], parts: list[memoryview], push_id: int, sync: bool
    ) -> pb.WriteReply:
        """Extents are (offset in the chunk, length); the bytes are `parts`, or what was pushed as `push_id`."""
        request = pb.WriteRequest(
            grant=grant.grant,
            client_id=self.client_id,
            push_id=push_id,
            extents=[pb.Extent(offset=offset, length=length) for offset, length in extents],
            sync=sync,
        )
        reply: pb.WriteReply = await self._ask_primary(grant, "Write", request, parts)
        return reply

    async def append(
        self, grant: ChunkGrant, sequence: int, length: int, parts: list[memoryview], push_id: int
    ) -> pb.AppendReply:
        request = pb.AppendRequest(
            grant=grant.grant,
            client_id=self.client_id,
            sequence=sequence,
            push_id=push_id,
            length=length,
            sync=grant.body.sync,
        )
        reply: pb.AppendReply = await self._ask_primary(grant, "Append", request, parts)
        return reply

    async def _ask_primary(self, grant: ChunkGrant, method: str, request: Any, parts: list[memoryview]) -> Any:
        if request.push_id or not parts:
            reply, _ = await self._servers.call("small", grant.primary, method, request)
            grant.acknowledge()
            return reply
        checksum = 0
        for part in parts:
            checksum = crc32c(part, checksum)
        request.checksum = checksum
        reply, _ = await self._servers.call("small", grant.primary, method, request, *parts)
        grant.acknowledge()
        return reply
