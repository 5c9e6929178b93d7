"""The `gfs.*` extended attributes: record append, snapshot, file information and policies through `setfattr` and
`getfattr`. Part of the outside contract; knows nothing of FUSE beyond inode numbers and who the caller is.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from gfscore.client import FileType
from gfscore.errors import Code, GfsError
from gfsmount.callers import Caller, groups_of, thread_group
from gfsmount.privileges import may_add_to, may_pass

if TYPE_CHECKING:
    from gfscore.client import Attr
    from gfsmount.context import HandlerContext

POLICIES = {
    b"gfs.replication": "replication",
    b"gfs.trash_seconds": "trash_seconds",
    b"gfs.append_pad": "append_pad",
    b"gfs.append_sync": "append_sync",
}


class SpecialAttributes:
    def __init__(self, context: HandlerContext) -> None:
        self._context = context
        self._client = context.client

    async def get(self, inode: int, name: bytes, pid: int) -> bytes:
        """Raises GfsError(NO_ATTRIBUTE) where there is nothing to read."""
        if name in POLICIES:
            values = await self._client.get_policy(self._real(inode))
            return values[POLICIES[name]].encode()
        if name == b"gfs.append.offset":
            offset = self._context.append_offsets.get(inode, thread_group(pid))
            if offset is not None:
                return b"%d" % offset
        elif name == b"gfs.mount_info":
            return json.dumps(self._mount_info()).encode()
        elif name == b"gfs.fileinfo":
            attr = await self._client.getattr(self._real(inode))
            if attr.type == FileType.FILE:
                return json.dumps(await self._client.file_info(attr.inode)).encode()
        raise GfsError(Code.NO_ATTRIBUTE)

    async def set(self, inode: int, name: bytes, value: bytes, caller: Caller) -> None:
        """Raises GfsError: INVALID for a value of a wrong form, NOT_PERMITTED for one that is only read."""
        if name == b"gfs.append":
            await self._append(inode, value, caller)
        elif name == b"gfs.snapshot":
            await self._snapshot(inode, value, caller)
        elif name in POLICIES:
            await self._client.set_policy(self._real(inode), {POLICIES[name]: _text(name, value)})
        elif name in (b"gfs.append.offset", b"gfs.fileinfo", b"gfs.mount_info"):
            raise GfsError(Code.NOT_PERMITTED, f"{name.decode()} is only read")
        else:
            raise GfsError(Code.NOT_SUPPORTED, f"no such attribute: {name.decode('ascii', 'replace')}")

    def _mount_info(self) -> dict[str, object]:
        """What operators and the tests of the call budgets ask a mount: its calls to the master, what it holds."""
        context = self._context
        return {
            **self._client.info(),
            "pid": os.getpid(),
            "known_inodes": len(context.inodes),
            "open_files": len(context.files),
            "open_directories": len(context.directories),
        }

    async def _append(self, inode: int, record: bytes, caller: Caller) -> None:
        if not record:
            raise GfsError(Code.INVALID, "a record has at least one byte")
        context = self._context
        offset = await context.append_files.append(self._real(inode), record, by_root=caller.uid == 0)
        context.append_offsets.remember(inode, thread_group(caller.pid), offset)
        # The kernel takes a setxattr for a change of no bytes.
        context.notifier.attributes_changed(inode)
        await context.notifier.drop_pages(inode)

    async def _snapshot(self, inode: int, path: bytes, caller: Caller) -> None:
        """Instant copy of a file or a tree to an absolute path inside the file system [00113]."""
        parent, slash, name = path.rstrip(b"/").rpartition(b"/")
        if not slash or not path.startswith(b"/") or name in (b"", b".", b"..") or b"\0" in path:
            raise GfsError(Code.INVALID, "gfs.snapshot wants the absolute path of the copy inside the file system")
        directory = await self._directory_to_add_to(parent, caller)
        await self._client.snapshot(self._real(inode), directory.inode, name)
        self._context.notifier.attributes_changed(self._context.inodes.to_kernel(directory.inode))

    async def _directory_to_add_to(self, path: bytes, caller: Caller) -> Attr:
        """The directory at `path`. The kernel has not seen this path: what it checks elsewhere is checked here."""
        uid, groups = caller.uid, groups_of(caller)
        directory = await self._client.resolve(b"/")
        for name in filter(None, path.split(b"/")):
            if not may_pass(directory, uid, groups):
                raise GfsError(Code.ACCESS_DENIED)
            directory = await self._client.lookup(directory.inode, name, any_length=True)
            if directory.type != FileType.DIRECTORY:
                raise GfsError(Code.NOT_DIRECTORY, f"{path.decode('utf-8', 'replace')} is not a directory")
        if not may_add_to(directory, uid, groups):
            raise GfsError(Code.ACCESS_DENIED)
        return directory

    def _real(self, inode: int) -> int:
        return self._context.inodes.to_real(inode)


def _text(name: bytes, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise GfsError(Code.INVALID, f"the value of {name.decode()} is not text") from None
