"""How often a mount calls its master, counted: the budgets of docs/internals.md. Time is noisy, calls are not."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Cluster, drop_caches, local_cluster, wait_until

MIB = 1024 * 1024
BACKGROUND = {"Commit", "Hello", "Ping"}  # not waited for by anybody


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with local_cluster(tmp_path_factory.mktemp("calls") / "var", chunk_size="1MiB") as running:
        yield running


def mount_info(cluster: Cluster) -> dict:
    return json.loads(os.getxattr(cluster.mount, "gfs.mount_info"))


def calls(cluster: Cluster) -> Counter:
    return Counter(mount_info(cluster)["calls"])


@contextmanager
def at_most(cluster: Cluster, budget: int, *, counted: set[str] = frozenset()) -> Iterator[None]:  # type: ignore[assignment]
    before = calls(cluster)
    yield
    made = calls(cluster) - before
    counts = {name: number for name, number in made.items() if name not in BACKGROUND or name in counted}
    assert sum(counts.values()) <= budget, dict(counts)


def settle(cluster: Cluster) -> None:
    """Until the lengths of closed files are with the master."""
    wait_until(lambda: mount_info(cluster)["uncommitted"] == 0, "the lengths to be committed")


def remount(cluster: Cluster) -> None:
    """Nothing cached, not in the kernel nor in the driver."""
    settle(cluster)
    cluster.gfs("restart", "--root", cluster.root, "mount")
    os.stat(cluster.mount)


def make_files(directory: Path, count: int) -> None:
    directory.mkdir()
    for number in range(count):
        (directory / f"f{number:05d}").write_bytes(b"x" * 4096)


def test_create_write_close_is_one_call(cluster: Cluster) -> None:
    directory = cluster.mount / "create"
    directory.mkdir()
    with at_most(cluster, 100):
        for number in range(100):
            descriptor = os.open(directory / f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(descriptor, b"x" * 4096)
            os.close(descriptor)


def test_names_are_one_call_each(cluster: Cluster) -> None:
    directory = cluster.mount / "names"
    directory.mkdir()
    for call, before in (
        (lambda n: os.mkdir(directory / f"d{n}"), None),
        (lambda n: os.rename(directory / f"d{n}", directory / f"e{n}"), None),
        (lambda n: os.rmdir(directory / f"e{n}"), None),
        (lambda n: os.unlink(directory / f"f{n}"), lambda n: (directory / f"f{n}").touch()),
    ):
        if before:
            for number in range(50):
                before(number)
        with at_most(cluster, 50):
            for number in range(50):
                call(number)


def test_cached_lookups_and_stats_need_no_call(cluster: Cluster) -> None:
    directory = cluster.mount / "cached"
    make_files(directory, 20)
    settle(cluster)
    os.listdir(directory)
    with at_most(cluster, 0):
        for number in range(20):
            os.stat(directory / f"f{number:05d}")
            assert not (directory / f"missing{number}").exists()


def test_listing_costs_a_call_per_thousand_entries(cluster: Cluster) -> None:
    directory = cluster.mount / "list"
    make_files(directory, 1500)
    remount(cluster)
    os.stat(directory)
    with at_most(cluster, 2):
        sizes = [entry.stat().st_size for entry in os.scandir(directory)]
    assert sizes == [4096] * 1500


def test_reading_all_files_of_a_listed_directory_is_a_call_per_hundred(cluster: Cluster) -> None:
    directory = cluster.mount / "readall"
    make_files(directory, 300)
    remount(cluster)
    names = sorted(entry.name for entry in os.scandir(directory))
    with at_most(cluster, 3):
        for name in names:
            assert (directory / name).read_bytes() == b"x" * 4096


def test_open_read_close_cold_and_warm(cluster: Cluster) -> None:
    (cluster.mount / "small").write_bytes(b"small")
    remount(cluster)
    os.stat(cluster.mount / "small")
    with at_most(cluster, 1):
        assert (cluster.mount / "small").read_bytes() == b"small"
    drop_caches()
    with at_most(cluster, 0):
        assert (cluster.mount / "small").read_bytes() == b"small"


def test_sequential_io(cluster: Cluster) -> None:
    path = cluster.mount / "sequential"
    with at_most(cluster, 1 + 24 + 1), open(path, "wb", buffering=0) as file:
        for _ in range(24):
            file.write(b"s" * MIB)
    remount(cluster)
    os.stat(path)
    with at_most(cluster, 3), open(path, "rb", buffering=0) as file:
        while file.read(MIB):
            pass


def test_overwrite_and_fsync_under_lease(cluster: Cluster) -> None:
    descriptor = os.open(cluster.mount / "database", os.O_CREAT | os.O_RDWR)
    os.write(descriptor, bytes(MIB))
    os.fsync(descriptor)
    with at_most(cluster, 0):
        for number in range(50):
            os.pwrite(descriptor, b"page", number * 4096)
    os.fsync(descriptor)
    os.pwrite(descriptor, b"page", 0)
    with at_most(cluster, 1, counted={"Commit"}):
        os.fsync(descriptor)
    os.close(descriptor)


def test_appends_in_steady_state_need_no_call(cluster: Cluster) -> None:
    descriptor = os.open(cluster.mount / "appended", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"first\n")
    with at_most(cluster, 0):
        for _ in range(100):
            os.write(descriptor, b"line\n")
    os.close(descriptor)


def test_the_counters_are_shown(cluster: Cluster) -> None:
    shown = cluster.gfs("mount-info", cluster.mount).stdout
    assert "Create" in shown and str(cluster.mount) in shown
    assert json.loads(cluster.gfs("mount-info", cluster.mount, "--json").stdout)["calls"]
