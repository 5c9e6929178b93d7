"""`gfs up`, `down`, `ps`, `stop`, `restart` on one root directory. Safe to repeat; one at a time per root.

`up` is also the repair: whatever is dead is started again on the same ports with the same state.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gfscore.errors import Code, GfsError
from gfsmount import kernel
from gfsmount.localcluster import mounts, processes
from gfsmount.localcluster.description import UpOptions, describe
from gfsmount.localcluster.layout import HOST, ClusterSpec, Layout, MountSpec, ServerSpec
from gfsmount.localcluster.ports import is_free
from gfsmount.localcluster.readiness import wait_registered

_START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOCK_SECONDS = 120.0

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ProcessState:
    """A row of `gfs ps`. `state`: running, suspended (SIGSTOP), dead (it should run), stopped (on purpose)."""

    role: str
    name: str
    pid: int | None
    address: str
    state: str


@dataclass
class LocalCluster:
    """One root directory and what runs on it."""

    root: Path
    report: Progress = lambda line: None
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout(self.root)

    def up(self, options: UpOptions) -> ClusterSpec:
        """Start, or repair, until everything is usable. GfsError: INVALID (options that do not fit), BUSY (a port)…"""
        with self._locked():
            known = self.layout.read_spec()
            spec = describe(known, options)
            for mount in spec.mounts:
                self._check_mountpoint(spec, mount)
            self.layout.make_directories()
            self.layout.write_spec(spec)
            self._repair(spec)
            return spec

    def down(self) -> None:
        """Unmount, then stop chunkservers and the master. Data stays. GfsError(BUSY) if something cannot be ended."""
        self.spec()  # before the lock makes a directory for nothing
        with self._locked():
            spec = self.spec()
            for mount in spec.mounts:
                self._stop_mount(mount)
            self._end([server.name for server in spec.chunkservers])
            self._end(["master"])

    def ps(self) -> list[ProcessState]:
        spec = self.spec()
        rows = [self._state("master", "master", spec.master_address)]
        rows += [self._state("chunkserver", server.name, f"{HOST}:{server.port}") for server in spec.chunkservers]
        rows += [self._state("mount", mount.name, mount.mountpoint) for mount in spec.mounts]
        return rows

    def stop(self, name: str) -> None:
        self.spec()
        with self._locked():
            self._stop(self.spec(), name)

    def restart(self, name: str) -> None:
        """Stop one process in order, start it again, and wait until it is usable."""
        self.spec()
        with self._locked():
            spec = self.spec()
            self._stop(spec, name)
            self._start_named(spec, name)
            self._wait_usable(spec, name)

    def spec(self) -> ClusterSpec:
        spec = self.layout.read_spec()
        if spec is None:
            raise GfsError(
                Code.NOT_FOUND, f"no cluster at {self.layout.root}: gfs up --root {self.layout.root} makes one"
            )
        return spec

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.layout.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise GfsError(Code.INVALID, f"{self.layout.root} is not a directory: use another --root") from error
        file = os.open(self.layout.lock_file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            limit = time.monotonic() + _LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > limit:
                        raise GfsError(Code.BUSY, f"another gfs command works on {self.layout.root}") from error
                    time.sleep(0.1)
            yield
        finally:
            os.close(file)

    # ------------------------------------------------------------ starting

    def _repair(self, spec: ClusterSpec) -> None:
        if processes.running_pid(self.layout, "master") is None:
            self.report(f"starting the master on {spec.master_address}")
            self._start_master(spec).wait_ready(_START_SECONDS)
        dead = [server for server in spec.chunkservers if processes.running_pid(self.layout, server.name) is None]
        if dead:
            self.report(f"starting {', '.join(server.name for server in dead)}")
        starting = [self._start_chunkserver(spec, server) for server in dead]
        for process in starting:
            process.wait_ready(_START_SECONDS)
        self._wait_servers(spec)
        for mount in spec.mounts:
            if not self._is_mounted(mount):
                self.report(f"mounting {mount.mountpoint}")
                self._start_mount(spec, mount)
            self._wait_mount(mount)

    def _start_named(self, spec: ClusterSpec, name: str) -> None:
        if name == "master":
            self._start_master(spec).wait_ready(_START_SECONDS)
        elif mount := next((mount for mount in spec.mounts if mount.name == name), None):
            self._start_mount(spec, mount)
        else:
            server = next(server for server in spec.chunkservers if server.name == name)
            self._start_chunkserver(spec, server).wait_ready(_START_SECONDS)

    def _start_master(self, spec: ClusterSpec) -> processes.Starting:
        self._refuse_port_in_use("master", spec.master_port, spec.stream_port)
        self.layout.write_config(
            "master",
            {
                "host": HOST,
                "port": spec.master_port,
                "stream_port": spec.stream_port,
                "directory": str(self.layout.data_directory("master")),
                "chunk_size": spec.chunk_size,
                "lease_seconds": spec.lease_seconds,
                "replication": spec.replication,
                "trash_seconds": spec.trash_seconds,
                "suspect_seconds": min(5.0, spec.down_seconds),
                "down_seconds": spec.down_seconds,
            },
        )
        return processes.Starting(self.layout, "master", ["master", "--config", str(self.layout.config_file("master"))])

    def _start_chunkserver(self, spec: ClusterSpec, server: ServerSpec) -> processes.Starting:
        self._refuse_port_in_use(server.name, server.port, server.control_port)
        self.layout.write_config(
            server.name,
            {
                "master": spec.master_address,
                "host": HOST,
                "port": server.port,
                "control_port": server.control_port,
                "directory": str(self.layout.data_directory(server.name)),
                "rack": server.rack,
                "scrub_bytes_per_second": spec.scrub_rate,
            },
        )
        return processes.Starting(
            self.layout, server.name, ["chunkserver", "--config", str(self.layout.config_file(server.name))]
        )

    def _start_mount(self, spec: ClusterSpec, mount: MountSpec) -> None:
        self._clear_dead_mount(mount)
        mounts.make_mountpoint(mount.mountpoint)
        arguments = ["mount", spec.master_address, mount.mountpoint]
        processes.Starting(self.layout, mount.name, arguments).wait_ready(_START_SECONDS)

    def _refuse_port_in_use(self, name: str, *ports: int) -> None:
        for port in ports:
            # A moment of patience: a server that was killed just now may still be on its way out.
            if not processes.wait_until(lambda port=port: is_free(HOST, port), 2.0):  # type: ignore[misc]
                raise GfsError(
                    Code.BUSY,
                    f"port {port} of {name} on {HOST} is in use by another program: "
                    f"end that, or give {name} another port in {self.layout.spec_file}",
                )

    # ------------------------------------------------------------ waiting

    def _wait_usable(self, spec: ClusterSpec, name: str) -> None:
        if mount := next((mount for mount in spec.mounts if mount.name == name), None):
            self._wait_mount(mount)
        elif processes.running_pid(self.layout, "master") is not None:
            self._wait_servers(spec)

    def _wait_servers(self, spec: ClusterSpec) -> None:
        expected = sum(processes.running_pid(self.layout, server.name) is not None for server in spec.chunkservers)
        try:
            wait_registered(spec.master_address, expected, _START_SECONDS)
        except GfsError as error:
            logs = [self.layout.log_file("master"), *(self.layout.log_file(s.name) for s in spec.chunkservers)]
            newest = max((log for log in logs if log.exists()), key=lambda log: log.stat().st_mtime, default=logs[0])
            raise GfsError(error.code, f"{error}; {processes.log_tail(newest)}") from error

    def _wait_mount(self, mount: MountSpec) -> None:
        if not mounts.responds(mount.mountpoint):
            raise GfsError(
                Code.TIMED_OUT,
                f"the mount at {mount.mountpoint} does not answer: gfs restart --root {self.layout.root} {mount.name}; "
                + processes.log_tail(self.layout.log_file(mount.name)),
            )

    # ------------------------------------------------------------ mounts

    def _is_mounted(self, mount: MountSpec) -> bool:
        return (
            processes.running_pid(self.layout, mount.name) is not None
            and mounts.mounted_at(mount.mountpoint) is not None
        )

    def _check_mountpoint(self, spec: ClusterSpec, mount: MountSpec) -> None:
        entry = mounts.mounted_at(mount.mountpoint)
        if entry is None or processes.running_pid(self.layout, mount.name) is not None:
            return
        ours = entry.kind == mounts.FILE_SYSTEM_TYPE
        if not ours or (entry.source.split("/")[0] != spec.master_address and mounts.responds(mount.mountpoint)):
            raise GfsError(
                Code.BUSY,
                f"{entry.source} is mounted at {mount.mountpoint} already: unmount it or choose another --mount",
            )

    def _clear_dead_mount(self, mount: MountSpec) -> None:
        entry = mounts.mounted_at(mount.mountpoint)
        if entry is not None:
            kernel.clear(mount.mountpoint)
        processes.stop(self.layout, mount.name, _STOP_SECONDS)  # it may run, with its mount taken away
        if entry is not None and not mounts.unmount(mount.mountpoint, lazy=True):
            kernel.abort(entry.minor)
            if not mounts.unmount(mount.mountpoint, lazy=True):
                raise GfsError(
                    Code.BUSY,
                    f"cannot take down the dead mount at {mount.mountpoint}: sudo umount -fl {mount.mountpoint}",
                )

    def _stop_mount(self, mount: MountSpec) -> None:
        entry = mounts.mounted_at(mount.mountpoint)
        if processes.running_pid(self.layout, mount.name) is None:
            self._clear_dead_mount(mount)
            return
        self.report(f"unmounting {mount.mountpoint}")
        if mounts.unmount(mount.mountpoint):
            # The driver writes out what it has gathered and ends by itself.
            processes.wait_gone(self.layout, mount.name, _STOP_SECONDS)
        # Busy with programs that use it: told to stop, the driver writes out, hides the mount and ends.
        orderly = processes.stop(self.layout, mount.name, _STOP_SECONDS * 2)
        if not orderly:
            self.report(f"{mount.name} did not stop by itself and was killed: what it had not written out is lost")
        if not mounts.unmount(mount.mountpoint, lazy=True) and entry is not None:
            kernel.abort(entry.minor)
            mounts.unmount(mount.mountpoint, lazy=True)

    # ------------------------------------------------------------ stopping

    def _stop(self, spec: ClusterSpec, name: str) -> None:
        names = ["master", *(server.name for server in spec.chunkservers), *(mount.name for mount in spec.mounts)]
        if name not in names:
            raise GfsError(Code.NOT_FOUND, f"no process {name!r} in this cluster; there are: {', '.join(names)}")
        mount = next((mount for mount in spec.mounts if mount.name == name), None)
        if mount is not None:
            self._stop_mount(mount)
        else:
            self._end([name])

    def _end(self, names: list[str]) -> None:
        for name in names:
            if processes.running_pid(self.layout, name) is not None:
                self.report(f"stopping {name}")
            if not processes.stop(self.layout, name, _STOP_SECONDS):
                self.report(f"{name} did not stop within {_STOP_SECONDS:g} s and was killed")

    def _state(self, role: str, name: str, address: str) -> ProcessState:
        pid = processes.running_pid(self.layout, name)
        if pid is not None:
            return ProcessState(role, name, pid, address, "suspended" if processes.is_suspended(pid) else "running")
        state = "dead" if processes.was_started(self.layout, name) else "stopped"
        return ProcessState(role, name, None, address, state)
