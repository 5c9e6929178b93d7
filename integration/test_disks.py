"""Disks that fill up, and one that returns errors, under real servers."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from disks import faulty_disk, missing_faulty, missing_loop, small_disk
from harness import drop_caches, wait_until
from roles import role_cluster

MIB = 1024 * 1024
FILES_MAX = 400
AGAIN_SECONDS = 60.0


@pytest.fixture
def loop_disks(tmp_path: Path) -> None:
    if reason := missing_loop(tmp_path):
        pytest.skip(reason)


def write_until_refused(mount: Path, size: int) -> tuple[dict[Path, bytes], int]:
    """Files of `size` bytes until one is refused: the acknowledged ones, and the errno."""
    written: dict[Path, bytes] = {}
    for number in range(FILES_MAX):
        path, data = mount / f"file{number}", random.Random(number).randbytes(size)
        try:
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            return written, error.errno or 0
        written[path] = data
    return written, 0


def works(path: Path) -> bool:
    try:
        path.write_bytes(b"works again")
    except OSError:
        return False
    return path.read_bytes() == b"works again"


@pytest.mark.usefixtures("loop_disks")
def test_a_full_chunkserver_is_enospc_and_frees_itself(tmp_path: Path) -> None:
    root = tmp_path / "var"
    with (
        small_disk(root / "cs1", 40),
        role_cluster(root, chunkservers=1, replication=1, mount_options="timeout=30") as cluster,
    ):
        mount = cluster.path("mnt1")
        written, refused = write_until_refused(mount, MIB)
        assert refused == errno.ENOSPC, os.strerror(refused)
        assert len(written) > 10
        drop_caches()
        for path, data in written.items():
            assert path.read_bytes() == data
        for path in list(written)[:10]:
            cluster.gfs("set", path, "trash_seconds=0", check=False)
            path.unlink()
        wait_until(lambda: works(mount / "again"), "room to be found again", AGAIN_SECONDS)
        for path in list(written)[10:]:
            assert path.read_bytes() == written[path]


@pytest.mark.usefixtures("loop_disks")
def test_one_full_chunkserver_of_four_is_noticed_by_nobody(tmp_path: Path) -> None:
    root = tmp_path / "var"
    with small_disk(root / "cs1", 24), role_cluster(root, chunkservers=4) as cluster:
        mount = cluster.path("mnt1")
        for number in range(40):
            path, data = mount / f"file{number}", random.Random(number).randbytes(MIB)
            path.write_bytes(data)
            assert path.read_bytes() == data
        assert cluster.running("cs1")


@pytest.mark.usefixtures("loop_disks")
def test_a_full_master_is_enospc_and_recovers(tmp_path: Path) -> None:
    root = tmp_path / "var"
    with small_disk(root / "master", 64), role_cluster(root, chunkservers=3) as cluster:
        mount = cluster.path("mnt1")
        (mount / "before").write_bytes(b"before")
        filler = root / "master" / "filler"
        with open(filler, "wb") as file:
            space = os.statvfs(root / "master")
            os.posix_fallocate(file.fileno(), 0, (space.f_bavail - 4) * space.f_frsize)
        refused = 0
        for number in range(20_000):
            try:
                os.mkdir(mount / f"{number:0200d}")
            except OSError as error:
                refused = error.errno or 0
                break
        assert refused == errno.ENOSPC, os.strerror(refused)
        assert cluster.running("master")
        assert (mount / "before").read_bytes() == b"before"
        filler.unlink()
        wait_until(lambda: works(mount / "after"), "the master to take changes again", AGAIN_SECONDS)
        assert len(os.listdir(mount)) == number + 2


def test_a_chunkserver_whose_disk_returns_errors_is_noticed_by_nobody(tmp_path: Path) -> None:
    if reason := missing_faulty(tmp_path):
        pytest.skip(reason)
    root = tmp_path / "var"
    with faulty_disk(root / "cs1", 128) as disk, role_cluster(root, chunkservers=4) as cluster:
        mount = cluster.path("mnt1")
        written = {}
        for number in range(20):
            path = mount / f"file{number}"
            written[path] = random.Random(number).randbytes(300_000)
            path.write_bytes(written[path])
        os.sync()
        drop_caches()
        disk.fail()
        for path, data in written.items():
            assert path.read_bytes() == data
        for number in range(20):
            path = mount / f"new{number}"
            written[path] = random.Random(number).randbytes(300_000)
            path.write_bytes(written[path])
        for path, data in written.items():
            assert path.read_bytes() == data
        assert cluster.running("master")
