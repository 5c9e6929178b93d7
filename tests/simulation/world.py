"""A whole cluster in one process, driven by one seed: the same seed is the same history, to the last message.

The world runs the real master, chunkservers and clients on simulated machines, restarts what died, and keeps the
history's hash. It knows nothing of what is right: `faults` disturb it, `workload` uses it, `checkers` judge.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any

import trio
import trio.testing
from network import Network, SimTransport
from processes import Machine, Process, environment

import gfscore.server.chunkserver.server as chunkserver_module
import gfscore.server.master.server as master_module
from gfscore.client import Client, ClientOptions, open_client
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.errors import GfsError
from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.node import Node
from gfscore.server.master.config import MasterConfig

MASTER_PORT = 7100
CHUNK_BYTES = 1024 * 1024
LEASE_SECONDS = 6.0
TIMEOUT_SECONDS = 20.0  # of every operation of a client
_EXPORTED = re.compile(r"\S*/memory-disk-\w+")  # another one in each process


class Violation(Exception):
    """The system broke a promise. The text says which."""


class _KnownNode(Node):
    """Tells the world where it is."""

    async def open_store(self, chunk_size: int) -> None:
        process = self.env.clock._process  # type: ignore[attr-defined]
        process.node = self
        await super().open_store(chunk_size)


class _KnownMaster(master_module.Master):
    def __init__(self, config: MasterConfig, env: Any, state: Any, nursery: trio.Nursery) -> None:
        super().__init__(config, env, state, nursery)
        env.clock._process.master = self
        self.began_with = state.applied  # lsn


class World:
    """Nodes by name: `master`, `cs1`, `cs2`…; clients have names of their own."""

    def __init__(self, seed: int, nursery: trio.Nursery, chunkservers: int, replication: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.servers = [f"cs{number + 1}" for number in range(chunkservers)]
        self.nodes = ["master", *self.servers]
        self.replication = replication
        self.problems: list[str] = []  # promises broken so far
        self.pointless = trio.Event()  # so much is broken that going on shows nothing
        self.processes: dict[str, Process] = {}
        self.network = Network(Random(self.random.random()), self.note, nursery)
        self.machines = {name: Machine(name, Random(self.random.random()), MemoryDisk()) for name in self.nodes}
        self.events: list[str] = []  # faults and deaths, for people
        self._hash = hashlib.sha256()
        self._started = trio.current_time()
        self._nursery = nursery
        self._may_run: dict[str, trio.Event] = {}
        self._closing = False
        for name in self.nodes:
            self._may_run[name] = trio.Event()
            self._may_run[name].set()
            nursery.start_soon(self._keep_running, name)
        self._former_master: Any = None
        self._durable_lsn = 0  # of the records that a master is known to have had on its disk
        nursery.start_soon(self._watch)

    # ------------------------------------------------------------ the history

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return trio.current_time() - self._started

    def note(self, *what: Any) -> None:
        """Something happened that can be observed."""
        self._hash.update(f"{trio.current_time():.9f} {what}\n".encode())

    def tell(self, text: str) -> None:
        """A note that people may want to read too."""
        self.note(text)
        self.events.append(f"{self.now:8.3f}  {text}")

    def problem(self, text: str) -> None:
        self.tell(f"PROBLEM: {text}")
        self.problems.append(text)

    def digest(self) -> str:
        return self._hash.hexdigest()

    # ------------------------------------------------------------ nodes

    async def _keep_running(self, name: str) -> None:
        """What an init system does."""
        pause = Random(self.random.random())
        while not self._closing:
            await self._may_run[name].wait()
            process = self.processes[name] = Process(name, self.machines[name], self._died)
            await self._live(process)
            await trio.sleep(0.05 + pause.random() / 2)

    async def _live(self, process: Process) -> None:
        env = environment(process, SimTransport(self.network, process))
        name = process.host
        try:
            with process.scope:
                if name == "master":
                    await master_module.run_master(
                        MasterConfig(
                            host=name, port=MASTER_PORT, chunk_size=CHUNK_BYTES, replication=self.replication,
                            lease_seconds=LEASE_SECONDS, trash_seconds=0,
                        ), env,
                    )  # fmt: skip
                else:
                    await chunkserver_module.run_chunkserver(
                        ChunkserverConfig(
                            master=f"master:{MASTER_PORT}",
                            host=name,
                            scrub_bytes_per_second=1 << 26,
                            scrub_pause_seconds=20.0,
                        ),
                        env,
                    )
        except BaseException as error:
            if isinstance(error, trio.Cancelled):
                raise
            if not self._closing:  # a cancellation that a dying process swallowed comes again at the next checkpoint
                self._judge_end(name, error)
        finally:
            process.die()
            process.ended.set()

    def _judge_end(self, name: str, error: BaseException) -> None:
        for leaf in leaves(error):
            if isinstance(leaf, GfsError):
                self.tell(f"{name} ended: {_EXPORTED.sub(name, str(leaf))}")
            elif not isinstance(leaf, Killed | trio.Cancelled):
                self.problem(f"{name} died of {leaf!r}")

    def _died(self, process: Process) -> None:
        self.network.process_died(process)
        if process.host in self.machines:
            process.machine.disk.kill()
            process.machine.disk.faults.reset()

    def kill(self, name: str) -> None:
        """SIGKILL now; it stays down until `release`."""
        self.hold(name)
        process = self.processes.get(name)
        if process is not None and not process.dead:
            self.tell(f"{name} is killed")
            process.die()

    def hold(self, name: str) -> None:
        """Once it is down it stays down until `release`."""
        if self._may_run[name].is_set():
            self._may_run[name] = trio.Event()

    def release(self, name: str) -> None:
        self._may_run[name].set()

    def cut_power(self, name: str) -> None:
        """As `kill`, and what was not synced may be lost or torn."""
        self.kill(name)
        machine = self.machines[name]
        self.tell(f"{name} loses its power")
        machine.disk.crash(machine.random)
        machine.boots += 1

    def heal(self) -> None:
        """The end of all faults."""
        self.tell("everything is healed")
        self.network.heal()
        for machine in self.machines.values():
            machine.disk.capacity = 1 << 40
            machine.disk.faults.reset()
            machine.disk_seconds = 0.0
        for process in self.processes.values():
            process.resume()
        for name in self.nodes:
            self.release(name)

    # ------------------------------------------------------------ clients

    @asynccontextmanager
    async def client(self, name: str, **options: Any) -> AsyncIterator[tuple[Client, Process]]:
        machine = self.machines.get(name) or Machine(name, Random(self.random.random()), MemoryDisk())
        process = self.processes[name] = Process(name, machine, self._died)
        env = environment(process, SimTransport(self.network, process))
        settings = ClientOptions(name=name, **{"timeout_seconds": TIMEOUT_SECONDS, "attempt_seconds": 5.0, **options})
        async with open_client(f"master:{MASTER_PORT}", env=env, options=settings) as client:
            yield client, process

    async def all_up(self, seconds: float) -> bool:
        """Whether every chunkserver had a session and had reported completely within `seconds`."""
        with trio.move_on_after(seconds):
            while not self._all_up():
                await trio.sleep(0.1)
        return self._all_up()

    def _all_up(self) -> bool:
        master = self.processes.get("master")
        if master is None or master.dead or master.master is None:
            return False
        servers = master.master._servers
        up = [state for state in servers.by_id.values() if servers.state_of(state) == "up" and state.complete]
        return len(up) == len(self.servers)

    def known_servers(self) -> dict[str, str]:
        """The ids of the chunkservers that the master knows, by host."""
        master = self.processes["master"].master
        return {} if master is None else {s.message.address.host: s.id for s in master._servers.by_id.values()}

    def under_replicated(self) -> bool:
        """Whether the master knows of a chunk that somebody has, but too few."""
        master = self.processes["master"].master
        live = [sum(not s.gone for s in master._servers.replicas(h)) for h in master._servers.locations]
        return any(0 < count < min(self.replication, len(self.servers)) for count in live)

    # ------------------------------------------------------------ what must hold at every moment

    async def _watch(self) -> None:
        while True:
            await trio.sleep(0.25)
            process = self.processes.get("master")
            if process is not None and not process.dead and process.master is not None:
                self._check_log(process.master)
                self._check_sessions(process.master)

    def _check_log(self, master: Any) -> None:
        """No master begins without a record that the one before had on its disk (rule 19)."""
        if master is not self._former_master and master.began_with < self._durable_lsn:
            self.problem(f"the master serves with {master.began_with} records, {self._durable_lsn} were on its disk")
            self.pointless.set()
        self._former_master = master
        self._durable_lsn = max(self._durable_lsn, master._state._durable)

    def _check_sessions(self, master: Any) -> None:
        """A session that the master has given up must have ended at its chunkserver before (rule 4)."""
        known = {state.id: state for state in master._servers.by_id.values()}
        for name in self.servers:
            process = self.processes.get(name)
            node = None if process is None or process.dead else process.node
            if node is None:
                continue
            state = known.get(node.server_id)
            if state is None or not state.gone or state.epoch != node.session.epoch:
                continue
            if node.env.clock.boottime() < node.session.valid_until:
                self.problem(f"the master has given up the session of {name}, which still believes in it")

    async def close(self) -> None:
        self._closing = True
        for process in list(self.processes.values()):
            process.die()


def leaves(error: BaseException) -> list[BaseException]:
    """The errors in a group, or the one that it is."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


class _Alarms(logging.Handler):
    """A handler that failed is a defect, whatever the caller was told."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            if not isinstance(error, Killed) and not self._world._closing:
                self._world.problem(f"{message}: {error!r}")


@contextmanager
def _spies() -> Iterator[None]:
    """Production code as it is, but its nodes can be found, and trio's scheduler takes its choices from the seed."""
    node, master = chunkserver_module.Node, master_module.Master
    info = chunkserver_module.Control.info

    async def same_info(self: Any, request: Any, context: Any) -> Any:
        """Without what is of this process and not of the history: its memory."""
        reply = await info(self, request, context)
        reply.resident_bytes = 0
        reply.calls.clear()
        return reply

    chunkserver_module.Control.info = same_info  # type: ignore[method-assign]
    chunkserver_module.Node, master_module.Master = _KnownNode, _KnownMaster  # type: ignore[misc]
    try:
        yield
    finally:
        chunkserver_module.Node, master_module.Master = node, master  # type: ignore[misc]
        chunkserver_module.Control.info = info  # type: ignore[method-assign]


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Trio runs what can run in an order that depends on nothing but the seed."""
    import trio._core._run as run

    before = run._ALLOW_DETERMINISTIC_SCHEDULING, run._r.getstate()
    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    run._r.seed(seed)
    try:
        yield
    finally:
        run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]  # type: ignore[misc]
        run._r.setstate(before[1])


@asynccontextmanager
async def open_world(seed: int, *, chunkservers: int = 3, replication: int = 3) -> AsyncIterator[World]:
    with _spies():
        async with trio.open_nursery() as nursery:
            world = World(seed, nursery, chunkservers, replication)
            alarms = _Alarms(world)
            logging.getLogger("gfscore").addHandler(alarms)
            try:
                yield world
            finally:
                logging.getLogger("gfscore").removeHandler(alarms)
                await world.close()
                nursery.cancel_scope.cancel()
