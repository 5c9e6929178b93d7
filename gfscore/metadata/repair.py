"""What a chunk needs: another replica, one less, or nothing; and how urgent that is [0069]-[0074].

Pure: a chunk is judged by the servers that have good replicas of it and by its goal alone, so equal sets of servers
share one judgement. Who clones when is for `repair_queue` and the shell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import NamedTuple

# Levels of urgency; a lower one goes first. Between the first and DRAINING: by distance from the goal.
WAITING = 0  # a client waits for this chunk
_DISTANCE_MAX = 7
_LIVE = 1 + _DISTANCE_MAX  # less the distance
_DELETED = _LIVE + _DISTANCE_MAX  # less the distance: of files that are deleted but not gone
DRAINING = _DELETED + 1
MISPLACED = DRAINING + 1  # all replicas in one rack
SURPLUS = MISPLACED + 1
LEVELS = SURPLUS + 1


class Site(NamedTuple):
    """A server that has a good replica of the chunk, or could get one."""

    id: str
    rack: str
    live: bool = True  # its replica counts: the server is not given up
    sure: bool = True  # and it was heard of just now: replicas elsewhere may go on the strength of this one
    draining: bool = False
    use: float = 0.0  # share of its disk that is used
    step: float = 0.0  # share of its disk by which the moves of one time may change that


class Action(Enum):
    NOTHING = "nothing"
    CLONE = "clone"
    DROP = "drop"


class Need(NamedTuple):
    """`victim`: the server whose replica goes, with DROP. `gone`: servers that are down and not counted on any more,
    because there are enough replicas without them; what they have is surplus if they come back."""

    action: Action
    level: int = LEVELS
    victim: str = ""
    gone: tuple[str, ...] = ()


NOTHING = Need(Action.NOTHING)
# No replica is undamaged: one is put together from the blocks that still verify somewhere.
SALVAGE = Need(Action.CLONE, _LIVE - _DISTANCE_MAX)


def assess(sites: Sequence[Site], goal: int, *, racks: int, deleted: bool = False) -> Need:
    """What a chunk with good replicas at `sites` needs. `racks`: how many have a server that takes new replicas.

    A draining server's replica counts while there are too few, and is the first to go when there are enough. A chunk
    without a live replica needs nothing that could be done.
    """
    live = [site for site in sites if site.live]
    if not live:
        return NOTHING
    distance = goal - len(live)
    if distance > 0:
        return Need(Action.CLONE, (_DELETED if deleted else _LIVE) - min(distance, _DISTANCE_MAX))
    gone = tuple(site.id for site in sites if not site.live)
    staying = [site for site in live if not site.draining]
    if len(staying) < goal:
        return Need(Action.CLONE, DRAINING, gone=gone)
    if goal > 1 and racks > 1 and len({site.rack for site in staying}) == 1:
        return Need(Action.CLONE, MISPLACED, gone=gone)
    if len(live) > goal:
        victim = surplus(live)
        if victim and sum(site.sure for site in staying if site.id != victim) >= goal:
            return Need(Action.DROP, SURPLUS, victim, gone)
    return Need(Action.NOTHING, gone=gone) if gone else NOTHING


def surplus(live: Sequence[Site]) -> str:
    """The id of the replica that is missed least: draining ones first, then of the rack with most replicas, then of
    the fullest server. Never one whose loss would put all that stay into one rack if they are in several now [0067].
    """
    racks = Counter(site.rack for site in live if not site.draining)
    draining = [site for site in live if site.draining]
    if draining:
        return max(draining, key=lambda site: (site.use, site.id)).id
    if len(live) < 2:
        return ""
    # The most crowded rack has two at least wherever a loss could empty a second rack.
    return max(live, key=lambda site: (racks[site.rack], site.use, site.id)).id


def improves(sites: Sequence[Site], destination: Site) -> bool:
    """Whether a replica at `destination` takes a misplaced chunk out of its single rack."""
    return destination.rack not in {site.rack for site in sites if site.live and not site.draining}


def move_to(sites: Sequence[Site], source: str, destinations: Iterable[Site]) -> Site | None:
    """The first of `destinations` to which a chunk may move from `source` in a rebalancing: it must not lose a rack by
    it."""
    held = {site.id for site in sites}
    left = {site.rack for site in sites if site.id != source}
    any_rack = len(left) >= min(2, len({site.rack for site in sites}))
    return next((site for site in destinations if site.id not in held and (any_rack or site.rack not in left)), None)


def unbalanced(sites: Sequence[Site], threshold: float) -> tuple[list[Site], list[Site]]:
    """(too full, rather empty) servers: those whose use differs from the mean by more than `threshold`, the extremes
    first. When only one side has any, the other is everybody on the far side of the mean [0074]. Nor is a server on
    either side that the moves of one time could take to the other: chunks would go to and fro.
    """
    sites = [site for site in sites if site.live and not site.draining]
    if len(sites) < 2:
        return [], []
    mean = sum(site.use for site in sites) / len(sites)
    full = sorted((site for site in sites if site.use > mean + max(threshold, site.step)), key=lambda site: -site.use)
    empty = sorted((site for site in sites if site.use < mean - max(threshold, site.step)), key=lambda site: site.use)
    if full and not empty:
        empty = sorted((site for site in sites if site.use < mean), key=lambda site: site.use)
    elif empty and not full:
        full = sorted((site for site in sites if site.use > mean), key=lambda site: -site.use)
    return full, empty
