"""Runs one seed: boot, load and faults, healing, and the verdict."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass, field
from random import Random

import checkers
import trio
import trio.testing
from faults import Faults, Profile, profile_of
from history import Outcome
from workload import Load
from world import World, deterministic, leaves, open_world

from gfscore.client import Client, Code, GfsError
from gfscore.client.paths import Paths

LOAD_SECONDS = 20.0
HEAL_SECONDS = 60.0  # after the last fault, everything works again within
ORPHAN_SECONDS = 60.0  # and nothing that nobody refers to is left within
SETTLED_SECONDS = 60.0  # after which what nobody uses is equal everywhere
GOAL_SECONDS = 240.0  # and every chunk has all its replicas again within: a server has to be missed for 30 s first
_CLIENTS = 2


@dataclass
class Result:
    seed: int
    profile: str
    digest: str
    problems: list[str]
    events: list[str] = field(default_factory=list)
    operations: int = 0
    seconds: float = 0.0  # simulated


def run_seed(seed: int, profile: Profile | None = None) -> Result:
    """The history of one seed. Raises nothing for what the system does wrong: see `problems`."""
    with deterministic(seed):
        return trio.run(_run, seed, profile or profile_of(seed), clock=trio.testing.MockClock(autojump_threshold=0))


def run_quietly(seed: int) -> Result:
    """`run_seed` without what servers log, for a process of its own. Raises nothing at all."""
    logging.disable(logging.WARNING)
    gc.disable()  # garbage is collected once for each run, which takes a tenth less time
    try:
        return run_seed(seed)
    except Exception as error:  # the other seeds are worth running all the same
        return Result(seed, profile_of(seed).name, "", [f"ended with {error!r}"])
    finally:
        gc.collect()


async def _run(seed: int, profile: Profile) -> Result:
    async with open_world(seed) as world:
        simulation = _Simulation(world, profile)
        try:
            await simulation.run()
        except* GfsError as group:
            for error in leaves(group):
                world.problem(f"after everything was healed: {error}")
        problems = list(dict.fromkeys([*world.problems, *simulation.problems]))
        return Result(
            seed, profile.name, world.digest(), problems, world.events, simulation.load.history.operations, world.now
        )


class _Simulation:
    def __init__(self, world: World, profile: Profile) -> None:
        self.world = world
        self.profile = profile
        self.problems: list[str] = []
        self.disks = checkers.Disks(world)
        self.load = Load(world, busy=0.5, big=profile.big, sync=profile.sync)
        self.faults = Faults(world, self.load, profile, LOAD_SECONDS)
        self.clients: dict[str, Client] = {}
        self._ready = 0
        self._judge_now = trio.Event()

    async def run(self) -> None:
        world = self.world
        if not await world.all_up(HEAL_SECONDS):
            raise GfsError(Code.TIMED_OUT, "the cluster did not come up")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._give_up, nursery.cancel_scope)
            async with world.client("setup") as (client, _):
                await self.load.prepare(client)
            names = [f"client{number}" for number in range(_CLIENTS)]
            over = [trio.Event() for _ in names]
            for number, name in enumerate(names):
                await nursery.start(self._client, name, number, over[number])
            self.faults.clients = names
            await self._disturb()
            with trio.move_on_after(HEAL_SECONDS) as scope:
                for event in over:
                    await event.wait()
            if scope.cancelled_caught:
                self.problems.append("a client did not come to its end")
            await self._judge()
            nursery.cancel_scope.cancel()

    async def _give_up(self, scope: trio.CancelScope) -> None:
        await self.world.pointless.wait()
        scope.cancel()

    async def _disturb(self) -> None:
        """Faults beside the load, both for a limited time; then nothing is broken any more."""
        start = self.world.now
        with trio.move_on_after(LOAD_SECONDS * 1.5):
            await self.faults.run()
            await trio.sleep(max(0.0, start + LOAD_SECONDS - self.world.now))
        self.load.over = True
        self.world.heal()
        await self.faults.undo()

    async def _client(self, name: str, number: int, over: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
        """One client: its load, then the proof that it works again after everything was healed."""
        world = self.world
        try:
            async with world.client(name) as (client, process):
                task_status.started()
                with process.scope:
                    await self.load.run(client, name, number)
                    await self._works_again(client, name)
                if process.dead:
                    over.set()
        finally:
            over.set()

    async def _works_again(self, client: Client, name: str) -> None:
        """Each client, with all that it remembers of the faults, can append at once."""
        if not await self.world.all_up(HEAL_SECONDS):
            self.problems.append("not all chunkservers came back")
        random = Random(self.world.random.random())
        for known in self.load.history.appends:
            file = await client.open(known.inode, write=True, append=True)
            entry = await self.load.append(file, known, random)
            if entry.outcome is not Outcome.DONE:
                self.problems.append(f"{name} cannot append to {known.name!r} though nothing is broken any more")
            await file.close()

    # ------------------------------------------------------------ the verdict

    async def _judge(self) -> None:
        world, history = self.world, self.load.history
        if not await world.all_up(HEAL_SECONDS):
            self.problems.append("not all chunkservers came back")
        await trio.sleep(3.0)
        with trio.move_on_after(SETTLED_SECONDS):
            while self._unequal():
                await trio.sleep(2.0)
        self.problems += self._unequal()
        tables = self._tables()
        replicas = self.disks.replicas()
        for known in history.appends:
            self.problems += checkers.check_padded(tables, replicas, known)
        async with world.client("judge") as (client, _):
            await self._read_names(client)
            for known in history.appends:
                data = await self._read(client, known.inode)
                self.problems += checkers.check_appends(known, data)
                for _, inode, began, ended in known.copies:
                    copied = await self._read(client, inode)
                    self.problems += checkers.check_append_copy(known, copied, began, ended)
            for written in history.slots:
                now = world.now
                data = await self._read(client, written.inode)
                self.problems += checkers.check_slots(written, data, now, now)
                for _, inode, began, ended in written.copies:
                    copied = await self._read(client, inode)
                    self.problems += checkers.check_slots(written, copied, began, ended)
            for whole in history.wholes:
                began = self.load.turn()
                data = await self._read(client, whole.inode)
                if not whole.explains(data, began, self.load.turn()):
                    self.problems.append(f"{whole.name!r} is {data[:20]!r}, {len(data)} bytes, not what was closed")
        self.problems += checkers.check_names(history)
        self.problems += history.problems
        await self._judge_disks()

    async def _judge_disks(self) -> None:
        world, history = self.world, self.load.history
        with trio.move_on_after(GOAL_SECONDS):
            while self.faults.rotten or world.under_replicated():
                await trio.sleep(2.0)
                if not checkers.check_goals(self._tables(), self.disks.replicas(), len(world.servers)):
                    break
        with trio.move_on_after(ORPHAN_SECONDS):
            while checkers.check_orphans(self._tables(), self.disks.replicas()):
                await trio.sleep(2.0)
        tables, replicas = self._tables(), self.disks.replicas()
        self.problems += checkers.check_tables(tables)
        self.problems += checkers.check_orphans(tables, replicas)
        self.problems += checkers.check_goals(tables, replicas, len(world.servers))
        self.problems += checkers.check_chunks(tables, replicas, self.faults.rotten, set())
        for known in history.appends:
            self.problems += checkers.check_append_replicas(tables, replicas, known)
        self.problems += self._unequal()

    def _tables(self) -> checkers.Tables:
        return self.world.processes["master"].master._state.tables

    async def _read(self, client: Client, inode: int) -> bytes:
        file = await client.open(inode)
        size = (await client.getattr(inode)).size
        data = bytearray()
        while len(data) < size:
            piece = await file.read(len(data), min(size - len(data), 1 << 20))
            if not piece:
                break
            data += piece
        await file.close()
        return bytes(data)

    def _unequal(self) -> list[str]:
        """Nobody has to ask for a chunk for its replicas to become equal."""
        tables, replicas = self._tables(), self.disks.replicas()
        found: list[str] = []
        history = self.load.history
        for known in [*history.appends, *history.slots, *history.wholes]:
            found += checkers.check_equal(tables, replicas, known.inode, known.name)
        return found

    async def _read_names(self, client: Client) -> None:
        """What is there in the end is the last answer of every name's history."""
        history = self.load.history
        began = self.world.now
        entries = await Paths(client, 1, 1).list_inode(self.load.names_directory)
        found = {entry.name: entry.attr.inode for entry in entries}
        for name in {*found, *history.names}:
            operation = history.name(name, "read", began, "judge")
            operation.value, operation.outcome = found.get(name, 0), Outcome.DONE
            operation.ended = self.world.now
