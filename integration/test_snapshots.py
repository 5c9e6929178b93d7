"""Snapshots through the mount: instant, without space, and both sides apart afterwards, at every depth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, local_cluster

FILES = 10_000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with local_cluster(tmp_path_factory.mktemp("snap") / "var", chunk_size="1MiB") as running:
        yield running


def snapshot(source: Path, target: Path, mount: Path) -> None:
    os.setxattr(source, "gfs.snapshot", b"/" + bytes(target.relative_to(mount)))


def used_bytes(cluster: Cluster) -> int:
    """What the chunk files of all servers take on the disk."""
    total = 0
    for base, _, names in os.walk(cluster.root):
        if "chunks" in base:
            total += sum(os.stat(os.path.join(base, name)).st_blocks * 512 for name in names)
    return total


def test_ten_thousand_files(cluster: Cluster) -> None:
    source = cluster.mount / "many"
    source.mkdir()
    for number in range(FILES):
        (source / f"f{number}").write_bytes(b"%d" % number)
    os.sync()
    before = used_bytes(cluster)
    assert before >= FILES * 4096, "the chunk files were not found"
    snapshot(source, cluster.mount / "copy", cluster.mount)
    assert used_bytes(cluster) == before
    assert len(os.listdir(cluster.mount / "copy")) == FILES
    for number in range(0, FILES, 997):
        assert (cluster.mount / f"copy/f{number}").read_bytes() == b"%d" % number
    (source / "f1").write_bytes(b"changed")
    (source / "new").write_bytes(b"new")
    (cluster.mount / "copy/f2").unlink()
    assert (cluster.mount / "copy/f1").read_bytes() == b"1"
    assert not (cluster.mount / "copy/new").exists()
    assert (source / "f2").read_bytes() == b"2"


def test_snapshots_of_snapshots_differ_where_they_were_written(cluster: Cluster) -> None:
    base = os.urandom(3 * cluster.chunk_bytes // 2)
    (cluster.mount / "d0").mkdir()
    (cluster.mount / "d0/file").write_bytes(base)
    want = {0: bytearray(base)}
    for depth in range(1, 6):
        snapshot(cluster.mount / f"d{depth - 1}", cluster.mount / f"d{depth}", cluster.mount)
        want[depth] = bytearray(want[depth - 1])
        for side in (depth, depth - 1):
            with open(cluster.mount / f"d{side}/file", "r+b", buffering=0) as file:
                for offset in (depth * 1000, cluster.chunk_bytes + depth * 1000):
                    mark = b"[depth %d side %d]" % (depth, side)
                    file.seek(offset)
                    file.write(mark)
                    want[side][offset : offset + len(mark)] = mark
    for depth, data in want.items():
        assert (cluster.mount / f"d{depth}/file").read_bytes() == data, f"depth {depth}"


def test_an_open_writer_and_an_appender_go_on_after_a_snapshot(cluster: Cluster) -> None:
    path = cluster.mount / "open"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"before")
    log = os.open(cluster.mount / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(log, b"one\n")
    snapshot(path, cluster.mount / "open-copy", cluster.mount)
    snapshot(cluster.mount / "log", cluster.mount / "log-copy", cluster.mount)
    os.write(descriptor, b"after")
    os.write(log, b"two\n")
    os.close(descriptor)
    os.close(log)
    assert path.read_bytes() == b"beforeafter"
    assert (cluster.mount / "open-copy").read_bytes() == b"before"
    assert (cluster.mount / "log").read_bytes() == b"one\ntwo\n"
    assert (cluster.mount / "log-copy").read_bytes() == b"one\n"


def test_snapshot_errors(cluster: Cluster) -> None:
    (cluster.mount / "dir").mkdir()
    with pytest.raises(FileExistsError):
        snapshot(cluster.mount / "dir", cluster.mount / "dir", cluster.mount)
    with pytest.raises(OSError, match="Invalid argument"):
        snapshot(cluster.mount / "dir", cluster.mount / "dir/inside", cluster.mount)
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(cluster.mount / "dir", "gfs.snapshot", b"relative/path")
    with pytest.raises(FileNotFoundError):
        os.setxattr(cluster.mount / "dir", "gfs.snapshot", b"/no/such/parent/copy")


def test_the_command_line_does_the_same(cluster: Cluster) -> None:
    (cluster.mount / "tree/sub").mkdir(parents=True)
    (cluster.mount / "tree/sub/file").write_text("text")
    cluster.gfs("snapshot", cluster.mount / "tree", cluster.mount / "tree2")
    cluster.gfs("cp", "--reflink", "-r", cluster.mount / "tree", cluster.mount / "tree3")
    for copy in ("tree2", "tree3"):
        assert (cluster.mount / copy / "sub/file").read_text() == "text"
