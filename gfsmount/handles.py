"""Open files and directories by the number the kernel holds. A table and two plain records; the work is done by the
handlers in `fuse_ops`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from gfscore.errors import Code, GfsError

if TYPE_CHECKING:
    from gfscore.client import Entry, OpenFile

T = TypeVar("T")


class FileHandle:
    """One open file. `direct`: the kernel's page cache is not used; `append`: every write is a record append.

    `by_root`: otherwise what it writes takes set-user-id and set-group-id bits away; `strip_privileges`: the next write
    has to look for them.
    `process`: the thread group that opened it, for `gfs.append.offset`.
    """

    __slots__ = ("append", "by_root", "direct", "file", "inode", "process", "strip_privileges", "writable")

    def __init__(
        self, file: OpenFile, inode: int, *, writable: bool, append: bool, direct: bool, by_root: bool
    ) -> None:
        self.file = file
        self.inode = inode  # the kernel's number
        self.writable = writable
        self.append = append
        self.direct = direct
        self.by_root = by_root
        self.strip_privileges = writable and not by_root
        self.process = 0


class DirectoryHandle:
    """One open directory. A cookie is the number of names shown before it, dots included; it stays valid while
    entries come and go, because `shown` turns it back into the name after which to go on.
    """

    __slots__ = ("changes", "generation", "inode", "more", "page", "position", "shown")

    def __init__(self, inode: int) -> None:
        self.inode = inode  # the kernel's number
        self.shown: list[bytes] = []
        self.page: list[Entry] = []
        self.position = 0  # in `page`, of the next entry to show
        self.more = True
        self.generation = -1  # of the notifier, when `page` was fetched
        self.changes = -1  # of this mount's own changes, likewise

    def rewind(self) -> None:
        self.shown = []
        self.page = []
        self.position = 0
        self.more = True


class HandleTable(Generic[T]):
    """Numbers for open things, never used twice in the life of a mount."""

    __slots__ = ("_handles", "_last")

    def __init__(self) -> None:
        self._handles: dict[int, T] = {}
        self._last = 0

    def add(self, handle: T) -> int:
        self._last += 1
        self._handles[self._last] = handle
        return self._last

    def __getitem__(self, number: int) -> T:
        """Raises GfsError(STALE_INODE) for a number that is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise GfsError(Code.STALE_INODE, f"no open handle {number}") from None

    def pop(self, number: int) -> T:
        handle = self[number]
        del self._handles[number]
        return handle

    def values(self) -> list[T]:
        return list(self._handles.values())

    def __len__(self) -> int:
        return len(self._handles)
