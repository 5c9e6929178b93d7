"""The real disk, on a real directory: what servers rely on."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from gfscore.env.real_disk import RealDisk


def test_reads_stop_at_the_end_and_writes_are_whole(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    file = disk.open("f", create=True)
    file.pwrite(b"x" * 10_000, 3)
    assert file.size() == 10_003
    assert file.pread(5, 10_000) == b"xxx"
    buffer = bytearray(8)
    assert file.pread_into(memoryview(buffer), 10_001) == 2
    assert file.pread(4, 0) == b"\0\0\0x"
    file.truncate(4)
    file.fdatasync()
    assert file.pread(100, 0) == b"\0\0\0x"
    file.close()
    file.close()


def test_direct_file_reads_its_unaligned_end(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    plain = disk.open("f", create=True)
    plain.pwrite(b"y" * 5000, 0)
    plain.fdatasync()
    direct = disk.open("f", direct=True)
    with mmap.mmap(-1, 16384) as buffer, memoryview(buffer) as view:
        assert direct.pread_into(view, 0) == 5000
        assert view[:5000] == b"y" * 5000
        direct.pwrite(view[:4096], 8192)
    assert plain.pread(4096, 8192) == b"y" * 4096
    direct.close()
    plain.close()


def test_a_file_system_without_o_direct_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("no tmpfs")
    root = Path("/dev/shm") / f"real-disk-{os.getpid()}"
    disk = RealDisk(root)
    try:
        # Newer kernels have O_DIRECT on tmpfs; either way both opens work.
        for name in ("a", "b"):
            file = disk.open(name, create=True, exclusive=True, direct=True)
            file.pwrite(memoryview(mmap.mmap(-1, 4096)), 0)
            assert file.size() == 4096
            file.close()
        assert len(caplog.records) == (0 if file.direct else 1)
    finally:
        disk.unlink("a")
        disk.unlink("b")
        root.rmdir()


def test_copy_names_and_exclusive_creation(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path / "made" / "by" / "it")
    disk.mkdir("a/b")
    disk.mkdir("a/b")
    source = disk.open("a/b/one", create=True, exclusive=True)
    with pytest.raises(FileExistsError):
        disk.open("a/b/one", create=True, exclusive=True)
    with pytest.raises(FileNotFoundError):
        disk.open("a/none")
    source.pwrite(os.urandom(3_000_000), 0)
    target = disk.open("a/two", create=True)
    source.copy_to(target, 2_500_000)
    assert target.pread(3_000_000, 0) == source.pread(2_500_000, 0)
    with pytest.raises(OSError, match="ends at 3000000"):
        source.copy_to(target, 3_000_001)
    disk.rename("a/two", "a/b/three")
    disk.sync_directory("a/b")
    assert sorted(disk.listdir("a/b")) == ["one", "three"]
    disk.unlink("a/b/one")
    assert not disk.exists("a/b/one")
    total, free = disk.space()
    assert 0 < free <= total
    assert disk.real_path("a") == str(tmp_path / "made/by/it/a")


def test_a_lock_keeps_others_out_until_closed(tmp_path: Path) -> None:
    lock = RealDisk(tmp_path).lock("lock")
    with pytest.raises(BlockingIOError):
        RealDisk(tmp_path).lock("lock")
    lock.close()
    RealDisk(tmp_path).lock("lock").close()
