"""What an inode is like: from the cache where that is right, else from the master; the length perhaps from the primary.

The master leaves the length of a file that is being written to its writers: the only one knows it, others ask the
chunk in which the file ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from gfscore.client.cache import NamespaceCache
from gfscore.client.chunks import Chunks
from gfscore.client.deadline import pause_seconds
from gfscore.client.files import Files
from gfscore.client.options import ClientOptions
from gfscore.client.reader import ChunkReader
from gfscore.client.session import MasterSession
from gfscore.client.types import Attr, attr_from_wire
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb

_ANY_LENGTH_SECONDS = 1.0  # for so long the length is asked for where it does not matter
_PRIMARY_SECONDS = 1.0  # who has the lease answers at once, or the master is asked
_TAILS_MAX = 1000


class LengthUnknown(GfsError):
    """Nobody can tell how long a file is; everything else about it is known."""

    def __init__(self, inode: int) -> None:
        super().__init__(
            Code.TIMED_OUT,
            f"nobody can tell how long inode {inode} is: no replica of its last chunk answers; see gfs status",
        )


@dataclass
class _Tail:
    """Where a file that others write ends.

    It holds as long as the cache has the very `attr` that came with it: whatever changes the file's chunks, or anything
    of it but length and mtime, is called back or was done here.
    """

    attr: Attr
    reply: pb.AttrReply
    latest: Attr  # with what the replicas have said since


class Attributes:
    def __init__(
        self, session: MasterSession, cache: NamespaceCache, chunks: Chunks, files: Files, reader: ChunkReader,
        env: Env, options: ClientOptions,
    ) -> None:  # fmt: skip
        self._session = session
        self._cache = cache
        self._chunks = chunks
        self._files = files
        self._reader = reader
        self._env = env
        self._options = options
        self._tails: dict[int, _Tail] = {}

    def cached(self, inode: int) -> Attr | None:
        """What `get` would return, if that needs no call."""
        attr = self._cache.attrs.get(inode)
        if attr is None or (attr.length_pending and inode not in self._chunks.sole_writer):
            return None
        return self._files.merge(attr)

    async def get(self, inode: int, *, any_length: bool = False) -> Attr:
        """The length is what every append and close acknowledged so far amounts to.

        `any_length`: where nobody can tell it soon, the one that the master knows will do, and the result is
        `volatile`. Raises STALE_INODE; TIMED_OUT (`LengthUnknown`) when nobody can tell the length.
        """
        attr = self.cached(inode)
        if attr is None:
            attr = await self._from_primary(inode)
        if attr is not None:
            return attr
        asked = self._cache.moment
        reply = await self._session.call("GetAttr", pb.InodeRequest(inode=inode))
        return await self.settle(reply, asked, any_length=any_length)

    async def _from_primary(self, inode: int) -> Attr | None:
        """Of a file that others write, without a call to the master: if what it said before still holds, and who had
        the lease on the last chunk then has it now.
        """
        tail = self._tails.get(inode)
        if tail is None:
            return None
        attr = tail.latest.copy()
        ends = False
        with trio.move_on_after(_PRIMARY_SECONDS):
            for location in reversed(tail.reply.chunks):
                if ends and not location.primary:
                    continue  # nobody changes it before a grant that is called back
                found = await self._reader.length(location, by_lease=True)
                if found is None:
                    break
                self._count(attr, tail.reply, location, *found)
                ends = ends or found[0] > 0
            else:
                if ends and self._cache.attrs.get(inode) is tail.attr:
                    tail.latest = attr
                    return self._files.merge(attr)
        self._tails.pop(inode, None)
        return None

    async def settle(self, reply: Any, asked: int, *, any_length: bool = False) -> Attr:
        """As `get`, of what the master has answered; `asked` when."""
        attr = await self._understood(reply, asked)
        if attr is not None:
            return attr
        inode = reply.attr.inode
        attempt = 0
        with trio.move_on_after(_ANY_LENGTH_SECONDS if any_length else self._options.timeout_seconds):
            while True:
                asked = self._cache.moment
                reply = await self._session.call("GetAttr", pb.InodeRequest(inode=inode))
                attr = await self._understood(reply, asked)
                if attr is not None:
                    return attr
                attempt += 1
                await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        if any_length:
            attr = self._files.merge(attr_from_wire(reply.attr))
            attr.volatile = True
            return attr
        raise LengthUnknown(inode)

    async def _understood(self, reply: Any, asked: int) -> Attr | None:
        """The attributes, kept if they may be; None when they are out of date, or the length is not to be had now."""
        attr = attr_from_wire(reply.attr)
        inode = attr.inode
        if attr.length_pending and inode not in self._chunks.sole_writer:
            known, attr = attr, attr.copy()
            attr.volatile = True
            self._cache.attrs.pop(inode, None)
            if not self._cache.is_old(inode, asked):
                self._chunks.keep_locations(inode, reply.chunks)
            kept = reply.chunks and self._options.caching and self._cache.keep(known, asked)
            if not await self._ask_length(attr, reply):
                return None
            if kept:
                self._keep_tail(_Tail(known, reply, attr))
        elif not self._cache.keep(attr, asked):
            attr.volatile = True
        if self._cache.changed_since(inode, asked):
            return None  # perhaps from when the master left the length to us, which we have told it since
        if not attr.length_pending:  # no client is a writer: what this one wrote is in the length, or was cut off
            self._files.agreed(inode)
        elif reply.HasField("writer_since"):
            self._files.is_writer_since(inode, reply.writer_since)
        return self._files.merge(attr)

    def _keep_tail(self, tail: _Tail) -> None:
        if len(self._tails) >= _TAILS_MAX:
            self._tails.clear()
        self._tails[tail.attr.inode] = tail

    async def _ask_length(self, attr: Attr, reply: pb.AttrReply) -> bool:
        """Take the chunks in which the file may end into account; whether that could be done."""
        for location in reply.chunks:
            if not location.handle:
                continue
            found = await self._reader.length(location)
            if found is None:
                return False
            self._count(attr, reply, location, *found)
        return True

    def _count(self, attr: Attr, reply: pb.AttrReply, location: pb.ChunkLocation, length: int, mtime_ns: int) -> None:
        """A chunk is `length` long, and was changed last at `mtime_ns`, if that is known."""
        if length:
            attr.size = max(attr.size, location.index * self._files.chunk_bytes + length)
        if mtime_ns > max(reply.mtime_floor_ns, attr.mtime_ns):
            attr.mtime_ns = mtime_ns
            attr.ctime_ns = max(attr.ctime_ns, mtime_ns)
