"""What the kernel knows of our inodes: lookup counts, who may have cached pages, which names it was told. It decides
nothing; it only answers whether the kernel must be told of a change. Pure, no I/O.

A mount of a subdirectory shows that directory as FUSE inode 1; the mapping between the two lives here.
"""

from __future__ import annotations

from collections.abc import Iterable

FUSE_ROOT = 1
_FILTER_BITS = 1 << 23  # 1 MiB; with a million names told, one in nine others is taken for told, which costs little
_FILTER_MASK = _FILTER_BITS - 1


class NameFilter:
    """Remembers (parent, name) pairs approximately: never forgets one it was given within the last two generations,
    may claim one it was not given. Two bit tables; `rotate` is called once per entry timeout.
    """

    __slots__ = ("_current", "_previous")

    def __init__(self) -> None:
        self._current = bytearray(_FILTER_BITS // 8)
        self._previous = bytearray(0)

    def add(self, parent: int, name: bytes) -> None:
        bit = (hash(name) ^ (parent * 0x9E3779B97F4A7C15)) & _FILTER_MASK
        self._current[bit >> 3] |= 1 << (bit & 7)

    def __contains__(self, item: tuple[int, bytes]) -> bool:
        parent, name = item
        bit = (hash(name) ^ (parent * 0x9E3779B97F4A7C15)) & _FILTER_MASK
        byte, flag = bit >> 3, 1 << (bit & 7)
        return bool(self._current[byte] & flag) or bool(self._previous and self._previous[byte] & flag)

    def rotate(self) -> None:
        """Forget what was added before the previous `rotate`."""
        self._previous = self._current
        self._current = bytearray(_FILTER_BITS // 8)


class InodeTable:
    """See the module. Inode numbers here are the kernel's, except in `to_kernel` and `to_real`."""

    __slots__ = ("_lookups", "names", "pages", "root")

    def __init__(self, root: int) -> None:
        self.root = root  # real inode of the mounted directory
        self.names = NameFilter()
        self.pages: set[int] = set()  # inodes of which the kernel may hold pages
        self._lookups: dict[int, int] = {}

    def to_kernel(self, inode: int) -> int:
        return FUSE_ROOT if inode == self.root else inode

    def to_real(self, inode: int) -> int:
        return self.root if inode == FUSE_ROOT else inode

    def looked_up(self, inode: int) -> None:
        """The kernel is being told of `inode` once more."""
        lookups = self._lookups
        lookups[inode] = lookups.get(inode, 0) + 1

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """The kernel drops `count` of the lookups of each inode."""
        lookups = self._lookups
        for inode, count in counts:
            left = lookups.get(inode, 0) - count
            if left > 0:
                lookups[inode] = left
            else:
                lookups.pop(inode, None)
                self.pages.discard(inode)

    def is_known(self, inode: int) -> bool:
        return inode in self._lookups or inode == FUSE_ROOT

    def known(self) -> list[int]:
        """Every inode that the kernel knows."""
        return [FUSE_ROOT, *(inode for inode in self._lookups if inode != FUSE_ROOT)]

    def __len__(self) -> int:
        return len(self._lookups)
