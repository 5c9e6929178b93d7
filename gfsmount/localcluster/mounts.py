"""What `gfs` asks about mounts: which one a path lies on, whether one answers, taking one down that may be dead.

The kernel's own list is the source (`gfsmount.kernel`), never the mounted files: a look there can block.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from gfscore.errors import Code, GfsError
from gfsmount import kernel

FILE_SYSTEM_TYPE = "fuse.gfs"
_ANSWER_SECONDS = 10.0


def mounted_at(mountpoint: str) -> kernel.Mounted | None:
    """What is mounted exactly there (the topmost), of any type."""
    return kernel.topmost(mountpoint)


def mount_of(path: str) -> kernel.Mounted | None:
    """The mount of ours that the absolute `path` lies on, if it lies on one."""
    best: kernel.Mounted | None = None
    for entry in kernel.mounts():
        below = path == entry.mountpoint or path.startswith(entry.mountpoint.rstrip("/") + "/")
        if below and (best is None or len(entry.mountpoint) >= len(best.mountpoint)):
            best = entry
    return best if best is not None and best.kind == FILE_SYSTEM_TYPE else None


def responds(mountpoint: str, seconds: float = _ANSWER_SECONDS) -> bool:
    """Whether the mount answers. Asked in a process of its own: a look that hangs can be given up."""
    try:
        done = subprocess.run(["stat", "-f", mountpoint], capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def unmount(mountpoint: str, *, lazy: bool = False) -> bool:
    """Take down what is mounted there; `lazy` also when it is busy or its driver is dead. False: it is still there."""
    if mounted_at(mountpoint) is not None:
        kernel.unmount(mountpoint, lazy=lazy)
    return mounted_at(mountpoint) is None


def make_mountpoint(mountpoint: str) -> None:
    """The directory to mount on. Raises GfsError(ACCESS_DENIED) naming the way to make it by hand."""
    try:
        Path(mountpoint).mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise GfsError(
            Code.ACCESS_DENIED,
            f"may not make {mountpoint}: sudo mkdir -p {mountpoint} && sudo chown {os.getuid()} {mountpoint}",
        ) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise GfsError(Code.NOT_DIRECTORY, f"the mount point {mountpoint} is not a directory") from error
