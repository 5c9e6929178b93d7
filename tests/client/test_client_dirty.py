"""Dirty ranges behave like bytes written into an array."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gfscore.checksum import block_checksums
from gfscore.client.dirty import DirtyRanges, merge_extents, payload_checksums

SIZE = 60
writes = st.tuples(st.just("add"), st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=15))
cuts = st.tuples(st.sampled_from(["take", "discard"]), st.integers(0, SIZE), st.integers(0, SIZE))


@given(st.lists(st.one_of(writes, cuts), max_size=30))
def test_like_an_array_with_holes(operations: list[tuple[str, int, bytes | int]]) -> None:
    dirty = DirtyRanges()
    model: dict[int, int] = {}
    for name, first, second in operations:
        if isinstance(second, bytes):
            dirty.add(first, second)
            model.update({first + i: byte for i, byte in enumerate(second)})
        else:
            start, stop = min(first, second), max(first, second)
            inside = {k: v for k, v in model.items() if start <= k < stop}
            if name == "take":
                got = {s.offset + i: b for s in dirty.take(start, stop) for i, b in enumerate(s.data)}
                assert got == inside
            else:
                dirty.discard(start, stop)
            model = {k: v for k, v in model.items() if k not in inside}
        assert dirty.size == len(model)
        assert dirty.end == (max(model) + 1 if model else 0)
        for start in range(0, SIZE, 7):
            assert dirty.overlaps(start, start + 3) == any(k in model for k in range(start, start + 3))
            run = 0
            while start - 1 - run in model:
                run += 1
            assert dirty.contiguous_before(start, 1000) >= run or not run
    everything = dirty.take(0, SIZE * 2)
    extents = merge_extents(everything)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(extents))
    assert sum(n for _, n in extents) == len(model)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=5))
def test_checksums_of_parts_are_those_of_the_whole(sizes: list[int]) -> None:
    whole = bytes(i * 31 % 251 for i in range(sum(sizes)))
    parts, position = [], 0
    for size in sizes:
        parts.append(memoryview(whole)[position : position + size])
        position += size
    assert payload_checksums(parts) == list(block_checksums(whole))
