"""Deleted files through a mount and the command line: found, restored, and gone from the disks in the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest
from harness import GFS, Cluster, local_cluster, run, wait_until

DATA = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with local_cluster(tmp_path_factory.mktemp("trash") / "var", chunk_size="1MiB", trash_seconds=3600) as running:
        yield running


def trash_ls(cluster: Cluster, *where: object) -> list[dict]:
    return json.loads(cluster.gfs("trash", "ls", *where, "--json").stdout)


def chunk_count(cluster: Cluster) -> int:
    return sum(server["chunks"] for server in cluster.status()["chunkservers"])


def test_retention_zero_and_emptying_free_the_disks(cluster: Cluster) -> None:
    directory = cluster.mount / "scratch"
    directory.mkdir()
    cluster.gfs("set", directory, "trash_seconds=0")
    (directory / "big").write_bytes(DATA)
    (cluster.mount / "kept").write_bytes(DATA)
    os.sync()
    wait_until(lambda: chunk_count(cluster) == 18, "two files of three chunks on three servers")
    os.unlink(directory / "big")
    os.unlink(cluster.mount / "kept")
    wait_until(lambda: chunk_count(cluster) == 9, "the space of what is not kept")
    wait_until(lambda: cluster.status()["master"]["trash_bytes"] == len(DATA), "the length to be committed")
    assert cluster.status()["master"]["trash_files"] == 1
    assert "nothing" in cluster.gfs("trash", "restore", cluster.mount / "never", check=False).stderr
    assert cluster.gfs("trash", "empty", "--older-than", 1000).stdout.startswith("reclaimed 0 ")
    assert cluster.gfs("trash", "empty").stdout.startswith("reclaimed 1 deleted file")
    wait_until(lambda: chunk_count(cluster) == 0, "the space of the emptied trash")
    assert run(GFS, "trash", "ls", env=dict(os.environ, GFS_MASTER=cluster.master_address())).stdout == ""


def test_a_deleted_file_is_read_and_restored(cluster: Cluster) -> None:
    path = cluster.mount / "report"
    path.write_bytes(DATA)
    os.unlink(path)
    assert not path.exists() and ".trash" not in os.listdir(cluster.mount)
    (row,) = trash_ls(cluster, path)
    assert set(row) == {"name", "path", "inode", "size", "deleted", "expires"}
    assert (row["path"], row["size"]) == ("/report", len(DATA))
    assert row["expires"] - row["deleted"] == pytest.approx(3600)
    inside = cluster.mount / ".trash" / row["name"]
    assert row["name"] in os.listdir(cluster.mount / ".trash") and inside.read_bytes() == DATA
    assert path.name in cluster.gfs("trash", "restore", path).stdout
    assert path.read_bytes() == DATA and not inside.exists()
    os.unlink(path)
    path.write_bytes(b"another")
    done = cluster.gfs("trash", "restore", path, check=False)
    assert done.returncode == 1 and "exists already" in done.stderr and done.stderr.count("\n") == 1
    (row,) = trash_ls(cluster, path)
    cluster.gfs("trash", "restore", row["name"], "--to", cluster.mount / "old" / "report.1")
    assert (cluster.mount / "old/report.1").read_bytes() == DATA and path.read_bytes() == b"another"


def test_the_trash_is_read_moved_out_of_and_deleted_in_but_not_written(cluster: Cluster) -> None:
    path = cluster.mount / "plain"
    path.write_bytes(b"plain")
    os.unlink(path)
    (row,) = trash_ls(cluster, path)
    trash = cluster.mount / ".trash"
    inside = trash / row["name"]
    for refused in (
        lambda: open(inside, "r+b").close(),
        lambda: os.truncate(inside, 0),
        lambda: os.chmod(inside, 0o777),
        lambda: (trash / "new").touch(),
        lambda: (trash / "new").mkdir(),
        lambda: os.rename(inside, trash / "other"),
        lambda: os.rename(cluster.mount / "report", trash / "report"),
        lambda: (cluster.mount / ".trash").rmdir(),
    ):
        with pytest.raises(PermissionError):
            refused()
    run("mv", inside, path)
    assert path.read_bytes() == b"plain"
    os.unlink(path)
    (row,) = trash_ls(cluster, path)
    os.unlink(trash / row["name"])
    assert trash_ls(cluster, path) == []


def test_an_open_file_stays_whole_and_other_mounts_see_the_deletion(cluster: Cluster) -> None:
    other = cluster.second_mount()
    path = cluster.mount / "open"
    path.write_bytes(b"0123456789")
    with open(other / "open", "r+b", buffering=0) as file:
        os.unlink(path)
        assert not (other / "open").exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        cluster.gfs("trash", "empty", path)
        assert trash_ls(cluster, path) == []
        file.write(b"abc")
        file.seek(0)
        assert file.read() == b"abc3456789"
    path.write_bytes(b"again")
    with open(other / "open", "r+b", buffering=0) as file:
        os.unlink(path)
        file.write(b"Still here")
    (row,) = trash_ls(cluster, path)
    assert run("cat", other / ".trash" / row["name"]).stdout == "Still here" and row["size"] == 10


def test_a_removed_tree_comes_back_with_the_latest_of_each(cluster: Cluster) -> None:
    tree = cluster.mount / "tree"
    for number in range(3):
        (tree / f"d{number}").mkdir(parents=True)
        (tree / f"d{number}" / "file").write_bytes(b"old %d" % number)
    os.symlink("d0/file", tree / "link")
    os.unlink(tree / "d1/file")
    (tree / "d1/file").write_bytes(b"new 1")
    shutil.rmtree(tree)
    cluster.gfs("restart", "--root", cluster.root, "master")
    cluster.gfs("trash", "restore", tree)
    assert [(tree / f"d{number}" / "file").read_bytes() for number in range(3)] == [b"old 0", b"new 1", b"old 2"]
    assert (tree / "link").read_bytes() == b"old 0"
    assert [row["path"] for row in trash_ls(cluster, tree)] == ["/tree/d1/file"]
    shutil.rmtree(tree)
    cluster.gfs("trash", "restore", tree, "--to", cluster.mount / "copy")
    assert (cluster.mount / "copy/d2/file").read_bytes() == b"old 2" and not tree.exists()
