"""The in-memory twin of the disk, with everything a disk may do to a file system.

It keeps what is on the platter apart from what is only in the page cache: `kill` (the process ends) keeps both,
`crash` (the power fails) keeps, loses or tears each write and each name that was not made durable. One thread only.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from random import Random

import trio

from gfscore.checksum import Buffer
from gfscore.env.interfaces import DiskFile
from gfscore.env.memory_faults import PAGE_BYTES, DiskFaults, Killed
from gfscore.env.memory_inodes import Contents, Directory, Names

_NO_LIMIT = 1 << 40


class MemoryFile:
    """An open file of a `MemoryDisk`."""

    __slots__ = ("_direct", "_disk", "_generation", "_locked", "_node", "_path")

    def __init__(self, disk: MemoryDisk, node: Contents, path: str, direct: bool, locked: bool = False) -> None:
        self._disk = disk
        self._node = node
        self._path = path
        self._direct = direct
        self._generation = disk.generation
        self._locked = locked

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        self._alive("pread")
        self._aligned(offset, len(buffer))
        found = self._node.data[offset : offset + len(buffer)]
        buffer[: len(found)] = found
        return len(found)

    def pread(self, size: int, offset: int) -> bytes:
        self._alive("pread")
        self._aligned(offset, size)
        return bytes(self._node.data[offset : offset + size])

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data`, or nothing when the disk is full; a kill may leave whole pages of it."""
        self._living()
        view = memoryview(data).cast("B")
        self._aligned(offset, len(view))
        size = self._disk.faults.check_write(self._path, offset, len(view))
        dying = self._disk.faults.dying
        if size:
            self._disk.take_space(offset + size - len(self._node.data), self._path)
            self._node.write(bytes(view[:size]), offset)
        if dying:
            self._disk.die()

    def prefetch(self, size: int, offset: int) -> None:
        pass

    def size(self) -> int:
        self._living()
        return len(self._node.data)

    def truncate(self, size: int) -> None:
        self._alive("truncate")
        self._disk.take_space(size - len(self._node.data), self._path)
        self._node.truncate(size)

    def fdatasync(self) -> None:
        self._alive("fdatasync")
        self._node.sync()

    def copy_to(self, target: DiskFile, size: int) -> None:
        self._alive("copy_to")
        if size > len(self._node.data):
            raise OSError(errno.EIO, f"file ends at {len(self._node.data)}, before the {size} bytes to copy")
        for start in range(0, size, 1 << 20):
            target.pwrite(bytes(self._node.data[start : min(size, start + (1 << 20))]), start)

    def close(self) -> None:
        if self._locked:
            self._locked = False
            if self._generation == self._disk.generation:
                self._disk.locks.discard(self._path)

    def _living(self) -> None:
        if self._generation != self._disk.generation:
            raise Killed(f"{self._path}: the process that opened this is dead")

    def _alive(self, operation: str) -> None:
        self._living()
        self._disk.call(operation, self._path)

    def _aligned(self, offset: int, size: int) -> None:
        if self._direct and (offset % PAGE_BYTES or size % PAGE_BYTES):
            raise OSError(errno.EINVAL, f"direct I/O of {size} bytes at {offset} is not aligned", self._path)


class MemoryDisk:
    """One node's disk. Implements `Disk`; the same object survives its processes, see `kill` and `crash`.

    `faults` plans what goes wrong; `capacity` is in bytes, holes counted as if they were written.
    """

    def __init__(self, *, capacity: int = _NO_LIMIT) -> None:
        self.faults = DiskFaults()
        self.capacity = capacity
        self.generation = 0
        self.locks: set[str] = set()
        self._names = Names()
        self._exports: str | None = None
        self._dead = False
        self._boots = 1
        self._hanging: trio.Event | None = None

    # ---------------------------------------------------------------- Disk

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, direct: bool = False) -> MemoryFile:
        self.call("open", path)
        node = self._names.current.get(path)
        if node is None:
            if not create:
                raise _error(errno.ENOENT, path)
            self._need_directory(_parent(path))
            node = Contents()
            self._names.set(path, node)
        elif create and exclusive:
            raise _error(errno.EEXIST, path)
        if not isinstance(node, Contents):
            raise _error(errno.EISDIR, path)
        return MemoryFile(self, node, path, direct)

    def exists(self, path: str) -> bool:
        self.call("exists", path)
        return path in self._names.current

    def listdir(self, path: str) -> list[str]:
        self.call("listdir", path)
        self._need_directory(path)
        return [name for name in self._names.children(path)]

    def mkdir(self, path: str) -> None:
        self.call("mkdir", path)
        parts = path.split("/") if path else []
        for depth in range(1, len(parts) + 1):
            prefix = "/".join(parts[:depth])
            node = self._names.current.get(prefix)
            if node is None:
                self._names.set(prefix, Directory())
            elif not isinstance(node, Directory):
                raise _error(errno.ENOTDIR if depth < len(parts) else errno.EEXIST, prefix)

    def rename(self, old: str, new: str) -> None:
        self.call("rename", old)
        node = self._names.current.get(old)
        if node is None:
            raise _error(errno.ENOENT, old)
        self._need_directory(_parent(new))
        if isinstance(node, Directory) and self._names.children(old):
            raise _error(errno.EXDEV, old)  # our own code renames files and empty directories only
        self._names.rename(old, new)

    def unlink(self, path: str) -> None:
        self.call("unlink", path)
        node = self._names.current.get(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if isinstance(node, Directory):
            raise _error(errno.EISDIR, path)
        self._names.remove(path)

    def sync_directory(self, path: str) -> None:
        self.call("sync_directory", path)
        self._need_directory(path)
        self._names.sync(path)

    def space(self) -> tuple[int, int]:
        return self.capacity, max(0, self.capacity - self._used())

    def real_path(self, path: str) -> str:
        """A real file with the contents of `path` (made if missing) for a library to open or write; see
        `sync_real_path`. It lives as long as this disk."""
        self.call("real_path", path)
        if self._exports is None:
            self._exports = tempfile.mkdtemp(prefix="memory-disk-")
            weakref.finalize(self, shutil.rmtree, self._exports, ignore_errors=True)
        exported = os.path.join(self._exports, path.replace("/", "%") or "root")
        node = self._names.current.get(path)
        if isinstance(node, Contents):
            # A new file each time: a library may still have the older one mapped.
            with open(exported + ".new", "wb") as out:
                out.write(node.data)
            os.replace(exported + ".new", exported)
        elif node is None and os.path.exists(exported):
            os.unlink(exported)  # of a file that was removed since
        return exported

    def sync_real_path(self, path: str) -> None:
        """Take over what a library wrote at `real_path(path)`, as durable contents."""
        self.call("sync_real_path", path)
        assert self._exports is not None, f"nothing was ever written at the real path of {path}"
        with open(os.path.join(self._exports, path.replace("/", "%")), "rb") as written:
            data = written.read()
        node = self._names.current.get(path)
        if not isinstance(node, Contents):
            node = Contents()
            self._names.set(path, node)
        self.take_space(len(data) - len(node.data), path)
        node.truncate(len(data))
        node.write(data, 0)
        node.sync()

    def boot_id(self) -> str:
        return f"boot-{self._boots}"

    def lock(self, path: str) -> MemoryFile:
        self.call("lock", path)
        if path in self.locks:
            raise BlockingIOError(errno.EAGAIN, "locked by another process", path)
        node = self.open(path, create=True)._node
        self.locks.add(path)
        return MemoryFile(self, node, path, False, locked=True)

    # ---------------------------------------------------------------- what befalls a disk

    def kill(self) -> None:
        """The process ends: open files and locks are gone, everything written stays (it is in the page cache)."""
        self.generation += 1
        self.locks.clear()
        self._dead = False

    def crash(self, random: Random) -> None:
        """The power fails: of what was not made durable, each write and each name is kept, lost or torn."""
        self.kill()
        self._boots += 1
        self._names.crash(random)

    def hang(self) -> None:
        """From now on calls through the node's `InlineRunner` do not return, until `resume`."""
        if self._hanging is None:
            self._hanging = trio.Event()

    def resume(self) -> None:
        if self._hanging is not None:
            self._hanging.set()
            self._hanging = None

    async def answers(self) -> None:
        """Returns when the disk does not hang. Like a thread in a system call, whoever waits cannot be cancelled."""
        while self._hanging is not None:
            with trio.CancelScope(shield=True):
                await self._hanging.wait()

    def corrupt(self, path: str, offset: int, flip: int = 0x01) -> None:
        """Flip bits of one byte, on the platter and in the cache, behind everybody's back."""
        node = self._names.current[path]
        assert isinstance(node, Contents)
        node.flip(offset, flip)

    def contents(self, path: str) -> bytes:
        """What a reader would see, without counting as a call."""
        node = self._names.current[path]
        assert isinstance(node, Contents)
        return bytes(node.data)

    def put(self, path: str, data: bytes) -> None:
        """Set durable contents directly, without counting as a call; parents are made."""
        if "/" in path:
            parts = _parent(path).split("/")
            for depth in range(1, len(parts) + 1):
                self._names.put("/".join(parts[:depth]), Directory())
        node = Contents()
        node.data[:] = data
        node.durable[:] = data
        self._names.put(path, node)

    def paths(self) -> list[str]:
        """All files, sorted, without counting as a call."""
        return sorted(path for path, node in self._names.current.items() if isinstance(node, Contents))

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Equal to an older one when no reader would see a difference."""
        names = self._names.current.items()
        return tuple((path, node.change if isinstance(node, Contents) else 0) for path, node in names)

    def copy(self) -> MemoryDisk:
        """An independent disk with the same state (an `rsync` of a live disk, or a fork of a history)."""
        twin = MemoryDisk(capacity=self.capacity)
        twin._names = self._names.copy()
        twin._boots = self._boots
        return twin

    # ---------------------------------------------------------------- for MemoryFile

    def call(self, operation: str, path: str) -> None:
        """Count a call and let the planned fault happen. Raises OSError, or Killed."""
        if self._dead:
            raise Killed(f"{operation} {path}: the process is dead")
        try:
            self.faults.check(operation, path)
        except Killed:
            self._dead = True
            self.generation += 1
            raise

    def die(self) -> None:
        """End the process in the middle of a write."""
        self._dead = True
        self.generation += 1
        raise Killed(f"killed at call {self.faults.calls}: pwrite")

    def take_space(self, growth: int, path: str) -> None:
        """Raises OSError(ENOSPC) when the disk has no room for `growth` more bytes."""
        if growth > 0 and self.capacity < _NO_LIMIT and self._used() + growth > self.capacity:
            raise _error(errno.ENOSPC, path)

    def _used(self) -> int:
        return sum(len(node.data) for node in self._names.current.values() if isinstance(node, Contents))

    def _need_directory(self, path: str) -> None:
        node = self._names.current.get(path)
        if node is None:
            raise _error(errno.ENOENT, path)
        if not isinstance(node, Directory):
            raise _error(errno.ENOTDIR, path)


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)
