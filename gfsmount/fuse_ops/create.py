"""create, mknod, mkdir, symlink, link: what makes a new name."""

from __future__ import annotations

import os
import stat

import pyfuse3

from gfscore.client import FileType
from gfscore.errors import Code, GfsError
from gfsmount.callers import thread_group
from gfsmount.context import HandlerContext
from gfsmount.handles import FileHandle

_TYPES = {
    0: FileType.FILE,
    stat.S_IFREG: FileType.FILE,
    stat.S_IFIFO: FileType.FIFO,
    stat.S_IFSOCK: FileType.SOCKET,
    stat.S_IFCHR: FileType.CHARACTER_DEVICE,
    stat.S_IFBLK: FileType.BLOCK_DEVICE,
}


class CreateHandlers(HandlerContext):
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        with self.changing(parent):
            generation = self.notifier.generation
            attr, file = await self.client.create_file(
                self.root if parent == 1 else parent,
                name,
                mode & 0o7777,
                ctx.uid,
                ctx.gid,
                exclusive=bool(flags & os.O_EXCL),
            )
            if file.found:
                # Somebody else made it between look-up and create. What this caller may do with it the kernel knows:
                # told so, it looks the name up again, and opens.
                await file.close()
                raise GfsError(Code.STALE_INODE, "another client made the file meanwhile")
            entry = self.entry(parent, name, attr, generation)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        append = writable and bool(flags & os.O_APPEND)
        direct = append or flags & os.O_ACCMODE == os.O_WRONLY
        handle = FileHandle(file, entry.st_ino, writable=writable, append=append, direct=direct, by_root=ctx.uid == 0)
        if append:
            handle.process = thread_group(ctx.pid)
        return pyfuse3.FileInfo(fh=self.files.add(handle), direct_io=direct, keep_cache=file.keep_cache), entry

    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        kind = _TYPES.get(stat.S_IFMT(mode))
        if kind is None:
            raise GfsError(Code.INVALID, f"no such type of file: {mode:o}")
        return await self._make(parent, name, kind, mode, ctx, rdev=rdev)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._make(parent, name, FileType.DIRECTORY, mode, ctx)

    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent, name, FileType.SYMLINK, 0o777, ctx, target=target)

    async def link(
        self, inode: int, new_parent: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        with self.changing(new_parent):
            generation = self.notifier.generation
            attr = await self.client.link(inode, self.root if new_parent == 1 else new_parent, new_name)
            return self.entry(new_parent, new_name, attr, generation)

    async def _make(
        self,
        parent: int,
        name: bytes,
        kind: FileType,
        mode: int,
        ctx: pyfuse3.RequestContext,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> pyfuse3.EntryAttributes:
        with self.changing(parent):
            generation = self.notifier.generation
            attr = await self.client.create(
                self.root if parent == 1 else parent,
                name,
                kind,
                mode & 0o7777,
                ctx.uid,
                ctx.gid,
                rdev=rdev,
                target=target,
            )
            return self.entry(parent, name, attr, generation)
