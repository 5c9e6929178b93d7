"""How long to go on trying, without I/O: deadlines and the pauses between attempts."""

from __future__ import annotations

from random import Random

FIRST_PAUSE_SECONDS = 0.02
LAST_PAUSE_SECONDS = 1.0


def pause_seconds(attempt: int, random: Random) -> float:
    """The pause before attempt number `attempt` (1 is the first retry): doubling, with jitter."""
    longest: float = min(FIRST_PAUSE_SECONDS * 2 ** min(attempt - 1, 10), LAST_PAUSE_SECONDS)
    return longest * (0.5 + random.random() / 2)
