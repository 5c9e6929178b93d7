"""The interfaces to the uncertain world. Each has a real implementation and an in-memory twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from gfscore.checksum import Buffer

if TYPE_CHECKING:
    from gfscore.rpc.transport import Transport

T = TypeVar("T")


class Clock(Protocol):
    """Time. Leases and timeouts use `boottime`, which goes on while a machine is suspended."""

    def boottime(self) -> float:
        """Seconds since some fixed moment, never going back (CLOCK_BOOTTIME)."""
        ...

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump. Only for time stamps that people read."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class DiskFile(Protocol):
    """An open file. Calls block; servers make them through an `IoRunner`."""

    def pread_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; the number of bytes read, less than asked only at the end."""
        ...

    def pread(self, size: int, offset: int) -> bytes: ...

    def pwrite(self, data: Buffer, offset: int) -> None:
        """Write all of `data`. Raises OSError (ENOSPC, EIO, …)."""
        ...

    def prefetch(self, size: int, offset: int) -> None:
        """These bytes will be read soon: many of them come faster from the disk together than one by one."""
        ...

    def size(self) -> int: ...

    def truncate(self, size: int) -> None: ...

    def fdatasync(self) -> None:
        """Data and length on the disk. After an error the contents are unknown: never call it again (rule 20)."""
        ...

    def copy_to(self, target: DiskFile, size: int) -> None:
        """Copy the first `size` bytes into `target`, inside the file system where it can (reflink)."""
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """One directory tree of the local disk. Paths are relative to its root, with `/`."""

    def open(self, path: str, *, create: bool = False, exclusive: bool = False, direct: bool = False) -> DiskFile:
        """Open for reading and writing. `direct` goes around the page cache: aligned buffers, offsets, sizes only."""
        ...

    def exists(self, path: str) -> bool: ...

    def listdir(self, path: str) -> list[str]: ...

    def mkdir(self, path: str) -> None:
        """Make the directory and its parents; one that is there already is fine."""
        ...

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def sync_directory(self, path: str) -> None:
        """Make the names in `path` durable."""
        ...

    def space(self) -> tuple[int, int]:
        """(total, free) bytes of the file system."""
        ...

    def real_path(self, path: str) -> str:
        """The absolute path, for people and for libraries that insist on opening a file themselves."""
        ...

    def sync_real_path(self, path: str) -> None:
        """Make durable what such a library wrote at `real_path(path)`."""
        ...

    def boot_id(self) -> str:
        """An id that is new after each start of the machine, so after each power loss; empty where it has none."""
        ...

    def lock(self, path: str) -> DiskFile:
        """Lock the file (made if missing) until it is closed or the process ends. Raises BlockingIOError if held."""
        ...


class IoRunner(Protocol):
    """Runs blocking calls: in a thread really, inline in the twin."""

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T: ...

    async def quick(self, function: Callable[..., T], /, *args: Any) -> T:
        """For a call that normally takes no longer than the way to a thread and back (about 0.15 ms): made right here,
        without an await, until it turns out to be slow; then in threads for a while."""
        ...


@dataclass(frozen=True)
class Env:
    """All that is uncertain, for one process (real) or one simulated node (twin)."""

    clock: Clock
    random: Random
    disk: Disk
    run_io: IoRunner
    transport: Transport
