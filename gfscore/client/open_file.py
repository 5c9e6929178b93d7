"""What a program does with an open file."""

from __future__ import annotations

from collections.abc import Callable

import trio

from gfscore.client.files import Files, FileState
from gfscore.env import Env
from gfscore.errors import Code, GfsError


class OpenFile:
    """A handle. Offsets and sizes in bytes; every method raises GfsError."""

    def __init__(
        self,
        state: FileState,
        files: Files,
        read: Callable[[int, int, int], object],
        write: bool,
        env: Env,
        keep_cache: bool,
    ) -> None:
        self.inode = state.inode
        self.keep_cache = keep_cache  # what the kernel has cached of the file is still right
        self.found = False  # by a call that would have created the file
        self._state = state
        self._files = files
        self._read = read
        self._write = write
        self._env = env
        self._errors_seen = state.writer.error_number if state.writer is not None else 0
        self._closed = False

    async def read(self, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes, fewer at the end of the file, which may have grown since it was opened."""
        return await self._read(self.inode, offset, size)  # type: ignore[misc,no-any-return]

    async def write(self, offset: int, data: bytes | memoryview) -> int:
        """Visible to every reader of this client at once; on the replicas after `flush`, on disks after `fsync`.

        Raises FILE_TOO_LARGE behind the last chunk that a file can have.
        """
        self._check_writable()
        if offset + len(data) > self._files.bytes_max:
            raise GfsError(Code.FILE_TOO_LARGE, f"a file has at most {self._files.bytes_max} bytes")
        writer = self._files.writer(self._state)
        if self._state.unused_chunk and offset < self._files.chunk_bytes:
            self._state.unused_chunk = 0
        if self._state.gate.closed:
            await self._state.gate.wait_open()
        self._state.changed(self._env.clock.wall_ns())
        await writer.write(offset, data)
        if writer.error_number != self._errors_seen:
            self._raise_error()
        return len(data)

    async def append(self, record: bytes | memoryview) -> int:
        """Record append: the offset at which the record is, whole, on all replicas."""
        self._check_writable()
        state = self._state
        if state.busy:
            await self.flush()
        await state.gate.enter()
        try:
            state.uncommitted = True
            state.unused_chunk = 0
            appender = self._files.appender(state)
            appender.begin_behind(state.acknowledged_end)
            offset = await appender.append(record)
            self._files.unsynced(state.inode).add(offset // self._files.chunk_bytes)
            state.changed(self._env.clock.wall_ns())
        finally:
            state.gate.leave()
        return offset

    async def flush(self) -> None:
        """All that was written is on all replicas, or an error says what is not."""
        if self._state.writer is not None:
            await self._state.writer.write_out()
            self._raise_error()

    async def fsync(self) -> None:
        """`flush`, and on the disks of all replicas, and the length on the master's: all that this client ever wrote.

        Both at the same time while somebody writes here: the length is right even where the data of a failed fsync is
        not. Otherwise the length is last, with which the leases are given back that the data may need.
        """
        state = self._state
        unsynced = self._files.unsynced(state.inode)
        state.uncommitted = state.uncommitted or bool(unsynced)
        committed = self._files.commit_soon(state) if state.uncommitted and state.writers else None
        try:
            if unsynced or state.writer is not None:
                await self._files.writer(state).sync()
            self._raise_error()
        finally:
            if state.uncommitted and not state.writers:
                committed = self._files.commit_soon(state)
            if committed is not None:
                await committed.done.wait()
        if committed is not None and committed.error is not None:
            raise committed.error

    async def close(self) -> None:
        """`flush` and let go. The handle is closed even when an error is raised."""
        if self._closed:
            return
        self._closed = True
        try:
            await self.flush()
        finally:
            with trio.CancelScope(shield=True):
                await self._files.close(self._state, self._write)

    def _check_writable(self) -> None:
        if not self._write:
            raise GfsError(Code.INVALID, "the file is open for reading only")

    def _raise_error(self) -> None:
        """An error of the background writes is told once to every handle that was open."""
        writer = self._state.writer
        if writer is not None and writer.error_number != self._errors_seen:
            self._errors_seen = writer.error_number
            assert writer.error is not None
            raise writer.error
