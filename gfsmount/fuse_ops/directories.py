"""opendir, readdir (always with attributes), releasedir, fsyncdir.

The kernel asks for a few dozen entries at a time; the client is asked for a thousand. What was fetched before
anything changed is looked up anew, entry by entry, before it is shown: the kernel keeps what it is told.
"""

from __future__ import annotations

import pyfuse3

from gfscore.client import Attr
from gfscore.errors import Code, GfsError
from gfsmount.context import HandlerContext
from gfsmount.handles import DirectoryHandle

PAGE_ENTRIES = 1000
_DOTS = 2  # cookies 1 and 2 stand behind `.` and `..`


class DirectoryHandlers(HandlerContext):
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self.directories.add(DirectoryHandle(inode))

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self.directories[fh]
        if start_id == 0:
            handle.rewind()
        if start_id < _DOTS and not await self._show_dots(handle, start_id, token):
            return
        self._seek(handle, max(start_id - _DOTS, 0))
        directory = self.root if handle.inode == 1 else handle.inode
        while True:
            if handle.position == len(handle.page):
                if not handle.more:
                    return
                after = handle.shown[-1] if handle.shown else b""
                handle.generation, handle.changes = self.notifier.generation, self.changes
                handle.page, handle.more = await self.client.list_page(directory, after, PAGE_ENTRIES)
                handle.position = 0
                continue
            name, attr = handle.page[handle.position]
            if handle.generation != self.notifier.generation or handle.changes != self.changes:
                found = await self._look_again(directory, name)
                if found is None:
                    del handle.page[handle.position]
                    continue
                attr = found
            generation = self.notifier.generation
            entry = self.attributes(attr, generation)
            if not pyfuse3.readdir_reply(token, name, entry, len(handle.shown) + 1 + _DOTS):
                return
            self.inodes.looked_up(entry.st_ino)
            self.inodes.names.add(handle.inode, name)
            handle.shown.append(name)
            handle.position += 1

    def _seek(self, handle: DirectoryHandle, shown: int) -> None:
        """Go on behind the first `shown` names, which the kernel normally does; else fetch from there anew."""
        if shown != len(handle.shown):
            if shown > len(handle.shown):
                raise GfsError(Code.INVALID, "a position in a directory that was never handed out")
            del handle.shown[shown:]
            handle.page, handle.position, handle.more = [], 0, True

    async def _look_again(self, directory: int, name: bytes) -> Attr | None:
        try:
            return await self.client.lookup(directory, name, any_length=True)
        except GfsError as error:
            if error.code in (Code.NOT_FOUND, Code.STALE_INODE):
                return None
            raise

    async def _show_dots(self, handle: DirectoryHandle, start_id: int, token: pyfuse3.ReaddirToken) -> bool:
        """The kernel counts no look-ups for `.` and `..`; only their type and number are shown."""
        attr = await self.client.getattr(self.root if handle.inode == 1 else handle.inode)
        entry = self.attributes(attr, -1)
        if start_id == 0 and not pyfuse3.readdir_reply(token, b".", entry, 1):
            return False
        return pyfuse3.readdir_reply(token, b"..", entry, 2)

    async def releasedir(self, fh: int) -> None:
        self.directories.pop(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing to do: a change of names is on the master's disk before it is answered."""
