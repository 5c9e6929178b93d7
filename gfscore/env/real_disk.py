"""The local disk: one directory tree, plain blocking system calls.

It adds nothing to what the kernel promises: no cache, no retry, no thread. Everything that blocks is called through
an `IoRunner` by whoever must not wait. Errors come out as OSError, unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from gfscore.checksum import Buffer
from gfscore.env.interfaces import DiskFile

_log = logging.getLogger(__name__)

_DIRECT_UNIT = 4096  # bytes; offsets and sizes of O_DIRECT are multiples of it
_COPY_BYTES = 1024 * 1024  # piece of a copy that the file system cannot do by itself
_NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM})


class RealFile:
    """An open file of a `RealDisk`; closing twice is fine."""

    __slots__ = ("direct", "fd")

    def __init__(self, fd: int, direct: bool) -> None:
        self.fd = fd
        self.direct = direct

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; the number of bytes read, less than asked only at the end. Raises OSError."""
        wanted = len(buffer)
        done = os.preadv(self.fd, [buffer], offset)
        while 0 < done < wanted:
            if self.direct and done % _DIRECT_UNIT:
                break  # the end of the file: going on from here would not be aligned
            more = os.preadv(self.fd, [buffer[done:]], offset + done)
            if more == 0:
                break
            done += more
        return done

    def pread(self, size: int, offset: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer only at the end. Not for direct files (no aligned buffer)."""
        data = os.pread(self.fd, size, offset)
        if len(data) in (0, size):
            return data
        parts = [data]
        done = len(data)
        while done < size:
            more = os.pread(self.fd, size - done, offset + done)
            if not more:
                break
            parts.append(more)
            done += len(more)
        return b"".join(parts)

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data` at `offset`. Raises OSError; a prefix may then have been written."""
        done = os.pwrite(self.fd, data, offset)
        if done == len(data):
            return
        view = memoryview(data).cast("B")
        while done < len(view):
            done += os.pwrite(self.fd, view[done:], offset + done)

    def prefetch(self, size: int, offset: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(self.fd, offset, size, os.POSIX_FADV_WILLNEED)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def fdatasync(self) -> None:
        os.fdatasync(self.fd)

    def copy_to(self, target: DiskFile, size: int) -> None:
        """Copy the first `size` bytes into `target`: shared blocks or in the kernel where that works, else by hand."""
        done = 0
        if isinstance(target, RealFile):
            done = self._copy_in_kernel(target.fd, size)
        buffer = memoryview(bytearray(min(_COPY_BYTES, max(size - done, 1))))
        while done < size:
            count = self.pread_into(buffer[: size - done], done)
            if count == 0:
                raise OSError(errno.EIO, f"file ends at {done}, before the {size} bytes to copy")
            target.pwrite(buffer[:count], done)
            done += count

    def _copy_in_kernel(self, target: int, size: int) -> int:
        """Bytes that copy_file_range copied: `size`, or fewer where it gave up."""
        done = 0
        while done < size:
            try:
                count = os.copy_file_range(self.fd, target, size - done, done, done)
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    return done
                raise
            if count == 0:
                return done
            done += count
        return done

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)


class RealDisk:
    """The tree below `root`, which is made if it is not there. Implements `Disk`."""

    def __init__(self, root: Path | str) -> None:
        self._root = os.path.abspath(root)
        os.makedirs(self._root, exist_ok=True)
        self._prefix = self._root + "/"
        self._direct_refused = False

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, direct: bool = False) -> RealFile:
        """Open for reading and writing; `direct` quietly becomes buffered on file systems that have no O_DIRECT."""
        flags = os.O_RDWR | os.O_CLOEXEC
        if create:
            flags |= os.O_CREAT | (os.O_EXCL if exclusive else 0)
        full = self._prefix + path
        if direct and not self._direct_refused:
            try:
                return RealFile(os.open(full, flags | os.O_DIRECT, 0o644), True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct_refused = True
                _log.warning("no O_DIRECT below %s: its file system refuses it, so bulk data is cached", self._root)
                flags &= ~os.O_EXCL  # the refused call may have created it
        return RealFile(os.open(full, flags, 0o644), False)

    def exists(self, path: str) -> bool:
        return os.path.exists(self._prefix + path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self._prefix + path)

    def mkdir(self, path: str) -> None:
        """Make the directory and its parents; one that is there already is fine."""
        os.makedirs(self._prefix + path, exist_ok=True)

    def rename(self, old: str, new: str) -> None:
        os.rename(self._prefix + old, self._prefix + new)

    def unlink(self, path: str) -> None:
        os.unlink(self._prefix + path)

    def sync_directory(self, path: str) -> None:
        """Make the names in `path` durable. Raises OSError."""
        fd = os.open(self._prefix + path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def space(self) -> tuple[int, int]:
        """(total, free to us) bytes of the file system."""
        stat = os.statvfs(self._root)
        return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize

    def real_path(self, path: str) -> str:
        return self._prefix + path if path else self._root

    def sync_real_path(self, path: str) -> None:
        """Make durable what a library wrote at `real_path(path)` by itself."""
        fd = os.open(self._prefix + path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def boot_id(self) -> str:
        """New after each start of the machine; empty where the system has none."""
        try:
            with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as source:
                return source.read().strip()
        except OSError:
            return ""

    def lock(self, path: str) -> RealFile:
        """Lock the file (made if missing) until it is closed or this process ends.

        Raises BlockingIOError when another process, or another part of this one, holds it.
        """
        file = self.open(path, create=True)
        try:
            fcntl.flock(file.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            file.close()
            raise
        return file
