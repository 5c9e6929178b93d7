"""The kernel's side of a mount: its number, its limits in sysfs, taking it down. Reads `/proc` and `/sys` instead of
the mount itself, so that nothing here waits for the driver that calls it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_BDI = Path("/sys/class/bdi")
_NOTIFY_INC_EPOCH = 8  # FUSE_NOTIFY_INC_EPOCH, kernel 6.16: every cached name is looked up anew
_LINKS_MAX = 40  # as the kernel follows
_MNT_FORCE, _MNT_DETACH = 1, 2
_ESCAPE = re.compile(r"\\([0-7]{3})")


class Mounted(NamedTuple):
    """One line of mountinfo. `minor` is also the number of the FUSE connection."""

    mountpoint: str
    major: int
    minor: int
    kind: str
    source: str


def mounts() -> list[Mounted]:
    """Every mount this process can see."""
    found: list[Mounted] = []
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        major, _, minor = fields[2].partition(":")
        found.append(Mounted(_unescape(fields[4]), int(major), int(minor), tail[0], _unescape(tail[1])))
    return found


def topmost(mountpoint: str) -> Mounted | None:
    """What is mounted exactly there, or where it leads as a symbolic link; of several the one that programs see."""
    found = {mount.mountpoint: mount for mount in mounts()}
    path = os.path.abspath(mountpoint)
    for _ in range(_LINKS_MAX):
        path = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        # No look at what is mounted there, which is no link: it may be dead, or the caller's own.
        if path in found or not os.path.islink(path):
            break
        path = os.path.abspath(os.path.join(os.path.dirname(path), os.readlink(path)))
    return found.get(path)


def find_mount(mountpoint: str) -> Mounted | None:
    """The topmost FUSE mount at `mountpoint`, or None."""
    mount = topmost(mountpoint)
    return mount if mount is not None and mount.kind.startswith("fuse") else None


def tune(mounted: Mounted, *, read_ahead_kib: int, max_background: int) -> None:
    """Raise the read-ahead and the number of requests in the background. Warns once where that is not allowed."""
    settings = [
        (_BDI / f"{mounted.major}:{mounted.minor}" / "read_ahead_kb", read_ahead_kib),
        (_CONNECTIONS / str(mounted.minor) / "max_background", max_background),
        (_CONNECTIONS / str(mounted.minor) / "congestion_threshold", max(max_background * 3 // 4, 1)),
    ]
    refused: list[str] = []
    for path, value in settings:
        try:
            path.write_text(str(value))
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
    if refused:
        log.warning(
            "event=kernel_limits_left reason=%r remedy='as root, with fusectl mounted, reads and writes are faster'",
            "; ".join(refused),
        )


def unmount(mountpoint: str, *, lazy: bool = False, timeout_seconds: float = 10.0) -> bool:
    """Unmount; True when it is gone. A busy mount is left unless `lazy`, which hides it at once."""
    program = shutil.which("fusermount3") or "/usr/bin/fusermount3"
    mounted = topmost(mountpoint)
    command = [program, "-u", *(["-z"] if lazy else []), mounted.mountpoint if mounted else mountpoint]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_seconds, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("event=unmount_failed mountpoint=%s error=%r", mountpoint, str(error))
        return False
    return done.returncode == 0


def clear(mountpoint: str) -> bool:
    """Take away a mount whose driver is dead, and end its connection. True when that was allowed: root may.

    A driver that was killed while it told the kernel to forget something may wait there for a program's request, which
    waits for the driver: neither ends before the connection does.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.umount2(os.fsencode(mountpoint), _MNT_FORCE | _MNT_DETACH) == 0)


def abort(minor: int) -> bool:
    """End the connection: every waiting request gets an error. True when it could be done."""
    try:
        (_CONNECTIONS / str(minor) / "abort").write_text("1")
    except OSError:
        return False
    return True


def forget_names() -> bool:
    """Make the kernel look up every name of this process's mount anew; False where it cannot (before Linux 6.16).

    libfuse has no call for it yet; the message is three words on its device.
    """
    device = _device()
    if device is None:
        return False
    try:
        os.write(device, struct.pack("=IiQ", 16, _NOTIFY_INC_EPOCH, 0))
    except OSError:
        return False
    return True


def _device() -> int | None:
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == "/dev/fuse":
                return int(number)
        except OSError:
            continue
    return None


def _unescape(text: str) -> str:
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)
