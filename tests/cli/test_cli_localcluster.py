"""The local cluster's parts: descriptions, ports, pid files, readiness of processes. Whole clusters: integration/."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gfscore.errors import Code, GfsError
from gfsmount.localcluster import ClusterSpec, Layout, LocalCluster, UpOptions, processes
from gfsmount.localcluster.description import describe
from gfsmount.localcluster.ports import free_ports, is_free


def test_a_description_survives_being_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    spec = describe(None, UpOptions(mounts=('/mnt/a "b" ü',), racks=2, chunk_size=1 << 20))
    layout.write_spec(spec)
    assert layout.read_spec() == spec
    assert [server.rack for server in spec.chunkservers] == ["rack1", "rack2", "rack1"]
    ports = [port for server in spec.chunkservers for port in (server.port, server.control_port)]
    assert len({*ports, spec.master_port, spec.stream_port}) == 8


def test_asking_again_changes_nothing_and_more_can_be_added(tmp_path: Path) -> None:
    spec = describe(None, UpOptions(mounts=("/mnt/a",), chunk_size=1 << 20))
    again = describe(spec, UpOptions(mounts=("/mnt/a",), chunk_size=1 << 20))
    assert len(again.chunkservers) == 3 and len(again.mounts) == 1
    more = describe(again, UpOptions(mounts=("/mnt/b",), chunkservers=5))
    assert [server.name for server in more.chunkservers] == ["cs1", "cs2", "cs3", "cs4", "cs5"]
    assert [mount.name for mount in more.mounts] == ["mount", "mount2"]


@pytest.mark.parametrize(
    "options",
    [
        UpOptions(chunk_size=2 << 20),
        UpOptions(replication=2),
        UpOptions(lease_seconds=5),
        UpOptions(racks=2),
        UpOptions(chunkservers=2),
    ],
)
def test_options_at_odds_with_the_cluster_are_refused(options: UpOptions) -> None:
    spec = describe(None, UpOptions(chunk_size=1 << 20))
    with pytest.raises(GfsError) as caught:
        describe(spec, options)
    assert caught.value.code is Code.INVALID


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(GfsError, match="not empty"):
        LocalCluster(tmp_path).up(UpOptions())
    (tmp_path / "thesis.txt").rename(tmp_path / "cluster.toml")
    with pytest.raises(GfsError, match="another --root"):
        Layout(tmp_path).read_spec()


def test_a_cluster_of_another_layout_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    spec = describe(None, UpOptions())
    spec.layout = 99
    layout.write_spec(spec)
    with pytest.raises(GfsError, match="layout 99"):
        layout.read_spec()


def test_ports_are_free_and_differ() -> None:
    ports = free_ports("127.0.0.1")
    taken = [next(ports) for _ in range(5)]
    assert len(set(taken)) == 5
    with socket.create_server(("127.0.0.1", taken[0])):
        assert not is_free("127.0.0.1", taken[0])
    assert is_free("127.0.0.1", taken[0])


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    spec: ClusterSpec = describe(None, UpOptions())
    layout.write_spec(spec)
    with socket.create_server(("127.0.0.1", spec.master_port)), pytest.raises(GfsError) as caught:
        LocalCluster(tmp_path).up(UpOptions())
    assert str(spec.master_port) in str(caught.value) and "cluster.toml" in str(caught.value)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path)
    layout.make_directories()
    return layout


def _pid_file(layout: Layout, name: str, process: subprocess.Popen[bytes]) -> None:
    layout.pid_file(name).write_text(f"{process.pid} {processes.start_time(process.pid)}\n")


def test_stopping_is_orderly_and_kills_what_does_not_obey(layout: Layout) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    for code, orderly in (("import signal; print(flush=True); signal.pause()", True), (deaf, False)):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline()
        _pid_file(layout, "it", process)
        assert processes.running_pid(layout, "it") == process.pid
        assert processes.stop(layout, "it", 0.3) is orderly
        assert process.wait(5) < 0 and not processes.was_started(layout, "it")
        process.stdout.close()


def test_a_suspended_process_can_be_stopped(layout: Layout) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    _pid_file(layout, "it", process)
    os.kill(process.pid, signal.SIGSTOP)
    assert processes.wait_until(lambda: processes.is_suspended(process.pid), 5)
    processes.stop(layout, "it", 5)
    assert process.wait(5) == -signal.SIGTERM


def test_a_recycled_pid_is_never_signalled(layout: Layout) -> None:
    layout.pid_file("it").write_text(f"{os.getpid()} 1\n")  # this process, with the start time of another
    assert processes.running_pid(layout, "it") is None
    assert processes.stop(layout, "it", 1.0)


def test_a_process_that_does_not_start_leaves_its_last_words(layout: Layout) -> None:
    config = layout.config_file("cs1")
    config.write_text("colour = 'blue'\n")
    starting = processes.Starting(layout, "cs1", ["chunkserver", "--config", str(config)])
    with pytest.raises(GfsError) as caught:
        starting.wait_ready(30)
    assert "unknown key 'colour'" in str(caught.value)
    assert not processes.was_started(layout, "cs1")
