"""What all handlers share: the client, the tables, the timeouts, and how attributes are handed to the kernel.
Holds no handler itself.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pyfuse3

from gfscore.client import AttrChanges
from gfsmount.append_files import AppendFiles
from gfsmount.callers import AppendOffsets
from gfsmount.handles import DirectoryHandle, FileHandle, HandleTable
from gfsmount.inodes import InodeTable
from gfsmount.mount_options import MountOptions
from gfsmount.notifier import Notifier
from gfsmount.privileges import MayHavePrivileges, mode_after_change

if TYPE_CHECKING:
    from gfscore.client import Attr, Client

BLOCK_SIZE = 1024 * 1024  # what programs should read and write at a time, bytes

# By FileType.
TYPE_BITS = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
)


class Changing:
    """`with context.changing(directory)` around a change of names, so that the notifier knows who holds its lock."""

    __slots__ = ("_changing", "_inode")

    def __init__(self, changing: dict[int, int], inode: int) -> None:
        self._changing = changing
        self._inode = inode

    def __enter__(self) -> None:
        self._changing[self._inode] = self._changing.get(self._inode, 0) + 1

    def __exit__(self, *error: object) -> None:
        left = self._changing[self._inode] - 1
        if left:
            self._changing[self._inode] = left
        else:
            del self._changing[self._inode]


class HandlerContext:
    """Base of every family of handlers.

    `changes` counts what this mount itself changed: a page of a directory listing that was fetched before a change is
    looked up anew, entry by entry, before the kernel is told.
    """

    def __init__(self, client: Client, root: int, options: MountOptions) -> None:
        self.client = client
        self.root = root  # real inode of the mounted directory
        self.inodes = InodeTable(root)
        self.notifier = Notifier(self.inodes)
        self.files: HandleTable[FileHandle] = HandleTable()
        self.directories: HandleTable[DirectoryHandle] = HandleTable()
        self.append_files = AppendFiles(client, self.strip_once)
        self.append_offsets = AppendOffsets()
        self.changes = 0
        self.timeout_seconds = options.timeout_seconds
        self._entry_timeout = options.entry_timeout_seconds
        self._attr_timeout = options.attr_timeout_seconds

    def changing(self, directory: int) -> Changing:
        self.changes += 1
        return Changing(self.notifier.changing, directory)

    async def strip_privileges(self, inode: int) -> None:
        """Somebody other than root changes the bytes of `inode`, a file."""
        mode = mode_after_change(await self.client.getattr(inode))
        if mode is not None:
            await self.client.setattr(inode, AttrChanges(mode=mode))
            self.notifier.attributes_changed(inode)

    async def strip_once(self, inode: int, opened: MayHavePrivileges) -> None:
        """The same, and not before each change through `opened`."""
        opened.strip_privileges = False  # before: a chmod meanwhile may set it again
        try:
            await self.strip_privileges(inode)
        except BaseException:
            opened.strip_privileges = True
            raise

    def attributes(self, attr: Attr, generation: int) -> pyfuse3.EntryAttributes:
        """`attr` for the kernel; `generation` is the notifier's from before `attr` was asked for."""
        entry = pyfuse3.EntryAttributes()
        inode = attr.inode
        entry.st_ino = 1 if inode == self.root else inode
        if generation != self.notifier.generation:
            entry.entry_timeout = 0
            entry.attr_timeout = 0
        else:
            entry.entry_timeout = self._entry_timeout
            entry.attr_timeout = 0 if attr.volatile else self._attr_timeout
        entry.st_mode = TYPE_BITS[attr.type] | attr.mode
        entry.st_nlink = attr.nlink
        entry.st_uid = attr.uid
        entry.st_gid = attr.gid
        size = attr.size
        entry.st_size = size
        entry.st_blocks = (size + 511) >> 9
        entry.st_blksize = BLOCK_SIZE
        entry.st_atime_ns = attr.atime_ns
        entry.st_mtime_ns = attr.mtime_ns
        entry.st_ctime_ns = attr.ctime_ns
        if attr.rdev:
            entry.st_rdev = attr.rdev
        return entry

    def entry(self, parent: int, name: bytes, attr: Attr, generation: int) -> pyfuse3.EntryAttributes:
        """As `attributes`, for an answer that makes the kernel know `name` in `parent` and count a look-up."""
        entry = self.attributes(attr, generation)
        self.inodes.looked_up(entry.st_ino)
        self.inodes.names.add(parent, name)
        return entry
