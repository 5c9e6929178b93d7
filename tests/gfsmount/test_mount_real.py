"""The driver on the in-memory client behind a real kernel: ordinary programs, errnos, caches, signals."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gfsmount import kernel
from gfsmount.localcluster import mounts

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or not shutil.which("fusermount3"), reason="no FUSE here"
)


class MountProcess:
    def __init__(self, tmp_path: Path, options: str = "", link: Path | None = None) -> None:
        """`link`: a symbolic link to the mountpoint, named in its place."""
        self.path = tmp_path / "mnt"
        self.path.mkdir()
        ready = tmp_path / "ready"
        self.log = tmp_path / "log"
        script = Path(__file__).with_name("serve_fake.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(link or self.path), str(ready), options],
            stderr=self.log.open("wb"),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        deadline = time.monotonic() + 20
        while not ready.exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def wait(self) -> int:
        return self.process.wait(timeout=20)

    def take_down(self) -> None:
        mounted = kernel.find_mount(str(self.path))
        kernel.unmount(str(self.path), lazy=True)
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            if mounted is not None:
                kernel.abort(mounted.minor)
            self.process.kill()
            self.process.wait(timeout=5)


@contextlib.contextmanager
def mount_process(tmp_path: Path, options: str = "", link: Path | None = None) -> Iterator[MountProcess]:
    mount = MountProcess(tmp_path, options, link)
    try:
        yield mount
    finally:
        mount.take_down()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[MountProcess]:
    with mount_process(tmp_path) as mount:
        yield mount


@pytest.fixture
def mnt(mount: MountProcess) -> Path:
    return mount.path


def shell(command: str, cwd: Path) -> str:
    done = subprocess.run(["bash", "-ec", command], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def error_of(function: object, *arguments: object, **options: object) -> int:
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)  # type: ignore[operator]
    assert caught.value.errno is not None
    return caught.value.errno


def test_shell_tools_copy_a_tree_and_back(mnt: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(150):
        (source / f"file{number}").write_bytes(os.urandom(number * 500))
    (source / "link").symlink_to("file1")
    os.link(source / "file2", source / "hard")
    shell(f"cp -a {source} copy && diff -r {source} copy && tar cf t.tar copy && mkdir x && tar xf t.tar -C x", mnt)
    shell(f"diff -r {source} x/copy && find copy -name 'file1*' | wc -l && rm -r x && mv copy moved", mnt)
    assert sorted(os.listdir(mnt / "moved")) == sorted(os.listdir(source))
    assert os.stat(mnt / "moved/hard").st_ino == os.stat(mnt / "moved/file2").st_ino
    assert os.stat(mnt / "moved/hard").st_nlink == 2


def test_large_file_is_the_same_through_every_kind_of_handle(mnt: Path) -> None:
    content = os.urandom(3_000_001)
    (mnt / "f").write_bytes(content)
    assert (mnt / "f").read_bytes() == content
    with open(mnt / "f", "r+b") as file:
        file.seek(1_000_003)
        file.write(b"x" * 10)
    expected = content[:1_000_003] + b"x" * 10 + content[1_000_013:]
    assert hashlib.sha256((mnt / "f").read_bytes()).digest() == hashlib.sha256(expected).digest()


def test_a_write_around_the_page_cache_is_seen_by_a_reader_that_had_the_page(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"a" * 8192)
    with open(mnt / "f", "rb", buffering=0) as reader:
        assert reader.read(8192) == b"a" * 8192
        writer = os.open(mnt / "f", os.O_WRONLY)
        try:
            os.pwrite(writer, b"b" * 4096, 4096)
            assert os.pread(reader.fileno(), 8192, 0) == b"a" * 4096 + b"b" * 4096
        finally:
            os.close(writer)


def test_append_handles_append_wherever_the_kernel_thinks_the_end_is(mnt: Path) -> None:
    shell("for i in 1 2 3; do echo line$i >> log; done", mnt)
    assert (mnt / "log").read_text() == "line1\nline2\nline3\n"
    with open(mnt / "log", "ab", buffering=0) as file:
        os.setxattr(mnt / "log", "gfs.append", b"through xattr\n")
        assert os.stat(mnt / "log").st_size == 32
        file.write(b"last\n")
        assert os.getxattr(mnt / "log", "gfs.append.offset") == b"32"
    assert (mnt / "log").read_text() == "line1\nline2\nline3\nthrough xattr\nlast\n"


def test_an_append_longer_than_a_record_may_be_is_refused_whole(mnt: Path) -> None:
    with open(mnt / "log", "ab", buffering=0) as file:
        assert error_of(file.write, b"x" * 300_000) == errno.EMSGSIZE
        content = os.urandom(256 * 1024)
        assert file.write(content) == len(content)
    assert (mnt / "log").read_bytes() == content


def test_growing_file_is_read_to_its_new_end(mnt: Path) -> None:
    (mnt / "log").write_bytes(b"")
    with open(mnt / "log", "rb", buffering=0) as reader:
        expected = b""
        for number in range(50):
            record = b"record %d;" % number
            os.setxattr(mnt / "log", "gfs.append", record)
            expected += record
            assert reader.read(100) == record
        assert os.pread(reader.fileno(), 10_000, 0) == expected


def test_special_attributes(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"123")
    os.setxattr(mnt / "f", "user.colour", b"blue")
    assert os.listxattr(mnt / "f") == ["user.colour"]
    assert json.loads(os.getxattr(mnt, "gfs.mount_info"))["known_inodes"] >= 1
    assert b'"length": 3' in os.getxattr(mnt / "f", "gfs.fileinfo")
    os.setxattr(mnt / "f", "gfs.replication", b"2")
    assert os.getxattr(mnt / "f", "gfs.replication") == b"2"
    os.setxattr(mnt / "f", "gfs.snapshot", b"/copy")
    assert (mnt / "copy").read_bytes() == b"123"
    assert error_of(os.setxattr, mnt / "f", "gfs.snapshot", b"/copy") == errno.EEXIST
    assert error_of(os.setxattr, mnt / "f", "gfs.snapshot", b"copy") == errno.EINVAL
    assert error_of(os.setxattr, mnt / "f", "gfs.snapshot", b"/no/copy") == errno.ENOENT
    assert error_of(os.setxattr, mnt / "f", "gfs.append", b"") == errno.EINVAL
    assert error_of(os.setxattr, mnt, "gfs.append", b"x") == errno.EISDIR
    assert error_of(os.setxattr, mnt / "f", "gfs.replication", b"0") == errno.EINVAL
    assert error_of(os.setxattr, mnt / "f", "gfs.nonsense", b"1") == errno.EOPNOTSUPP
    assert error_of(os.getxattr, mnt / "f", "gfs.append.offset") == errno.ENODATA
    assert error_of(os.getxattr, mnt / "f", "user.none") == errno.ENODATA
    assert error_of(os.setxattr, mnt / "f", "user.colour", b"x", os.XATTR_CREATE) == errno.EEXIST


def test_special_files_and_links(mnt: Path) -> None:
    os.mkfifo(mnt / "fifo", 0o600)
    os.symlink("x" * 4095, mnt / "long")
    assert os.readlink(mnt / "long") == "x" * 4095
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(mnt)  # a socket's path is short
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
    if os.geteuid() == 0:
        os.mknod(mnt / "device", stat.S_IFCHR | 0o644, os.makedev(1, 3))
        assert os.stat(mnt / "device").st_rdev == os.makedev(1, 3)
    assert stat.S_ISFIFO(os.stat(mnt / "fifo").st_mode) and stat.S_ISSOCK(os.stat(mnt / "socket").st_mode)
    assert os.path.exists(os.fsencode(mnt) + b"/\xff") is False
    (Path(os.fsdecode(os.fsencode(mnt) + b"/\xff\xfe"))).write_bytes(b"1")
    assert b"\xff\xfe" in os.listdir(os.fsencode(mnt))


def test_errnos(mnt: Path) -> None:
    (mnt / "d/e").mkdir(parents=True)
    (mnt / "f").touch()
    assert error_of(os.rmdir, mnt / "d") == errno.ENOTEMPTY
    assert error_of(os.mkdir, mnt / "d") == errno.EEXIST
    assert error_of(os.unlink, mnt / "d") == errno.EISDIR
    assert error_of(os.stat, mnt / "none") == errno.ENOENT
    assert error_of(os.stat, mnt / "f/x") == errno.ENOTDIR
    assert error_of(os.stat, mnt / ("n" * 256)) == errno.ENAMETOOLONG
    assert error_of(os.open, mnt / "f", os.O_CREAT | os.O_EXCL) == errno.EEXIST
    assert error_of(os.link, mnt / "d", mnt / "dd") == errno.EPERM


def test_unlinked_file_stays_usable_while_open(mnt: Path) -> None:
    with open(mnt / "f", "w+b", buffering=0) as file:
        file.write(b"before")
        os.unlink(mnt / "f")
        file.write(b" after")
        file.seek(0)
        assert file.read() == b"before after"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert os.listdir(mnt) == []


def test_sizes_times_and_modes(mnt: Path) -> None:
    path = mnt / "f"
    path.write_bytes(b"123456")
    os.truncate(path, 3)
    assert path.read_bytes() == b"123"
    os.truncate(path, 1_000_000)
    assert path.read_bytes() == b"123" + bytes(999_997)
    with open(path, "r+b") as file:
        file.truncate(5)
    assert os.stat(path).st_size == 5
    os.utime(path, ns=(1_000_000_001, -1_500_000_000))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (1_000_000_001, -1_500_000_000)
    os.utime(path, ns=(10**20, -(10**20)))  # as far as 64 bits of nanoseconds go
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == ((1 << 63) - 1, -(1 << 63))
    os.chmod(path, 0o4755)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o4755
    with open(path, "w"):
        pass
    assert os.stat(path).st_size == 0
    assert os.stat(path).st_blksize == 1024 * 1024


def test_what_another_client_removed_or_changed_is_not_shown_from_a_cache(mnt: Path) -> None:
    (mnt / "f").write_bytes(b"old")
    (mnt / "g").write_bytes(b"old")
    assert (mnt / "f").read_bytes() == b"old" and (mnt / "g").exists()
    os.setxattr(mnt / "f", "user.elsewhere", b"new and longer")
    assert os.stat(mnt / "f").st_size == 14
    assert (mnt / "f").read_bytes() == b"new and longer"
    (mnt / "d").mkdir()
    (mnt / "d/x").touch()
    assert (mnt / "d/x").exists()
    os.setxattr(mnt / "f", "user.elsewhere", b"remove %d x" % os.stat(mnt / "d").st_ino)
    assert not (mnt / "d/x").exists()


def test_large_directory_is_complete_while_it_changes(mnt: Path) -> None:
    for number in range(2500):
        os.close(os.open(mnt / f"keep{number:05}", os.O_CREAT | os.O_WRONLY))
    names = []
    with os.scandir(mnt) as entries:
        for count, entry in enumerate(entries):
            names.append(entry.name)
            if count % 100 == 0:
                (mnt / f"new{count}").touch()
                (mnt / f"new{count}").unlink()
    kept = [name for name in names if name.startswith("keep")]
    assert len(kept) == len(set(kept)) == 2500
    shell("rm -rf keep*", mnt)
    assert os.listdir(mnt) == []


def test_df_and_mountinfo(mount: MountProcess) -> None:
    space = os.statvfs(mount.path)
    assert space.f_blocks * space.f_frsize == 1 << 40 and space.f_namemax == 255
    mounted = kernel.find_mount(str(mount.path))
    assert mounted is not None and (mounted.kind, mounted.source) == ("fuse.gfs", "127.0.0.1:1")
    if os.access(f"/sys/class/bdi/0:{mounted.minor}/read_ahead_kb", os.W_OK):
        assert Path(f"/sys/class/bdi/0:{mounted.minor}/read_ahead_kb").read_text() == "4096\n"


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_unmounts_and_exits_well(tmp_path: Path, busy: bool) -> None:
    with mount_process(tmp_path) as mount:
        holder = os.open(mount.path / "f", os.O_CREAT | os.O_WRONLY) if busy else None
        try:
            mount.process.send_signal(signal.SIGTERM)
            assert mount.wait() == 0, mount.log.read_text()
        finally:
            if holder is not None:
                with contextlib.suppress(OSError):
                    os.close(holder)
        assert kernel.find_mount(str(mount.path)) is None
        assert "Traceback" not in mount.log.read_text()


def test_a_mount_through_a_link_is_a_mount_like_others(tmp_path: Path) -> None:
    directory, link = tmp_path / "mnt", tmp_path / "link"
    link.symlink_to("mnt")
    with mount_process(tmp_path, link=link) as mount:
        expected = kernel.find_mount(str(directory))
        assert expected is not None
        assert mounts.mounted_at(str(link)) == kernel.find_mount(str(link)) == expected
        mount.process.send_signal(signal.SIGTERM)
        assert mount.wait() == 0
        assert "unmount_busy" not in mount.log.read_text()


def test_unmount_from_outside_ends_the_process(tmp_path: Path) -> None:
    with mount_process(tmp_path, "ro") as mount:
        assert error_of(os.mkdir, mount.path / "d") == errno.EROFS
        assert kernel.unmount(str(mount.path))
        assert mount.wait() == 0
        assert "Traceback" not in mount.log.read_text()
