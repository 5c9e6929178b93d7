"""Full and damaged disks under real processes: ENOSPC and no more, one-line refusals, and nothing lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import GFS, Cluster, local_cluster, run, wait_until

MIB = 1024 * 1024


@contextlib.contextmanager
def small_disk(where: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system of `size` at `where`, in memory; yields what gives it another size."""
    where.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(where)], capture_output=True, text=True, timeout=20
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield lambda new: run("mount", "-o", f"remount,size={new}", where)
    finally:
        subprocess.run(["umount", "-l", str(where)], timeout=20, check=False)


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    try:
        call(*arguments)
    except OSError as error:
        return error.errno or 0
    return 0


def refused(*arguments: object, words: tuple[str, ...], seconds: float = 60) -> None:
    """Exit status 1 and one line on stderr that has all `words`."""
    done = run(GFS, *arguments, check=False, seconds=seconds)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if "level=" not in line]  # roles log beside it
    assert len(lines) == 1 and all(word in lines[0] for word in words), done.stderr


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gfs-"))
    yield path / "var"
    shutil.rmtree(path, ignore_errors=True)


def fill(directory: Path) -> int:
    """Files of 1 MiB until there is no room; how many were written whole."""
    for number in range(200):
        try:
            with open(directory / f"fill{number}", "wb") as file:
                file.write(bytes([number]) * MIB)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
            return number
    raise AssertionError("the disks never got full")


def test_chunkservers_that_fill_up(root: Path) -> None:
    with contextlib.ExitStack() as disks:
        for number in (1, 2, 3):
            disks.enter_context(small_disk(root / f"cs{number}", "24m"))
        with local_cluster(root, chunk_size="1MiB") as cluster:
            (cluster.mount / "kept").write_bytes(b"kept")
            count = fill(cluster.mount)
            assert 10 <= count <= 24
            for number in range(count):
                assert (cluster.mount / f"fill{number}").read_bytes() == bytes([number]) * MIB
            space = os.statvfs(cluster.mount)
            assert space.f_bavail * space.f_frsize < 2 * MIB
            assert {server["state"] for server in cluster.status()["chunkservers"]} == {"up"}
            for number in range(count + 1):
                (cluster.mount / f"fill{number}").unlink()

            def room() -> bool:
                space = os.statvfs(cluster.mount)
                return space.f_bavail * space.f_frsize > 5 * MIB

            cluster.gfs("trash", "empty", check=False)  # where deleted files are kept for a while
            wait_until(room, "the space of deleted files")
            (cluster.mount / "again").write_bytes(b"a" * MIB)
            assert (cluster.mount / "again").read_bytes() == b"a" * MIB
            assert (cluster.mount / "kept").read_bytes() == b"kept"


def test_a_master_that_fills_up(root: Path) -> None:
    with small_disk(root / "master", "8m") as resize, local_cluster(root, chunk_size="1MiB") as cluster:
        kept = cluster.mount / "kept"
        kept.write_bytes(b"kept")
        (cluster.mount / "gone").touch()
        for size in (60_000, 500, 1):
            found = 0
            for number in range(2000):
                found = errno_of(os.setxattr, kept, "user.x", bytes([number % 251]) * size)
                if found:
                    break
            assert found == errno.ENOSPC
        assert errno_of((cluster.mount / "new").mkdir) == errno.ENOSPC
        assert kept.read_bytes() == b"kept"
        assert "gone" in os.listdir(cluster.mount)
        (cluster.mount / "gone").unlink()
        assert cluster.process("master")["state"] in ("running", "up")
        resize("64m")
        wait_until(lambda: errno_of(lambda: (cluster.mount / "new").mkdir(exist_ok=True)) == 0, "room at the master")
        cluster.kill("master")
        cluster.up()
        assert sorted(os.listdir(cluster.mount)) == ["kept", "new"]
        assert len(os.getxattr(kept, "user.x")) in (1, 500, 60_000)


@pytest.fixture
def stopped(root: Path) -> Iterator[Cluster]:
    """A cluster with a file, its master killed."""
    with local_cluster(root, chunk_size="1MiB", chunkservers=1, replication=1) as cluster:
        for number in range(5):
            (cluster.mount / f"d{number}").mkdir()
        cluster.kill("master")
        yield cluster


def segment(cluster: Cluster) -> Path:
    return max((cluster.root / "master").rglob("segment-*.log"))


def test_a_flipped_byte_in_the_last_record_of_the_log_is_refused(stopped: Cluster) -> None:
    path = segment(stopped)
    data = bytearray(path.read_bytes())
    original = bytes(data)
    data[len(data.rstrip(b"\0")) - 40] ^= 4
    path.write_bytes(data)
    config = stopped.root / "config" / "master.toml"
    refused("master", "--config", config, words=(str(path), "at byte", "restore"))
    path.write_bytes(original)
    stopped.up()
    assert sorted(os.listdir(stopped.mount)) == [f"d{number}" for number in range(5)]


def test_a_state_of_another_version_and_a_log_that_was_cut_are_refused(stopped: Cluster) -> None:
    path = segment(stopped)
    original = path.read_bytes()
    config = stopped.root / "config" / "master.toml"
    path.write_bytes(original[: len(original.rstrip(b"\0")) - 100])
    refused("master", "--config", config, words=(str(path), "damaged", "restore"))
    path.write_bytes(original[:4096])
    refused("master", "--config", config, words=(str(path), "cut to 4096 bytes"))
    path.unlink()
    path.with_name("segment-00000000000000000007.log").write_bytes(original)
    refused("master", "--config", config, words=("renamed",))


def test_directories_of_chunkservers_that_are_in_use_copied_or_wiped(root: Path, tmp_path: Path) -> None:
    with local_cluster(root, chunk_size="1MiB", chunkservers=1, replication=1) as cluster:
        (cluster.mount / "file").write_bytes(b"data")
        config = next((root / "config").glob("cs*.toml"))
        name = config.stem
        refused("chunkserver", "--config", config, words=("in use by another chunkserver",))
        shutil.copytree(root / name, tmp_path / "copy")
        lines = [line for line in config.read_text().splitlines() if not line.startswith(("port", "control", "dir"))]
        other = tmp_path / "copy.toml"
        other.write_text("\n".join([*lines, "port = 0", f'directory = "{tmp_path / "copy"}"']) + "\n")
        refused("chunkserver", "--config", other, words=("is alive at", "copy"))
        cluster.gfs("stop", "--root", root, name)
        identity = (root / name / "identity").read_bytes()
        (root / name / "identity").unlink()
        refused("chunkserver", "--config", config, words=("'identity'", "empty directory"))
        (root / name / "identity").write_bytes(identity)
        cluster.up()
        assert (cluster.mount / "file").read_bytes() == b"data"
