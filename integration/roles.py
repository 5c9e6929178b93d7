"""A cluster whose roles are started one by one, without `gfs up`: for tests that kill, stop and cut off single ones.

Each role may have a command put before it (another network namespace) and an address of its own. Nothing is waited
for unless a caller asks: a role that is killed while it starts is a case like any other. Every wait has a limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness import GFS, is_mounted, run, take_down, wait_until

from gfsmount.localcluster.layout import toml_lines
from gfsmount.localcluster.ports import free_ports

START_SECONDS = 60.0
END_SECONDS = 20.0
GONE_SECONDS = 2.0


@dataclass(frozen=True)
class Place:
    """Where a role runs: the address it listens on, and what is put before its command."""

    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@dataclass
class _Role:
    arguments: list[str]
    place: Place
    process: subprocess.Popen | None = None
    ready_pipe: int | None = None
    stopped: bool = False  # by SIGSTOP
    said: bytes = field(default=b"")


class RoleCluster:
    """`master`, chunkservers `cs1`, `cs2`… and mounts `mnt1`, `mnt2`…, each with its state below `root`."""

    def __init__(
        self, root: Path, *, chunkservers: int = 4, replication: int = 3, lease_seconds: float = 5,
        chunk_size: str = "1MiB", mounts: int = 1, mount_options: str = "timeout=30",
        places: Mapping[str, Place] | None = None, master_settings: Mapping[str, str | int | float] | None = None,
    ) -> None:  # fmt: skip
        self.root = root
        self.lease_seconds = lease_seconds
        self.replication = replication
        self.chunk_bytes = int(chunk_size.removesuffix("MiB")) * 1024 * 1024
        self.servers = [f"cs{number + 1}" for number in range(chunkservers)]
        self.mounts = [f"mnt{number + 1}" for number in range(mounts)]
        self._places = dict(places or {})
        ports = free_ports("127.0.0.1")
        master = self.place("master")
        port = next(ports)
        self.address = f"{master.host}:{port}"
        for directory in ("log", "config"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        self._roles: dict[str, _Role] = {}
        self._add(
            "master", "master", host=master.host, port=port, stream_port=next(ports), chunk_size=chunk_size,
            lease_seconds=lease_seconds, replication=replication, **(master_settings or {}),
        )  # fmt: skip
        for name in self.servers:
            self._add(
                name, "chunkserver", master=self.address, host=self.place(name).host, port=next(ports),
                control_port=next(ports),
            )  # fmt: skip
        for name in self.mounts:
            self.path(name).mkdir(exist_ok=True)
            arguments = ["mount", self.address, str(self.path(name)), "-o", mount_options]
            self._roles[name] = _Role(arguments, self.place(name))

    def place(self, name: str) -> Place:
        return self._places.get(name, Place())

    def _add(self, name: str, role: str, **settings: str | int | float) -> None:
        directory = self.path(name)
        directory.mkdir(exist_ok=True)
        config = self.root / "config" / f"{name}.toml"
        config.write_text(toml_lines({**settings, "directory": str(directory)}))
        self._roles[name] = _Role([role, "--config", str(config)], self.place(name))

    # ------------------------------------------------------------ looking

    @property
    def names(self) -> list[str]:
        return list(self._roles)

    def path(self, name: str) -> Path:
        """The data directory of a server, the mount point of a mount."""
        return self.root / name

    def log_file(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def running(self, name: str) -> bool:
        process = self._roles[name].process
        return process is not None and process.poll() is None

    def stopped(self, name: str) -> bool:
        return self._roles[name].stopped

    def ready(self, name: str) -> bool:
        """Whether it has said, since it was started, that it serves. Does not wait."""
        role = self._roles[name]
        while role.ready_pipe is not None and select.select([role.ready_pipe], [], [], 0)[0]:
            piece = os.read(role.ready_pipe, 4096)
            role.said += piece
            if not piece or b"\n" in role.said:
                self._close_pipe(role)
        return b"\n" in role.said and self.running(name)

    def gfs(self, *arguments: object, **options: object) -> subprocess.CompletedProcess:
        prefix = self.place("client").prefix
        return run(*prefix, GFS, *arguments, env=dict(os.environ, GFS_MASTER=self.address), **options)

    def status(self) -> dict:
        """What `gfs status` says; {} while the master does not answer."""
        try:
            done = self.gfs("status", "--json", check=False, seconds=30)
        except subprocess.TimeoutExpired:
            return {}
        return json.loads(done.stdout) if done.stdout.strip().startswith("{") else {}

    def servers_up(self) -> int:
        return sum(server["state"] == "up" for server in self.status().get("chunkservers", []))

    # ------------------------------------------------------------ doing

    def start(self, name: str) -> None:
        """Start it, again after it ended. Waits for nothing."""
        role = self._roles[name]
        assert not self.running(name), f"{name} runs already"
        if name in self.mounts:
            take_down(self.path(name))
        self._close_pipe(role)
        read_end, write_end = os.pipe()
        try:
            with self.log_file(name).open("ab") as log:
                role.process = subprocess.Popen(
                    [*role.place.prefix, str(GFS), *role.arguments, "--ready-fd", str(write_end)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[write_end], start_new_session=True,
                )  # fmt: skip
        finally:
            os.close(write_end)
        role.ready_pipe, role.said, role.stopped = read_end, b"", False

    def wait_ready(self, *names: str, seconds: float = START_SECONDS) -> None:
        for name in names:
            wait_until(lambda name=name: self.ready(name) or not self.running(name), f"{name} to serve", seconds)
            assert self.running(name), f"{name} ended at its start: {self.log_file(name).read_text()[-2000:]}"
            if name in self.mounts:
                wait_until(lambda name=name: is_mounted(self.path(name)), f"{name} to be mounted", seconds)

    def start_all(self) -> None:
        self.start("master")
        self.wait_ready("master")
        for name in self.servers:
            self.start(name)
        wait_until(lambda: self.servers_up() == len(self.servers), "all chunkservers to be up", START_SECONDS)
        for name in self.mounts:
            self.start(name)
        self.wait_ready(*self.mounts)

    def send(self, name: str, number: int) -> None:
        """A signal. After SIGKILL the process is gone when this returns.

        A mount that is killed while it tells the kernel to forget a name may wait there for a program that waits for
        the mount: only the end of the connection ends that, as it does on a machine that dies.
        """
        role = self._roles[name]
        assert role.process is not None
        os.kill(role.process.pid, number)
        role.stopped = number == signal.SIGSTOP
        if number == signal.SIGKILL:
            if name in self.mounts:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    role.process.wait(GONE_SECONDS)
                    return
                take_down(self.path(name))
            role.process.wait(END_SECONDS)

    def restart(self, name: str) -> None:
        self.send(name, signal.SIGKILL)
        self.start(name)
        self.wait_ready(name)

    def show_logs(self, lines: int = 40) -> None:
        for path in sorted((self.root / "log").glob("*.log")):
            print(f"--- {path}", *path.read_text(errors="replace").splitlines()[-lines:], sep="\n")

    def down(self) -> None:
        """Everything ended, whatever state it is in; no mount is left behind."""
        for name, role in reversed(self._roles.items()):
            if name in self.mounts:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    take_down(self.path(name))
            if role.process is not None and role.process.poll() is None:
                role.process.kill()
            if role.process is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    role.process.wait(END_SECONDS)
            self._close_pipe(role)

    @staticmethod
    def _close_pipe(role: _Role) -> None:
        if role.ready_pipe is not None:
            os.close(role.ready_pipe)
            role.ready_pipe = None


@contextlib.contextmanager
def role_cluster(root: Path, **options: object) -> Iterator[RoleCluster]:
    """Started, and always taken down again; the end of its logs is printed when the test fails."""
    cluster = RoleCluster(root, **options)  # type: ignore[arg-type]
    try:
        cluster.start_all()
        yield cluster
    except BaseException:
        cluster.show_logs()
        raise
    finally:
        cluster.down()


def missing_tools(*names: str) -> str:
    """Why a test that needs these programs cannot run here; empty if it can."""
    absent = [name for name in names if shutil.which(name) is None]
    return f"not on this machine: {', '.join(absent)}" if absent else ""


def run_quietly(command: Sequence[object], seconds: float = 30) -> bool:
    """Whether the command succeeded; for taking things down that may be gone already."""
    try:
        return run(*command, check=False, seconds=seconds).returncode == 0
    except (subprocess.TimeoutExpired, FileNotFoundError):
        return False
