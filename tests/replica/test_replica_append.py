"""Offsets, padding, retries [0104]-[0111]."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfscore.replica.append import AppendAt, AppendSlot, Duplicate, Pad, TooLarge, decide_append

CHUNK = 1024


@given(
    length=st.integers(0, CHUNK),
    floor=st.integers(0, CHUNK),
    record=st.integers(1, CHUNK),
)
def test_a_record_is_placed_behind_length_and_floor_inside_the_chunk_or_not_at_all(
    length: int, floor: int, record: int
) -> None:
    decision = decide_append(length, floor, CHUNK, record, None, 1)
    if record > CHUNK // 4:
        assert decision == TooLarge(CHUNK // 4)
    elif isinstance(decision, AppendAt):
        assert decision.offset == max(length, floor)
        assert decision.offset + record <= CHUNK
    else:
        assert isinstance(decision, Pad)
        assert max(length, floor) + record > CHUNK


def test_a_retry_is_recognised_even_when_the_chunk_is_full() -> None:
    assert decide_append(CHUNK, 0, CHUNK, 10, AppendSlot(5, 100, 10), 5) == Duplicate(100)


def test_a_new_record_of_a_known_client_is_no_retry() -> None:
    assert decide_append(200, 0, CHUNK, 10, AppendSlot(5, 100, 10), 6) == AppendAt(200)


@pytest.mark.parametrize(("record", "sequence"), [(0, 6), (10, 4), (11, 5)])
def test_empty_older_and_altered_records_are_refused(record: int, sequence: int) -> None:
    with pytest.raises(GfsError) as caught:
        decide_append(200, 0, CHUNK, record, AppendSlot(5, 100, 10), sequence)
    assert caught.value.code is Code.INVALID
