"""What the in-memory disk holds: file contents and names, each as they are and as they would be after a power cut.

Pure data; no faults and no paths of the machine. A name becomes durable when its directory is synced, bytes when
their file is: the weakest promise POSIX makes, weaker than any real file system.
"""

from __future__ import annotations

import itertools
from random import Random

from gfscore.env.memory_faults import PAGE_BYTES

_changes = itertools.count(1)


class Node:
    """A file or a directory."""

    __slots__ = ()


class Directory(Node):
    __slots__ = ()


class Contents(Node):
    """Bytes of a file: `data` as read, `durable` as synced, and the changes in between.

    `change` names the last change of `data`, and is never used again for anything else.
    """

    __slots__ = ("change", "data", "durable", "pending")

    def __init__(self) -> None:
        self.change = next(_changes)
        self.data = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # (offset, bytes), or (size, None) for a truncate

    def write(self, data: bytes, offset: int) -> None:
        _write(self.data, data, offset)
        self.change = next(_changes)
        self.pending.append((offset, data))

    def truncate(self, size: int) -> None:
        _truncate(self.data, size)
        self.change = next(_changes)
        self.pending.append((size, None))

    def flip(self, offset: int, bits: int) -> None:
        """Change one byte on the platter and in the cache."""
        self.data[offset] ^= bits
        self.change = next(_changes)
        if offset < len(self.durable):
            self.durable[offset] ^= bits

    def sync(self) -> None:
        for offset, data in self.pending:
            _apply(self.durable, offset, data)
        self.pending.clear()

    def crash(self, random: Random) -> None:
        """Keep, lose or tear (by pages) each change since the last sync. They may reach the disk in any order."""
        for offset, data in self.pending:
            fate = random.random()
            if fate < 0.4:
                _apply(self.durable, offset, data)
            elif fate < 0.7 and data is not None:
                start = 0
                while start < len(data):
                    end = min(len(data), start + PAGE_BYTES - (offset + start) % PAGE_BYTES)
                    if random.random() < 0.5:
                        _write(self.durable, data[start:end], offset + start)
                    start = end
        self.pending.clear()
        self.data[:] = self.durable
        self.change = next(_changes)

    def copy(self) -> Contents:
        twin = Contents()
        twin.data[:] = self.data
        twin.durable[:] = self.durable
        twin.pending = list(self.pending)
        return twin


class Names:
    """All paths of a disk. The root, "", is always there."""

    def __init__(self) -> None:
        self.current: dict[str, Node] = {"": Directory()}
        self._durable: dict[str, Node] = {"": self.current[""]}
        self._pending: list[tuple[tuple[str, Node | None], ...]] = []  # each entry happens whole or not at all

    def set(self, path: str, node: Node) -> None:
        self.current[path] = node
        self._pending.append(((path, node),))

    def remove(self, path: str) -> None:
        del self.current[path]
        self._pending.append(((path, None),))

    def rename(self, old: str, new: str) -> None:
        node = self.current.pop(old)
        self.current[new] = node
        self._pending.append(((old, None), (new, node)))

    def put(self, path: str, node: Node) -> None:
        """Set a durable name; a directory that is there stays."""
        if isinstance(node, Directory) and path in self._durable and path in self.current:
            return
        self.current[path] = node
        self._durable[path] = node

    def children(self, path: str) -> list[str]:
        prefix = path + "/" if path else ""
        start = len(prefix)
        return sorted(
            name[start:] for name in self.current if name and name.startswith(prefix) and "/" not in name[start:]
        )

    def sync(self, path: str) -> None:
        """Make durable the names in the directory `path`, and what must have happened before them."""
        touched = {path}
        left = []
        done = []
        for change in reversed(self._pending):
            directories = {name.rpartition("/")[0] for name, _ in change}
            if touched & directories:
                touched |= directories
                done.append(change)
            else:
                left.append(change)
        for change in reversed(done):
            self._make_durable(change)
        self._pending = left[::-1]

    def crash(self, random: Random) -> None:
        """Keep the first few of the changes since the last sync; contents crash too."""
        for change in self._pending[: random.randint(0, len(self._pending))]:
            self._make_durable(change)
        self._pending.clear()
        for path in sorted(self._durable, key=lambda name: name.count("/")):
            if path and path.rpartition("/")[0] not in self._durable:
                del self._durable[path]
        self.current = dict(self._durable)
        for node in self.current.values():
            if isinstance(node, Contents):
                node.crash(random)

    def copy(self) -> Names:
        twins: dict[int, Node] = {}

        def twin_of(node: Node) -> Node:
            if isinstance(node, Contents):
                return twins.setdefault(id(node), node.copy())
            return node

        twin = Names()
        twin.current = {path: twin_of(node) for path, node in self.current.items()}
        twin._durable = {path: twin_of(node) for path, node in self._durable.items()}
        twin._pending = [
            tuple((path, None if node is None else twin_of(node)) for path, node in change) for change in self._pending
        ]
        return twin

    def _make_durable(self, change: tuple[tuple[str, Node | None], ...]) -> None:
        for path, node in change:
            if node is None:
                self._durable.pop(path, None)
            else:
                self._durable[path] = node


def _apply(target: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        _truncate(target, offset)
    else:
        _write(target, data, offset)


def _write(target: bytearray, data: bytes, offset: int) -> None:
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _truncate(target: bytearray, size: int) -> None:
    if size < len(target):
        del target[size:]
    else:
        target.extend(bytes(size - len(target)))
