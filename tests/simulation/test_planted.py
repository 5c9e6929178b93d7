"""The checkers can fail: each known mistake is caught by one of the two hundred seeds of the test run."""

from __future__ import annotations

import pytest
from faults import profile_of
from planted import PLANTED, Planted
from simulate import run_seed

SEEDS = 200


def caught_at(planted: Planted) -> tuple[int, str] | None:
    """The first seed that shows the mistake, and what it says; None when no seed does."""
    order = sorted(range(SEEDS), key=lambda seed: profile_of(seed).name not in planted.first)
    with planted.plant():
        for seed in order:
            result = run_seed(seed)
            if result.problems:
                return seed, result.problems[0]
    return None


@pytest.mark.parametrize("planted", PLANTED, ids=[planted.name for planted in PLANTED])
def test_a_planted_mistake_is_caught(planted: Planted) -> None:
    found = caught_at(planted)
    assert found is not None, f"no seed below {SEEDS} shows {planted.name}"
    print(f"{planted.name}: seed {found[0]}: {found[1]}")
