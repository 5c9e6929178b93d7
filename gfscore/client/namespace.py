"""Operations on names and attributes, answered from the cache where the cache is known to be right."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from gfscore.client.attributes import Attributes
from gfscore.client.cache import NEGATIVE_LOOKUPS_BEFORE_LISTING, NamespaceCache
from gfscore.client.chunks import Chunks
from gfscore.client.files import Files, FileState
from gfscore.client.session import MasterSession
from gfscore.client.types import (
    Attr,
    AttrChanges,
    Entry,
    FileSystemSpace,
    FileType,
    attr_from_wire,
)
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE, TRASH_INODE
from gfscore.proto import gfs_pb2 as pb

LIST_PAGE = 1000  # entries per call to the master
_LISTING_PAGES_FOR_LOOKUPS = 4  # a directory larger than this is not listed only to answer look-ups


class NamespaceOperations:
    """The part of `Client` that works by inode and name. Names are bytes; times nanoseconds."""

    def __init__(
        self,
        session: MasterSession,
        cache: NamespaceCache,
        chunks: Chunks,
        files: Files,
        attributes: Attributes,
    ) -> None:
        self._session = session
        self._cache = cache
        self._chunks = chunks
        self._files = files
        self._attributes = attributes
        self._large_directories: set[int] = set()

    # ------------------------------------------------------------ looking

    def lookup_cached(self, parent: int, name: bytes) -> Attr | None:
        """What `lookup` would return, if that needs no call. Raises NOT_FOUND where that is known."""
        inode = self._cache.find(parent, name)
        if inode is None:
            return None
        if inode == 0:
            raise GfsError(Code.NOT_FOUND, "no such file or directory")
        return self._attributes.cached(inode)

    async def lookup(self, parent: int, name: bytes, *, any_length: bool = False) -> Attr:
        """Raises NOT_FOUND, NOT_DIRECTORY, NAME_TOO_LONG, and what `getattr` raises."""
        attr = self.lookup_cached(parent, name)
        if attr is not None:
            return attr
        inode = self._cache.find(parent, name)
        if inode:
            return await self.getattr(inode, any_length=any_length)
        asked = self._cache.moment
        try:
            reply = await self._session.call("Lookup", pb.LookupRequest(parent=parent, name=name))
        except GfsError as error:
            if error.code is Code.NOT_FOUND:
                await self._learn_from_miss(parent)
            raise
        if not self._cache.crossed(asked):
            self._cache.add_name(parent, name, reply.attr.inode)
        return await self._attributes.settle(reply, asked, any_length=any_length)

    async def _learn_from_miss(self, parent: int) -> None:
        """Whoever asks for several names that are not there is going to create them: list once, then know."""
        directory = self._cache.directory(parent)
        directory.misses += 1
        if directory.misses < NEGATIVE_LOOKUPS_BEFORE_LISTING or parent in self._large_directories:
            return
        after = b""
        for _ in range(_LISTING_PAGES_FOR_LOOKUPS):
            entries, more = await self.list_page(parent, after, LIST_PAGE)
            if not more:
                return
            after = entries[-1].name
        self._large_directories.add(parent)

    async def getattr(self, inode: int, *, any_length: bool = False) -> Attr:
        """See `Attributes.get`."""
        return await self._attributes.get(inode, any_length=any_length)

    async def list_page(self, inode: int, after: bytes, limit: int) -> tuple[list[Entry], bool]:
        """Entries behind the name `after` in byte order, and whether there are more."""
        directory = self._cache.directories.get(inode)
        if directory is not None and directory.complete and not after:
            entries = self._cached_listing(inode)
            if entries is not None:
                return entries, False
        asked = self._cache.moment
        directory = self._cache.directory(inode)
        changes = directory.changes
        reply = await self._session.call("List", pb.ListRequest(inode=inode, after=after, limit=limit))
        entries = []
        # A name that was made or removed here meanwhile is in the answer or not: nobody knows.
        same = directory.changes == changes and self._cache.directories.get(inode) is directory
        keep = same and not self._cache.crossed(asked)
        if keep:
            directory.begin_page(after)
        for entry in reply.entries:
            attr = attr_from_wire(entry.attr)
            number = attr.inode
            pending = attr.length_pending and number not in self._chunks.sole_writer
            if keep:
                directory.names[entry.name] = number
                self._cache.listed_in[number] = inode
                pending = pending or not self._cache.keep(attr, asked)
            attr = self._files.merge(attr)
            if pending or not keep:
                attr.volatile = True
            entries.append(Entry(entry.name, attr))
        if keep:
            self._cache.names_kept(len(entries))
        if keep and inode != TRASH_INODE:  # names appear there without a call-back: never known to be complete
            directory.end_page(entries[-1].name if entries else after, reply.more)
        return entries, reply.more

    def _cached_listing(self, inode: int) -> list[Entry] | None:
        entries = []
        attrs, sole = self._cache.attrs, self._chunks.sole_writer
        for name, number in self._cache.directories[inode].names.items():
            attr = attrs.get(number)
            if attr is None or (attr.length_pending and number not in sole):
                return None
            entries.append(Entry(name, self._files.merge(attr)))
        entries.sort(key=lambda entry: entry.name)
        return entries

    async def resolve(self, path: bytes) -> Attr:
        """The attributes of an absolute path inside the file system; symlinks are not followed."""
        attr = await self.getattr(ROOT_INODE)
        for name in path.split(b"/"):
            if name:
                if attr.type != FileType.DIRECTORY:
                    raise GfsError(Code.NOT_DIRECTORY, f"{path!r}: a part of the path is not a directory")
                attr = await self.lookup(attr.inode, name)
        return attr

    async def readlink(self, inode: int) -> bytes:
        return bytes((await self._session.call("Readlink", pb.InodeRequest(inode=inode))).target)

    # ------------------------------------------------------------ creating and removing

    def _keep_directory(self, attr: pb.Attr, inode: int, asked: int) -> None:
        """A directory as a change of ours left it; without it, what is cached of it is not right any more."""
        holds_for = self._cache.answered(inode, asked)
        if attr.inode:
            self._cache.keep(attr_from_wire(attr), holds_for)
        else:
            self._cache.attrs.pop(inode, None)

    def _keep_name(self, parent: int, name: bytes, inode: int, asked: int) -> None:
        """What a change of ours made of a name (0: nothing), asked for at `asked`.

        When others changed something meanwhile, their change of this very name may have come after ours: nothing is
        known of the name then, and the listing is not complete any more.
        """
        if self._cache.crossed(asked):
            self._cache.names_changed(parent, [name])
        elif inode:
            self._cache.add_name(parent, name, inode)
        else:
            self._cache.remove_name(parent, name)

    async def _create(
        self,
        parent: int,
        name: bytes,
        kind: int,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        with_chunk: bool = False,
        exclusive: bool = True,
    ) -> tuple[Any, Attr]:
        request = pb.CreateRequest(
            caller=pb.Caller(uid=uid, gid=gid),
            parent=parent,
            name=name,
            type=kind,  # type: ignore[arg-type]
            mode=mode,
            rdev=rdev,
            target=target,
            with_chunk=with_chunk,
            exclusive=exclusive,
        )
        asked = self._cache.moment
        reply = await self._session.change("Create", request)
        if reply.existed:
            attr = await self.getattr(reply.attr.inode)
        else:
            attr = attr_from_wire(reply.attr)
            if not self._cache.crossed(asked):
                self._cache.keep(attr, asked)
                if kind == FileType.DIRECTORY:
                    self._cache.directory(attr.inode).complete = True
            else:
                attr.volatile = True
        self._keep_directory(reply.parent, parent, asked)
        self._keep_name(parent, name, attr.inode, asked)
        if not self._cache.crossed(asked):
            self._cache.listed_in[attr.inode] = parent
        else:
            # Something was called back meanwhile, perhaps this very name: what was listed says nothing of it any more.
            self._cache.names_changed(parent, [name])
        return reply, attr

    async def create(
        self,
        parent: int,
        name: bytes,
        type: int,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
    ) -> Attr:
        """A directory, symlink, FIFO, socket, device node or an empty file. Raises EXISTS and what lookup raises."""
        _, attr = await self._create(parent, name, type, mode, uid, gid, rdev=rdev, target=target)
        return attr

    async def unlink(self, parent: int, name: bytes) -> None:
        """A file that is open here stays usable until its last handle is closed."""
        await self._remove(parent, name, directory=False)

    async def rmdir(self, parent: int, name: bytes) -> None:
        await self._remove(parent, name, directory=True)

    async def _remove(self, parent: int, name: bytes, directory: bool) -> None:
        inode = self._cache.find(parent, name) or 0
        if not inode and not directory:
            inode = (await self.lookup(parent, name, any_length=True)).inode
        hold = not directory and self._files.is_open(inode)
        request = pb.UnlinkRequest(parent=parent, name=name, directory=directory, hold=hold)
        asked = self._cache.moment
        reply = await self._change_holding("Unlink", request, inode if hold else 0)
        self._keep_name(parent, name, 0, asked)
        self._keep_directory(reply.parent, parent, asked)
        self._removed(reply.inode, reply.attr, hold, asked)

    async def _change_holding(self, method: str, request: Any, inode: int) -> Any:
        """A change by which `inode` (0: none), open here, may lose its last name.

        It is held from before: when the answer is lost with the master, the next one learns of it in our Hello.
        """
        if not inode or inode in self._session.held:
            return await self._session.change(method, request)
        self._session.held.add(inode)
        done = False
        try:
            reply = await self._session.change(method, request)
            done = True
            return reply
        finally:
            if not done:
                self._session.held.discard(inode)

    def _removed(self, inode: int, left: pb.Attr, hold: bool, asked: int) -> None:
        """`inode` lost a name, as was asked for at `asked`; `left` is what it is now, if it has others."""
        if left.inode:
            self._session.held.discard(inode)
            self._cache.keep(attr_from_wire(left), self._cache.answered(inode, asked))
        elif hold:
            self._session.held.add(inode)
            attr = self._cache.attrs.get(inode)
            if attr is not None:
                attr = self._cache.attrs[inode] = attr.copy()
                attr.nlink = 0
        else:
            self._files.forget(inode)

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
        replaced = 0 if no_replace else await self._find(new_parent, new_name)
        hold = bool(replaced) and not exchange and self._files.is_open(replaced)
        request = pb.RenameRequest(
            parent=parent,
            name=name,
            new_parent=new_parent,
            new_name=new_name,
            no_replace=no_replace,
            exchange=exchange,
            hold_replaced=hold,
        )
        asked = self._cache.moment
        reply = await self._change_holding("Rename", request, replaced if hold else 0)
        if reply.unchanged:  # both are names of one file: POSIX leaves them as they are
            self._session.held.discard(replaced)
            return
        moved = self._cache.find(parent, name) or reply.attr.inode
        self._keep_name(parent, name, 0, asked)
        self._keep_name(new_parent, new_name, 0, asked)
        self._keep_directory(reply.parent, parent, asked)
        if new_parent != parent:
            self._keep_directory(reply.new_parent, new_parent, asked)
        self._cache.attrs.pop(moved, None)
        if reply.attr.inode:
            self._cache.keep(attr_from_wire(reply.attr), self._cache.answered(moved, asked))
            self._keep_name(new_parent, new_name, reply.attr.inode, asked)
        else:
            self._forget_names(new_parent)
        if exchange:
            self._cache.attrs.pop(replaced, None)
            if replaced:
                self._keep_name(parent, name, replaced, asked)
            else:
                self._forget_names(parent)
        elif replaced and replaced != moved:
            self._removed(replaced, reply.replaced, hold, asked)

    async def _find(self, parent: int, name: bytes) -> int:
        """The inode behind a name, 0 if there is none."""
        known = self._cache.find(parent, name)
        if known is not None:
            return known
        try:
            return (await self.lookup(parent, name, any_length=True)).inode
        except GfsError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return 0

    def _forget_names(self, inode: int) -> None:
        self._cache.names_unknown(inode)

    async def link(self, inode: int, new_parent: int, new_name: bytes) -> Attr:
        request = pb.LinkRequest(inode=inode, new_parent=new_parent, new_name=new_name)
        asked = self._cache.moment
        reply = await self._session.change("Link", request)
        attr = await self._attributes.settle(reply, self._cache.answered(inode, asked))
        if attr.length_pending and inode not in self._chunks.sole_writer:
            attr = await self._attributes.get(inode)  # the answer does not say how long it is
        self._keep_directory(reply.parent, new_parent, asked)
        self._keep_name(new_parent, new_name, attr.inode, asked)
        return attr

    async def snapshot(self, source: int, new_parent: int, new_name: bytes) -> Attr:
        """An instant copy of a file or a tree [00113]; chunks are shared until one side is written."""
        await self._write_out_all()
        request = pb.SnapshotRequest(source=source, new_parent=new_parent, new_name=new_name)
        asked = self._cache.moment
        reply = await self._session.change("Snapshot", request)
        self._chunks.clear()  # the leases are revoked, and what was ours alone may be shared now
        self._files.forget_grants()
        attr = await self._attributes.settle(reply, asked)
        self._keep_directory(reply.parent, new_parent, asked)
        self._keep_name(new_parent, new_name, attr.inode, asked)
        return attr

    async def _write_out_all(self) -> None:
        """What this client wrote before the snapshot is in it."""
        await self._files.write_out_all()

    # ------------------------------------------------------------ attributes

    def _refuse_in_trash(self, attr: Attr) -> None:
        """As the master would, which may be asked too late: what is written is on its way behind an answer."""
        if not attr.nlink and attr.inode not in self._session.held:
            raise GfsError(Code.NOT_PERMITTED, "a file in the trash can only be read: restore it first")

    async def setattr(self, inode: int, changes: AttrChanges, *, has_handle: bool = False) -> Attr:
        request = pb.SetAttrRequest(inode=inode, has_handle=has_handle)
        for name in ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns", "ctime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(request, name, value)
        request.atime_now = changes.atime_now
        request.mtime_now = changes.mtime_now
        state = self._files.get(inode)
        if changes.size is not None:
            async with state.gate.closing() if state is not None else nullcontext():
                if state is not None and state.uncommitted:
                    self._refuse_in_trash(await self.getattr(inode))  # before what is known of its length is given up
                asked, reply = await self._set_attributes(state, request, changes.size)
                self._chunks.forget(inode)
                self._chunks.forget_grants(inode)
                if state is not None and state.appender is not None:
                    state.appender.forget_grant()
        else:
            sets_mtime = changes.mtime_ns is not None or changes.mtime_now
            asked, reply = await self._set_attributes(state if sets_mtime else None, request, None)
        return await self._attributes.settle(reply, self._cache.answered(inode, asked))

    async def _set_attributes(self, state: FileState | None, request: pb.SetAttrRequest, size: int | None) -> Any:
        """The moment of asking, and the answer. `state`: what was written here has to do with it."""
        if state is None or not state.uncommitted:
            return self._cache.moment, await self._session.change("SetAttr", request)
        async with self._files.changing(state, size):
            request.written = state.end
            return self._cache.moment, await self._session.change("SetAttr", request)

    async def _change_unseen(self, inode: int, method: str, request: Any) -> Any:
        """A change whose answer does not say what the inode is like now."""
        reply = await self._session.change(method, request)
        self._cache.changed(inode)
        self._cache.attrs.pop(inode, None)
        return reply

    async def getxattr(self, inode: int, name: bytes) -> bytes:
        """Raises NO_ATTRIBUTE."""
        return bytes((await self._session.call("GetXattr", pb.XattrRequest(inode=inode, name=name))).value)

    async def setxattr(
        self, inode: int, name: bytes, value: bytes, *, create: bool = False, replace: bool = False
    ) -> None:
        request = pb.XattrRequest(inode=inode, name=name, value=value, create=create, replace=replace)
        await self._change_unseen(inode, "SetXattr", request)

    async def listxattr(self, inode: int) -> list[bytes]:
        return list((await self._session.call("ListXattr", pb.XattrRequest(inode=inode))).names)

    async def removexattr(self, inode: int, name: bytes) -> None:
        await self._change_unseen(inode, "RemoveXattr", pb.XattrRequest(inode=inode, name=name))

    async def get_policy(self, inode: int, parent: int = 0) -> dict[str, str]:
        """`parent`: the directory of a file, which may say how long it stays in the trash; 0: where it was seen."""
        parent = parent or self._cache.listed_in.get(inode, 0)
        return dict((await self._session.call("Policy", pb.PolicyRequest(inode=inode, parent=parent))).values)

    async def set_policy(self, inode: int, values: dict[str, str]) -> dict[str, str]:
        """replication, trash_seconds, append_pad, append_sync. Raises INVALID with what would be right."""
        request = pb.PolicyRequest(inode=inode, values=values, parent=self._cache.listed_in.get(inode, 0))
        reply = await self._change_unseen(inode, "Policy", request)
        self._chunks.forget_grants(inode)  # grants carry the pad byte and sync
        state = self._files.get(inode)
        if state is not None and state.appender is not None:
            state.appender.forget_grant()
        return dict(reply.values)

    async def statfs(self) -> FileSystemSpace:
        reply = await self._session.call("Statfs", pb.Empty())
        return FileSystemSpace(reply.total_bytes, reply.free_bytes, reply.files + reply.directories)
