"""The client: files and directories by inode, as the FUSE driver and the path-level face use them.

Namespace answers come from the cache while the master's call-backs keep it right; file data goes straight to the
chunkservers [0085].
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from gfscore.client.attributes import Attributes
from gfscore.client.cache import NamespaceCache
from gfscore.client.chunks import ChunkGrant, Chunks
from gfscore.client.chunkservers import Chunkservers
from gfscore.client.deadline import pause_seconds
from gfscore.client.files import Files
from gfscore.client.mutation import Mutator
from gfscore.client.namespace import NamespaceOperations
from gfscore.client.open_file import OpenFile
from gfscore.client.operator import OperatorQueries
from gfscore.client.options import ClientOptions
from gfscore.client.reader import ChunkReader
from gfscore.client.session import MasterSession
from gfscore.client.trash import TrashOperations
from gfscore.client.types import Attr, AttrChanges, FileType, Invalidation
from gfscore.client.verify import Progress, Verifier
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import PIECE_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext

log = logging.getLogger(__name__)

_RECONCILE_ATTEMPTS = 4


class Client(NamespaceOperations):
    """Use `open_client`. All methods raise GfsError."""

    def __init__(self, host: str, port: int, env: Env, options: ClientOptions) -> None:
        session = MasterSession(
            host, port, env, options, self._invalidate, self._lost_session, self._open_inodes, self._held_unasked
        )  # fmt: skip
        cache = NamespaceCache(options.cached_inodes_max)
        chunks = Chunks(session, cache, options)
        servers = Chunkservers(env, options.rack, options.attempt_seconds)
        self._mutator = Mutator(servers)
        files = Files(session, cache, chunks, self._mutator, env, options)
        reader = ChunkReader(chunks, servers, env, options)
        attributes = Attributes(session, cache, chunks, files, reader, env, options)
        chunks.on_writer = files.writes_since
        super().__init__(session, cache, chunks, files, attributes)
        self._servers = servers
        self._reader = reader
        self._env = env
        self._options = options
        # inode -> (size, mtime, ctime) when the kernel last had its pages
        self._kept_at_open: dict[int, tuple[int, int, int]] = {}
        self.on_invalidate: Callable[[Invalidation], Awaitable[None]] | None = None
        self.operator = OperatorQueries(session)
        self.trash = TrashOperations(session)
        self.chunk_size = 0
        self.cluster_id = ""

    async def _start(self, nursery: trio.Nursery) -> None:
        await self._session.connected()
        self.chunk_size = self._session.hello.chunk_size
        self.cluster_id = self._session.hello.cluster_id
        self._mutator.client_id = self._session.client_id
        self._files.start(nursery, self.chunk_size)
        if self._options.caching:
            nursery.start_soon(self._session.keep_connected)

    async def _stop(self) -> None:
        await self._files.close_all()

    async def _disconnect(self) -> None:
        await self._servers.aclose()
        await self._session.aclose()

    def info(self) -> dict[str, Any]:
        """For people: whom this client talks to, how often it called the master, what the master does not have yet."""
        return {
            "master": self._session.address,
            "client_id": self._session.client_id,
            "calls": dict(self._session.calls),
            "uncommitted": self._files.uncommitted,
        }

    async def file_info(self, inode: int) -> dict[str, Any]:
        """See `OperatorQueries.file_info`; what was written here is on the replicas first."""
        await self._files.write_out_all()
        return await self.operator.file_info(inode)

    async def status(self) -> dict[str, Any]:
        return await self.operator.status()

    def verifier(self, progress: Progress) -> Verifier:
        """A check of replicas, see `gfscore.client.verify`; the caller closes it."""
        return Verifier(self._session, self._env, progress)

    async def reconcile(self, inode: int, index: int) -> None:
        """Have the replicas of a chunk made equal and durable, by taking a lease on it (and letting it go)."""
        state = self._files.open(inode, write=True)
        try:
            state.uncommitted = True  # the master counts this client among the writers until it hears otherwise
            grant: ChunkGrant | None = None
            for attempt in range(_RECONCILE_ATTEMPTS):
                try:
                    grant = await self._chunks.grant(inode, index, grant)
                    acknowledge = self._files.attempt(state)
                    reply = await self._mutator.write(grant, [], [], 0, sync=True)
                    acknowledge(index * self.chunk_size + reply.length)
                    return
                except GfsError as error:
                    if not error.retryable or attempt + 1 == _RECONCILE_ATTEMPTS:
                        raise
                    await self._env.clock.sleep(pause_seconds(attempt, self._env.random))
        finally:
            await self._files.close(state, write=True)

    # ------------------------------------------------------------ files

    async def create_file(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, exclusive: bool = True
    ) -> tuple[Attr, OpenFile]:
        """Create and open for reading and writing; one call brings file, first chunk and lease.

        Without `exclusive` a file that is there already is opened, and the handle says so (`found`).
        """
        asked = self._cache.moment
        reply, attr = await self._create(
            parent, name, FileType.FILE, mode, uid, gid, with_chunk=True, exclusive=exclusive
        )
        if reply.grant.body:
            grant = ChunkGrant(reply.grant, 0)
            if not self._cache.crossed(asked, attr.inode):  # else another writer may have come since
                self._chunks.keep_grant(attr.inode, grant)
                self._chunks.sole_writer.add(attr.inode)
            # The master counts this client among the file's writers until it says that it is done.
            file = self._handle(attr, write=True)
            state = self._files.get(attr.inode)
            assert state is not None
            state.uncommitted = True
            state.writes_since = reply.writer_since
            state.unused_chunk = grant.body.handle
            return attr, file
        file = self._handle(attr, write=True)
        file.found = reply.existed
        return attr, file

    def is_open(self, inode: int) -> bool:
        """Whether somebody has a handle here."""
        return self._files.is_open(inode)

    async def open(self, inode: int, *, write: bool = False, append: bool = False, truncate: bool = False) -> OpenFile:
        """A handle. `append` is only a hint: every writable handle can append records."""
        attr = await self.getattr(inode)
        if attr.type == FileType.DIRECTORY:
            raise GfsError(Code.IS_DIRECTORY, "a directory has no data")
        if write or append or truncate:
            self._refuse_in_trash(attr)
        if truncate:
            attr = await self.setattr(inode, AttrChanges(size=0) if attr.size else AttrChanges(mtime_now=True))
        return self._handle(attr, write or append)

    def _handle(self, attr: Attr, write: bool) -> OpenFile:
        stamp = (attr.size, attr.mtime_ns, attr.ctime_ns)  # who writes in place may put the old mtime back
        keep = not attr.volatile and self._kept_at_open.get(attr.inode) == stamp
        if attr.volatile:  # the bytes may change and the stamp not
            self._kept_at_open.pop(attr.inode, None)
        else:
            self._kept_at_open[attr.inode] = stamp
        if len(self._kept_at_open) > self._options.cached_inodes_max:
            self._kept_at_open.clear()
        state = self._files.open(attr.inode, write)
        return OpenFile(state, self._files, self._read, write, self._env, keep)

    async def _read(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        state = self._files.get(inode)
        if state is not None and state.writer is not None and state.writer.overlaps(offset, offset + size):
            await state.writer.write_out()
        end = await self._readable_end(inode, offset + size)
        if offset >= end:
            return b""
        size = end - offset
        index, position = divmod(offset, self.chunk_size)
        if position + size <= self.chunk_size and size <= PIECE_BYTES:
            data = await self._read_chunk(inode, index, position, size)
            return data if len(data) == size else bytes(data) + bytes(size - len(data))
        return await self._read_pieces(inode, offset, size)

    async def _read_chunk(self, inode: int, index: int, position: int, size: int) -> memoryview:
        if index == 0:
            state = self._files.get(inode)
            if state is not None and state.unused_chunk and inode in self._chunks.sole_writer:
                return memoryview(b"")  # a hole as yet: no server knows the chunk before it is first written
        return await self._reader.read(inode, index, position, size)

    async def _readable_end(self, inode: int, wanted: int) -> int:
        """`wanted`, or the file's length where that is less; a file that others write is asked about anew."""
        known = self._cache.attrs.get(inode)
        if known is not None:
            attr = self._files.merge(known)
            if wanted <= attr.size:
                return wanted
        attr = await self.getattr(inode)
        return min(wanted, attr.size)

    async def _read_pieces(self, inode: int, offset: int, size: int) -> memoryview:
        """Several pieces or chunks at once; what is missing (holes) is zeros."""
        result = memoryview(bytearray(size))

        async def one(start: int, stop: int) -> None:
            index, position = divmod(start, self.chunk_size)
            data = await self._read_chunk(inode, index, position, stop - start)
            result[start - offset : start - offset + len(data)] = data

        try:
            async with trio.open_nursery() as nursery:
                start, end = offset, offset + size
                while start < end:
                    stop = min((start // PIECE_BYTES + 1) * PIECE_BYTES, end)
                    nursery.start_soon(one, start, stop)
                    start = stop
        except* GfsError as group:
            raise _first(group) from None
        return result

    # ------------------------------------------------------------ what the master calls back

    def _invalidate(self, request: pb.InvalidateRequest, context: CallContext) -> Awaitable[pb.InvalidateReply]:
        """Runs up to its first await in the order in which the master's messages arrive."""
        self._cache.called_back([item.inode for item in request.items])
        held = []
        still_open = [item.inode for item in request.items if item.evicted and self._files.is_open(item.inode)]
        for item in request.items:
            if item.names:
                self._cache.names_changed(item.inode, list(item.names))
            if item.attr or item.chunks or item.writers:
                self._cache.attrs.pop(item.inode, None)
            if item.cut:
                self._files.agreed(item.inode)
            if item.times or item.cut:
                self._files.times_set(item.inode)
            if item.writers:
                self._chunks.sole_writer.discard(item.inode)
            if item.chunks:
                self._chunks.forget(item.inode)
                self._kept_at_open.pop(item.inode, None)
                self._files.changed_elsewhere(item.inode)
            if item.unlinked:
                if self._files.is_open(item.inode):
                    held.append(item.inode)
                    self._session.held.add(item.inode)
                else:
                    self._files.forget(item.inode)
        return self._tell_kernel(request, pb.InvalidateReply(held=held, open=still_open))

    async def _tell_kernel(self, request: pb.InvalidateRequest, reply: pb.InvalidateReply) -> pb.InvalidateReply:
        if self.on_invalidate is not None:
            for item in request.items:
                invalidation = Invalidation(
                    item.inode, list(item.names), item.attr or item.writers or item.unlinked, item.chunks
                )
                await self.on_invalidate(invalidation)
        return reply

    def _open_inodes(self) -> tuple[list[int], list[int]]:
        """For the master, to keep what others unlink: files open here for reading only, and for writing."""
        return self._files.open_inodes()

    def _held_unasked(self, inodes: Sequence[int]) -> None:
        """The master holds files that were open here when it was greeted; those closed meanwhile it need not."""
        self._session.held.update(inodes)
        closed = [inode for inode in inodes if not self._files.is_open(inode)]
        if closed:
            self._session_nursery.start_soon(self._release, closed)

    async def _release(self, inodes: list[int]) -> None:
        self._session.held.difference_update(inodes)
        try:
            await self._session.change("Release", pb.ReleaseRequest(inodes=inodes))
        except GfsError as error:
            log.warning("event=release_failed error=%r", str(error))

    def _lost_session(self) -> None:
        """The master does not cover our caches any more: everything is asked anew."""
        log.warning("event=session_lost master=%s", self._session.address)
        inodes = list(self._cache.attrs)
        self._cache.clear()
        self._chunks.clear()
        self._kept_at_open.clear()
        self._files.forget_grants()
        if self.on_invalidate is not None:
            self._session_nursery.start_soon(self._forget_in_kernel, inodes)

    async def _forget_in_kernel(self, inodes: list[int]) -> None:
        assert self.on_invalidate is not None
        await self.on_invalidate(Invalidation(0, [], True, True))  # every name
        for inode in inodes:
            await self.on_invalidate(Invalidation(inode, [], True, True))

    _session_nursery: trio.Nursery


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def parse_address(address: str) -> tuple[str, int]:
    """ "HOST:PORT". Raises GfsError(INVALID)."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise GfsError(Code.INVALID, f"{address!r} is not an address: give HOST:PORT")
    return host, int(port)


@asynccontextmanager
async def open_client(
    address: str, *, env: Env | None = None, options: ClientOptions | None = None, name: str = "client"
) -> AsyncIterator[Client]:
    """A connected client; leaving the context flushes, closes and releases everything.

    Raises GfsError(UNREACHABLE) at once when there is no master at `address` ("HOST:PORT").
    """
    host, port = parse_address(address)
    if env is None:
        from pathlib import Path

        from gfscore.env.real import real_env

        env = real_env(Path("/"))
    client = Client(host, port, env, options or ClientOptions(name=name))
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            client._session_nursery = nursery
            try:
                await client._start(nursery)
                try:
                    yield client
                except BaseException as error:
                    failure = error
                    raise
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + client._options.timeout_seconds):
                        await client._stop()
            finally:
                with trio.CancelScope(shield=True):
                    await client._disconnect()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and not isinstance(failure, BaseExceptionGroup):
            raise failure from None
        raise _first(group) from None


__all__ = ["Client", "open_client", "parse_address"]
