"""Rule 9: carrying out the plan makes any secondary equal to the primary."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES, PIECE_BYTES
from gfscore.replica.reconcile import BlockState, plan_copy


def state_of(data: bytes, clients: bytes = b"") -> BlockState:
    complete = len(data) // BLOCK_BYTES
    blocks = [data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES] for index in range(complete)]
    table = b"".join(struct.pack("<I", crc32c(block)) for block in blocks)
    return BlockState(len(data), crc32c(data[complete * BLOCK_BYTES :]), table, clients)


def contents() -> st.SearchStrategy[bytes]:
    blocks = st.lists(st.sampled_from([b"a", b"b", b"c"]).map(lambda b: b * BLOCK_BYTES), max_size=20)
    return st.builds(lambda parts, tail: b"".join(parts) + tail, blocks, st.sampled_from([b"", b"x", b"yy", b"z" * 70]))


@given(contents(), contents(), st.sampled_from([b"", b"k"]), st.sampled_from([b"", b"k"]))
def test_the_plan_makes_the_secondary_equal(mine: bytes, theirs: bytes, my_table: bytes, their_table: bytes) -> None:
    plan = plan_copy(state_of(mine, my_table), state_of(theirs, their_table))
    copy = bytearray(theirs)
    for offset, size, length_after in plan:
        assert size <= PIECE_BYTES
        assert offset + size <= length_after, "a step ends inside the length it leaves"
        assert length_after >= len(mine) or length_after >= min(len(copy), len(mine))
        del copy[length_after:]
        copy.extend(bytes(length_after - len(copy)))
        copy[offset : offset + size] = mine[offset : offset + size]
    assert copy == mine
    assert bool(plan) == (mine != theirs or my_table != their_table)


def test_only_what_differs_is_copied() -> None:
    mine = b"a" * BLOCK_BYTES * 5
    theirs = b"a" * BLOCK_BYTES * 2 + b"b" * BLOCK_BYTES + b"a" * BLOCK_BYTES * 2
    assert plan_copy(state_of(mine), state_of(theirs)) == [(2 * BLOCK_BYTES, BLOCK_BYTES, 5 * BLOCK_BYTES)]


def test_a_growing_copy_never_leaves_a_hole() -> None:
    plan = plan_copy(state_of(bytes(3 * PIECE_BYTES)), state_of(b""))
    assert [step.length_after for step in plan] == [PIECE_BYTES, 2 * PIECE_BYTES, 3 * PIECE_BYTES]
