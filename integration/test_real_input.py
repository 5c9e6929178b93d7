"""Real data through the mount with ordinary tools, and what is left of it after every process was killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, drop_caches, local_cluster, run, take_down

MIB = 1024 * 1024
SOURCE = Path(sysconfig.get_path("stdlib"))
LARGE_FILE_BYTES = 1024 * MIB


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with local_cluster(tmp_path_factory.mktemp("real") / "var", chunk_size="64MiB") as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The running Python's library, without what this machine added to it."""
    copy = tmp_path_factory.mktemp("source") / "lib"
    shutil.copytree(
        SOURCE, copy, symlinks=True, ignore=shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__")
    )
    return copy


def digest(path: Path) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(MIB):
            sha.update(piece)
    return sha.hexdigest()


def test_copy_a_tree_and_compare(cluster: Cluster, source: Path) -> None:
    target = cluster.mount / "lib"
    run("cp", "-a", source, target, seconds=600)
    drop_caches()
    run("diff", "-r", "--no-dereference", source, target, seconds=600)


def test_rsync_finds_nothing_to_do_the_second_time(cluster: Cluster, source: Path) -> None:
    small = source / "asyncio"
    run("rsync", "-a", f"{small}/", cluster.mount / "synced/", seconds=300)
    for mount in (cluster.mount, cluster.second_mount()):  # whoever did not write it sees the same times
        again = run("rsync", "-a", "--itemize-changes", f"{small}/", mount / "synced/", seconds=300)
        assert again.stdout == ""


def test_tar_out_and_in(cluster: Cluster, source: Path) -> None:
    archive = cluster.mount / "email.tar"
    run("tar", "cf", archive, "-C", source, "email", seconds=300)
    (cluster.mount / "unpacked").mkdir()
    run("tar", "xf", archive, "-C", cluster.mount / "unpacked", seconds=300)
    run("diff", "-r", source / "email", cluster.mount / "unpacked/email", seconds=300)


def test_git_clone_check_and_commit(cluster: Cluster, source: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    environment = dict(os.environ, HOME=str(tmp_path), GIT_CONFIG_NOSYSTEM="1")
    identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org", "-c", "safe.directory=*"]

    def git(*arguments: object) -> subprocess.CompletedProcess:
        return run("git", *identity, *arguments, env=environment, seconds=300)

    shutil.copytree(source / "json", origin)
    git("-C", origin, "init", "-q", "-b", "main")
    git("-C", origin, "add", ".")
    git("-C", origin, "commit", "-q", "-m", "first")
    clone = cluster.mount / "clone"
    git("clone", "-q", "--no-hardlinks", origin, clone)
    git("-C", clone, "fsck", "--full", "--strict")
    (clone / "new.txt").write_text("a line\n")
    git("-C", clone, "add", "new.txt")
    git("-C", clone, "commit", "-q", "-m", "second")
    assert git("-C", clone, "status", "--porcelain").stdout == ""
    assert len(git("-C", clone, "log", "--oneline").stdout.splitlines()) == 2
    git("-C", clone, "gc", "-q")
    git("-C", clone, "fsck", "--full", "--strict")


def test_a_large_file_survives_caches_remount_and_the_death_of_every_process(cluster: Cluster) -> None:
    path = cluster.mount / "large"
    sha = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        for _ in range(LARGE_FILE_BYTES // MIB):
            piece = os.urandom(MIB)
            sha.update(piece)
            assert file.write(piece) == MIB
    want = sha.hexdigest()
    drop_caches()
    assert digest(path) == want, "after dropping caches"
    cluster.gfs("restart", "--root", cluster.root, "mount")
    assert digest(path) == want, "after a remount"
    cluster.kill_all()
    take_down(cluster.mount)
    cluster.up()
    assert digest(path) == want, "after kill -9 of every process"
    done = cluster.gfs("fsck", path, "--json")
    assert '"problems": []' in done.stdout or '"problems":[]' in done.stdout
    path.unlink()
