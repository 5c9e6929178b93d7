"""The long-running roles: they say when they serve, and end in order at SIGTERM."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gfsmount.cli import role
from gfsmount.localcluster import Layout, processes


def test_a_chunkserver_is_ready_before_its_master_is_there_and_stops_in_order(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.make_directories()
    layout.write_config("cs1", {"master": "127.0.0.1:1", "directory": str(tmp_path / "cs1")})
    starting = processes.Starting(layout, "cs1", ["chunkserver", "--config", str(layout.config_file("cs1"))])
    try:
        starting.wait_ready(30)
        assert processes.running_pid(layout, "cs1") is not None
    finally:
        orderly = processes.stop(layout, "cs1", 10)
    log = layout.log_file("cs1").read_text()
    assert orderly and "event=serving" in log and "event=stopping signal=SIGTERM" in log
    assert "Traceback" not in log


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notify"
    read_end, write_end = os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        role.announce(write_end, "127.0.0.1:7100")
        assert listener.recv(100) == b"READY=1"
    assert os.read(read_end, 100) == b"ready 127.0.0.1:7100\n"
    os.close(read_end)


def test_an_interrupted_command_is_one_line() -> None:
    """Ctrl-C: no traceback, status 130."""
    code = (
        "import sys, os, signal; from gfsmount.cli import main, ls\nimport gfsmount.cli.targets as t\n"
        "t.start_target = lambda *a: os.kill(os.getpid(), signal.SIGINT)\nsys.exit(main.run(['ls']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (130, "\ngfs: interrupted\n")
