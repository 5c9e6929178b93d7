"""`make simulate SEEDS=n [SEED=s]`: runs seeds in several processes and says how to repeat those that failed.

`python tests/simulation --seed N` runs one seed and tells its story.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time

from simulate import run_quietly, run_seed


def _story(seed: int) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    result = run_seed(seed)
    print(f"seed {seed}, profile {result.profile}: {result.operations} operations in {result.seconds:.0f} s")
    print("\n".join(result.events))
    print(f"history {result.digest}")
    for problem in result.problems:
        print(f"BROKEN: {problem}")
    return 1 if result.problems else 0


def _many(first: int, count: int, jobs: int) -> int:
    failed = []
    began = time.monotonic()
    operations = 0
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=200) as pool:
        for done, result in enumerate(pool.imap_unordered(run_quietly, range(first, first + count)), 1):
            operations += result.operations
            if result.problems:
                failed.append(result.seed)
                print(f"seed {result.seed} ({result.profile}): {result.problems[0]}")
                print(f"    repeat it with: {sys.executable} tests/simulation --seed {result.seed}", flush=True)
            elif done % 100 == 0:
                print(f"{done} of {count} seeds", flush=True)
    seconds = time.monotonic() - began
    print(f"{count} seeds from {first}, {operations} operations, {seconds:.0f} s: {len(failed)} failed")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and tell its story")
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.seed is not None:
        return _story(options.seed)
    return _many(options.first, options.seeds, options.jobs)


if __name__ == "__main__":
    sys.exit(main())
