"""Rule 11: no gaps, no repetition, whatever order mutations arrive in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfscore.replica.serial import RESULTS_KEPT, SerialGate, Turn


@given(st.permutations(list(range(1, 9))), st.lists(st.integers(0, 7), max_size=20))
def test_any_arrival_order_is_applied_in_serial_order_and_once(order: list[int], repeats: list[int]) -> None:
    gate = SerialGate()
    arrivals = list(order)
    for repeat in repeats:
        arrivals.insert(repeat % (len(arrivals) + 1), order[repeat])
    applied: list[int] = []
    waiting: list[int] = []
    for serial in arrivals:
        waiting.append(serial)
        progress = True
        while progress:
            progress = False
            for candidate in list(waiting):
                turn = gate.check(candidate)
                if turn is Turn.LATER:
                    continue
                waiting.remove(candidate)
                progress = True
                if turn is Turn.NOW:
                    applied.append(candidate)
                    gate.done(candidate, candidate * 10)
                else:
                    assert gate.result(candidate) == candidate * 10
    assert applied == sorted(order)
    assert not waiting


def test_a_closed_gate_refuses_what_is_new_and_still_answers_duplicates() -> None:
    gate = SerialGate()
    gate.done(1, 7)
    gate.close()
    assert gate.check(1) is Turn.DUPLICATE and gate.result(1) == 7
    for serial in (2, 3):
        with pytest.raises(GfsError) as caught:
            gate.check(serial)
        assert caught.value.code is Code.SERIAL_GAP


def test_a_replica_found_after_a_restart_takes_nothing() -> None:
    gate = SerialGate(closed=True)
    with pytest.raises(GfsError) as caught:
        gate.check(1)
    assert caught.value.code is Code.SERIAL_GAP


def test_old_answers_are_forgotten_and_bounded() -> None:
    gate = SerialGate()
    for serial in range(1, RESULTS_KEPT + 3):
        gate.done(serial, 0)
    with pytest.raises(GfsError):
        gate.check(1)
    assert gate.check(RESULTS_KEPT + 2) is Turn.DUPLICATE


def test_serial_zero_is_invalid() -> None:
    with pytest.raises(GfsError) as caught:
        SerialGate().check(0)
    assert caught.value.code is Code.INVALID
