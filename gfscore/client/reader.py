"""Reads a range of one chunk from the closest replica, falling over to the others [0087]-[0091]."""

from __future__ import annotations

import trio

from gfscore.checksum import crc32c
from gfscore.client.chunks import Chunks
from gfscore.client.chunkservers import Chunkservers
from gfscore.client.deadline import pause_seconds
from gfscore.client.options import ClientOptions
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PIECE_BYTES
from gfscore.proto import gfs_pb2 as pb

_DAMAGED_ATTEMPTS = 3  # a read of which every replica is damaged is given up after so many
_BULK_BYTES = 128 * 1024  # larger reads take the bulk lane


class ChunkReader:
    def __init__(self, chunks: Chunks, servers: Chunkservers, env: Env, options: ClientOptions) -> None:
        self._chunks = chunks
        self._servers = servers
        self._env = env
        self._options = options

    async def read(self, inode: int, index: int, offset: int, size: int) -> memoryview:
        """Up to `size` (at most 1 MiB) bytes at `offset` of the chunk; fewer, or none, where it ends or is a hole.

        Raises GfsError(IO) when no replica has the bytes within the client's timeout.
        """
        assert size <= PIECE_BYTES
        location = self._chunks.known_location(inode, index)
        if location is not None and location.replicas:
            # The common case needs no more than this: no time limit of its own, no retry.
            try:
                nearest = self._servers.nearest_first(location.replicas, location.handle)[0]
                payload = await self._read_replica(nearest, location, offset, size)
                return await self._longest(nearest, location, offset, size, payload)
            except GfsError:
                pass
        return await self._read_somewhere(inode, index, offset, size)

    async def _read_somewhere(self, inode: int, index: int, offset: int, size: int) -> memoryview:
        attempt = 0
        reason: GfsError | None = None
        with trio.move_on_after(self._options.timeout_seconds):
            while True:
                location = await self._chunks.locate(inode, index)
                if location is None:
                    return memoryview(b"")
                all_damaged = bool(location.replicas)
                never_made = location.unused and all_damaged
                for server in self._servers.nearest_first(location.replicas, location.handle):
                    try:
                        payload = await self._read_replica(server, location, offset, size)
                        return await self._longest(server, location, offset, size, payload)
                    except GfsError as error:
                        reason = error
                        all_damaged = all_damaged and error.code is Code.CHECKSUM_MISMATCH
                        never_made = never_made and error.code is Code.UNKNOWN_CHUNK
                if never_made and attempt:  # granted, as the master has just said again, and not written yet: a hole
                    return memoryview(b"")
                if all_damaged and attempt >= _DAMAGED_ATTEMPTS:
                    break  # waiting does not repair it: the application hears of it now
                self._chunks.forget_chunk(inode, index)
                attempt += 1
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        raise GfsError(
            Code.IO, f"no replica of chunk {index} of inode {inode} can be read: {reason or 'none is known'}"
        )

    async def _longest(
        self, asked: pb.Server, location: pb.ChunkLocation, offset: int, size: int, best: memoryview
    ) -> memoryview:
        """`best`, which is what `asked` answered, or what another replica has more.

        A replica that went through a power cut may lack its unsynced tail, until it is made equal to the others; what
        is missing would be taken for zeros. Nobody asks for bytes behind the file's end, so a short answer is rare:
        there is a hole, or there should be none.
        """
        for server in self._servers.nearest_first(location.replicas, location.handle):
            if len(best) == size:
                break
            if server.id == asked.id:
                continue
            try:
                payload = await self._read_replica(server, location, offset, size)
            except GfsError:
                continue  # what it has cannot be known now; those that answered have no more
            if len(payload) > len(best):
                best = payload
        return best

    async def _read_replica(self, server: pb.Server, location: pb.ChunkLocation, offset: int, size: int) -> memoryview:
        request = pb.ReadRequest(handle=location.handle, version=location.version, offset=offset, length=size)
        lane = "bulk" if size > _BULK_BYTES else "small"
        reply, payload = await self._servers.call(lane, server, "Read", request)
        if reply.checksum and crc32c(payload) != reply.checksum:
            raise GfsError(Code.CHECKSUM_MISMATCH, f"{server.id} sent bytes that do not match their checksum")
        return payload

    async def length(self, location: pb.ChunkLocation, *, by_lease: bool = False) -> tuple[int, int] | None:
        """(length, time of the last change in ns or 0) of a chunk; None when nobody can tell just now.

        What was acknowledged is on all replicas, so any of them knows it, if the location is that of now; the primary
        knows what is under way as well, and that nobody else has the lease. `by_lease`: nobody else will do.
        """
        request = pb.LengthRequest(handle=location.handle, version=location.version, primary=by_lease)
        servers = sorted(location.replicas, key=lambda server: server.id != location.primary)
        if by_lease:
            servers = [server for server in servers if server.id == location.primary]
        best: tuple[int, int] | None = None
        for server in servers:
            try:
                reply, _ = await self._servers.call("small", server, "Length", request)
            except GfsError as error:
                if error.code is Code.UNKNOWN_CHUNK and location.unused and best is None and not by_lease:
                    best = (0, 0)  # one that it never reached: nothing was acknowledged
                continue
            if server.id == location.primary:
                return reply.length, reply.mtime_ns
            if best is None or reply.length > best[0]:
                best = (reply.length, reply.mtime_ns)
        return best
