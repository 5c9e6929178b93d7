"""Judges a history against what is on the simulated disks and what a fresh client reads. Believes no server.

Each function returns the promises that were broken, as lines of text; none is the answer one hopes for.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from history import AppendFile, History, Outcome, SlotFile
from linearize import explainable
from world import CHUNK_BYTES, World

from gfscore.errors import GfsError
from gfscore.metadata.chunks import ChunkRecord, file_handles, unpack_chunk
from gfscore.metadata.inodes import load_file
from gfscore.metadata.keys import unpack8
from gfscore.metadata.tables import CHUNKS, Tables
from gfscore.metadata.validate import validate
from gfscore.storage.chunk_store import ChunkStore

_RECORD = re.compile(rb"<R(\d{6}):(\d+):")
_HEAD_BYTES = 30  # no other record begins with the same


@dataclass
class Copy:
    """A replica as it is on one disk. `data` is None where its checksums do not hold."""

    server: str
    version: int
    data: bytes | None


Replicas = dict[int, list[Copy]]


class Disks:
    """All replicas on all disks, read from a copy of each disk, as a server that starts on it would."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._before: dict[str, tuple[object, dict[int, Copy]]] = {}  # of each server, until its disk changes

    def replicas(self) -> Replicas:
        found: Replicas = {}
        for name in self._world.servers:
            machine = self._world.machines[name]
            stamp = machine.boots, machine.disk.stamp()
            if name not in self._before or self._before[name][0] != stamp:
                self._before[name] = stamp, self._read(name)
            for handle, copy in self._before[name][1].items():
                found.setdefault(handle, []).append(copy)
        return found

    def _read(self, name: str) -> dict[int, Copy]:
        machine = self._world.machines[name]
        store = ChunkStore(machine.disk.copy(), CHUNK_BYTES, boot_id=f"boot {machine.boots}")  # type: ignore[arg-type]
        store.open_all()
        found = {}
        for handle, version, length in list(store.scan()):
            data: bytes | None = None
            with suppress(GfsError):
                data = bytes(store.get(handle).read(0, length)) if length else b""
            found[handle] = Copy(name, version, data)
        return found


def chunk_records(tables: Tables) -> dict[int, ChunkRecord]:
    return {unpack8(key): unpack_chunk(value) for key, value in tables.range(CHUNKS, b"", None)}


def handles_of(tables: Tables, inode: int) -> list[int]:
    """By chunk index; 0 is a hole."""
    return list(file_handles(tables, load_file(tables, inode)))


# ---------------------------------------------------------------- the tables and the chunks


def check_tables(tables: Tables) -> list[str]:
    try:
        validate(tables)
    except AssertionError as error:
        return [f"the master's tables: {error}"]
    return []


def check_chunks(tables: Tables, replicas: Replicas, rotten: set[tuple[str, int]], written: set[int]) -> list[str]:
    """No chunk lost: `written` are those in which something was acknowledged. No replica damaged but the rotten."""
    problems = []
    for handle, record in chunk_records(tables).items():
        current = [copy for copy in replicas.get(handle, ()) if copy.version == record.version]
        if not current and (handle in written or replicas.get(handle)):
            others = [(copy.server, copy.version) for copy in replicas.get(handle, ())]
            problems.append(f"chunk {handle:016x} has no replica of version {record.version}: {others}")
    for handle, copies in replicas.items():
        for copy in copies:
            if copy.data is not None or (copy.server, handle) in rotten:
                continue
            # A local clone copies the rot too; then another server has to have the chunk whole.
            whole = any(other.data is not None and other.version >= copy.version for other in copies)
            if not whole or all(copy.server != server for server, _ in rotten):
                problems.append(f"chunk {handle:016x} on {copy.server} does not match its checksums")
    return problems


def check_goals(tables: Tables, replicas: Replicas, servers: int) -> list[str]:
    """Every chunk that anybody has is there as often as it should be, whole and of the recorded version."""
    problems = []
    for handle, record in chunk_records(tables).items():
        good = {copy.server for copy in _current(tables, replicas, handle)}
        if replicas.get(handle) and len(good) < min(record.goal, servers):
            problems.append(f"chunk {handle:016x} should have {record.goal} replicas and has {sorted(good)}")
    return problems


def check_orphans(tables: Tables, replicas: Replicas) -> list[str]:
    known = chunk_records(tables)
    return [
        f"chunk {handle:016x} is an orphan on {', '.join(copy.server for copy in copies)}"
        for handle, copies in replicas.items()
        if handle not in known
    ]


def _current(tables: Tables, replicas: Replicas, handle: int) -> list[Copy]:
    record = chunk_records(tables).get(handle)
    if record is None:
        return []
    return [c for c in replicas.get(handle, ()) if c.version == record.version and c.data is not None]


def check_equal(tables: Tables, replicas: Replicas, inode: int, name: bytes) -> list[str]:
    """All replicas of each chunk of a file, of the recorded version, are equal byte for byte."""
    problems = []
    for index, handle in enumerate(handles_of(tables, inode)):
        copies = _current(tables, replicas, handle) if handle else []
        if len({copy.data for copy in copies}) > 1:
            lengths = {copy.server: len(copy.data or b"") for copy in copies}
            problems.append(f"{name!r} chunk {index} ({handle:016x}): replicas differ, lengths {lengths}")
    return problems


def check_padded(tables: Tables, replicas: Replicas, known: AppendFile) -> list[str]:
    """Whoever was sent to the next chunk left one that is padded to its end on every replica (rule 15)."""
    problems = []
    last = max((a.offset // CHUNK_BYTES for a in known.appends if a.outcome is Outcome.DONE), default=0)
    for index, handle in enumerate(handles_of(tables, known.inode)[:last]):
        for copy in _current(tables, replicas, handle):
            if len(copy.data or b"") != CHUNK_BYTES:
                problems.append(
                    f"{known.name!r} chunk {index} ({handle:016x}) is left behind with {len(copy.data or b'')} bytes "
                    f"on {copy.server}"
                )
    return problems


# ---------------------------------------------------------------- appends


def check_appends(known: AppendFile, data: bytes) -> list[str]:
    """`data`: the whole file. Every acknowledged record once, at its offset; nothing torn; nothing unknown."""
    problems = []
    by_record = {append.record: append for append in known.appends}
    places: Counter[bytes] = Counter()
    end = 0
    for match in _RECORD.finditer(data):
        if match.start() < end:
            continue
        size = int(match[2])
        record = data[match.start() : match.start() + size]
        if record not in by_record:
            problems.append(f"{known.name!r}: a torn record {record[:20]!r} at {match.start()}")
            continue
        if data[end : match.start()].strip(b"\0"):
            problems.append(f"{known.name!r}: rubbish between {end} and {match.start()}")
        places[record] += 1
        end = match.start() + size
    if data[end:].strip(b"\0"):
        problems.append(f"{known.name!r}: rubbish behind {end}")
    for append in known.appends:
        name = f"{known.name!r}: record {append.record[:9]!r} of {append.began:.3f}"
        if append.outcome is Outcome.DONE:
            if data[append.offset : append.offset + len(append.record)] != append.record:
                found = data[append.offset : append.offset + 12]
                problems.append(f"{name} is not at {append.offset}, there is {found!r} (file of {len(data)})")
            if places[append.record] != 1:
                problems.append(f"{name} is there {places[append.record]} times")
        elif append.outcome is Outcome.REFUSED and places[append.record]:
            problems.append(f"{name} was refused, and is there")
        elif places[append.record] > 1:
            problems.append(f"{name}, of unknown outcome, is there {places[append.record]} times")
    return problems


def check_append_replicas(tables: Tables, replicas: Replicas, known: AppendFile) -> list[str]:
    """Every acknowledged record whole at its offset on every replica of the recorded version."""
    problems = []
    handles = handles_of(tables, known.inode)
    for append in known.appends:
        if append.outcome is not Outcome.DONE:
            continue
        index, position = divmod(append.offset, CHUNK_BYTES)
        handle = handles[index] if index < len(handles) else 0
        for copy in _current(tables, replicas, handle):
            assert copy.data is not None
            if copy.data[position : position + len(append.record)] != append.record:
                problems.append(f"{known.name!r}: record {append.record[:9]!r} is not on {copy.server}")
    return problems


def check_append_copy(known: AppendFile, data: bytes, began: float, ended: float) -> list[str]:
    """A snapshot has what was acknowledged before it began, at its place, and nothing that began after it."""
    problems = []
    for append in known.appends:
        there = data[append.offset : append.offset + len(append.record)] == append.record
        if append.outcome is Outcome.DONE and append.ended < began and not there:
            problems.append(f"a snapshot of {known.name!r} at {began:.3f} lacks record {append.record[:9]!r}")
        if append.began > ended and append.record[:_HEAD_BYTES] in data:
            problems.append(f"a snapshot of {known.name!r} at {ended:.3f} has the later record {append.record[:9]!r}")
    return problems


# ---------------------------------------------------------------- writes


def check_slots(known: SlotFile, data: bytes, since: float, until: float) -> list[str]:
    """Every slot holds the last value acknowledged, or one whose outcome is unknown."""
    problems = []
    size = known.slot_bytes
    for slot in known.slots:
        found = data[slot * size : (slot + 1) * size]
        found += bytes(size - len(found))
        if not known.explains(slot, found, since, until, CHUNK_BYTES):
            heads = sorted(value[:14] for value in known.possible(slot, since, until))
            problems.append(f"{known.name!r} slot {slot}: {found[:14]!r}, not one of {heads} ({since:.3f})")
    return problems


# ---------------------------------------------------------------- names


def check_names(history: History) -> list[str]:
    problems = []
    for name, operations in history.names.items():
        if not explainable(operations):
            lines = "; ".join(
                f"{o.who} {o.kind} {o.value} {o.outcome.value} {o.began:.3f}-{o.ended:.3f}"
                for o in sorted(operations, key=lambda o: o.began)
                if o.outcome is not Outcome.REFUSED
            )
            problems.append(f"name {name!r}: no order explains {lines}")
    return problems
