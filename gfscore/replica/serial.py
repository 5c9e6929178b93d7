"""The order of mutations at one replica of one chunk version: consecutive serial numbers, each applied once [0101].

Says what may happen to a mutation that arrived; the caller applies it and reports back. Rule 11: there are no gaps,
also when messages overtake one another or arrive twice.
"""

from __future__ import annotations

from enum import Enum, auto

from gfscore.errors import Code, GfsError

RESULTS_KEPT = 64  # answers remembered for duplicates; more than a primary ever has in flight


class Turn(Enum):
    """What is to be done with a serial number that arrived."""

    NOW = auto()
    LATER = auto()  # its predecessors are still missing
    DUPLICATE = auto()  # applied before: answer `result(serial)` again


class SerialGate:
    """Serial numbers of one replica within one chunk version, from 1.

    A gate that starts `closed` applies nothing: it belongs to a replica that was found on the disk after a restart,
    which cannot know what it applied before. Only a new version opens the replica again.
    """

    __slots__ = ("_results", "applied", "closed")

    def __init__(self, *, closed: bool = False) -> None:
        self.applied = 0
        self.closed = closed
        self._results: dict[int, int] = {}

    def check(self, serial: int) -> Turn:
        """Raises GfsError(SERIAL_GAP) when it can never be this one's turn, INVALID for a number below 1."""
        if serial == self.applied + 1 and not self.closed:
            return Turn.NOW
        if serial < 1:
            raise GfsError(Code.INVALID, f"serial numbers start at 1, got {serial}")
        if serial <= self.applied:
            if serial in self._results:
                return Turn.DUPLICATE
            raise GfsError(Code.SERIAL_GAP, f"mutation {serial} is long past, {self.applied} were applied")
        if self.closed:
            raise GfsError(Code.SERIAL_GAP, "this replica takes no mutations of this version any more")
        return Turn.LATER

    def done(self, serial: int, result: int) -> None:
        """`serial` was applied; `result` is the answer to it, and to its duplicates."""
        assert serial == self.applied + 1 and not self.closed, "mutations are applied in serial order"
        self.applied = serial
        self._results[serial] = result
        self._results.pop(serial - RESULTS_KEPT, None)

    def result(self, serial: int) -> int:
        """The answer given to `serial`, which `check` called a DUPLICATE."""
        return self._results[serial]

    def close(self) -> None:
        """A mutation failed here: nothing behind it may be applied any more."""
        self.closed = True
