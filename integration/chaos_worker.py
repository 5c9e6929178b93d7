"""One program under chaos: works on a mount until told to stop, and writes down what was acknowledged.

    chaos_worker.py KIND MOUNT OTHER_MOUNT NAME TARGET JOURNAL STOP_FILE

KIND is append, files or blocks. Each line of JOURNAL is a JSON list; what it means is said in `chaos_check.py`, which
holds it against the file system afterwards. Ends by itself when its mount is gone. All paths below the mount are
looked up from a directory that was opened at the start: one that was mounted again is another machine's.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

BLOCK_BYTES = 4096
BLOCKS = 1024  # of the file that the kind `blocks` writes
NAMES_MAX = 40
RECORD_BYTES_MAX = 24 * 1024
PAUSE_SECONDS = 0.02

_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV}
# What an operation may answer while servers are dead. Any other error is a wrong answer: the name was acknowledged.
_TROUBLE = {errno.ETIMEDOUT, errno.EIO, errno.EINTR, errno.EAGAIN, errno.EBUSY}


class MountGone(Exception):
    """The mount's process died: this machine is dead."""


class Journal:
    """One write call per line: a line is there whole or not at all."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def write(self, *entry: object) -> None:
        os.write(self._file, json.dumps(entry).encode() + b"\n")


def content_of(worker: str, number: int) -> bytes:
    """The bytes of content `number` of a worker: they name themselves, and can be made again by the checker."""
    rng = random.Random(f"{worker}:{number}")
    size = int(60_000 * rng.random() ** 4) if rng.random() < 0.93 else rng.randrange(900_000, 1_400_000)
    return f"<{worker}:{number}>".encode() + rng.randbytes(size)


def block_of(worker: str, index: int, generation: int) -> bytes:
    """A block of the file of the kind `blocks`; generation 0 is what it is made with."""
    text = f"<{worker}:{index}:{generation}>".encode()
    return (text * (BLOCK_BYTES // len(text) + 1))[:BLOCK_BYTES]


def record_of(worker: str, number: int, rng: random.Random) -> tuple[bytes, bytes]:
    """A record and how it begins; nothing else begins like that."""
    head = f"<{worker}:{number}:".encode()
    body = rng.randbytes(int(RECORD_BYTES_MAX * rng.random() ** 8)).replace(b"\0", b"\1").replace(b"<", b"(")
    return head, head + body + b">"


class Worker:
    def __init__(self, mount: str, other: str, name: str, journal: Journal, stop: Path) -> None:
        self.name = name
        self.other = other
        self.journal = journal
        self.rng = random.Random(name)
        self.root = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        self._stop = stop

    def working(self) -> bool:
        time.sleep(self.rng.random() * PAUSE_SECONDS)
        return not self._stop.exists()

    def succeeded(self, entry: list, act: Callable[..., object], *arguments: object) -> bool:
        """Journal `entry`, do it, then journal ["ok"] or ["unknown", errno]. The mount's end ends the worker."""
        self.journal.write(*entry)
        if not self._try(entry, act, *arguments):
            return False
        self.journal.write("ok")
        return True

    def _try(self, what: object, act: Callable[..., object], *arguments: object) -> bool:
        try:
            act(*arguments)
        except OSError as error:
            if error.errno in _GONE:
                raise MountGone from error
            if error.errno not in _TROUBLE:
                self.journal.write("wrong", f"{what}: {error}")
            self.journal.write("unknown", error.errno)
            return False
        return True

    def look(self, what: str, allowed: Callable[[bytes], bool], read: Callable[..., bytes], *arguments: object) -> None:
        """A read: an error is only counted, wrong bytes are never right."""
        try:
            data = read(*arguments)
        except OSError as error:
            if error.errno in _GONE:
                raise MountGone from error
            if error.errno in _TROUBLE:
                self.journal.write("unread", error.errno)
            else:
                self.journal.write("wrong", f"{what}: {error}")
            return
        if not allowed(data):
            self.journal.write("wrong", f"{what}: {len(data)} bytes, {bytes(data[:60])!r}… are not what was written")

    # ------------------------------------------------------------ records

    def append(self, target: str) -> None:
        descriptor = os.open(target, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644, dir_fd=self.root)
        number = 0
        while self.working():
            head, record = record_of(self.name, number, self.rng)
            number += 1
            try:
                if self.rng.random() < 0.5:
                    os.setxattr(descriptor, "gfs.append", record)
                else:
                    written = os.write(descriptor, record)
                    if written != len(record):
                        self.journal.write("wrong", f"a short append: {written} of {len(record)} bytes")
                offset = int(os.getxattr(descriptor, "gfs.append.offset"))
            except OSError as error:
                if error.errno in _GONE:
                    raise MountGone from error
                self.journal.write("unknown" if error.errno in _TROUBLE else "wrong", f"{head!r}: {error}")
                continue
            digest = hashlib.sha256(record).hexdigest()[:24]
            self.journal.write("record", target, offset, len(record), digest, head.decode())
            if self.rng.random() < 0.05:
                self.look(f"{head!r} at {offset}", record.__eq__, os.pread, descriptor, len(record), offset)

    # ------------------------------------------------------------ names

    def files(self, target: str) -> None:
        """Creates, replaces, rewrites, renames, unlinks and reads small files in a directory of its own."""
        os.mkdir(target, dir_fd=self.root)
        self.journal.write("directory", target)
        directory = os.open(target, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.root)
        files: dict[str, int] = {}  # acknowledged: name → content
        number = 0
        while self.working():
            number += 1
            name = self.rng.choice(sorted(files)) if files else ""
            choice = self.rng.random()
            new = f"f{number}"
            if not files or (choice < 0.3 and len(files) < NAMES_MAX):
                if self.succeeded(["create", new, number], self._put, directory, new, number, os.O_EXCL):
                    files[new] = number
            elif choice < 0.4:
                entry = ["rewrite", name, files.pop(name), number]
                if self.succeeded(entry, self._put, directory, name, number, os.O_TRUNC):
                    files[name] = number
            elif choice < 0.5:
                entry = ["replace", name, files.pop(name), number]
                if self.succeeded(entry, self._replace, directory, name, number):
                    files[name] = number
            elif choice < 0.65:
                content = files.pop(name)
                over = self.rng.choice(sorted(files)) if files and self.rng.random() < 0.3 else new
                entry = ["rename", name, content, over, files.pop(over, None)]
                if self.succeeded(entry, self._rename, directory, name, over):
                    files[over] = content
            elif choice < 0.72 or len(files) >= NAMES_MAX:
                self.succeeded(["unlink", name, files.pop(name)], self._unlink, directory, name)
            elif self.rng.random() < 0.5:
                self.look(name, content_of(self.name, files[name]).__eq__, self._read, directory, name)
            else:
                self._look_from_the_other_mount(target, name, content_of(self.name, files[name]))

    def _put(self, directory: int, name: str, number: int, flag: int) -> None:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | flag, 0o644, dir_fd=directory)
        try:
            _pwrite_all(file, content_of(self.name, number), 0)
            if number % 3 == 0:
                os.fsync(file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(file)
            raise
        os.close(file)

    def _replace(self, directory: int, name: str, number: int) -> None:
        self._put(directory, f"{name}.new", number, os.O_TRUNC)
        os.rename(f"{name}.new", name, src_dir_fd=directory, dst_dir_fd=directory)

    @staticmethod
    def _unlink(directory: int, name: str) -> None:
        os.unlink(name, dir_fd=directory)

    @staticmethod
    def _rename(directory: int, name: str, over: str) -> None:
        os.rename(name, over, src_dir_fd=directory, dst_dir_fd=directory)

    @staticmethod
    def _read(directory: int, name: str) -> bytes:
        with open(os.open(name, os.O_RDONLY, dir_fd=directory), "rb", buffering=0) as file:
            return file.readall() or b""

    def _look_from_the_other_mount(self, target: str, name: str, expected: bytes) -> None:
        try:
            there = os.open(f"{self.other}/{target}", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return  # it is dead just now
        try:
            self.look(f"{target}/{name} elsewhere", expected.__eq__, self._read, there, name)
        except MountGone:
            return
        finally:
            os.close(there)

    # ------------------------------------------------------------ blocks

    def blocks(self, target: str) -> None:
        """Overwrites pieces of one larger file at random, with fsync now and then, and reads them."""
        made = b"".join(block_of(self.name, index, 0) for index in range(BLOCKS))
        file = os.open(target, os.O_RDWR | os.O_CREAT, 0o644, dir_fd=self.root)
        while not self.succeeded(["made", target], _write_and_sync, file, made):
            if not self.working():
                return
        possible: list[set[int]] = [{0} for _ in range(BLOCKS)]  # generations that a block may have now
        unsynced: set[int] = set()
        generation = 0
        while self.working():
            generation += 1
            first = self.rng.randrange(BLOCKS)
            count = min(max(1, int(64 * self.rng.random() ** 4)), BLOCKS - first)
            choice = self.rng.random()
            if choice < 0.6:
                indices = range(first, first + count)
                data = b"".join(block_of(self.name, index, generation) for index in indices)
                self.journal.write("write", generation, first, count)
                for index in indices:
                    possible[index] = {generation}
                unsynced.update(indices)
                if self._try(f"writing {target}", _pwrite_all, file, data, first * BLOCK_BYTES):
                    continue
            elif choice < 0.75:
                if self._try(f"fsync of {target}", os.fsync, file):
                    self.journal.write("synced")
                    unsynced.clear()
                    continue
            else:
                wanted = partial(self._is_possible, possible[first : first + count], first)
                self.look(
                    f"blocks from {first} of {target}", wanted, os.pread, file, count * BLOCK_BYTES, first * BLOCK_BYTES
                )
                continue
            # What was not synced may be there or not; the journal's reader knows it, too.
            for index in unsynced:
                possible[index] = set(range(generation + 1))
            unsynced.clear()
            with contextlib.suppress(OSError):
                os.close(file)
            file = self._reopened(target)

    def _reopened(self, target: str) -> int:
        while True:
            try:
                return os.open(target, os.O_RDWR, dir_fd=self.root)
            except OSError as error:
                if error.errno in _GONE or not self.working():
                    raise MountGone from error
                if error.errno not in _TROUBLE:
                    self.journal.write("wrong", f"{target} cannot be opened again: {error}")
                    raise MountGone from error

    def _is_possible(self, possible: list[set[int]], first: int, data: bytes) -> bool:
        if len(data) != len(possible) * BLOCK_BYTES:
            return False
        for number, generations in enumerate(possible):
            block = data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
            if not any(block == block_of(self.name, first + number, one) for one in sorted(generations, reverse=True)):
                return False
        return True


def _write_and_sync(file: int, data: bytes) -> None:
    _pwrite_all(file, data, 0)
    os.fsync(file)


def _pwrite_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def main() -> int:
    kind, mount, other, name, target, journal_path, stop = sys.argv[1:]
    journal = Journal(journal_path)
    try:
        worker = Worker(mount, other, name, journal, Path(stop))
        {"append": worker.append, "files": worker.files, "blocks": worker.blocks}[kind](target)
    except MountGone:
        journal.write("mount gone")
    except OSError as error:  # at the start, before anything was acknowledged
        journal.write("not started", str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
