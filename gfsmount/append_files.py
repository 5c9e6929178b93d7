"""Files kept open for `gfs.append`: the attribute arrives without an open file, and opening and closing one for every
record would end its lease each time. Kept for a moment after the last record, a bounded number of them.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from gfscore.client import FileType
from gfscore.errors import Code, GfsError

if TYPE_CHECKING:
    from gfscore.client import Client, OpenFile
    from gfsmount.privileges import MayHavePrivileges

log = logging.getLogger(__name__)

IDLE_SECONDS = 2.0
FILES_MAX = 256


class _Kept:
    __slots__ = ("file", "last_used", "strip_privileges", "users")

    def __init__(self, file: OpenFile) -> None:
        self.file = file
        self.users = 0
        self.last_used = 0.0
        self.strip_privileges = True  # look for them before somebody other than root appends


class AppendFiles:
    def __init__(self, client: Client, strip_once: Callable[[int, MayHavePrivileges], Awaitable[None]]) -> None:
        self._client = client
        self._strip_once = strip_once
        self._kept: dict[int, _Kept] = {}

    async def append(self, inode: int, record: bytes, *, by_root: bool) -> int:
        """The offset of `record` in the file [00104]. Raises GfsError as `OpenFile.append` does."""
        kept = self._kept.get(inode)
        if kept is None:
            kept = await self._open(inode)
        kept.users += 1
        try:
            if kept.strip_privileges and not by_root:
                await self._strip_once(inode, kept)
            return await kept.file.append(record)
        finally:
            kept.users -= 1
            kept.last_used = trio.current_time()

    def mode_changed(self, inode: int) -> None:
        """There may be privileges again to be taken away."""
        kept = self._kept.get(inode)
        if kept is not None:
            kept.strip_privileges = True

    async def _open(self, inode: int) -> _Kept:
        if len(self._kept) >= FILES_MAX:
            await self.close_idle(0.0)
        attr = await self._client.getattr(inode)
        if attr.type == FileType.DIRECTORY:
            raise GfsError(Code.IS_DIRECTORY, "records are appended to files")
        if attr.type != FileType.FILE:
            raise GfsError(Code.INVALID, "records are appended to regular files")
        file = await self._client.open(inode, write=True, append=True)
        found = self._kept.get(inode)
        if found is not None:  # another caller was faster
            await file.close()
            return found
        kept = self._kept[inode] = _Kept(file)
        return kept

    async def close_idle(self, idle_seconds: float = IDLE_SECONDS) -> None:
        """Close those that nobody uses and nobody used for `idle_seconds`."""
        limit = trio.current_time() - idle_seconds
        for inode, kept in list(self._kept.items()):
            if not kept.users and kept.last_used <= limit:
                self._kept.pop(inode, None)
                try:
                    await kept.file.close()
                except GfsError as error:
                    log.warning("event=close_failed inode=%d error=%r", inode, str(error))

    async def keep_tidy(self) -> None:
        """Close idle ones until cancelled."""
        while True:
            await trio.sleep(IDLE_SECONDS)
            if self._kept:
                await self.close_idle()
