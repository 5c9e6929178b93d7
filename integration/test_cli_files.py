"""Every file command of `gfs` on a running cluster, by path and by gfs:// address, against what the mount shows."""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path

import pytest
from harness import GFS, Cluster, run, wait_until


def failing(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """A command that must fail with status 1 and one line; the completed process."""
    done = run(GFS, *arguments, check=False, **options)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    return done


@pytest.fixture
def base(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    path = cluster.mount / request.node.name
    path.mkdir()
    return path


def address(cluster: Cluster, path: Path) -> str:
    return f"gfs://{cluster.master_address()}/{path.relative_to(cluster.mount)}"


def test_put_cat_get_bring_the_same_bytes_back(cluster: Cluster, base: Path, tmp_path: Path) -> None:
    data = random.Random(5).randbytes(2_500_001)  # three chunks
    (tmp_path / "in").write_bytes(data)
    run(GFS, "put", tmp_path / "in", base)
    assert (base / "in").read_bytes() == data
    run(GFS, "get", address(cluster, base / "in"), tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    shown = subprocess.run([GFS, "cat", base / "in"], capture_output=True, timeout=60, check=True).stdout
    assert shown == data
    with open(tmp_path / "in", "rb") as stream:
        subprocess.run([GFS, "put", "-", address(cluster, base / "piped")], stdin=stream, timeout=60, check=True)
    assert (base / "piped").read_bytes() == data
    (tmp_path / "in").write_bytes(b"shorter")
    run(GFS, "put", tmp_path / "in", base / "piped")
    assert (base / "piped").read_bytes() == b"shorter"


def test_trees_go_in_and_out_whole(base: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "b" / "file").write_bytes(b"x" * 70_000)
    (tree / "a" / "run").write_text("#!/bin/sh\n")
    (tree / "a" / "run").chmod(0o755)
    (tree / "link").symlink_to("a/run")
    (tree / "empty").touch()
    failing("put", tree, base)
    run(GFS, "put", "-r", tree, base)
    run("diff", "-r", "--no-dereference", tree, base / "tree")
    assert os.stat(base / "tree/a/run").st_mode & 0o777 == 0o755
    failing("get", base / "tree", tmp_path / "back")
    run(GFS, "get", "-r", base / "tree", tmp_path / "back")
    run("diff", "-r", "--no-dereference", tree, tmp_path / "back")
    run(GFS, "cp", "-r", base / "tree", base / "copy")
    run("diff", "-r", "--no-dereference", tree, base / "copy")


def test_listing_and_attributes(base: Path) -> None:
    (base / "dir").mkdir()
    (base / "dir/inner").write_bytes(b"12345")
    (base / "file").write_bytes(b"123")
    os.link(base / "file", base / "file2")
    assert run(GFS, "ls", base).stdout.split() == ["dir", "file", "file2"]
    assert run(GFS, "ls", "-r", base).stdout.split() == ["dir", "dir/inner", "file", "file2"]
    rows = {row["name"]: row for row in json.loads(run(GFS, "ls", base, "--json").stdout)}
    assert (rows["file"]["size"], rows["file"]["links"], rows["dir"]["type"]) == (3, 2, "directory")
    long = run(GFS, "ls", "-l", base).stdout.splitlines()
    assert long[1].startswith("drwx") and long[2].startswith("-rw-")
    found, status = json.loads(run(GFS, "stat", base / "file", "--json").stdout), os.stat(base / "file")
    assert (found["inode"], found["size"], found["mtime_ns"]) == (status.st_ino, 3, status.st_mtime_ns)
    assert "-rw-" in run(GFS, "stat", base / "file").stdout
    assert "└── file2" in run(GFS, "tree", base).stdout and "inner" in run(GFS, "tree", base).stdout
    tree = json.loads(run(GFS, "tree", base, "--json").stdout)
    assert {entry["name"] for entry in tree["entries"]} == {"dir", "file", "file2"}
    usage = json.loads(run(GFS, "du", base, "--json").stdout)
    assert (usage["bytes"], usage["files"], usage["directories"]) == (8, 2, 2)
    assert "8 B" in run(GFS, "du", "-s", base).stdout
    assert run(GFS, "ls", cwd=base).stdout == run(GFS, "ls", base).stdout


def test_names_that_are_no_text(base: Path) -> None:
    odd = os.fsencode(base) + b"/odd\xff"
    os.mkdir(odd)
    with open(odd + b"/f\xfe", "wb") as file:
        file.write(b"data")
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    for command in (["ls", "-lR"], ["tree"], ["tree", "--json"], ["du"], ["du", "--json"], ["stat"], ["fsck"]):
        assert run(GFS, *command, os.fsdecode(odd), check=False, env=strict).stderr == ""
    for command in (["ls"], ["tree"], ["du"], ["stat"], ["fileinfo"], ["fileinfo", "--json"]):
        done = run(GFS, *command, os.fsdecode(odd + b"/f\xfe"), env=strict)
        assert "xfe" in done.stdout and done.stderr == ""


def test_making_moving_removing(base: Path) -> None:
    run(GFS, "mkdir", base / "a")
    failing("mkdir", base / "a")
    run(GFS, "mkdir", "-p", base / "a/b/c", base / "d")
    (base / "f").write_text("f")
    run(GFS, "mv", base / "f", base / "g")
    run(GFS, "mv", base / "g", base / "d", base / "a")
    assert sorted(os.listdir(base / "a")) == ["b", "d", "g"]
    failing("rm", base / "a")
    failing("rm", base / "missing")
    run(GFS, "rm", "-f", base / "missing")
    run(GFS, "rm", base / "a/g")
    run(GFS, "rm", "-r", base / "a")
    assert os.listdir(base) == []


def test_append_prints_each_offset(base: Path) -> None:
    log = base / "log"
    assert run(GFS, "append", log, "one").stdout == "0\n"
    assert run(GFS, "append", log, input="two\nthree\n").stdout == "3\n"
    assert run(GFS, "append", log, "--lines", input="x\nyy\nz").stdout.split() == ["13", "15", "18"]
    assert json.loads(run(GFS, "append", log, "end", "--json").stdout) == [19]
    assert log.read_text() == "onetwo\nthree\nx\nyy\nzend"
    assert "at least one byte" in failing("append", log, input="").stderr
    failing("append", log, input="x" * 300_000)  # over a quarter of 1 MiB
    assert log.stat().st_size == 22


def test_snapshot_and_reflink_share_until_written(base: Path) -> None:
    (base / "tree").mkdir()
    (base / "tree/f").write_bytes(b"old" * 1000)
    run(GFS, "snapshot", base / "tree", base / "snap")
    run(GFS, "cp", "--reflink", "-r", base / "tree", base / "copy")
    handles = [
        json.loads(run(GFS, "fileinfo", base / name / "f", "--json").stdout)["chunks"][0]["handle"]
        for name in ("tree", "snap", "copy")
    ]
    assert len(set(handles)) == 1
    with open(base / "tree/f", "r+b") as file:
        file.write(b"NEW")
    assert (base / "tree/f").read_bytes()[:6] == b"NEWold"
    assert (base / "snap/f").read_bytes() == (base / "copy/f").read_bytes() == b"old" * 1000
    failing("snapshot", base / "tree", base / "snap")
    run(GFS, "cp", "--reflink", base / "tree/f", base / "copy/f")
    assert (base / "copy/f").read_bytes()[:3] == b"NEW"
    failing("cp", "--reflink", base / "tree", base / "other")


def test_policies_are_set_shown_and_inherited(base: Path) -> None:
    run(GFS, "set", base, "replication=2", "append_pad=\\n")
    (base / "f").write_text("f")
    policy = json.loads(run(GFS, "get-policy", base / "f", "--json").stdout)
    assert policy["replication"] == "2"
    assert "replication=2" in run(GFS, "get-policy", base).stdout
    assert json.loads(run(GFS, "fileinfo", base / "f", "--json").stdout)["replication"] == 2
    assert "replication" in failing("set", base, "colour=blue").stderr
    failing("set", base, "replication=0")


def test_status_fileinfo_and_fsck_have_the_shape_of_the_contract(cluster: Cluster, base: Path) -> None:
    (base / "f").write_bytes(b"x" * 1_500_000)
    os.sync()
    status = cluster.status()
    assert {"address", "files", "directories", "chunks"} <= set(status["master"])
    assert len(status["chunkservers"]) == 3
    for server in status["chunkservers"]:
        assert {"id", "address", "rack", "state", "chunks", "used_bytes", "total_bytes"} <= set(server)
    assert {"total", "healthy", "under_replicated", "over_replicated", "lost"} == set(status["chunks"])
    info = cluster.file_info(base / "f")
    assert {"path", "length", "replication", "chunks"} <= set(info) and info["length"] == 1_500_000
    assert [chunk["index"] for chunk in info["chunks"]] == [0, 1]
    for chunk in info["chunks"]:
        assert {"index", "handle", "version", "length", "primary", "replicas"} <= set(chunk)
        for replica in chunk["replicas"]:
            assert {"chunkserver", "address", "state", "path"} <= set(replica)
            assert Path(replica["path"]).exists()
    found = json.loads(run(GFS, "fsck", base, "--json").stdout)
    assert found == {"files": 1, "chunks": 2, "replicas": 6, "problems": []}
    assert "0 problems" in run(GFS, "fsck", base).stdout
    assert "cs" in run(GFS, "ps", "--root", cluster.root).stdout
    assert run(GFS, "fileinfo", base / "f").stdout.count("good") == 6


def test_fsck_finds_a_replica_whose_bytes_changed(cluster: Cluster, base: Path) -> None:
    data = random.Random(9).randbytes(200_000)
    (base / "f").write_bytes(data)
    replica = cluster.file_info(base / "f")["chunks"][0]["replicas"][1]
    raw = Path(replica["path"]).read_bytes()
    place = raw.index(data[1000:1064])
    with open(replica["path"], "r+b") as file:
        file.seek(place)
        file.write(b"corruption")
    done = run(GFS, "fsck", base, "--json", check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and len(found["problems"]) == 1
    problem = found["problems"][0]
    assert (problem["server"], problem["kind"], problem["index"]) == (replica["chunkserver"], "corrupt", 0)
    assert problem["path"] == f"/{(base / 'f').relative_to(cluster.mount)}"
    assert (base / "f").read_bytes() == data

    def replaced() -> bool:
        return [r["state"] for r in cluster.file_info(base / "f")["chunks"][0]["replicas"]] == ["good"] * 3

    wait_until(replaced, "a good replica in the place of the bad one")
    assert run(GFS, "fsck", base, "--json", check=False).returncode == 0


def test_errors_name_the_path(base: Path) -> None:
    for arguments in (
        ["cat", base / "no"],
        ["stat", base / "no"],
        ["fileinfo", base / "no"],
        ["mv", base / "no", base],
    ):
        assert "no such file" in failing(*arguments).stderr.lower()
    failing("fileinfo", base)
    failing("cat", base)
    failing("mkdir", base / ("x" * 256))


@pytest.mark.parametrize(
    "command", ["ls", "ls -r", "du", "tree", "fsck", "stat", "cat", "rm", "fileinfo", "get-policy"]
)
def test_an_error_names_the_path_as_it_was_typed(base: Path, command: str) -> None:
    path = base / "nothing"
    done = failing(*command.split(), path)
    assert done.stderr == f"gfs: {path}: No such file or directory\n"
