"""Small real disks for tests: an ext4 of a few MiB in a file, and one below which a block device returns errors.

Loop-mounted, so they need root and the kernel's loop devices; each is taken down again whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from harness import run, wait_until
from roles import missing_tools, run_quietly

SECONDS = 60


def missing_loop(directory: Path) -> str:
    """Why this machine cannot mount a file as a disk; empty if it can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    absent = missing_tools("mkfs.ext4", "mount", "umount")
    if absent:
        return absent
    try:
        with small_disk(directory / "probe", 8):
            return ""
    except AssertionError as error:
        return f"this machine cannot mount a file as a disk: {str(error).splitlines()[-1][:100]}"


@contextlib.contextmanager
def small_disk(where: Path, mebibytes: int) -> Iterator[Path]:
    """An ext4 of this size, mounted at `where`."""
    where.mkdir(parents=True, exist_ok=True)
    image = where.with_name(f"{where.name}.img")
    with open(image, "wb") as file:
        file.truncate(mebibytes * 1024 * 1024)
    try:
        with _mounted(image, where):
            yield where
    finally:
        image.unlink()


@contextlib.contextmanager
def _mounted(image: Path, where: Path) -> Iterator[None]:
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", image, seconds=SECONDS)
    run("mount", "-o", "loop", image, where, seconds=SECONDS)
    try:
        shutil.rmtree(where / "lost+found")
        yield
    finally:
        if not run_quietly(["umount", where], SECONDS):
            run_quietly(["umount", "-l", where], SECONDS)


def missing_faulty(directory: Path) -> str:
    """Why this machine cannot have a disk with errors; empty if it can."""
    return missing_loop(directory) or missing_tools("nbdkit", "nbdfuse")


class FaultyDisk:
    """`fail()` makes every read and write below the file system an error (EIO), `heal()` ends that."""

    def __init__(self, where: Path, trigger: Path) -> None:
        self.where = where
        self._trigger = trigger

    def fail(self) -> None:
        self._trigger.touch()

    def heal(self) -> None:
        self._trigger.unlink(missing_ok=True)


@contextlib.contextmanager
def faulty_disk(where: Path, mebibytes: int) -> Iterator[FaultyDisk]:
    """nbdkit's error filter above memory, shown as a file by nbdfuse, mounted through a loop device.

    Raises AssertionError where one of them does not work.
    """
    where.mkdir(parents=True, exist_ok=True)
    image, trigger = where.with_name(f"{where.name}.nbd"), where.with_name(f"{where.name}.fail")
    image.touch()
    command = ["nbdfuse", str(image), "--command", "nbdkit", "-s", "--filter=error", "memory", f"size={mebibytes}M"]
    # Only while the trigger file is there.
    command += ["error=EIO", "error-rate=100%", f"error-file={trigger}"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: image.stat().st_size or process.poll() is not None, "nbdfuse to show its disk", SECONDS)
        assert process.poll() is None, f"nbdfuse ended: {process.stderr.read() if process.stderr else ''}"
        with _mounted(image, where):
            disk = FaultyDisk(where, trigger)
            try:
                yield disk
            finally:
                disk.heal()
    finally:
        if not run_quietly(["fusermount3", "-u", image]):
            run_quietly(["umount", "-l", image])
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        if process.stderr is not None:
            process.stderr.close()
