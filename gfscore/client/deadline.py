"""How long to go on trying, without I/O: what is worth another attempt, and the pauses between attempts."""

from __future__ import annotations

from random import Random

from gfscore.errors import Code, GfsError

FIRST_PAUSE_SECONDS = 0.02
LAST_PAUSE_SECONDS = 1.0
FULL_ATTEMPTS_MAX = 8  # with their pauses long enough for a chunkserver's heartbeat to say that it is full
_OF_ONE_DISK = frozenset({Code.NO_SPACE, Code.IO})


def worth_another_try(error: GfsError, attempt: int, *, from_chunkserver: bool) -> bool:
    """Whether attempt number `attempt` (1 is the first retry) of a mutation may end better than in `error`.

    The full or broken disk of one chunkserver is not the cluster's: another grant leaves that server out.
    """
    if error.code in _OF_ONE_DISK:
        return from_chunkserver and attempt <= FULL_ATTEMPTS_MAX
    return error.retryable


def pause_seconds(attempt: int, random: Random) -> float:
    """The pause before attempt number `attempt` (1 is the first retry): doubling, with jitter."""
    longest: float = min(FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 10), LAST_PAUSE_SECONDS)
    return longest * (0.5 + random.random() / 2)
