"""One life of one simulated process: what a kill ends at once, what a pause holds, and its own ideas of time.

A process that was killed may still have tasks that are being cancelled; nothing they do reaches its disk or the
network any more.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

import trio

from gfscore.env.interfaces import Env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed

T = TypeVar("T")
_START_NS = 1_700_000_000_000_000_000


class Process:
    """`host` is the node's name; `boot` identifies the boot of its machine, which a power cut ends."""

    def __init__(self, host: str, machine: Machine, on_death: Callable[[Process], None]) -> None:
        self.host = host
        self.on_death = on_death
        self.machine = machine
        self.dead = False
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self.node: Any = None  # the chunkserver's `Node`
        self.master: Any = None  # the `Master`
        self._held: trio.Event | None = None

    async def running(self) -> None:
        """Returns when the process is not stopped."""
        while self._held is not None and not self.dead:
            await self._held.wait()

    @property
    def paused(self) -> bool:
        return self._held is not None

    def pause(self) -> None:
        """As SIGSTOP: nothing goes in or out, and time goes on."""
        if self._held is None:
            self._held = trio.Event()

    def resume(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.set()

    def die(self) -> None:
        """As SIGKILL: from here on nothing of it reaches its disk or the network."""
        if not self.dead:
            self.dead = True
            self.on_death(self)
            self.resume()
            self.scope.cancel()


class Machine:
    """What outlives a process: disk, boot, clocks. `drift` is the rate error of its clock."""

    def __init__(self, host: str, random: Random, disk: MemoryDisk) -> None:
        self.host = host
        self.disk = disk
        self.random = random
        self.boots = 1
        self.drift = (random.random() - 0.5) * 0.02  # one percent either way: inside the margin that leases allow
        self.offset = random.random() * 1e6
        self.wall_offset_ns = 0
        self.disk_seconds = 0.0  # what a call of the disk takes at most
        self.lives = 0


class SimClock:
    """Implements `Clock`: every machine counts a little differently."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._machine = process.machine

    def boottime(self) -> float:
        return self._machine.offset + trio.current_time() * (1 + self._machine.drift)

    def wall_ns(self) -> int:
        return _START_NS + int(trio.current_time() * 1e9) + self._machine.wall_offset_ns

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds / (1 + self._machine.drift))
        await self._process.running()


class SimDisk:
    """The machine's disk as one process sees it: after its death, nothing."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._disk = process.machine.disk

    def boot_id(self) -> str:
        return f"boot {self._process.machine.boots}"

    def real_path(self, path: str) -> str:
        """For people; only the master's checkpoints need a file that is really there."""
        return self._disk.real_path(path) if self._process.host == "master" else f"/{self._process.host}/{path}"

    def __getattr__(self, name: str) -> Any:
        if self._process.dead:
            raise Killed(f"{name}: {self._process.host} was killed")
        return getattr(self._disk, name)


class SimIo:
    """Implements `IoRunner`: inline, but a slow disk takes its time and a stopped process waits."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def __call__(self, function: Callable[..., T], /, *args: Any) -> T:
        await trio.lowlevel.checkpoint()
        await self._wait()
        return self._run(function, args)

    async def quick(self, function: Callable[..., T], /, *args: Any) -> T:
        if self._process.machine.disk_seconds or self._process.paused:
            await self._wait()
        return self._run(function, args)

    async def _wait(self) -> None:
        machine = self._process.machine
        left = machine.random.random() * machine.disk_seconds
        while left > 0 and machine.disk_seconds:  # a disk that hangs comes back for all at once
            await trio.sleep(min(left, 1.0))
            left -= 1.0
        await self._process.running()

    def _run(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        if self._process.dead:
            raise Killed(f"{self._process.host} was killed")
        try:
            return function(*args)
        except Killed:
            self._process.die()
            raise


def environment(process: Process, transport: Any) -> Env:
    machine = process.machine
    machine.lives += 1
    return Env(
        clock=SimClock(process),
        random=Random(machine.random.getrandbits(64)),
        disk=SimDisk(process),  # type: ignore[arg-type]
        run_io=SimIo(process),
        transport=transport,
    )
