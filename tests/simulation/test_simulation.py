"""Two hundred histories, and the proof that a seed is a history."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest
from faults import PROFILES
from simulate import Result, run_quietly

SEEDS = 200
_LONGEST_SECONDS = 600  # that anything here may take on a slow machine


@pytest.fixture(scope="module")
def results() -> Iterator[list[Future[Result]]]:
    """Of all seeds, worked on by all processors."""
    pool = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
    try:
        yield [pool.submit(run_quietly, seed) for seed in range(SEEDS)]
    finally:
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("profile", range(len(PROFILES)), ids=[profile.name for profile in PROFILES])
def test_nothing_is_lost(profile: int, results: list[Future[Result]]) -> None:
    broken = []
    for seed in range(profile, SEEDS, len(PROFILES)):
        result = results[seed].result(timeout=_LONGEST_SECONDS)
        assert result.operations > 20, f"seed {seed} did next to nothing"
        if result.problems:
            broken.append(f"python tests/simulation --seed {seed}\n    " + "\n    ".join(result.problems[:5]))
    assert not broken, "\n".join(broken)


def test_the_same_seed_is_the_same_history() -> None:
    """One of each profile; in other processes too, with other hash values of strings."""
    command = f"from simulate import run_seed; print(*(run_seed(seed).digest for seed in range({len(PROFILES)})))"

    def digests(hash_seed: str) -> list[str]:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(
            [sys.executable, "-c", command], cwd=Path(__file__).parent, check=True, capture_output=True, text=True,
            timeout=_LONGEST_SECONDS, env=environment,
        ).stdout.split()  # fmt: skip

    with ThreadPoolExecutor() as threads:
        first, second = threads.map(digests, ("1", "2"))
    assert first == second and len(set(first)) == len(PROFILES)
