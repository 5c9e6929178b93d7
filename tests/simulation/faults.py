"""What befalls a simulated world: a plan drawn from the seed, carried out beside the load, undone at the end.

A *profile* says which faults may meet, so that nothing is asked that was never promised: power is cut only where
everything counted was synced, and bits rot only where each chunk keeps good replicas.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from random import Random

import trio
from workload import SLOT_BYTES, SLOTS, Load
from world import CHUNK_BYTES, World

from gfscore.client import Client
from gfscore.errors import GfsError
from gfscore.storage import chunk_format


class Profile:
    """`big`: load that fills chunks. `sync`: load that syncs. `clients`: names of those that may die."""

    def __init__(self, name: str, faults: str, *, count: tuple[int, int] = (3, 6), big: bool = False,
                 sync: bool = False, delay: float = 0.0) -> None:  # fmt: skip
        self.name = name
        self.faults = faults.split()
        self.count = count
        self.big = big
        self.sync = sync
        self.delay = delay  # of every message, seconds at most


PROFILES = [
    Profile("kills", "kill kill kill_call kill_master kill_call_master", big=True),
    Profile("network", "cut cut one_way slow flaky repeat break wall", delay=0.02),
    Profile("pauses", "pause pause pause_master slow kill cut", delay=0.3),
    Profile("power", "power power power_master kill slow", sync=True),
    Profile("disks", "full slow_disk hung_disk kill_call kill_master"),
    Profile("rot", "rot rot rot rot rot log_damage kill_master kill_client", count=(6, 10), big=True),
    Profile("everything", "kill_all kill_all kill_master kill_call flaky", big=True),
    Profile("restarts", "kill kill kill kill kill_master slow", count=(8, 12), big=True, delay=0.05),
    Profile("mixed", "kill kill_call kill_master cut one_way slow flaky repeat pause full slow_disk kill_client wall"),
    Profile("leases", "late_answers late_answers slow one_way pause cut kill_master", delay=1.0),
    Profile("abandoned", "abandon", count=(1, 1), delay=0.1),
    Profile("operator", "goal goal goal drain kill kill_call slow", count=(6, 10), delay=0.05),
]


def profile_of(seed: int) -> Profile:
    return PROFILES[seed % len(PROFILES)]


class Faults:
    def __init__(self, world: World, load: Load, profile: Profile, seconds: float) -> None:
        self.random = Random(world.random.random())
        self.rotten: set[tuple[str, int]] = set()  # (server, chunk handle) with damaged data
        self.clients: list[str] = []  # names of those that may die
        self._world = world
        self._load = load
        self._profile = profile
        self._seconds = seconds
        self._operations = 0
        self._drained: list[str] = []  # a server twice, if it is drained twice at once

    async def run(self) -> None:
        """The whole plan; returns when the last fault is over."""
        count = self.random.randint(*self._profile.count)
        at = sorted(self.random.random() * self._seconds for _ in range(count))
        names = [self.random.choice(self._profile.faults) for _ in range(count)]
        world = self._world
        world.network.base_delay = self._profile.delay * self.random.random()
        async with trio.open_nursery() as nursery:
            for moment, name in zip(at, names, strict=True):
                await trio.sleep(max(0.0, moment - world.now))
                nursery.start_soon(getattr(self, f"_{name}"))

    def _server(self) -> str:
        return self.random.choice(self._world.servers)

    def _hosts(self) -> list[str]:
        return [*self._world.nodes, *self.clients]

    def _while(self, longest: float) -> float:
        """For how long, seconds; short ones are as likely as long ones."""
        return float(longest * self.random.random() ** 2)

    # ------------------------------------------------------------ processes

    async def _kill(self, name: str = "") -> None:
        name = name or self._server()
        self._world.kill(name)
        await trio.sleep(self._while(12.0))
        self._world.release(name)

    async def _kill_master(self) -> None:
        await self._kill("master")

    async def _kill_all(self) -> None:
        async with trio.open_nursery() as nursery:
            for name in self._world.nodes:
                nursery.start_soon(self._kill, name)

    async def _kill_call(self, name: str = "") -> None:
        """Dies in one of its next disk calls, of a write perhaps having done some pages."""
        name = name or self._server()
        calls, pages = self.random.randrange(1, 40), self.random.randrange(3)
        self._world.tell(f"{name} will die in call {calls} of its disk")
        self._world.machines[name].disk.faults.kill_at(calls, pages)
        await trio.sleep(0)

    async def _kill_call_master(self) -> None:
        await self._kill_call("master")

    async def _kill_client(self) -> None:
        """Never the last one: without a client there is no history."""
        process = self._world.processes.get(self.random.choice(self.clients)) if len(self.clients) > 1 else None
        if process is not None:
            self._world.tell(f"{process.host} is killed")
            self.clients.remove(process.host)
            process.die()
        await trio.sleep(0)

    async def _abandon(self) -> None:
        """A server misses the last that a client did before it dies with the master: nobody is left who knows. The
        server is seen by the next master, and away again when that one looks after the client's files."""
        if len(self.clients) < 2:
            return
        world, server = self._world, self._server()
        others = [other for other in world.servers if other != server]
        links = [world.network.link(other, server) for other in others]
        world.tell(f"{server} does not hear the other servers any more")
        for link in links:
            link.cut = True
        world.network.links_changed()
        await trio.sleep(0.5 + self.random.random())
        await self._kill_client()
        world.kill("master")
        for other in others:
            world.network.break_connections(other, server)  # what was on its way is lost
        for link in links:
            link.cut = False
        world.network.links_changed()
        world.release("master")
        await trio.sleep(2.0 + 4.0 * self.random.random())
        world.kill(server)
        await trio.sleep(8.0)
        world.release(server)

    async def _power(self, name: str = "") -> None:
        name = name or self._server()
        self._world.cut_power(name)
        await trio.sleep(self._while(12.0))
        self._world.release(name)

    async def _power_master(self) -> None:
        await self._power("master")

    async def _pause(self, name: str = "") -> None:
        name = name or self._server()
        process = self._world.processes.get(name)
        if process is None or process.dead:
            return
        seconds = self._while(20.0)
        self._world.tell(f"{name} is stopped for {seconds:.1f} s")
        if name == "master":
            self._load.disturbed.update(self.clients)
        process.pause()
        await trio.sleep(seconds)
        process.resume()

    async def _pause_master(self) -> None:
        await self._pause("master")

    # ------------------------------------------------------------ what an operator does

    async def _goal(self) -> None:
        """Another number of replicas for one file. One is enough: a process that is killed loses no disk."""
        file = self.random.choice([*self._load.history.appends, *self._load.history.slots])
        replicas = self.random.randint(1, len(self._world.servers))
        self._world.tell(f"{file.name!r} shall have {replicas} replicas")
        await self._operate(lambda client: client.set_policy(file.inode, {"replication": str(replicas)}))

    async def _drain(self) -> None:
        name, seconds = self._server(), self._while(20.0)
        self._world.tell(f"{name} is drained for {seconds:.1f} s")
        self._drained.append(name)
        await self._operate(lambda client: self._set_draining(client, name, True))
        await trio.sleep(seconds)
        await self._end_drain(name)

    async def _end_drain(self, name: str) -> None:
        await self._operate(lambda client: self._set_draining(client, name, False))
        self._drained.remove(name)

    async def undo(self) -> None:
        """What does not end by itself."""
        for name in sorted(self._drained):
            await self._end_drain(name)

    async def _set_draining(self, client: Client, name: str, draining: bool) -> None:
        """The id comes from behind the scenes: an answer to `status` tells of this process too, not of the history."""
        known = self._world.known_servers()
        await client.operator.drain(known.get(name, ""), cancel=not draining)

    async def _operate(self, work: Callable[[Client], Awaitable[object]]) -> None:
        """Until it works: the master may be down."""
        self._operations += 1
        async with self._world.client(f"operator{self._operations}", caching=False) as (client, _):
            while True:
                try:
                    await work(client)
                    return
                except GfsError:
                    await trio.sleep(0.5)

    # ------------------------------------------------------------ network

    def _pair(self) -> tuple[str, str]:
        first, second = self.random.sample(self._hosts(), 2)
        if "master" in (first, second):
            self._load.disturbed.update({first, second} - {"master"})
        return first, second

    async def _cut(self, one_way: bool = False) -> None:
        first, second = self._pair()
        network = self._world.network
        seconds = self._while(15.0)
        self._world.tell(f"{first} and {second} are cut off{' (one way)' if one_way else ''} for {seconds:.1f} s")
        links = [network.link(first, second)] + ([] if one_way else [network.link(second, first)])
        for link in links:
            link.cut = True
        network.links_changed()
        await trio.sleep(seconds)
        for link in links:
            link.cut = False
        network.links_changed()

    async def _one_way(self) -> None:
        await self._cut(one_way=True)

    async def _break(self) -> None:
        first, second = self._pair()
        self._world.tell(f"connections between {first} and {second} break")
        self._world.network.break_connections(first, second)
        await trio.sleep(0)

    async def _slow(self) -> None:
        """Everything from and to one host."""
        host = self.random.choice(self._hosts())
        delay, seconds = self._while(4.0), self._while(15.0)
        self._world.tell(f"{host} has a slow network, up to {delay:.1f} s, for {seconds:.1f} s")
        if delay > 1.0:
            self._load.disturbed.update(self.clients if host == "master" else {host})
        await self._for_links(host, seconds, delay_max=delay)

    async def _late_answers(self) -> None:
        """A server hears the master's answers late, and then nothing any more: what does it think it still may do?"""
        server = self._server()
        network = self._world.network
        seconds = 9.0 + self.random.random() * 4
        self._world.tell(f"{server} hears the master late, and then not at all for {seconds:.1f} s")
        links = [network.link("master", server), network.link(server, "master")]
        for link in links:
            link.delay_max = 4.0
        await trio.sleep(5.0)
        for link in links:
            link.cut = True
        network.links_changed()
        await trio.sleep(seconds)
        for link in links:
            link.cut, link.delay_max = False, 0.0
        network.links_changed()

    async def _flaky(self) -> None:
        host = self.random.choice(self._hosts())
        share, seconds = 0.02 + self.random.random() * 0.2, self._while(15.0)
        self._world.tell(f"connections of {host} break at one message in {1 / share:.0f} for {seconds:.1f} s")
        self._load.disturbed.update(self.clients if host == "master" else {host})
        await self._for_links(host, seconds, break_share=share)

    async def _repeat(self) -> None:
        host = self.random.choice(self._world.nodes)
        seconds = self._while(20.0)
        self._world.tell(f"calls to {host} arrive twice for {seconds:.1f} s")
        await self._for_links(host, seconds, repeat_share=0.5)

    async def _for_links(self, host: str, seconds: float, **values: float) -> None:
        network = self._world.network
        others = [other for other in self._hosts() if other != host]
        links = [network.link(*pair) for other in others for pair in ((host, other), (other, host))]
        for link in links:
            for name, value in values.items():
                setattr(link, name, value)
        await trio.sleep(seconds)
        for link in links:
            for name in values:
                setattr(link, name, 0.0)

    # ------------------------------------------------------------ clocks and disks

    async def _wall(self) -> None:
        name = self.random.choice(self._world.nodes)
        self._world.tell(f"the wall clock of {name} jumps by an hour")
        self._world.machines[name].wall_offset_ns += self.random.choice((-1, 1)) * 3600 * 10**9
        await trio.sleep(0)

    async def _full(self) -> None:
        machine = self._world.machines[self._server()]
        seconds = self._while(15.0)
        self._world.tell(f"the disk of {machine.host} is full for {seconds:.1f} s")
        machine.disk.capacity = machine.disk._used()
        await trio.sleep(seconds)
        machine.disk.capacity = 1 << 40

    async def _slow_disk(self, longest: float = 0.5) -> None:
        machine = self._world.machines[self._server()]
        seconds = self._while(15.0)
        self._world.tell(f"the disk of {machine.host} is slow for {seconds:.1f} s")
        machine.disk_seconds = longest * self.random.random()
        await trio.sleep(seconds)
        machine.disk_seconds = 0.0

    async def _hung_disk(self) -> None:
        await self._slow_disk(30.0)

    async def _rot(self) -> None:
        """One byte of data of one replica, where two other servers have the chunk at the same version."""
        world = self._world
        candidates = []
        for name in world.servers:
            for path in world.machines[name].disk.paths():
                if path.startswith("chunks/") and len(path.rpartition("/")[2]) == 16:
                    handle = int(path.rpartition("/")[2], 16)
                    if not any(rotten == handle for _, rotten in self.rotten):
                        candidates.append((name, handle, path))
        if not candidates:
            return
        name, handle, path = self.random.choice(candidates)
        disk = world.machines[name].disk
        start = chunk_format.data_start(CHUNK_BYTES)
        size = len(disk.contents(path))
        if size <= start + 1:
            return
        self.rotten.add((name, handle))
        end = min(size, start + SLOTS * SLOT_BYTES) if self.random.random() < 0.7 else size  # where it is written again
        offset = self.random.randrange(start, end)
        disk.corrupt(path, offset, 1 << self.random.randrange(8))
        world.tell(f"a bit rots on {name}: chunk {handle:016x}, byte {offset} of its file")
        await trio.sleep(0)

    async def _log_damage(self) -> None:
        """A byte in the middle of the log changes while the master is down: it must refuse, until it is put right."""
        world = self._world
        world.kill("master")
        disk = world.machines["master"].disk
        segments = [path for path in disk.paths() if path.startswith("state/log/segment-")]
        if segments:
            path = segments[-1]
            data = disk.contents(path)
            end = len(data.rstrip(b"\0"))
            if end > 4096 + 3000:
                offset = self.random.randrange(4096, 4096 + (end - 4096) // 2)
                world.tell(f"byte {offset} of the master's log, {end} bytes long, changes")
                disk.corrupt(path, offset, 0x40)
                world.release("master")
                await trio.sleep(3.0)
                world.kill("master")
                disk.corrupt(path, offset, 0x40)
        await trio.sleep(self._while(5.0))
        world.release("master")
