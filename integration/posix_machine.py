"""Drives two directories with the same operations and compares every answer: results, errnos, and the whole tree."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

CHUNK_BYTES = 1024 * 1024
HANDLES_MAX = 4

# Where POSIX leaves the choice, any of them is right.
_SAME = {errno.EEXIST: errno.ENOTEMPTY, errno.EOPNOTSUPP: errno.EPERM}
_LIBC = ctypes.CDLL(None, use_errno=True)

short = st.sampled_from([b"a", b"b", b"c"])
names = st.one_of(short, short, short, st.sampled_from([b"\xff\xfe", b"n" * 255, b"n" * 256]))
paths = st.one_of(
    names, st.tuples(short, names).map(b"/".join), st.tuples(st.just(b"a"), st.just(b"b"), names).map(b"/".join)
)
offsets = st.one_of(
    st.integers(0, 200_000),
    st.builds(
        lambda base, near: base + near, st.sampled_from([CHUNK_BYTES, 2 * CHUNK_BYTES]), st.integers(-5000, 5000)
    ),
)
sizes = st.one_of(st.integers(1, 100), st.integers(1, 70_000), st.sampled_from([4096, 65536, 131072, 300_000]))
flags = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
extras = st.sampled_from([0, os.O_CREAT, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_CREAT | os.O_EXCL])


def _renameat2(old: bytes, new: bytes, how: int) -> None:
    if _LIBC.renameat2(-100, old, -100, new, how) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _pattern(seed: int, size: int) -> bytes:
    return bytes((seed * 31 + i * 7) & 0xFF for i in range(min(size, 251))) * (size // 251 + 1)


def snapshot(root: bytes) -> dict[bytes, Any]:
    """Everything a program can see of a tree, times apart."""
    seen: dict[bytes, Any] = {}
    numbers: dict[int, bytes] = {}

    def visit(path: bytes, name: bytes) -> None:
        status = os.lstat(path)
        kind = stat.S_IFMT(status.st_mode)
        first = numbers.setdefault(status.st_ino, name)
        facts: list[Any] = [kind, stat.S_IMODE(status.st_mode), status.st_nlink, status.st_uid, status.st_gid]
        if kind == stat.S_IFREG:
            with open(path, "rb") as file:
                facts += [status.st_size, file.read(), first]
        elif kind == stat.S_IFLNK:
            facts += [os.readlink(path)]
        if kind in (stat.S_IFREG, stat.S_IFDIR):
            facts += [{key: os.getxattr(path, key) for key in os.listxattr(path) if key.startswith("user.")}]
        seen[name] = facts
        if kind == stat.S_IFDIR:
            for child in sorted(os.listdir(path)):
                visit(path + b"/" + child, name + b"/" + child)

    visit(root, b"")
    return seen


class PosixMachine(RuleBasedStateMachine):
    """Subclasses set the two parents. `ours` and `theirs` are fresh directories of each example."""

    ours_parent: Path
    theirs_parent: Path
    number = 0

    def __init__(self) -> None:
        super().__init__()
        PosixMachine.number += 1
        self.ours = os.fsencode(self.ours_parent / f"run{self.number}")
        self.theirs = os.fsencode(self.theirs_parent / f"run{self.number}")
        os.mkdir(self.ours)
        os.mkdir(self.theirs)
        self.handles: list[tuple[int, int]] = []
        for path in (b"a", b"a/b", b"b"):  # so that most operations find something to work on
            self.both(lambda root, path=path: os.mkdir(root + path, 0o755))

    def teardown(self) -> None:
        try:
            self.compare_trees()
        finally:
            for pair in self.handles:
                for handle in pair:
                    os.close(handle)
            shutil.rmtree(self.ours)
            shutil.rmtree(self.theirs)

    def both(self, call: Callable[[bytes], Any]) -> Any:
        """`call` with the root of each side; the answers must be the same, and are returned."""
        return self._compare(lambda: call(self.ours + b"/"), lambda: call(self.theirs + b"/"))[0]

    def _compare(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> tuple[Any, Any]:
        results = []
        for call in (ours, theirs):
            try:
                results.append((None, call()))
            except OSError as error:
                number = error.errno or 0
                results.append((_SAME.get(number, number), None))
        (our_error, our_value), (their_error, their_value) = results
        assert our_error == their_error, (_name(our_error), _name(their_error))
        return our_value, their_value

    def same(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
        our_value, their_value = self._compare(ours, theirs)
        assert our_value == their_value

    # ------------------------------------------------------------ names

    @rule(path=paths, mode=st.sampled_from([0o755, 0o700, 0o2755]))
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both(lambda root: os.mkdir(root + path, mode))

    @rule(path=paths)
    def rmdir(self, path: bytes) -> None:
        self.both(lambda root: os.rmdir(root + path))

    @rule(path=paths)
    def unlink(self, path: bytes) -> None:
        self.both(lambda root: os.unlink(root + path))

    @rule(old=paths, new=paths, how=st.sampled_from([0, 0, 1, 2]))
    def rename(self, old: bytes, new: bytes, how: int) -> None:
        self.both(lambda root: _renameat2(root + old, root + new, how))

    @rule(old=paths, new=paths)
    def link(self, old: bytes, new: bytes) -> None:
        self.both(lambda root: os.link(root + old, root + new, follow_symlinks=False))

    @rule(path=paths, content=st.sampled_from([b"a", b"../x", b"t" * 4000]))
    def symlink(self, path: bytes, content: bytes) -> None:
        self.both(lambda root: os.symlink(content, root + path))

    @rule(path=paths)
    def mkfifo(self, path: bytes) -> None:
        self.both(lambda root: os.mkfifo(root + path, 0o640))

    @rule(path=paths)
    def listdir(self, path: bytes) -> None:
        self.same(
            lambda: sorted(os.listdir(self.ours + b"/" + path)), lambda: sorted(os.listdir(self.theirs + b"/" + path))
        )

    @rule(path=paths)
    def look(self, path: bytes) -> None:
        def facts(root: bytes) -> tuple[int, ...]:
            status = os.lstat(root + b"/" + path)
            size = status.st_size if stat.S_ISREG(status.st_mode) else 0
            return status.st_mode, size, status.st_nlink

        self.same(lambda: facts(self.ours), lambda: facts(self.theirs))

    # ------------------------------------------------------------ attributes

    @rule(path=paths, mode=st.sampled_from([0o600, 0o644, 0o755, 0o4755, 0o1777]))
    def chmod(self, path: bytes, mode: int) -> None:
        def change(root: bytes) -> None:
            if not os.path.islink(root + path):
                os.chmod(root + path, mode)

        self.both(change)

    @rule(path=paths, times=st.tuples(st.integers(-(10**9), 4 * 10**9), st.integers(0, 999_999_999)))
    def utime(self, path: bytes, times: tuple[int, int]) -> None:
        nanoseconds = times[0] * 10**9 + times[1]

        def change(root: bytes) -> int:
            os.utime(root + path, ns=(nanoseconds, nanoseconds), follow_symlinks=False)
            return os.lstat(root + path).st_mtime_ns

        assert self.both(change) in (None, nanoseconds)

    @rule(path=paths, key=st.sampled_from(["user.a", "user.b"]), value=st.binary(max_size=300), how=st.integers(0, 2))
    def setxattr(self, path: bytes, key: str, value: bytes, how: int) -> None:
        self.both(lambda root: os.setxattr(root + path, key, value, how, follow_symlinks=False))

    @rule(path=paths, key=st.sampled_from(["user.a", "user.b"]))
    def removexattr(self, path: bytes, key: str) -> None:
        self.both(lambda root: os.removexattr(root + path, key, follow_symlinks=False))

    # ------------------------------------------------------------ bytes

    @rule(path=paths, size=offsets)
    def truncate(self, path: bytes, size: int) -> None:
        self.both(lambda root: self._at(root + path, os.O_WRONLY, lambda fd: os.ftruncate(fd, size)))

    @rule(path=paths, flag=flags, extra=extras, offset=offsets, size=sizes, seed=st.integers(0, 255))
    def write(self, path: bytes, flag: int, extra: int, offset: int, size: int, seed: int) -> None:
        data = _pattern(seed, size)[:size]
        self.both(lambda root: self._at(root + path, flag | extra, lambda fd: os.pwrite(fd, data, offset)))

    @rule(path=paths, size=st.integers(1, 5000), seed=st.integers(0, 255), create=st.booleans())
    def append(self, path: bytes, size: int, seed: int, create: bool) -> None:
        """Not across the border of a chunk: there a record append pads."""
        data = _pattern(seed, size)[:size]

        def work(fd: int) -> None:
            if os.fstat(fd).st_size % CHUNK_BYTES + size <= CHUNK_BYTES:
                assert os.write(fd, data) == size

        flags = os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0)
        self.both(lambda root: self._at(root + path, flags, work))

    @rule(path=paths, offset=offsets, size=sizes)
    def read(self, path: bytes, offset: int, size: int) -> None:
        def work(root: bytes) -> Any:
            return self._at(root + b"/" + path, os.O_RDONLY, lambda fd: os.pread(fd, size, offset))

        self.same(lambda: work(self.ours), lambda: work(self.theirs))

    @staticmethod
    def _at(path: bytes, flags: int, work: Callable[[int], Any]) -> Any:
        handle = os.open(path, flags | os.O_NONBLOCK, 0o644)  # a FIFO must not block the test
        try:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return work(handle)
            return None
        finally:
            os.close(handle)

    # ------------------------------------------------------------ handles that stay open

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(path=paths, flag=flags, extra=extras)
    def open(self, path: bytes, flag: int, extra: int) -> None:
        def one(root: bytes) -> int:
            handle = os.open(root + b"/" + path, flag | extra | os.O_NONBLOCK, 0o644)
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return handle
            os.close(handle)
            return -1

        ours, theirs = self._compare(lambda: one(self.ours), lambda: one(self.theirs))
        if ours is not None:
            assert (ours < 0) == (theirs < 0)
            if ours >= 0:
                self.handles.append((ours, theirs))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, HANDLES_MAX - 1))
    def close(self, which: int) -> None:
        pair = self.handles.pop(which % len(self.handles))
        self.same(lambda: os.close(pair[0]), lambda: os.close(pair[1]))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, HANDLES_MAX - 1), offset=offsets, size=sizes, seed=st.integers(0, 255))
    def write_handle(self, which: int, offset: int, size: int, seed: int) -> None:
        data = _pattern(seed, size)[:size]
        self._on_handle(which, lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, HANDLES_MAX - 1), offset=offsets, size=sizes)
    def read_handle(self, which: int, offset: int, size: int) -> None:
        self._on_handle(which, lambda fd: os.pread(fd, size, offset))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, HANDLES_MAX - 1), sync=st.booleans(), size=offsets)
    def sync_or_cut_handle(self, which: int, sync: bool, size: int) -> None:
        self._on_handle(which, lambda fd: os.fsync(fd) if sync else os.ftruncate(fd, size))

    @precondition(lambda self: self.handles)
    @rule(which=st.integers(0, HANDLES_MAX - 1))
    def stat_handle(self, which: int) -> None:
        self._on_handle(which, lambda fd: (os.fstat(fd).st_size, os.fstat(fd).st_nlink))

    def _on_handle(self, which: int, work: Callable[[int], Any]) -> None:
        pair = self.handles[which % len(self.handles)]
        self.same(lambda: work(pair[0]), lambda: work(pair[1]))

    @invariant()
    def same_names(self) -> None:
        assert sorted(os.listdir(self.ours)) == sorted(os.listdir(self.theirs))

    def compare_trees(self) -> None:
        ours, theirs = snapshot(self.ours), snapshot(self.theirs)
        assert ours.keys() == theirs.keys()
        for name, facts in ours.items():
            assert facts == theirs[name], name


def _name(number: int | None) -> str:
    return "no error" if number is None else errno.errorcode.get(number, str(number))
