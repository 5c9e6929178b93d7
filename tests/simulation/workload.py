"""What the clients of a simulated world do until the load is over, written down in a `History`.

Every task lives on its own names, or on names that all share; what it may see is the business of `checkers`.
"""

from __future__ import annotations

from random import Random

import trio
from history import Append, AppendFile, History, NameOperation, Outcome, SlotFile, SlotWrite, WholeFile, outcome_of
from world import CHUNK_BYTES, World

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, FileType, GfsError
from gfscore.client.open_file import OpenFile

SLOT_BYTES = 3000
SLOTS = 30  # of a file, that are written again and again
_SHARED_NAMES = [b"n%d" % number for number in range(4)]


class Load:
    """`busy` says how often things happen: mean pause of a task in seconds. `big`: records and writes that fill chunks.

    `sync`: only what was synced counts, so that power may fail.
    """

    def __init__(self, world: World, *, busy: float, big: bool, sync: bool) -> None:
        self.world = world
        self.history = History()
        self.names_directory = 0
        self.copies_directory = 0
        self.over = False
        self._busy = busy
        self._big = big
        self._sync = sync
        self._records = 0
        self._copies = 0
        self._just_closed = trio.Event()
        self._turns = 0
        self.disturbed: set[str] = set()  # clients whose link to the master was cut: what they cached may be old

    async def prepare(self, client: Client) -> None:
        """The directories and files that all share."""
        make = client.create
        self.names_directory = (await make(ROOT_INODE, b"names", FileType.DIRECTORY, 0o755, 1, 1)).inode
        self.copies_directory = (await make(ROOT_INODE, b"copies", FileType.DIRECTORY, 0o755, 1, 1)).inode
        for name in (b"log0", b"log1"):
            attr, file = await client.create_file(ROOT_INODE, name, 0o644, 1, 1)
            await file.close()
            self.history.appends.append(AppendFile(name, attr.inode))
            if self._sync and name == b"log0":  # what is appended to the other is synced by its writer
                await client.set_policy(attr.inode, {"append_sync": "1"})

    async def run(self, client: Client, name: str, number: int) -> None:
        """All tasks of one client, until `over`."""
        random = Random(self.world.random.random())
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(self._append, client, Random(random.random()))
            nursery.start_soon(self._follow, client, name, Random(random.random()))
            nursery.start_soon(self._write, client, Random(random.random()), number)
            nursery.start_soon(self._rewrite, client, name, Random(random.random()), number)
            nursery.start_soon(self._rename, client, name, Random(random.random()))
            nursery.start_soon(self._hold, client, name, Random(random.random()), number)
            if number == 0:
                nursery.start_soon(self._copy, client, Random(random.random()))

    async def _pause(self, random: Random, factor: float = 1.0) -> None:
        await trio.sleep(random.expovariate(1 / (self._busy * factor)))

    def _noted(self, what: str, error: GfsError | None = None) -> None:
        self.history.operations += 1
        self.world.note(what, "ok" if error is None else error.code.name)
        if error is not None and error.code is Code.INTERNAL:
            self.history.problems.append(f"{what}: {error}")

    # ------------------------------------------------------------ appends

    async def _append(self, client: Client, random: Random) -> None:
        file: OpenFile | None = None
        known = random.choice(self.history.appends)
        while not self.over:
            await self._pause(random)
            try:
                if file is None:
                    known = random.choice(self.history.appends)
                    file = await client.open(known.inode, write=True, append=True)
                await self.append(file, known, random)
                if random.random() < 0.15:
                    await file.close()
                    file = None
            except GfsError as error:
                self._noted("open", error)
                file = None
        if file is not None:
            await self._closed(file)

    async def append(self, file: OpenFile, known: AppendFile, random: Random) -> Append:
        """One record, written down. Raises nothing."""
        self._records += 1
        size = random.randrange(30, 400)
        if self._big and random.random() < 0.5:
            size = random.randrange(100_000, CHUNK_BYTES // 4)
        head = b"<R%06d:%d:" % (self._records, size)
        entry = Append(head + bytes([65 + self._records % 26]) * (size - len(head)), self.world.now)
        known.appends.append(entry)
        try:
            entry.offset = await file.append(entry.record)
            if self._sync and known.name != b"log0":
                await file.fsync()
            entry.outcome, entry.ended = Outcome.DONE, self.world.now
            self._noted("append")
        except GfsError as error:
            entry.outcome = outcome_of(error)
            self._noted("append", error)
        return entry

    async def _follow(self, client: Client, who: str, random: Random) -> None:
        """As `tail -f` does: whoever looks at a log finds every record that anybody was acknowledged before."""
        while not self.over:
            await self._pause(random)
            known = random.choice(self.history.appends)
            done = [entry for entry in known.appends if entry.outcome is Outcome.DONE]
            if not done:
                continue
            entry, end = random.choice(done), max(entry.end for entry in done)
            try:
                size = (await client.getattr(known.inode)).size
                found = await self._read_record(client, known, entry)
            except GfsError as error:
                self._noted("follow", error)
                continue
            self._noted("follow")
            if who not in self.disturbed and size < end:
                self.history.problems.append(
                    f"{who} sees {size} bytes of {known.name!r}, of which {end} were acknowledged"
                )
            if who not in self.disturbed and found != entry.record:
                self.history.problems.append(
                    f"{who} reads {found[:30]!r}, {len(found)} bytes, at {entry.offset} of {known.name!r}"
                )

    async def _read_record(self, client: Client, known: AppendFile, entry: Append) -> bytes:
        file = await client.open(known.inode)
        try:
            return bytes(await file.read(entry.offset, len(entry.record)))
        finally:
            await file.close()

    async def _closed(self, file: OpenFile) -> None:
        try:
            await file.close()
        except GfsError as error:
            self._noted("close", error)

    # ------------------------------------------------------------ writes

    async def _write(self, client: Client, random: Random, number: int) -> None:
        """Slots of a file of its own; now and then it reads one, or cuts the file."""
        known: SlotFile | None = None
        file: OpenFile | None = None
        turn = 0
        while not self.over:
            await self._pause(random)
            try:
                if known is None:
                    name = b"slots%d-%d" % (number, turn)
                    turn += 1
                    attr, file = await client.create_file(ROOT_INODE, name, 0o644, 1, 1)
                    known = SlotFile(name, attr.inode, SLOT_BYTES)
                    self.history.slots.append(known)
                if file is None:
                    file = await client.open(known.inode, write=True)
                choice = random.random()
                if choice < 0.6:
                    await self.write_slots(file, known, random)
                elif choice < 0.9:
                    await self._read_slot(file, known, random)
                else:
                    await self._closed(file)
                    file = None
            except GfsError as error:
                self._noted("write", error)
                file = None
        if file is not None:
            await self._closed(file)

    async def write_slots(self, file: OpenFile, known: SlotFile, random: Random) -> None:
        """Write one or a few slots and wait until they are on the replicas. Raises GfsError."""
        first = random.randrange(SLOTS)
        if self._big and random.random() < 0.3:
            first += CHUNK_BYTES // SLOT_BYTES - 15
        count = random.choice((1, 1, 1, 4, 25))
        entries = []
        for slot in range(first, first + count):
            self._records += 1
            head = b"<W%06d:%d:" % (self._records, slot)
            value = head + bytes([97 + self._records % 26]) * (SLOT_BYTES - len(head))
            entries.append((slot, known.write(slot, value, self.world.now)))
        try:
            await file.write(first * SLOT_BYTES, b"".join(entry.value for _, entry in entries))
            await (file.fsync() if self._sync or random.random() < 0.3 else file.flush())
        except GfsError as error:
            for _, entry in entries:
                entry.outcome = outcome_of(error)
            raise
        for _, entry in entries:
            entry.outcome, entry.ended = Outcome.DONE, self.world.now
        self._noted("write")

    async def _read_slot(self, file: OpenFile, known: SlotFile, random: Random) -> None:
        if not known.slots:
            return
        slot = random.choice(sorted(known.slots))
        began = self.world.now
        data = bytes(await file.read(slot * SLOT_BYTES, SLOT_BYTES))
        data += bytes(SLOT_BYTES - len(data))
        self._noted("read")
        if not known.explains(slot, data, began, self.world.now, CHUNK_BYTES):
            self.history.problems.append(f"{known.name!r} slot {slot}: read {data[:30]!r} at {began:.3f}")

    # ------------------------------------------------------------ close here, open there

    async def _rewrite(self, client: Client, who: str, random: Random, number: int) -> None:
        """Small files are changed, by turns of the clients, and closed; as soon as that somebody reads them."""
        history = self.history
        while not self.over:
            with trio.move_on_after(random.expovariate(1 / (self._busy * 2))):
                await self._just_closed.wait()
            try:
                if len(history.wholes) <= number:
                    self._copies += 1
                    name = b"whole%d" % self._copies
                    attr, file = await client.create_file(ROOT_INODE, name, 0o644, 1, 1)
                    await file.close()
                    history.wholes.append(WholeFile(name, attr.inode))
                if random.random() < 0.3:
                    await self._change_whole(client, random.choice(history.wholes), random)
                if history.wholes:
                    await self._read_whole(client, who, random.choice(history.wholes))
            except GfsError as error:
                self._noted("rewrite", error)

    def turn(self) -> int:
        """Grows with every call: what came first, also within one simulated moment."""
        self._turns += 1
        return self._turns

    async def _change_whole(self, client: Client, known: WholeFile, random: Random) -> None:
        """Written anew, cut, or appended to. After a failure nobody looks at the file again: what was asked for may
        still be on its way, and come after what others do."""
        async with known.lock:
            if known not in self.history.wholes:
                return
            self.history.wholes.remove(known)
            before = known.writes[-1].value if known.writes else b""
            change = random.choice(("write", "cut", "append"))
            self._records += 1
            value = b"<F%06d>" % self._records * random.randrange(1, 500)
            if change == "cut":
                value = before[: random.randrange(len(before) + 1)]
            elif change == "append":
                value = before + value
            entry = SlotWrite(value, self.turn())
            known.writes.append(entry)
            if change == "cut":
                await client.setattr(known.inode, AttrChanges(size=len(value)))
            else:
                file = await client.open(known.inode, write=True, truncate=change == "write")
                try:
                    if change == "append":
                        offset = await file.append(value[len(before) :])
                        if offset != len(before):
                            self.history.problems.append(f"{known.name!r}: appended at {offset}, not {len(before)}")
                    else:
                        await file.write(0, value)
                    if self._sync:
                        await file.fsync()
                finally:
                    await file.close()
            entry.outcome, entry.ended = Outcome.DONE, self.turn()
            self.history.wholes.append(known)
            self._noted(f"{change} whole")
            self._just_closed.set()
            self._just_closed = trio.Event()

    async def _read_whole(self, client: Client, who: str, known: WholeFile) -> None:
        began = self.turn()
        inode = (await client.lookup(ROOT_INODE, known.name)).inode
        file = await client.open(inode)
        try:
            data = bytes(await file.read(0, 1 << 20))
        finally:
            await file.close()
        self._noted("read whole")
        if who not in self.disturbed and not known.explains(data, began, self.turn()):
            self.history.problems.append(
                f"{who} reads {data[:20]!r}, {len(data)} bytes, from {known.name!r}, not what was closed"
            )

    # ------------------------------------------------------------ names

    async def _rename(self, client: Client, who: str, random: Random) -> None:
        while not self.over:
            await self._pause(random)
            name, other = random.sample(_SHARED_NAMES, 2)
            kind = random.choice(("look", "look", "make", "make", "unlink", "rename", "link"))
            try:
                await self._name_operation(client, who, kind, name, other)
            except GfsError as error:
                self._noted(kind, error)

    async def _name_operation(self, client: Client, who: str, kind: str, name: bytes, other: bytes) -> None:
        history, here = self.history, self.names_directory
        began = self.world.now
        if kind == "look":
            operation = history.name(name, "read", began, who)
            try:
                operation.value = (await client.lookup(here, name)).inode
                operation.outcome = Outcome.DONE
            except GfsError as error:
                if error.code is not Code.NOT_FOUND:
                    raise
                operation.outcome, operation.value = Outcome.DONE, 0
            if who in self.disturbed:  # until it notices that its stream is dead, its cache may be behind
                operation.outcome = Outcome.REFUSED
            operation.ended = self.world.now
            self._noted("look")
            return
        if kind == "make":
            operations = [history.name(name, "make", began, who)]
        elif kind == "unlink":
            operations = [history.name(name, "drop", began, who)]
        elif kind == "rename":
            operations = [history.name(name, "drop", began, who), history.name(other, "put", began, who)]
        else:
            # Under a name that nobody else uses: a rename onto another link of the same file would change nothing.
            self._copies += 1
            inode = (await client.lookup(here, other)).inode
            name = b"link%d" % self._copies
            operations = [history.name(name, "make", began, who)]
        try:
            if kind == "make":
                operations[0].value = (await client.create(here, name, FileType.FILE, 0o644, 1, 1)).inode
            elif kind == "unlink":
                await client.unlink(here, name)
            elif kind == "rename":
                await client.rename(here, name, here, other)
            else:
                operations[0].value = (await client.link(inode, here, name)).inode
        except GfsError as error:
            self._name_refused(operations, error, who)
            raise
        for operation in operations:
            operation.outcome, operation.ended = Outcome.DONE, self.world.now
        self._noted(kind)

    def _name_refused(self, operations: list[NameOperation], error: GfsError, who: str) -> None:
        """A refusal says what was there, unless it comes from a cache that may be old."""
        outcome = outcome_of(error)
        for operation in operations:
            operation.outcome = outcome
            if outcome is Outcome.REFUSED:
                operation.ended = self.world.now
        first = operations[0]
        if who not in self.disturbed and outcome is Outcome.REFUSED:
            if error.code is Code.EXISTS and first.kind == "make":
                first.kind, first.value, first.outcome = "read", -1, Outcome.DONE
            elif error.code is Code.NOT_FOUND and first.kind == "drop":
                first.kind, first.value, first.outcome = "read", 0, Outcome.DONE

    # ------------------------------------------------------------ files that are open and have no name

    async def _hold(self, client: Client, who: str, random: Random, number: int) -> None:
        """Write a file, have its name removed while it is open, and go on using it."""
        turn = 0
        while not self.over:
            await self._pause(random, 3.0)
            turn += 1
            name = b"held%d-%d" % (number, turn)
            value = b"held %d %d " % (number, turn) * 50
            try:
                _, file = await client.create_file(ROOT_INODE, name, 0o644, 1, 1)
                await file.write(0, value)
                await (file.fsync() if self._sync else file.flush())
                await client.unlink(ROOT_INODE, name)
                self._noted("unlink")
            except GfsError as error:
                self._noted("hold", error)
                continue
            await self._use_held(file, value, who, random)

    async def _use_held(self, file: OpenFile, value: bytes, who: str, random: Random) -> None:
        for _ in range(random.randrange(1, 6)):
            await self._pause(random)
            try:
                found = bytes(await file.read(0, len(value)))
            except GfsError as error:
                self._noted("held", error)
                if error.code in (Code.STALE_INODE, Code.NOT_FOUND) and who not in self.disturbed:
                    self.history.problems.append(f"a file that {who} has open was collected: {error}")
                break
            self._noted("held")
            if found != value:
                self.history.problems.append(f"a file that {who} has open reads {found[:30]!r} of {len(found)} bytes")
        await self._closed(file)

    # ------------------------------------------------------------ snapshots

    async def _copy(self, client: Client, random: Random) -> None:
        while not self.over:
            await self._pause(random, 8.0)
            known = random.choice([*self.history.appends, *self.history.slots])
            self._copies += 1
            name = b"copy%d" % self._copies
            began = self.world.now
            try:
                attr = await client.snapshot(known.inode, self.copies_directory, name)
            except GfsError as error:
                self._noted("snapshot", error)
                continue
            known.copies.append((name, attr.inode, began, self.world.now))
            self._noted("snapshot")
