"""open, read, write, flush, fsync, release.

Write-only handles go around the kernel's page cache, which costs more than all the rest; a handle that can be mapped
into memory (O_RDWR) may not. On O_APPEND handles each write is one record append and is answered when the record is
on all replicas [00104]; the kernel's offset means nothing there.
"""

from __future__ import annotations

import os

import pyfuse3

from gfsmount.callers import thread_group
from gfsmount.context import HandlerContext
from gfsmount.handles import FileHandle


class FileHandlers(HandlerContext):
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        access = flags & os.O_ACCMODE
        writable = access != os.O_RDONLY
        append = writable and bool(flags & os.O_APPEND)
        truncate = bool(flags & os.O_TRUNC)
        if writable or truncate:
            self.changes += 1
        by_root = ctx.uid == 0
        if truncate and not by_root:
            await self.strip_privileges(inode)  # before there is a handle: it can fail
        file = await self.client.open(inode, write=writable, append=append, truncate=truncate)
        direct = append or access == os.O_WRONLY
        handle = FileHandle(file, inode, writable=writable, append=append, direct=direct, by_root=by_root)
        if append:
            handle.process = thread_group(ctx.pid)
        return pyfuse3.FileInfo(fh=self.files.add(handle), direct_io=direct, keep_cache=file.keep_cache)

    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:
        handle = self.files[fh]
        if not handle.direct:
            self.inodes.pages.add(handle.inode)
        return await handle.file.read(off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        handle = self.files[fh]
        self.changes += 1
        if handle.strip_privileges:
            await self.strip_once(handle.inode, handle)
        if handle.append:
            written = await self._append(handle, buf)
        else:
            written = await handle.file.write(off, buf)
        if handle.direct:
            if handle.inode in self.inodes.pages:
                await self.notifier.drop_pages(handle.inode)
        else:
            self.inodes.pages.add(handle.inode)
        return written

    async def _append(self, handle: FileHandle, record: bytes) -> int:
        """All of it or nothing: one longer than a record may be is refused, not cut."""
        offset = await handle.file.append(record)
        self.append_offsets.remember(handle.inode, handle.process, offset)
        return len(record)

    async def flush(self, fh: int) -> None:
        handle = self.files[fh]
        if handle.writable:
            await handle.file.flush()

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.files[fh].file.fsync()

    async def release(self, fh: int) -> None:
        await self.files.pop(fh).file.close()
