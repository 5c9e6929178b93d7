"""Where chunks are and what may be written: locations and grants, cached per file and chunk index [0089], [0096]."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import trio

from gfscore.client.cache import NamespaceCache
from gfscore.client.options import ClientOptions
from gfscore.client.session import MasterSession
from gfscore.client.types import FileType, attr_from_wire
from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.ids import CHUNKS_MAX
from gfscore.proto import gfs_pb2 as pb


class ChunkGrant:
    """A signed grant, opened. `acknowledged`: something was, under it, so its chunk must not be given up. `given_up`:
    another chunk was asked for in its place. `once`: it crossed with a call-back, and is good for its first use only.
    """

    __slots__ = ("acknowledged", "body", "given_up", "grant", "index", "once", "primary")

    def __init__(self, grant: pb.Grant, index: int, *, once: bool = False) -> None:
        self.acknowledged = False
        self.given_up = False
        self.once = once
        self.grant = grant
        self.index = index
        self.body = pb.GrantBody.FromString(grant.body)
        self.primary = next(server for server in self.body.replicas if server.id == self.body.primary)

    def is_newer(self, other: ChunkGrant) -> bool:
        return (self.body.handle, self.body.version) > (other.body.handle, other.body.version)

    def is_same(self, other: ChunkGrant | None) -> bool:
        """Of the same version: one answer of the master may be given several times."""
        return other is not None and self.body.handle == other.body.handle and self.body.version == other.body.version

    def location(self) -> pb.ChunkLocation:
        body = self.body
        return pb.ChunkLocation(
            index=self.index,
            handle=body.handle,
            version=body.version,
            replicas=body.replicas,
            primary=body.primary,
        )

    def acknowledge(self) -> None:
        """Something was changed under it. Raises NOT_PRIMARY if that counts no more: the chunk may be the file's no
        longer."""
        if self.given_up:
            raise GfsError(Code.NOT_PRIMARY, f"chunk {self.body.handle:016x} was given up meanwhile")
        self.acknowledged = True


def _check_index(index: int) -> None:
    if index >= CHUNKS_MAX:
        raise GfsError(Code.FILE_TOO_LARGE, f"a file has at most {CHUNKS_MAX} chunks")


class Chunks:
    def __init__(self, session: MasterSession, cache: NamespaceCache, options: ClientOptions) -> None:
        self._session = session
        self._cache = cache
        self._options = options
        self._locations: dict[int, dict[int, pb.ChunkLocation]] = {}
        self._grants: dict[int, dict[int, ChunkGrant]] = {}
        self._asking: dict[tuple[int, int], trio.Event] = {}  # (inode, index) -> when the grant is here
        self._under_way: dict[int, int] = {}  # inode -> grants that are being asked for
        self._given_back: dict[int, int] = {}  # inode -> how often they were given back meanwhile
        self._unsure: dict[tuple[int, int], ChunkGrant] = {}  # (inode, index) -> see `leave`
        self._locating: dict[tuple[int, int], trio.Event] = {}  # (inode, first index) -> when the locations are here
        self.sole_writer: set[int] = set()
        self.on_writer: Callable[[int, int], None] = lambda inode, since: None  # see `Files.writes_since`

    # ------------------------------------------------------------ reading

    def known_location(self, inode: int, index: int) -> pb.ChunkLocation | None:
        chunks = self._locations.get(inode)
        return chunks.get(index) if chunks is not None else None

    async def locate(self, inode: int, index: int) -> pb.ChunkLocation | None:
        """The chunk's location, None where the file has a hole or ends. Asks for the next few chunks too [0091]."""
        first = index - index % self._options.locate_ahead_chunks
        key = (inode, first)
        while True:
            known = self.known_location(inode, index)
            if known is not None:
                return known if known.handle else None
            locating = self._locating.get(key)
            if locating is None:
                break
            await locating.wait()
        self._locating[key] = trio.Event()
        try:
            return await self._locate(inode, index, first)
        finally:
            self._locating.pop(key).set()

    async def _locate(self, inode: int, index: int, first: int) -> pb.ChunkLocation | None:
        asked = self._cache.moment
        ranges = [pb.LocateRequest.Range(inode=inode, first=first, count=self._options.locate_ahead_chunks)]
        if first == 0:
            ranges += self._ranges_of_siblings(inode)
        reply = await self._session.call("Locate", pb.LocateRequest(ranges=ranges))
        found: pb.ChunkLocation | None = None
        for file in reply.files:
            if file.inode == inode:
                if file.error:
                    raise GfsError(code_from_wire(file.error), f"inode {inode}: the chunk cannot be located")
                found = next((chunk for chunk in file.chunks if chunk.index == index), None)
            if not file.error and not self._cache.is_old(file.inode, asked):
                self.keep_locations(file.inode, file.chunks)
                if file.inode != inode and file.HasField("attr") and file.inode not in self.sole_writer:
                    self._cache.keep(attr_from_wire(file.attr), asked)
        return found if found is not None and found.handle else None

    def _ranges_of_siblings(self, inode: int) -> list[pb.LocateRequest.Range]:
        """The small files that a program reading its way through a directory will open next."""
        ranges = []
        for other in self._cache.siblings_after(inode, self._options.locate_ahead_files):
            attr = self._cache.attrs.get(other)
            if attr is not None and attr.type == FileType.FILE and attr.size and other not in self._locations:
                ranges.append(pb.LocateRequest.Range(inode=other, first=0, count=1))
        return ranges

    def keep_locations(self, inode: int, chunks: Iterable[pb.ChunkLocation]) -> None:
        mine = self._locations.setdefault(inode, {})
        for chunk in chunks:
            mine[chunk.index] = chunk

    # ------------------------------------------------------------ writing

    def keep_grant(self, inode: int, grant: ChunkGrant) -> None:
        self._grants.setdefault(inode, {})[grant.index] = grant
        self._locations.setdefault(inode, {})[grant.index] = grant.location()

    def known_grant(self, inode: int, index: int) -> ChunkGrant | None:
        grants = self._grants.get(inode)
        return grants.get(index) if grants is not None else None

    async def grant(
        self, inode: int, index: int, failed: ChunkGrant | None = None, *, fresh: bool = False, existing: bool = False
    ) -> ChunkGrant:
        """Permission to change chunk `index`. `failed` did not work and must not be answered again: what was asked
        under it may still arrive, and the next version refuses it. `fresh`: nothing was ever acknowledged in it, so
        another chunk may take its place (rule 13). `existing`: no chunk is made for it; if the file was cut before it,
        the answer is for the last one. Raises GfsError: FILE_TOO_LARGE."""
        _check_index(index)
        key = (inode, index)
        left = self._unsure.get(key)
        if left is not None and (failed is None or left.is_newer(failed)):
            failed = left
        while True:
            known = self.known_grant(inode, index)
            if known is not None and not known.is_same(failed):
                self._unsure.pop(key, None)
                return known
            asking = self._asking.get(key)
            if asking is None:
                break
            await asking.wait()
        self._asking[key] = trio.Event()
        try:
            request = pb.LeaseRequest(inode=inode, index=index, existing=existing)
            if failed is not None:
                request.stale_version = failed.body.version
                request.avoid.append(failed.primary.id)
                if fresh and failed.body.fresh and not failed.acknowledged:
                    failed.given_up = True
                    request.failed_handle = failed.body.handle
            grant = await self._ask(request)
            self._unsure.pop(key, None)
            return grant
        finally:
            self._asking.pop(key).set()

    def leave(self, inode: int, grant: ChunkGrant) -> None:
        """What was asked under it is given up, and may still arrive: the next change is made under another version."""
        self._unsure[inode, grant.index] = grant

    async def grant_last(self, inode: int, following: int = 0) -> ChunkGrant:
        """Permission for the file's last chunk, its first if it has none; for chunk `following` where that comes next.
        Raises GfsError: FILE_TOO_LARGE."""
        _check_index(following)
        return await self._ask(pb.LeaseRequest(inode=inode, last=True, index=following))

    async def _ask(self, request: pb.LeaseRequest) -> ChunkGrant:
        """Asked again when all grants of the file were given back, or the file was cut here, before the answer came:
        the chunk may be the file's no longer, or this client no writer any more."""
        while True:
            self._under_way[request.inode] = self._under_way.get(request.inode, 0) + 1
            asked, given_back = self._cache.moment, self._given_back.get(request.inode, 0)
            try:
                reply = await self._session.change("Lease", request)
                if reply.grant.body:
                    self.on_writer(request.inode, reply.writer_since)  # whether it is used or not
                if given_back == self._given_back.get(request.inode, 0):
                    return self._granted(request, reply, asked)
            finally:
                self._under_way[request.inode] -= 1
                if not self._under_way[request.inode]:
                    del self._under_way[request.inode]
                    self._given_back.pop(request.inode, None)

    def _granted(self, request: pb.LeaseRequest, reply: pb.LeaseReply, asked: int) -> ChunkGrant:
        if not reply.grant.body:
            raise GfsError(Code.NO_SERVERS, "no chunkserver can take this chunk")
        crossed = self._cache.crossed(asked, request.inode)
        grant = ChunkGrant(reply.grant, reply.index, once=crossed)
        if crossed:
            self.forget_chunk(request.inode, reply.index)
        else:
            self.keep_grant(request.inode, grant)
        self._cache.changed(request.inode)
        if request.inode not in self.sole_writer:
            self._cache.forget_pending(request.inode)  # the length in it lacks what others wrote, who are gone now
        self._cache.length_pending(request.inode)
        if reply.sole_writer and not crossed:  # else another writer may have come since
            self.sole_writer.add(request.inode)
        else:
            self.sole_writer.discard(request.inode)
            self._cache.attrs.pop(request.inode, None)  # the chunks in which the file may end are perhaps others now
        return grant

    # ------------------------------------------------------------ forgetting

    def forget(self, inode: int) -> None:
        self._locations.pop(inode, None)
        self._grants.pop(inode, None)

    def forget_chunk(self, inode: int, index: int) -> None:
        self._locations.get(inode, {}).pop(index, None)
        self._grants.get(inode, {}).pop(index, None)

    def forget_grants(self, inode: int) -> None:
        """They are given back, or the file was cut here: those that are being asked for do not count either."""
        self._grants.pop(inode, None)
        self.sole_writer.discard(inode)
        if inode in self._under_way:
            self._given_back[inode] = self._given_back.get(inode, 0) + 1

    def clear(self) -> None:
        for inode in self._under_way:
            self._given_back[inode] = self._given_back.get(inode, 0) + 1
        self._locations.clear()
        self._grants.clear()
        self.sole_writer.clear()
