"""The mount against a local directory: Hypothesis drives both with the same operations and compares everything."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from posix_machine import PosixMachine


def test_the_mount_answers_like_a_local_directory(mount_path: Path, tmp_path: Path) -> None:
    class Machine(PosixMachine):
        ours_parent = mount_path
        theirs_parent = tmp_path

    limits = settings(
        max_examples=40,
        stateful_step_count=40,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=(Phase.generate,),  # a failure of 40 steps is read sooner than it is shrunk
    )
    run_state_machine_as_test(Machine, settings=limits)  # type: ignore[no-untyped-call]
