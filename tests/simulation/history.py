"""What the clients did and what they were told: the only thing the checkers believe.

Times are simulated seconds. An operation with outcome UNKNOWN may have happened, at any time after it began, or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import trio

from gfscore.errors import Code, GfsError

INFINITY = float("inf")


class Outcome(Enum):
    UNKNOWN = "unknown"
    DONE = "done"
    REFUSED = "refused"  # a definite answer, and nothing changed


@dataclass(eq=False)
class Append:
    record: bytes
    began: float
    ended: float = INFINITY
    offset: int = -1
    outcome: Outcome = Outcome.UNKNOWN

    @property
    def end(self) -> int:
        """One past its last byte in the file."""
        return self.offset + len(self.record)


@dataclass(eq=False)
class AppendFile:
    """A file that is only ever appended to. `copies`: (name, began, ended) of its snapshots."""

    name: bytes
    inode: int
    appends: list[Append] = field(default_factory=list)
    copies: list[tuple[bytes, int, float, float]] = field(default_factory=list)


@dataclass(eq=False)
class SlotWrite:
    value: bytes
    began: float
    ended: float = INFINITY
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(eq=False)
class SlotFile:
    """A file that one task writes, slot by slot. A slot holds one of the values written to it, or zeros."""

    name: bytes
    inode: int
    slot_bytes: int
    slots: dict[int, list[SlotWrite]] = field(default_factory=dict)
    copies: list[tuple[bytes, int, float, float]] = field(default_factory=list)

    def write(self, slot: int, value: bytes, now: float) -> SlotWrite:
        entry = SlotWrite(value, now)
        self.slots.setdefault(slot, []).append(entry)
        return entry

    def possible(self, slot: int, since: float, until: float) -> set[bytes]:
        """What a read between these times may find: the last value acknowledged before, anything not over by then."""
        zeros = bytes(self.slot_bytes)
        values = {zeros}
        for entry in self.slots.get(slot, ()):
            if entry.began > until:
                break
            if entry.outcome is Outcome.DONE and entry.ended <= since:
                # What was unknown before may still take effect: a message that was slow.
                values = {e.value for e in self.slots[slot] if e.began <= until and e.outcome is Outcome.UNKNOWN}
                values.add(entry.value)
            else:
                values.add(entry.value)
        return values

    def explains(self, slot: int, found: bytes, since: float, until: float, chunk_bytes: int) -> bool:
        """Whether a read between these times may find `found`. Each of two chunks is written by itself."""
        possible = self.possible(slot, since, until)
        if found in possible:
            return True
        cut = -slot * self.slot_bytes % chunk_bytes
        if cut >= self.slot_bytes:
            return False
        return any(v[:cut] == found[:cut] for v in possible) and any(v[cut:] == found[cut:] for v in possible)


@dataclass(eq=False)
class WholeFile:
    """A file that whoever holds its `lock` changes and closes, and that anybody reads.

    Times are turns here (`Load.turn`), not seconds: much happens at the same simulated second. `value` of a write is
    all that is in the file after it.
    """

    name: bytes
    inode: int
    writes: list[SlotWrite] = field(default_factory=list)
    lock: trio.Lock = field(default_factory=trio.Lock)

    def explains(self, found: bytes, since: float, until: float) -> bool:
        """Whether a read between these turns may find this. While it is written, and after a failure, anything goes."""
        expected: bytes | None = None
        for entry in self.writes:
            if entry.began <= until:
                expected = entry.value if entry.outcome is Outcome.DONE and entry.ended <= since else None
        return expected is None or found == expected


@dataclass(eq=False)
class NameOperation:
    """One operation as one name sees it. `kind`: read, make (must be absent), drop (must be there), put, touch.

    `value`: what was read or made (0: nothing there; -1: something, which is not known).
    """

    kind: str
    began: float
    ended: float = INFINITY
    value: int = -1
    outcome: Outcome = Outcome.UNKNOWN
    who: str = ""


@dataclass
class History:
    appends: list[AppendFile] = field(default_factory=list)
    slots: list[SlotFile] = field(default_factory=list)
    wholes: list[WholeFile] = field(default_factory=list)
    names: dict[bytes, list[NameOperation]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # what a client saw that it must not see
    operations: int = 0

    def name(self, name: bytes, kind: str, now: float, who: str) -> NameOperation:
        operation = NameOperation(kind, now, who=who)
        self.names.setdefault(name, []).append(operation)
        return operation


# After these the system says itself that it does not know. STALE_INODE: what was made is gone again by the time the
# retry of a lost answer is answered.
_UNKNOWN = frozenset({Code.TIMED_OUT, Code.UNREACHABLE, Code.IO, Code.SHUTTING_DOWN, Code.NO_SPACE, Code.STALE_INODE})


def outcome_of(error: GfsError) -> Outcome:
    """Whether a failed operation may have happened all the same."""
    return Outcome.UNKNOWN if error.code in _UNKNOWN or error.retryable else Outcome.REFUSED
