"""A local cluster of real processes for one test, always taken down again, and what a test does to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gfsmount import kernel

GFS = Path(sys.executable).parent / "gfs"
COMMAND_SECONDS = 120


def run(
    *command: object, check: bool = True, seconds: float = COMMAND_SECONDS, **options: object
) -> subprocess.CompletedProcess:
    """A command with a limit; its output is shown when it fails."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=seconds, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{arguments} exited with {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> object:
    """The first true value of `condition`, asked again and again; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


class Cluster:
    """Started with `gfs up`; `processes` are what `gfs ps` says."""

    def __init__(self, root: Path, *, chunk_size: str = "1MiB", **options: object) -> None:
        self.root = root
        self.mount = root / "mnt"
        self.chunk_bytes = int(chunk_size.removesuffix("MiB")) * 1024 * 1024
        self._up = ["up", "--root", root, "--mount", self.mount, "--chunk-size", chunk_size]
        for name, value in options.items():
            self._up += [f"--{name.replace('_', '-')}", str(value)]
        self._mounts: list[tuple[subprocess.Popen, Path]] = []

    def gfs(self, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        environment = dict(os.environ, GFS_MASTER=self.master_address()) if arguments[0] != "up" else dict(os.environ)
        return run(GFS, *arguments, env=environment, **options)

    def up(self) -> None:
        self.gfs(*self._up)

    def processes(self) -> list[dict]:
        done = run(GFS, "ps", "--root", self.root, "--json", check=False)
        return json.loads(done.stdout) if done.stdout.strip() else []

    def process(self, name: str) -> dict:
        return next(process for process in self.processes() if process["name"] == name or process["role"] == name)

    def master_address(self) -> str:
        return next((p["address"] for p in self.processes() if p["role"] == "master"), "")

    def chunkservers(self) -> list[dict]:
        return [process for process in self.processes() if process["role"] == "chunkserver"]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.process(name)["pid"], number)

    def kill_all(self) -> None:
        for process in self.processes():
            if process["pid"]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process["pid"], signal.SIGKILL)

    def status(self) -> dict:
        return json.loads(self.gfs("status", "--json", check=False).stdout)

    def file_info(self, path: Path) -> dict:
        return json.loads(self.gfs("fileinfo", path, "--json").stdout)

    def second_mount(self) -> Path:
        """Another mount of the same cluster, as on another machine."""
        where = self.root / f"mnt{len(self._mounts) + 2}"
        where.mkdir()
        with open(self.root / f"{where.name}.log", "w") as log:
            process = subprocess.Popen([GFS, "mount", self.master_address(), where], stdout=log, stderr=log)
        self._mounts.append((process, where))
        wait_until(lambda: is_mounted(where), f"the mount at {where}")
        return where

    def show_logs(self, lines: int = 60) -> None:
        """The end of every log, printed: pytest shows it beside a failure."""
        for path in sorted(self.root.rglob("*.log")):
            print(f"--- {path}", *path.read_text(errors="replace").splitlines()[-lines:], sep="\n")

    def down(self) -> None:
        """Everything ended, whatever state it is in; no mount is left behind."""
        for process, where in self._mounts:
            take_down(where)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait(10)
        try:
            run(GFS, "down", "--root", self.root, check=False)
        finally:
            take_down(self.mount)
            self.kill_all()


def is_mounted(where: Path) -> bool:
    return any(line.split()[1] == str(where) for line in Path("/proc/mounts").read_text().splitlines())


def take_down(where: Path) -> None:
    """Unmount, lazily if need be, and abort the FUSE connection so that nothing hangs on it."""
    if not is_mounted(where):
        return
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    device = next(fields[2] for fields in mounts if fields[4] == str(where))
    kernel.clear(str(where))
    if is_mounted(where):  # not root
        subprocess.run(["fusermount3", "-uz", str(where)], timeout=20, check=False)
    with contextlib.suppress(OSError):  # gone already, or the control file system is not mounted
        Path(f"/sys/fs/fuse/connections/{device.split(':')[1]}/abort").write_text("1")


@contextlib.contextmanager
def local_cluster(root: Path, **options: object) -> Iterator[Cluster]:
    cluster = Cluster(root, **options)  # type: ignore[arg-type]
    try:
        cluster.up()
        yield cluster
    except BaseException:
        cluster.show_logs()
        raise
    finally:
        cluster.down()


def drop_caches() -> None:
    os.sync()
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
