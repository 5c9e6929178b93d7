"""Deleted files: listing them by the path they had, restoring them, and emptying the trash [0075]-[0084]."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gfscore.client.session import MasterSession
from gfscore.client.types import Attr, attr_from_wire
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class DeletedFile:
    """One entry of the trash. Times in nanoseconds since the epoch.

    `entry` is its name in the directory `/.trash`. `path` is where it was; without a leading slash it is only the last
    name, of a path too long to keep.
    """

    entry: bytes
    path: bytes
    attr: Attr
    deleted_ns: int
    expires_ns: int


def _from_wire(entry: pb.TrashListReply.Entry) -> DeletedFile:
    return DeletedFile(entry.name, entry.path, attr_from_wire(entry.attr), entry.deleted_ns, entry.expires_ns)


def _below(path: str | bytes) -> bytes:
    return os.fsencode(path).rstrip(b"/")


def latest_of_each(files: list[DeletedFile]) -> list[DeletedFile]:
    """Of several files that had the same path, the one that was deleted last; in the order of paths."""
    latest: dict[tuple[bytes, int], DeletedFile] = {}
    for file in files:
        # Where the path is not known, nothing says that two files were the same one.
        key = (file.path, 0 if file.path.startswith(b"/") else file.attr.inode)
        known = latest.get(key)
        if known is None or (known.deleted_ns, known.attr.inode) < (file.deleted_ns, file.attr.inode):
            latest[key] = file
    return [latest[key] for key in sorted(latest)]


class TrashOperations:
    """Every method raises GfsError. Paths are absolute inside the file system."""

    def __init__(self, session: MasterSession) -> None:
        self._session = session

    async def list(self, path: str | bytes = b"/") -> list[DeletedFile]:
        """Deleted files that were at or below `path`, in the order of their deletion."""
        found = []
        request = pb.TrashListRequest(below=_below(path), limit=_PAGE)
        while True:
            reply = await self._session.call("TrashList", request)
            found += [_from_wire(entry) for entry in reply.entries]
            if not reply.next:
                return sorted(found, key=lambda file: (file.deleted_ns, file.attr.inode))
            request.after = reply.next

    async def find(self, entry: bytes) -> DeletedFile:
        """One entry by its name in the trash. Raises NOT_FOUND."""
        # Names begin with what is unique, so nothing lies between the name cut by a byte and the name.
        reply = await self._session.call("TrashList", pb.TrashListRequest(after=entry[:-1], limit=1))
        if not reply.entries or reply.entries[0].name != entry:
            raise GfsError(Code.NOT_FOUND, f"{os.fsdecode(entry)} is not in the trash: see gfs trash ls")
        return _from_wire(reply.entries[0])

    async def restore(self, entry: bytes, to: str | bytes = b"", *, uid: int = 0, gid: int = 0) -> Attr:
        """Give an entry of the trash its old path again, or the path `to`; directories that are missing are made.

        Raises NOT_FOUND, EXISTS (nothing is overwritten), NOT_DIRECTORY.
        """
        request = pb.TrashRestoreRequest(caller=pb.Caller(uid=uid, gid=gid), name=entry, path=os.fsencode(to))
        return attr_from_wire((await self._session.change("TrashRestore", request)).attr)

    async def empty(self, path: str | bytes = b"/", *, older_than_seconds: int = 0) -> int:
        """Reclaim what was at or below `path` and was deleted so long ago; how many files."""
        files = 0
        after = b""
        while True:
            request = pb.TrashEmptyRequest(after=after, below=_below(path), older_than_seconds=older_than_seconds)
            reply = await self._session.change("TrashEmpty", request)
            files += int(reply.files)
            after = reply.next
            if not after:
                return files
