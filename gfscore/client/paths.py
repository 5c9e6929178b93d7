"""The client by path: what programs and the command line use. Paths are absolute inside the file system."""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager

from gfscore.client.client import Client
from gfscore.client.open_file import OpenFile
from gfscore.client.types import Attr, Entry, FileType
from gfscore.errors import Code, GfsError
from gfscore.ids import PIECE_BYTES, ROOT_INODE

SYMLINKS_MAX = 40
_LIST_PAGE = 1000


def split(path: str | bytes) -> tuple[bytes, bytes]:
    """(parent path, last name). Raises GfsError(INVALID) for the root."""
    raw = os.fsencode(path).rstrip(b"/")
    parent, _, name = raw.rpartition(b"/")
    if not name:
        raise GfsError(Code.INVALID, "this needs the path of something below the root")
    return parent or b"/", name


_GONE = (Code.NOT_FOUND, Code.STALE_INODE)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except GfsError as error:
        if error.code not in _GONE:
            raise


class Paths:
    """Every method raises GfsError."""

    def __init__(self, client: Client, uid: int | None = None, gid: int | None = None) -> None:
        self.client = client
        self._uid = os.getuid() if uid is None else uid
        self._gid = os.getgid() if gid is None else gid

    async def stat(self, path: str | bytes, follow: bool = True) -> Attr:
        """Symlinks inside the file system are followed, the last one only with `follow`."""
        return await self._walk(os.fsencode(path), follow, SYMLINKS_MAX, any_length=False)

    async def find(self, path: str | bytes, follow: bool = True) -> Attr:
        """As `stat`, also where nobody can tell the length: that is the one known then."""
        return await self._walk(os.fsencode(path), follow, SYMLINKS_MAX, any_length=True)

    async def _walk(self, path: bytes, follow: bool, links_left: int, any_length: bool) -> Attr:
        attr = await self.client.getattr(ROOT_INODE)
        trail = [attr]
        names = [name for name in path.split(b"/") if name and name != b"."]
        for position, name in enumerate(names):
            if name == b"..":
                trail = trail[:-1] or trail
                continue
            if trail[-1].type != FileType.DIRECTORY:
                raise GfsError(Code.NOT_DIRECTORY, f"{os.fsdecode(path)}: a part of the path is not a directory")
            try:
                attr = await self.client.lookup(trail[-1].inode, name, any_length=any_length)
            except GfsError as error:
                if error.code is Code.NOT_FOUND:
                    raise GfsError(Code.NOT_FOUND, f"{os.fsdecode(path)}: no such file or directory") from None
                raise
            last = position == len(names) - 1
            if attr.type == FileType.SYMLINK and (follow or not last):
                if not links_left:
                    raise GfsError(Code.LOOP, f"{os.fsdecode(path)}: too many symbolic links")
                target = await self.client.readlink(attr.inode)
                base = b"" if target.startswith(b"/") else b"/".join(names[:position])
                rest = b"/".join(names[position + 1 :])
                return await self._walk(b"/".join((base, target, rest)), follow, links_left - 1, any_length)
            trail.append(attr)
        return trail[-1]

    async def list(self, path: str | bytes) -> Sequence[Entry]:
        """All entries of a directory; a file lists itself."""
        attr = await self.stat(path)
        if attr.type != FileType.DIRECTORY:
            return [Entry(os.fsencode(path).rstrip(b"/").rpartition(b"/")[2], attr)]
        return await self.list_inode(attr.inode)

    async def list_inode(self, inode: int) -> Sequence[Entry]:
        entries: builtins.list[Entry] = []
        more = True
        while more:
            after = entries[-1].name if entries else b""
            page, more = await self.client.list_page(inode, after, _LIST_PAGE)
            entries += page
        found: builtins.list[Entry] = []
        for entry in entries:
            if entry.attr.volatile:  # somebody writes it: a listing knows only a lower bound of its length
                with _gone_is_fine():
                    found.append(Entry(entry.name, await self.client.getattr(entry.attr.inode, any_length=True)))
            else:
                found.append(entry)
        return found

    async def walk(self, path: str | bytes) -> AsyncIterator[tuple[bytes, Attr]]:
        """(path relative to `path`, attributes) of everything below it, itself first as b"".

        Symlinks on the way to `path` are followed, and so is `path` itself: who names one means what it leads to.
        Those below are not.
        """
        attr = await self.find(path)
        waiting = [(b"", attr)]
        while waiting:
            relative, attr = waiting.pop()
            yield relative, attr
            if attr.type == FileType.DIRECTORY:
                prefix = relative + b"/" if relative else b""
                try:
                    entries = await self.list_inode(attr.inode)
                except GfsError as error:
                    if relative and error.code in _GONE:
                        continue  # removed meanwhile
                    raise
                waiting += [(prefix + entry.name, entry.attr) for entry in reversed(entries)]

    async def makedirs(self, path: str | bytes, mode: int = 0o755) -> Attr:
        """The directory and its parents; one that is there already is fine."""
        attr = await self.client.getattr(ROOT_INODE)
        for name in os.fsencode(path).split(b"/"):
            if not name:
                continue
            try:
                attr = await self.client.create(attr.inode, name, FileType.DIRECTORY, mode, self._uid, self._gid)
            except GfsError as error:
                if error.code is not Code.EXISTS:
                    raise
                attr = await self.client.lookup(attr.inode, name)
        return attr

    async def mkdir(self, path: str | bytes, mode: int = 0o755) -> Attr:
        parent, name = split(path)
        directory = await self.stat(parent)
        return await self.client.create(directory.inode, name, FileType.DIRECTORY, mode, self._uid, self._gid)

    async def open(self, path: str | bytes, *, write: bool = False, create: bool = False) -> OpenFile:
        """A handle; `create` makes the file if it is not there."""
        try:
            attr = await self.stat(path)
        except GfsError as error:
            if not create or error.code is not Code.NOT_FOUND:
                raise
            parent, name = split(path)
            directory = await self.stat(parent)
            _, file = await self.client.create_file(directory.inode, name, 0o644, self._uid, self._gid, exclusive=False)
            return file
        return await self.client.open(attr.inode, write=write)

    async def read(self, path: str | bytes, offset: int = 0, size: int = -1) -> bytes:
        file = await self.open(path)
        try:
            result = bytearray()
            while size < 0 or len(result) < size:
                want = PIECE_BYTES if size < 0 else min(size - len(result), PIECE_BYTES)
                data = await file.read(offset + len(result), want)
                if not data:
                    break
                result += data
            return bytes(result)
        finally:
            await file.close()

    async def write(self, path: str | bytes, data: bytes, offset: int = 0) -> None:
        file = await self.open(path, write=True, create=True)
        try:
            view = memoryview(data)
            for start in range(0, len(view), PIECE_BYTES):
                await file.write(offset + start, view[start : start + PIECE_BYTES])
        finally:
            await file.close()

    async def append(self, path: str | bytes, record: bytes) -> int:
        file = await self.open(path, write=True, create=True)
        try:
            return await file.append(record)
        finally:
            await file.close()

    async def remove(self, path: str | bytes, recursive: bool = False) -> None:
        parent, name = split(path)
        directory = await self.stat(parent)
        attr = await self.client.lookup(directory.inode, name, any_length=True)
        if recursive and attr.type == FileType.DIRECTORY:
            await self._remove_below(attr.inode)
        await self._remove_one(directory.inode, name, attr)

    async def _remove_one(self, parent: int, name: bytes, attr: Attr) -> None:
        if attr.type == FileType.DIRECTORY:
            await self.client.rmdir(parent, name)
        else:
            await self.client.unlink(parent, name)

    async def _remove_below(self, top: int) -> None:
        """All that is below a directory; what others remove meanwhile is fine.

        A list in the place of a recursion: there is no limit to how deep a tree is.
        """
        to_empty = [(top, iter(await self.list_inode(top)))]
        to_remove: builtins.list[tuple[int, bytes, Attr]] = []  # the directories of `to_empty`, but for the first
        while to_empty:
            inode, entries = to_empty[-1]
            entry = next(entries, None)
            with _gone_is_fine():
                if entry is None:
                    to_empty.pop()
                    if to_remove:
                        await self._remove_one(*to_remove.pop())
                elif entry.attr.type == FileType.DIRECTORY:
                    below = iter(await self.list_inode(entry.attr.inode))
                    to_empty.append((entry.attr.inode, below))
                    to_remove.append((inode, entry.name, entry.attr))
                else:
                    await self._remove_one(inode, entry.name, entry.attr)

    async def rename(self, path: str | bytes, new_path: str | bytes) -> None:
        parent, name = split(path)
        new_parent, new_name = split(new_path)
        source, target = await self.stat(parent), await self.stat(new_parent)
        await self.client.rename(source.inode, name, target.inode, new_name)

    async def snapshot(self, source: str | bytes, target: str | bytes) -> Attr:
        parent, name = split(target)
        attr = await self.find(source)
        directory = await self.stat(parent)
        return await self.client.snapshot(attr.inode, directory.inode, name)
