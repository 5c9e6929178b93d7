"""The bytes of a write batch: a round trip, and nothing but an error for anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfscore.metadata import tables
from gfscore.storage.batch_codec import TABLE_NAMES, Batch, decode_batch, encode_batch

BATCHES = st.lists(
    st.tuples(
        st.sampled_from(TABLE_NAMES), st.binary(max_size=300), st.one_of(st.none(), st.binary(max_size=70_000 // 100))
    ),
    max_size=20,
)


def test_the_tables_are_those_of_the_metadata() -> None:
    assert TABLE_NAMES == tables.TABLES


@given(BATCHES)
def test_round_trip(batch: Batch) -> None:
    data = encode_batch(batch)
    assert decode_batch(data) == batch
    assert decode_batch(memoryview(data)) == batch


@given(BATCHES, st.data())
def test_a_cut_batch_is_refused_or_ends_between_two_changes(batch: Batch, data: st.DataObject) -> None:
    encoded = encode_batch(batch)
    cut = data.draw(st.integers(0, len(encoded) - 1))
    try:
        found = decode_batch(encoded[:cut])
    except GfsError as error:
        assert error.code is Code.BAD_MESSAGE
    else:
        assert found == batch[: len(found)]


@pytest.mark.parametrize("data", [b"", b"\x02", b"\x01\x7f\x00\x00\x00\x00\x00\x00", b"\x01\xff\x00\x00"])
def test_what_is_no_batch_is_refused(data: bytes) -> None:
    with pytest.raises(GfsError) as refused:
        decode_batch(data)
    assert refused.value.code is Code.BAD_MESSAGE
