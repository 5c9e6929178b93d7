"""A whole little file system in dictionaries with the client library's face, for tests of the driver alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable

from gfscore.client.types import Attr, AttrChanges, Entry, FileType, Invalidation
from gfscore.errors import Code, GfsError

ROOT = 1


class FakeFile:
    def __init__(self, client: FakeClient, inode: int) -> None:
        self.inode = inode
        self.keep_cache = False
        self.found = False
        self.client = client

    async def read(self, offset: int, size: int) -> bytes:
        self.client.count("read")
        return bytes(self.client.data[self.inode][offset : offset + size])

    async def write(self, offset: int, data: bytes) -> int:
        self.client.count("write")
        content = self.client.data[self.inode]
        if len(content) < offset:
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        self.client.touch(self.inode)
        return len(data)

    async def append(self, record: bytes) -> int:
        self.client.count("append")
        if len(record) > self.client.chunk_size // 4:
            raise GfsError(Code.MESSAGE_TOO_LARGE)
        offset = len(self.client.data[self.inode])
        await self.write(offset, record)
        return offset

    async def flush(self) -> None:
        self.client.count("flush")

    async def fsync(self) -> None:
        self.client.count("fsync")

    async def close(self) -> None:
        self.client.count("close")
        self.client.closed(self.inode)


class FakeClient:
    def __init__(self) -> None:
        now = time.time_ns()
        self.chunk_size = 1024 * 1024
        self.attrs = {ROOT: Attr(ROOT, FileType.DIRECTORY, 0o755, 0, 0, 2, 0, now, now, now)}
        self.names: dict[int, dict[bytes, int]] = {ROOT: {}}
        self.data: dict[int, bytearray] = {}
        self.targets: dict[int, bytes] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.policies = {"replication": "3", "trash_seconds": "0", "append_pad": "0", "append_sync": "0"}
        self.snapshots: list[tuple[int, int, bytes]] = []
        self.calls: Counter[str] = Counter()
        self.errors: dict[str, BaseException] = {}  # raised by the next call of that name
        self.before: dict[str, Callable[[], Awaitable[None]]] = {}  # runs inside every call of that name
        self.on_invalidate: Callable[[Invalidation], Awaitable[None]] | None = None
        self._open: Counter[int] = Counter()
        self._last = ROOT

    def count(self, name: str) -> None:
        self.calls[name] += 1
        error = self.errors.pop(name, None)
        if error is not None:
            raise error

    async def _enter(self, name: str) -> None:
        self.count(name)
        if name in self.before:
            await self.before[name]()

    def touch(self, inode: int) -> None:
        attr = self.attrs[inode]
        attr.mtime_ns = attr.ctime_ns = time.time_ns()
        if inode in self.data:
            attr.size = len(self.data[inode])

    def _attr(self, inode: int) -> Attr:
        try:
            return self.attrs[inode].copy()
        except KeyError:
            raise GfsError(Code.STALE_INODE) from None

    def _children(self, inode: int) -> dict[bytes, int]:
        if self._attr(inode).type != FileType.DIRECTORY:
            raise GfsError(Code.NOT_DIRECTORY)
        return self.names[inode]

    def _find(self, parent: int, name: bytes) -> int:
        if len(name) > 255:
            raise GfsError(Code.NAME_TOO_LONG)
        try:
            return self._children(parent)[name]
        except KeyError:
            raise GfsError(Code.NOT_FOUND) from None

    def lookup_cached(self, parent: int, name: bytes) -> Attr | None:
        """Nothing is cached here."""
        return None

    async def lookup(self, parent: int, name: bytes, *, any_length: bool = False) -> Attr:
        await self._enter("lookup")
        return self._attr(self._find(parent, name))

    def is_open(self, inode: int) -> bool:
        return self._open[inode] > 0

    async def getattr(self, inode: int, *, any_length: bool = False) -> Attr:
        await self._enter("getattr")
        return self._attr(inode)

    async def setattr(self, inode: int, changes: AttrChanges) -> Attr:
        await self._enter("setattr")
        attr = self.attrs[inode]
        for name in ("mode", "uid", "gid", "atime_ns", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(attr, name, value)
        if changes.size is not None:
            content = self.data[inode]
            del content[changes.size :]
            content.extend(bytes(changes.size - len(content)))
            self.touch(inode)
        attr.ctime_ns = time.time_ns()
        return attr.copy()

    async def list_page(self, inode: int, after: bytes, limit: int) -> tuple[list[Entry], bool]:
        await self._enter("list_page")
        names = sorted(name for name in self._children(inode) if name > after)
        entries = [Entry(name, self._attr(self.names[inode][name])) for name in names[:limit]]
        return entries, len(names) > limit

    def _make(self, parent: int, name: bytes, kind: FileType, mode: int, uid: int, gid: int) -> Attr:
        if len(name) > 255:
            raise GfsError(Code.NAME_TOO_LONG)
        children = self._children(parent)
        if name in children:
            raise GfsError(Code.EXISTS)
        self._last += 1
        now = time.time_ns()
        directory = kind == FileType.DIRECTORY
        attr = Attr(self._last, kind, mode, uid, gid, 2 if directory else 1, 0, now, now, now)
        self.attrs[attr.inode] = attr
        if directory:
            self.names[attr.inode] = {}
            self.attrs[parent].nlink += 1
        elif kind == FileType.FILE:
            self.data[attr.inode] = bytearray()
        children[name] = attr.inode
        self.touch(parent)
        return attr

    async def create(
        self,
        parent: int,
        name: bytes,
        kind: FileType,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        await self._enter("create")
        attr = self._make(parent, name, kind, mode, uid, gid)
        attr.rdev = rdev
        if kind == FileType.SYMLINK:
            self.targets[attr.inode] = target
            attr.size = len(target)
        return attr.copy()

    async def create_file(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, *, exclusive: bool = True
    ) -> tuple[Attr, FakeFile]:
        await self._enter("create_file")
        found = not exclusive and name in self._children(parent)
        if found:
            attr = self.attrs[self._find(parent, name)]
        else:
            attr = self._make(parent, name, FileType.FILE, mode, uid, gid)
        self._open[attr.inode] += 1
        file = FakeFile(self, attr.inode)
        file.found = found
        return attr.copy(), file

    async def open(self, inode: int, *, write: bool = False, append: bool = False, truncate: bool = False) -> FakeFile:
        await self._enter("open")
        self._attr(inode)
        if truncate:
            await self.setattr(inode, AttrChanges(size=0))
        self._open[inode] += 1
        return FakeFile(self, inode)

    def closed(self, inode: int) -> None:
        self._open[inode] -= 1
        self._drop(inode)

    def _drop(self, inode: int) -> None:
        attr = self.attrs.get(inode)
        if attr is not None and attr.nlink == 0 and self._open[inode] <= 0:
            del self.attrs[inode]

    def _lose_name(self, inode: int) -> None:
        attr = self.attrs[inode]
        attr.nlink = 0 if attr.type == FileType.DIRECTORY else attr.nlink - 1
        self._drop(inode)

    async def unlink(self, parent: int, name: bytes) -> None:
        await self._enter("unlink")
        inode = self._find(parent, name)
        if self.attrs[inode].type == FileType.DIRECTORY:
            raise GfsError(Code.IS_DIRECTORY)
        del self.names[parent][name]
        self.touch(parent)
        self._lose_name(inode)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._enter("rmdir")
        inode = self._find(parent, name)
        if self.attrs[inode].type != FileType.DIRECTORY:
            raise GfsError(Code.NOT_DIRECTORY)
        if self.names[inode]:
            raise GfsError(Code.NOT_EMPTY)
        del self.names[parent][name]
        self.attrs[parent].nlink -= 1
        self.touch(parent)
        self._lose_name(inode)

    async def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        *,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None:
        await self._enter("rename")
        inode = self._find(parent, name)
        replaced = self._children(new_parent).get(new_name)
        if no_replace and replaced is not None:
            raise GfsError(Code.EXISTS)
        if exchange:
            if replaced is None:
                raise GfsError(Code.NOT_FOUND)
            self.names[parent][name] = replaced
        else:
            if replaced is not None and self.names.get(replaced):
                raise GfsError(Code.NOT_EMPTY)
            del self.names[parent][name]
        self.names[new_parent][new_name] = inode
        self._moved(inode, parent, new_parent)
        if exchange and replaced is not None:
            self._moved(replaced, new_parent, parent)
        elif replaced in self.names:
            self.attrs[new_parent].nlink -= 1
        self.touch(parent)
        self.touch(new_parent)
        if replaced is not None and not exchange and replaced != inode:
            self._lose_name(replaced)

    def _moved(self, inode: int, parent: int, new_parent: int) -> None:
        if inode in self.names:
            self.attrs[parent].nlink -= 1
            self.attrs[new_parent].nlink += 1

    async def link(self, inode: int, new_parent: int, new_name: bytes) -> Attr:
        await self._enter("link")
        if new_name in self._children(new_parent):
            raise GfsError(Code.EXISTS)
        self.names[new_parent][new_name] = inode
        self.attrs[inode].nlink += 1
        return self._attr(inode)

    async def readlink(self, inode: int) -> bytes:
        await self._enter("readlink")
        return self.targets[inode]

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        await self._enter("getxattr")
        try:
            return self.xattrs[inode][name]
        except KeyError:
            raise GfsError(Code.NO_ATTRIBUTE) from None

    async def setxattr(self, inode: int, name: bytes, value: bytes) -> None:
        await self._enter("setxattr")
        self.xattrs.setdefault(inode, {})[name] = value

    async def listxattr(self, inode: int) -> list[bytes]:
        return list(self.xattrs.get(inode, {}))

    async def removexattr(self, inode: int, name: bytes) -> None:
        await self.getxattr(inode, name)
        del self.xattrs[inode][name]

    async def get_policy(self, inode: int) -> dict[str, str]:
        return dict(self.policies)

    async def set_policy(self, inode: int, values: dict[str, str]) -> None:
        if values.get("replication", "1") == "0":
            raise GfsError(Code.INVALID, "replication is 1 to 16")
        self.policies.update(values)

    async def snapshot(self, source: int, new_parent: int, new_name: bytes) -> Attr:
        await self._enter("snapshot")
        self.snapshots.append((source, new_parent, new_name))
        attr = self._attr(source)
        copy = self._make(new_parent, new_name, FileType(attr.type), attr.mode, attr.uid, attr.gid)
        if source in self.data:
            self.data[copy.inode] = bytearray(self.data[source])
            self.touch(copy.inode)
        return copy.copy()

    async def resolve(self, path: bytes) -> Attr:
        inode = ROOT
        for name in path.split(b"/"):
            if name:
                inode = self._find(inode, name)
        return self._attr(inode)

    async def file_info(self, inode: int) -> dict[str, object]:
        return {"length": self.attrs[inode].size, "replication": 3, "chunks": []}

    def info(self) -> dict[str, object]:
        return {"calls": dict(self.calls), "uncommitted": 0}

    async def statfs(self) -> tuple[int, int, int]:
        return 1 << 40, 1 << 39, len(self.attrs)
