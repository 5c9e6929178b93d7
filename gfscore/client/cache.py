"""What the client knows of the namespace: attributes and directory listings. Pure, no I/O.

Nothing here expires: the master calls back what others change. `moment` counts those calls and the changes of our own
that were answered: who asks notes it, and an answer that was on its way while something changed is not kept.
"""

from __future__ import annotations

from collections.abc import Collection

from gfscore.client.types import Attr
from gfscore.ids import ROOT_INODE, TRASH_INODE, TRASH_NAME

NEGATIVE_LOOKUPS_BEFORE_LISTING = 2
NAMES_PER_INODE = 4  # names cost less than attributes: so many times as many are kept


class Directory:
    """Names of one directory. While `complete`, a name that is missing does not exist."""

    __slots__ = ("changes", "complete", "listed_to", "misses", "names")

    def __init__(self, complete: bool = False) -> None:
        self.names: dict[bytes, int] = {}
        self.complete = complete
        self.changes = 0  # of names, by whomever: a listing that was on its way meanwhile is not kept
        self.listed_to: bytes | None = None  # all names up to this one are known; None: no listing is under way
        self.misses = 0

    def begin_page(self, after: bytes) -> None:
        """A page of a listing is about to be kept: the first one, or one behind the name `after`."""
        if not after:
            self.names.clear()
            self.complete = False
            self.listed_to = b""
        elif self.listed_to != after:
            self.listed_to = None  # names before it may be missing

    def end_page(self, last: bytes, more: bool) -> None:
        """The page is in `names`; `last` is its last name. Whether all is known is known behind the last page."""
        if self.listed_to is None:
            return
        if more:
            self.listed_to = last
        else:
            self.complete = True
            self.listed_to = None


class NamespaceCache:
    def __init__(self, inodes_max: int) -> None:
        self.attrs: dict[int, Attr] = {}
        self.directories: dict[int, Directory] = {}
        self.listed_in: dict[int, int] = {}  # inode -> directory whose listing brought it
        self.moment = 0
        self._called_back = 0  # moment of the last call-back
        self._told: dict[int, int] = {}  # inode -> moment of the last call-back that named it
        self._told_all = 0  # moment of the last one that may have named any
        self._changed: dict[int, int] = {}  # inode -> moment at which a change of ours was answered
        self._names = 0  # kept in `directories`, and the directories; at most, as removals are not counted
        self._inodes_max = inodes_max

    # ------------------------------------------------------------ what crosses with an answer

    def called_back(self, inodes: Collection[int] = ()) -> None:
        """Somebody else changed these; without any, who knows what."""
        self.moment += 1
        self._called_back = self.moment
        if not inodes or len(self._told) + len(inodes) > self._inodes_max:
            self._told.clear()
            self._told_all = self.moment
        else:
            self._told.update(dict.fromkeys(inodes, self.moment))

    def crossed(self, asked: int, inode: int | None = None) -> bool:
        """Whether somebody else has changed something since the moment `asked`; `inode`: of this one."""
        if inode is None:
            return self._called_back > asked
        return max(self._told.get(inode, 0), self._told_all) > asked

    def changed(self, inode: int) -> None:
        """The master has carried out a change of ours: what it said of the inode before is out of date."""
        if len(self._changed) >= self._inodes_max:
            self._changed.clear()
            self.called_back()  # nobody knows any more what else is out of date
        self.moment += 1
        self._changed[inode] = self.moment

    def changed_since(self, inode: int, asked: int) -> bool:
        """Whether a change of ours was answered since `asked`: the answer to that question may be from before it."""
        return self._changed.get(inode, 0) > asked

    def answered(self, inode: int, asked: int) -> int:
        """The answer to a change of ours, which says what the inode is now; the moment that this holds for."""
        out_of_date = self.is_old(inode, asked)
        self.changed(inode)
        return asked if out_of_date else self.moment

    def is_old(self, inode: int, asked: int) -> bool:
        """Whether what was asked then of the inode may be out of date."""
        return self.crossed(asked) or self.changed_since(inode, asked)

    def keep(self, attr: Attr, asked: int) -> bool:
        """Keep what was answered, unless it may be out of date; whether it is kept."""
        inode = attr.inode
        if self.is_old(inode, asked):
            self.attrs.pop(inode, None)
            return False
        self.attrs[inode] = attr
        if len(self.attrs) > self._inodes_max:
            for other in list(self.attrs)[: self._inodes_max // 10]:
                self.forget(other)
        return True

    # ------------------------------------------------------------ attributes and names

    def length_pending(self, inode: int) -> None:
        """From now on the master leaves the length to the file's writers, of which this client is one."""
        attr = self.attrs.get(inode)
        if attr is not None and not attr.length_pending:
            attr = self.attrs[inode] = attr.copy()
            attr.length_pending = True

    def forget_pending(self, inode: int) -> None:
        """Forget attributes whose length the master has left to the file's writers."""
        attr = self.attrs.get(inode)
        if attr is not None and attr.length_pending:
            del self.attrs[inode]

    def forget(self, inode: int) -> None:
        self.attrs.pop(inode, None)
        self.directories.pop(inode, None)
        self.listed_in.pop(inode, None)

    def clear(self) -> None:
        self.called_back()
        self.attrs.clear()
        self.directories.clear()
        self.listed_in.clear()

    def directory(self, inode: int) -> Directory:
        found = self.directories.get(inode)
        if found is None:
            self.names_kept(1)
            found = self.directories[inode] = Directory()
        return found

    def names_kept(self, count: int) -> None:
        """So many more. When that is too many, those of the directories known longest are forgotten."""
        self._names += count
        limit = self._inodes_max * NAMES_PER_INODE
        if self._names > limit:
            self._names = sum(1 + len(directory.names) for directory in self.directories.values())
            for inode in list(self.directories):
                if self._names <= limit // 2:
                    break
                self._names -= 1 + len(self.directories.pop(inode).names)

    def add_name(self, parent: int, name: bytes, inode: int) -> None:
        if inode == TRASH_INODE:  # no listing shows the trash itself
            return
        directory = self.directory(parent)
        self.names_kept(name not in directory.names)
        directory.names[name] = inode
        directory.changes += 1

    def remove_name(self, parent: int, name: bytes) -> None:
        directory = self.directories.get(parent)
        if directory is not None:
            directory.names.pop(name, None)
            directory.changes += 1

    def names_unknown(self, parent: int) -> None:
        """Which names there are in `parent` is not known any more; those that are known are right."""
        directory = self.directories.get(parent)
        if directory is not None:
            directory.complete = False
            directory.listed_to = None
            directory.changes += 1

    def names_changed(self, parent: int, names: list[bytes]) -> None:
        """Somebody else changed these entries of `parent`."""
        self.names_unknown(parent)
        directory = self.directories.get(parent)
        if directory is not None:
            for name in names:
                directory.names.pop(name, None)

    def find(self, parent: int, name: bytes) -> int | None:
        """The inode, 0 when the name is known not to exist, None when that is not known."""
        directory = self.directories.get(parent)
        if directory is None:
            return None
        inode = directory.names.get(name)
        if inode is None and directory.complete and not (parent == ROOT_INODE and name == TRASH_NAME):
            return 0
        return inode

    def siblings_after(self, inode: int, count: int) -> list[int]:
        """The next inodes of the listing that brought `inode`, in its order; not itself by another name."""
        parent = self.listed_in.get(inode)
        directory = self.directories.get(parent) if parent is not None else None
        if directory is None:
            return []
        found: list[int] = []
        seen = False
        for other in directory.names.values():
            if other == inode:
                seen = True
            elif seen:
                found.append(other)
                if len(found) == count:
                    break
        return found
