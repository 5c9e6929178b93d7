"""The files this client works on: what it knows of their length, and telling the master about it.

A `FileState` is shared by all handles of a file and outlives the last of them until the master has its length: lengths
go to the master in batches after close, at once on fsync. Until then the primary of the last chunk knows the length,
and other clients ask it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from gfscore.client.appender import Appender
from gfscore.client.cache import NamespaceCache
from gfscore.client.chunks import Chunks
from gfscore.client.gate import Gate
from gfscore.client.mutation import Mutator
from gfscore.client.options import ClientOptions
from gfscore.client.session import MasterSession
from gfscore.client.types import Attr
from gfscore.client.writer import FileWriter, WriteBudget
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import CHUNKS_MAX
from gfscore.proto import gfs_pb2 as pb

log = logging.getLogger(__name__)

_WRITTEN_OUT_AT_ONCE = 64
_UNSYNCED_FILES_MAX = 65_536  # of closed files; an fsync of an older one has nothing to sync


class FileState:
    """What all handles of one file share."""

    __slots__ = (
        "acknowledged_end",
        "agreements",
        "appender",
        "changes",
        "commits",
        "gate",
        "handles",
        "inode",
        "mtime_ns",
        "uncommitted",
        "unsure",
        "unused_chunk",
        "writer",
        "writers",
        "writes_since",
    )

    def __init__(self, inode: int) -> None:
        self.inode = inode
        self.handles = 0
        self.writers = 0  # of the handles
        self.writer: FileWriter | None = None
        self.appender: Appender | None = None
        self.acknowledged_end = 0  # one past the last byte that the replicas took since the length was last agreed
        self.agreements = 0  # counts how often it was
        self.unsure = False  # whether it was cut here: nobody answered; what the replicas have is the length
        self.mtime_ns = 0  # of the latest change here; 0: none since somebody set the time
        self.changes = 0  # counts writes and appends
        self.uncommitted = False  # the master does not have `end` and `mtime_ns`, or that the writing is over
        self.writes_since = 0  # the request with which this client became one of the writers
        self.gate = Gate()  # closed while the file is being cut here
        self.commits = Gate()  # passed by its length on the way to the master, closed while that is asked for a change
        self.unused_chunk = 0  # handle of the first chunk, when it came with the file and nothing went there yet

    @property
    def busy(self) -> bool:
        return self.writer is not None and self.writer.busy

    @property
    def end(self) -> int:
        """One past the last byte that was written or appended here since the length was last agreed.

        What has failed for good does not count.
        """
        unsent_end = self.writer.unsent_end if self.writer is not None else 0
        return max(self.acknowledged_end, unsent_end)

    def agree(self) -> None:
        """The master's length counts from now on; what is still answered was asked before."""
        self.acknowledged_end = 0
        self.agreements += 1

    def changed(self, now_ns: int) -> None:
        self.changes += 1
        self.uncommitted = True
        self.mtime_ns = now_ns


class Committing:
    """A length on its way to the master. `error`: what went wrong, once it is `done`."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: GfsError | None = None


class Files:
    """All `FileState`s of a client, and the task that commits their lengths."""

    def __init__(
        self,
        session: MasterSession,
        cache: NamespaceCache,
        chunks: Chunks,
        mutator: Mutator,
        env: Env,
        options: ClientOptions,
    ) -> None:
        self._session = session
        self._cache = cache
        self._chunks = chunks
        self._mutator = mutator
        self._env = env
        self._options = options
        self._states: dict[int, FileState] = {}
        # inode → indexes of chunks changed here since its last fsync, also by handles that are closed
        self._unsynced: dict[int, set[int]] = {}
        self._budget = WriteBudget(options.dirty_bytes_max)
        self._closed_files = trio.Event()
        self._sending: set[int] = set()  # closed files of which something is on its way to the replicas
        self._written_out_at_once = trio.Semaphore(_WRITTEN_OUT_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self.chunk_bytes = 0

    def start(self, nursery: trio.Nursery, chunk_bytes: int) -> None:
        self._nursery = nursery
        self.chunk_bytes = chunk_bytes
        nursery.start_soon(self._commit_closed_files, nursery)

    def get(self, inode: int) -> FileState | None:
        return self._states.get(inode)

    @property
    def bytes_max(self) -> int:
        """No file is longer."""
        return self.chunk_bytes * CHUNKS_MAX

    @property
    def uncommitted(self) -> int:
        """Files whose length the master does not have yet."""
        return sum(state.uncommitted for state in self._states.values())

    def is_open(self, inode: int) -> bool:
        state = self._states.get(inode)
        return state is not None and state.handles > 0

    def open_inodes(self) -> tuple[list[int], list[int]]:
        """Files with handles: for reading only, and for writing."""
        opened = [state for state in self._states.values() if state.handles]
        return [s.inode for s in opened if not s.writers], [s.inode for s in opened if s.writers]

    def open(self, inode: int, write: bool) -> FileState:
        state = self._states.get(inode)
        if state is None:
            state = self._states[inode] = FileState(inode)
        state.handles += 1
        state.writers += write
        return state

    def writer(self, state: FileState) -> FileWriter:
        if state.writer is None:
            assert self._nursery is not None
            state.writer = FileWriter(
                state.inode,
                self.chunk_bytes,
                self._chunks,
                self._mutator,
                self._budget,
                self._nursery,
                self._env,
                self._options,
                partial(self.attempt, state),
                self.unsynced(state.inode),
            )
        return state.writer

    def attempt(self, state: FileState) -> Callable[[int], None]:
        """The replicas are about to be asked to take something: to be called with its end when all have it.

        When the length was agreed on meanwhile, it is in that, or was cut off.
        """
        return partial(self._acknowledged, state, state.agreements)

    def _acknowledged(self, state: FileState, agreements: int, end: int) -> None:
        if end > state.acknowledged_end and agreements == state.agreements:
            state.acknowledged_end = end
            attr = self._cache.attrs.get(state.inode)
            if attr is not None and not attr.length_pending and end > attr.size:
                del self._cache.attrs[state.inode]  # somebody cut the file meanwhile: the master knows what came first

    def unsynced(self, inode: int) -> set[int]:
        """Indexes of the chunks that were changed here since the file's last fsync, by handles that are closed too."""
        found = self._unsynced.get(inode)
        if found is None:
            found = self._unsynced[inode] = set()
            if len(self._unsynced) > _UNSYNCED_FILES_MAX:
                oldest = next((other for other in self._unsynced if other not in self._states and other != inode), None)
                self._unsynced.pop(oldest or inode)
        return found

    def appender(self, state: FileState) -> Appender:
        if state.appender is None:
            state.appender = Appender(
                state.inode,
                self.chunk_bytes,
                self._chunks,
                self._mutator,
                self._env,
                self._options,
                partial(self.attempt, state),
            )
        return state.appender

    async def close(self, state: FileState, write: bool) -> None:
        """One handle less. The length goes to the master in the background."""
        state.handles -= 1
        state.writers -= write
        if state.handles:
            if state.uncommitted and not state.writers:
                self._closed_files.set()
            return
        if state.inode in self._session.held:
            await self._let_go(state)
        elif state.uncommitted:
            self._closed_files.set()
        else:
            self._drop(state)

    def _drop(self, state: FileState) -> None:
        del self._states[state.inode]
        if not self._unsynced.get(state.inode):
            self._unsynced.pop(state.inode, None)

    async def _let_go(self, state: FileState) -> None:
        """The last handle of a file without a name: the master can drop it now."""
        self._session.held.discard(state.inode)
        self.forget(state.inode)
        await self._session.change("Release", pb.ReleaseRequest(inodes=[state.inode]))

    def forget(self, inode: int) -> None:
        """The file has no name any more. Its length still goes to the master, for whoever finds it in the trash."""
        state = self._states.get(inode)
        if state is not None and not state.handles:
            if state.uncommitted:
                self._closed_files.set()
            else:
                self._drop(state)
        self._unsynced.pop(inode, None)
        self._chunks.forget(inode)
        self._chunks.sole_writer.discard(inode)
        self._cache.forget(inode)

    def forget_grants(self) -> None:
        for state in self._states.values():
            if state.appender is not None:
                state.appender.forget_grant()

    def agreed(self, inode: int) -> None:
        """The length that the master has is the truth, but for what the replicas have not taken yet."""
        state = self._states.get(inode)
        if state is not None:
            state.agree()

    def writes_since(self, inode: int, since: int) -> None:
        """With which request this client became one of the file's writers, says the master.

        With another one than before it was none in between: what it had written is in the master's length, or cut off.
        """
        state = self._states.get(inode)
        if state is None:
            return
        state.uncommitted = True  # until the master is told that the writing is over
        state.changes += 1  # with a Commit that is sent from now on
        if since > state.writes_since:
            state.writes_since = since
            state.agree()

    def is_writer_since(self, inode: int, since: int) -> None:
        """What the master says now of this client as a writer of the file.

        If it counts it no more as the one that it was, what it had written is in the master's length or on the
        replicas, or somebody has cut the file, which could not be told.
        """
        state = self._states.get(inode)
        if state is not None and since != state.writes_since:
            state.agree()

    def times_set(self, inode: int) -> None:
        """Somebody set the file's mtime: that of what was written here before counts no more."""
        state = self._states.get(inode)
        if state is not None:
            state.mtime_ns = 0

    def changed_elsewhere(self, inode: int) -> None:
        """The chunks of the file are others now, or have other versions."""
        state = self._states.get(inode)
        if state is not None and state.appender is not None:
            state.appender.forget_grant()

    async def write_out_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for state in [state for state in self._states.values() if state.busy]:
                nursery.start_soon(self._write_out, state)

    async def _write_out(self, state: FileState) -> None:
        """However long it takes: the servers of another file may be there while those of this one are not."""
        assert state.writer is not None
        async with self._written_out_at_once:
            await state.writer.write_out()

    @asynccontextmanager
    async def changing(self, state: FileState, size: int | None) -> AsyncIterator[None]:
        """While the master is asked to change length (`size`) or mtime of a file that was written here."""
        if state.writer is not None:  # what is still on its way would make the file grow back, or set the time again
            await state.writer.write_out()
        async with state.commits.closing():
            end, mtime_ns, agreements = state.acknowledged_end, state.mtime_ns, state.agreements
            if size is not None:
                state.acknowledged_end = min(end, size)
                state.changes += 1
            state.mtime_ns = 0
            try:
                yield
            except BaseException as error:
                if isinstance(error, GfsError) and error.code is not Code.TIMED_OUT:  # nothing was changed
                    if state.agreements == agreements:
                        state.acknowledged_end = max(end, state.acknowledged_end)
                    state.mtime_ns = state.mtime_ns or mtime_ns
                elif size is not None:
                    self._ask_replicas(state)
                raise
            finally:
                self._closed_files.set()  # it may be one, and was left out meanwhile

    def _ask_replicas(self, state: FileState) -> None:
        """Nobody knows whether the file was cut, and how long it is: the master has to ask the replicas."""
        state.unsure = True
        self._chunks.sole_writer.discard(state.inode)
        self._cache.changed(state.inode)
        self._cache.attrs.pop(state.inode, None)
        self.commit_soon(state)

    def merge(self, attr: Attr) -> Attr:
        """`attr` as this client sees the file: with what it wrote itself and the master does not know yet."""
        state = self._states.get(attr.inode)
        if state is None or not state.uncommitted:
            return attr
        newer = bool(state.mtime_ns) and state.mtime_ns > attr.mtime_ns
        if state.end <= attr.size and not newer:
            return attr
        merged = attr.copy()
        merged.size = max(attr.size, state.end)
        if newer:
            merged.mtime_ns = state.mtime_ns
            merged.ctime_ns = max(attr.ctime_ns, state.mtime_ns)
        return merged

    # ------------------------------------------------------------ lengths to the master

    def commit_soon(self, state: FileState) -> Committing:
        """Begin to tell the master the length; it is on its disk when the wait for it is over (fsync)."""
        committing = Committing()
        assert self._nursery is not None
        self._nursery.start_soon(self._commit_one, state, committing)
        return committing

    async def _commit_one(self, state: FileState, committing: Committing) -> None:
        try:
            await self._commit([state], sync=True)
        except GfsError as error:
            committing.error = error
        finally:
            committing.done.set()

    async def _commit_all(self) -> None:
        """Everything that is not open for writing any more, and not on its way to the replicas."""
        closed = [state for state in self._states.values() if state.uncommitted and not state.writers]
        for start in range(0, len(closed), self._options.commit_batch):
            batch = closed[start : start + self._options.commit_batch]
            states = [state for state in batch if not state.busy and not state.commits.closed]
            if states:
                await self._commit(states, sync=False)

    async def close_all(self) -> None:
        """Nobody uses the client any more: what is still open is closed."""
        for state in self._states.values():
            state.handles = state.writers = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.write_out_all)
            with suppress(GfsError):  # tried again
                await self._commit_all()
        await self._commit_all()

    async def _commit_closed_files(self, nursery: trio.Nursery) -> None:
        while True:
            await self._closed_files.wait()
            self._closed_files = trio.Event()
            # A short delay gathers a batch, and keeps the leases of a file that is opened again at once.
            await self._env.clock.sleep(self._options.commit_delay_seconds)
            for state in self._states.values():
                if state.busy and not state.writers and state.inode not in self._sending:
                    self._sending.add(state.inode)  # what a close that was cancelled did not wait for
                    nursery.start_soon(self._send_closed, state)
            try:
                await self._commit_all()
            except GfsError as error:
                log.warning("event=commit_failed error=%r", str(error))
                self._closed_files.set()

    async def _send_closed(self, state: FileState) -> None:
        await self._write_out(state)
        self._sending.discard(state.inode)
        self._closed_files.set()

    async def _commit(self, states: list[FileState], sync: bool) -> None:
        """Raises GfsError. Waits while one of them is being changed."""
        for state in states:
            await state.commits.enter()
        try:
            await self._send_lengths(states, sync)
        finally:
            for state in states:
                state.commits.leave()

    async def _send_lengths(self, states: list[FileState], sync: bool) -> None:
        request = pb.CommitRequest(sync=sync)
        changes = []
        asked, alone = self._cache.moment, self._chunks.sole_writer.intersection(state.inode for state in states)
        for state in states:
            changes.append(state.changes)
            release = not state.writers
            length = request.lengths.add(
                inode=state.inode, size=state.end, mtime_ns=state.mtime_ns, release=release, unsure=state.unsure
            )
            if release:
                length.unused_chunk = state.unused_chunk
                self._give_back(state)
        try:
            pending = set((await self._session.change("Commit", request)).pending)
        except GfsError as error:
            if error.code is not Code.STALE_INODE:
                raise
            pending = set()
        alone = {inode for inode in alone if not self._cache.crossed(asked, inode)}  # another writer may have come
        for state, seen, length in zip(states, changes, request.lengths, strict=True):
            state.unsure = False
            if state.changes == seen:
                self._committed(state, length.release, state.inode not in pending, state.inode in alone)

    def _give_back(self, state: FileState) -> None:
        """From here on a write asks the master again, which then counts this client among the writers again."""
        if state.unused_chunk:
            self._chunks.forget_chunk(state.inode, 0)
            state.unused_chunk = 0
        self._chunks.forget_grants(state.inode)
        if state.appender is not None:
            state.appender.forget_grant()

    def _committed(self, state: FileState, release: bool, settled: bool, alone: bool) -> None:
        if release and not alone:
            self._cache.forget_pending(state.inode)  # the length in it lacks what others wrote
        attr = self._cache.attrs.get(state.inode)
        if attr is not None and release:
            agreed = self.merge(attr).copy()
            agreed.length_pending = not settled
            self._cache.attrs[state.inode] = agreed
        elif attr is not None and (alone or not attr.length_pending):
            self._cache.attrs[state.inode] = self.merge(attr)
        state.uncommitted = state.uncommitted and not release
        if not state.uncommitted:
            self._cache.changed(state.inode)  # what the master said before lacks what `merge` adds no more
            state.acknowledged_end = 0
            if not state.handles and self._states.get(state.inode) is state:
                self._drop(state)
