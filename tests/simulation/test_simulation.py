"""Two hundred histories, and the proof that a seed is a history."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from faults import PROFILES
from simulate import run_seed

SEEDS = 200


@pytest.mark.parametrize("profile", range(len(PROFILES)), ids=[profile.name for profile in PROFILES])
def test_nothing_is_lost(profile: int) -> None:
    broken = []
    for seed in range(profile, SEEDS, len(PROFILES)):
        result = run_seed(seed)
        assert result.operations > 20, f"seed {seed} did next to nothing"
        if result.problems:
            broken.append(f"python tests/simulation --seed {seed}\n    " + "\n    ".join(result.problems[:5]))
    assert not broken, "\n".join(broken)


def test_the_same_seed_is_the_same_history() -> None:
    """One of each profile; in other processes too, with other hash values of strings."""
    command = f"from simulate import run_seed; print(*(run_seed(seed).digest for seed in range({len(PROFILES)})))"
    first, second = (
        subprocess.run(
            [sys.executable, "-c", command], cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
            timeout=300, env={**os.environ, "PYTHONHASHSEED": hash_seed},
        ).stdout.split()
        for hash_seed in ("1", "2")
    )  # fmt: skip
    assert first == second and len(set(first)) == len(PROFILES)
