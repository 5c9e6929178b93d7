"""`gfs up` as a way to start and as a repair; `down`, `stop`, `restart`, and mount(8) through `mount.gfs`."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import GFS, Cluster, is_mounted, local_cluster, run, take_down, wait_until


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of this module's own: its processes are killed and stopped."""
    with local_cluster(tmp_path_factory.mktemp("up") / "var") as cluster:
        yield cluster


def pids(cluster: Cluster) -> dict[str, int | None]:
    return {process["name"]: process["pid"] for process in cluster.processes()}


def test_what_up_starts(own: Cluster) -> None:
    rows = own.processes()
    assert [row["role"] for row in rows] == ["master", "chunkserver", "chunkserver", "chunkserver", "mount"]
    assert all(set(row) == {"role", "name", "pid", "address", "state"} and row["state"] == "running" for row in rows)
    (own.mount / "kept").write_bytes(b"kept" * 1000)


def test_up_again_leaves_everything_alone(own: Cluster) -> None:
    before = pids(own)
    own.up()
    assert pids(own) == before


def test_everything_killed_comes_back_with_its_data(own: Cluster) -> None:
    with open(own.mount / "synced", "wb") as file:
        file.write(b"synced" * 1000)
        file.flush()
        os.fsync(file.fileno())
    before = own.processes()
    own.kill_all()
    wait_until(lambda: all(row["state"] == "dead" for row in own.processes()), "all of them to be dead")
    own.up()
    after = own.processes()
    assert [row["address"] for row in after] == [row["address"] for row in before]
    assert {row["pid"] for row in after}.isdisjoint({row["pid"] for row in before})
    assert (own.mount / "synced").read_bytes() == b"synced" * 1000


@pytest.mark.parametrize("role", ["master", "chunkserver", "mount"])
def test_one_killed_is_repaired_and_the_others_left_alone(own: Cluster, role: str) -> None:
    before = pids(own)
    victim = own.process(role)["name"]
    own.kill(victim)
    wait_until(lambda: own.process(victim)["state"] == "dead", f"{victim} to be dead")
    own.up()
    after = pids(own)
    assert {name for name in before if before[name] != after[name]} == {victim}
    assert os.listdir(own.mount)


@pytest.mark.parametrize("role", ["master", "chunkserver", "mount"])
def test_stop_and_restart(own: Cluster, role: str) -> None:
    name = own.process(role)["name"]
    run(GFS, "stop", "--root", own.root, name)
    assert own.process(name) | {"state": "stopped", "pid": None} == own.process(name)
    run(GFS, "restart", "--root", own.root, name)
    first = own.process(name)
    assert first["state"] == "running"
    run(GFS, "restart", "--root", own.root, name)
    assert own.process(name)["pid"] != first["pid"]
    assert os.listdir(own.mount)
    done = run(GFS, "stop", "--root", own.root, "cs99", check=False)
    assert done.returncode == 1 and "cs1" in done.stderr


def test_a_suspended_process_is_seen_and_can_be_restarted(own: Cluster) -> None:
    own.kill("cs2", signal.SIGSTOP)
    wait_until(lambda: own.process("cs2")["state"] == "suspended", "cs2 to be suspended")
    run(GFS, "restart", "--root", own.root, "cs2")
    assert own.process("cs2")["state"] == "running"


def test_a_wrong_chunk_size_is_refused(own: Cluster) -> None:
    before = pids(own)
    done = run(GFS, "up", "--root", own.root, "--chunk-size", "2MiB", check=False)
    assert done.returncode == 2 and "--chunk-size" in done.stderr and done.stderr.count("\n") == 1
    assert pids(own) == before


def test_two_ups_at_the_same_time_do_not_race(own: Cluster) -> None:
    own.kill_all()
    both = [subprocess.Popen([GFS, "up", "--root", own.root], stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert all(row["state"] == "running" for row in own.processes())


def test_mount_gfs_as_mount_8_calls_it(own: Cluster, tmp_path: Path) -> None:
    (own.mount / "sub").mkdir()
    (own.mount / "sub/inside").write_text("inside")
    where = tmp_path / "mnt"
    where.mkdir()
    helper = GFS.parent / "mount.gfs"
    try:
        run(helper, f"{own.master_address()}/sub", where, "-o", "rw,_netdev")
        assert os.listdir(where) == ["inside"] and is_mounted(where)
        run(GFS, "append", where / "log", "record")
        assert (own.mount / "sub/log").read_text() == "record"
    finally:
        take_down(where)
    wait_until(lambda: not is_mounted(where), "the mount to be gone")
    done = run(helper, "127.0.0.1:1", where, check=False)
    assert done.returncode == 32 and done.stderr.count("\n") == 1


def test_down_leaves_no_process_and_no_mount_and_up_brings_the_data_back(own: Cluster) -> None:
    before = [row["pid"] for row in own.processes()]
    run(GFS, "down", "--root", own.root)
    assert not is_mounted(own.mount)
    assert not [pid for pid in before if os.path.exists(f"/proc/{pid}/exe")]
    run(GFS, "down", "--root", own.root)
    run(GFS, "up", "--root", own.root)
    assert (own.mount / "kept").read_bytes() == b"kept" * 1000


def test_down_with_an_open_file_loses_nothing(own: Cluster) -> None:
    file = open(own.mount / "open", "wb", buffering=0)  # noqa: SIM115
    file.write(b"not closed")
    run(GFS, "down", "--root", own.root)
    with contextlib.suppress(OSError):  # its file system is gone
        file.close()
    run(GFS, "up", "--root", own.root)
    assert (own.mount / "open").read_bytes() == b"not closed"
