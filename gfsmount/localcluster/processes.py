"""Detached processes known by pid file: start, look, stop.

A pid file holds the pid and the start time of the process, so that a pid that the kernel gave to somebody else
meanwhile is never signalled.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from gfscore.errors import Code, GfsError
from gfsmount.localcluster.layout import Layout, replace_file

_POLL_SECONDS = 0.02
_LOG_LINES_SHOWN = 5


def _stat_fields(pid: int) -> list[str]:
    """What /proc says of the process from its state on; empty if it does not run (any more)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return []
    fields = stat[stat.rindex(")") + 2 :].split()
    return [] if fields[0] in "ZX" else fields


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks after boot; None if it does not run (any more)."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def is_suspended(pid: int) -> bool:
    """Whether SIGSTOP holds it."""
    return _stat_fields(pid)[:1] == ["T"]


def running_pid(layout: Layout, name: str) -> int | None:
    """The pid of the process `name`, if it runs."""
    try:
        pid, started = map(int, layout.pid_file(name).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return pid if start_time(pid) == started else None


def was_started(layout: Layout, name: str) -> bool:
    """Whether it should be running: started, and not stopped on purpose since."""
    return layout.pid_file(name).exists()


class Starting:
    """A process that was started and has not said yet that it is ready."""

    def __init__(self, layout: Layout, name: str, arguments: Sequence[str]) -> None:
        """Start `gfs ARGUMENTS --ready-fd N` detached, its output at the end of its log file."""
        self.name = name
        self._layout = layout
        read_end, write_end = os.pipe()
        command = [sys.executable, "-m", "gfsmount.cli", *arguments, "--ready-fd", str(write_end)]
        package_parent = str(Path(__file__).resolve().parents[2])
        search = os.pathsep.join(filter(None, [package_parent, os.environ.get("PYTHONPATH")]))
        try:
            with layout.log_file(name).open("ab") as output:
                self._log_start = output.tell()
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=[write_end],
                    cwd=layout.root,
                    env={**os.environ, "PYTHONPATH": search},
                )
        finally:
            os.close(write_end)
        self._ready = read_end
        replace_file(layout.pid_file(name), f"{self._process.pid} {start_time(self._process.pid)}\n")

    def wait_ready(self, seconds: float) -> None:
        """Until it says so. Raises GfsError with the end of its log when it died or took longer than `seconds`."""
        try:
            limit = time.monotonic() + seconds
            said = b""
            while b"\n" not in said:
                if not select.select([self._ready], [], [], max(0.0, limit - time.monotonic()))[0]:
                    raise GfsError(
                        Code.TIMED_OUT, f"{self.name} was not ready after {seconds:g} s; {self.last_words()}"
                    )
                piece = os.read(self._ready, 4096)
                if not piece:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(5)
                    self._layout.pid_file(self.name).unlink(missing_ok=True)
                    raise GfsError(Code.IO, f"{self.name} did not start; {self.last_words()}")
                said += piece
        finally:
            os.close(self._ready)

    def last_words(self) -> str:
        return log_tail(self._layout.log_file(self.name), self._log_start)


def log_tail(path: Path, start: int = 0) -> str:
    """The last lines of a log from byte `start` on, as one line."""
    try:
        with path.open("rb") as file:
            file.seek(max(start, file.seek(0, os.SEEK_END) - 4096))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return f"{path} says: {' | '.join(lines[-_LOG_LINES_SHOWN:]) or 'nothing'}"


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` became true within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def stop(layout: Layout, name: str, seconds: float) -> bool:
    """SIGTERM, and SIGKILL when it still runs after `seconds`. False if it had to be killed."""
    pid = running_pid(layout, name)
    orderly = True
    if pid is not None:
        for sign in (signal.SIGCONT, signal.SIGTERM):  # one that is suspended could not end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        orderly = wait_gone(layout, name, seconds)
        if not orderly:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if not wait_gone(layout, name, seconds):
                raise GfsError(Code.BUSY, f"{name} (pid {pid}) does not end even after SIGKILL")
    layout.pid_file(name).unlink(missing_ok=True)
    return orderly


def wait_gone(layout: Layout, name: str, seconds: float) -> bool:
    """Whether the process ended within `seconds`."""
    return wait_until(lambda: running_pid(layout, name) is None, seconds)
