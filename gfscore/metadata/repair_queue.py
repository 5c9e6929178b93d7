"""The chunks that need something, most urgent first, and how much may be done at once [0070]-[0072].

Pure, and cheap with a million chunks: entering, leaving and moving one costs the same however many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from gfscore.metadata.repair import LEVELS, SURPLUS, WAITING

_LOOKED_AT_MAX = 32  # chunks of a level that are passed over because their servers are busy, before the next level


class RepairQueue:
    """Chunks by level, in the order in which they came; some wait for a time to try them again."""

    __slots__ = ("_later", "_level", "_levels", "_times", "_waited_for")

    def __init__(self) -> None:
        self._levels: list[dict[int, None]] = [{} for _ in range(LEVELS)]
        self._level: dict[int, int] = {}
        self._later: dict[int, tuple[float, int]] = {}  # handle → (time, level) of those that failed
        self._times: list[tuple[float, int]] = []  # a heap; entries that `_later` does not confirm are void
        self._waited_for: set[int] = set()

    def __len__(self) -> int:
        """All of them, also those that wait."""
        return len(self._level) + len(self._later)

    def __contains__(self, handle: int) -> bool:
        return handle in self._level or handle in self._later

    @property
    def clones(self) -> int:
        """Chunks that need another replica."""
        return (
            len(self._level) - len(self._levels[SURPLUS])
            + sum(level != SURPLUS for _, level in self._later.values())
        )  # fmt: skip

    def level_of(self, handle: int) -> int | None:
        """Its level, None where it needs nothing."""
        level = self._level.get(handle)
        if level is None and handle in self._later:
            level = self._later[handle][1]
        return level

    def put(self, handle: int, level: int) -> None:
        """The chunk needs something of this urgency. One that waits after a failure goes on waiting."""
        later = self._later.get(handle)
        if later is not None and level >= later[1]:
            self._later[handle] = (later[0], level)
            return
        if handle in self._waited_for and level < SURPLUS:
            level = WAITING
        known = self._level.get(handle)
        if known == level:
            return
        if known is not None:
            del self._levels[known][handle]
        self._later.pop(handle, None)
        self._level[handle] = level
        self._levels[level][handle] = None

    def remove(self, handle: int) -> None:
        """The chunk needs nothing (any more)."""
        level = self._level.pop(handle, None)
        if level is not None:
            del self._levels[level][handle]
        self._later.pop(handle, None)
        self._waited_for.discard(handle)

    def wanted(self, handle: int) -> None:
        """A client waits for this chunk: it goes first, if it needs another replica at all."""
        level = self.level_of(handle)
        if level is not None and WAITING < level < SURPLUS:
            self._waited_for.add(handle)
            self._later.pop(handle, None)
            self.put(handle, WAITING)

    def defer(self, handle: int, level: int, until: float) -> None:
        """Not before `until`."""
        waited_for = handle in self._waited_for
        self.remove(handle)
        if waited_for:
            self._waited_for.add(handle)
        self._later[handle] = (until, level)
        heappush(self._times, (until, handle))

    def revive(self, now: float) -> None:
        """Those whose time has come take their places again."""
        while self._times and self._times[0][0] <= now:
            until, handle = heappop(self._times)
            entry = self._later.get(handle)
            if entry is not None and entry[0] <= until:
                del self._later[handle]
                self.put(handle, entry[1])

    def next_time(self) -> float | None:
        """When `revive` has something to do."""
        return self._times[0][0] if self._times else None

    def take(self, accept: Callable[[int, int], bool], levels: Iterable[int]) -> tuple[int, int] | None:
        """The most urgent (handle, level) that `accept` takes; it leaves the queue. `accept` changes nothing here."""
        for level in levels:
            for looked_at, handle in enumerate(self._levels[level]):
                if looked_at >= _LOOKED_AT_MAX:
                    break
                if accept(handle, level):
                    del self._levels[level][handle]
                    del self._level[handle]
                    self._waited_for.discard(handle)
                    return handle, level
        return None


@dataclass(frozen=True)
class Limits:
    """Clones at the same time: in all, and at one server as source, and again as destination."""

    clones: int
    per_server: int


class Slots:
    """Which servers are at work for clones that are under way."""

    __slots__ = ("_limits", "destinations", "running", "sources")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.running = 0
        self.sources: Counter[str] = Counter()
        self.destinations: Counter[str] = Counter()

    @property
    def free(self) -> bool:
        return self.running < self._limits.clones

    def source(self, candidates: Sequence[str]) -> str | None:
        """The least busy of `candidates` (the better ones first), None when all have enough to do."""
        best = min(candidates, key=lambda server: self.sources[server], default=None)
        return best if best is not None and self.sources[best] < self._limits.per_server else None

    def takes(self, server: str) -> bool:
        """Whether `server` may be the destination of one more."""
        return self.destinations[server] < self._limits.per_server

    def begin(self, source: str, destination: str) -> None:
        assert self.free and self.takes(destination) and self.sources[source] < self._limits.per_server
        self.running += 1
        self.sources[source] += 1
        self.destinations[destination] += 1

    def end(self, source: str, destination: str) -> None:
        self.running -= 1
        for counter, server in ((self.sources, source), (self.destinations, destination)):
            counter[server] -= 1
            if not counter[server]:
                del counter[server]
