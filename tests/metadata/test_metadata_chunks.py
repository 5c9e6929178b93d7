from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import (
    INDEX_MAX,
    ChunkRecord,
    add_fresh_chunk,
    find_chunk,
    last_chunks,
    last_index,
    load_chunk,
    mapping_get,
    mark_pending,
    mark_used,
    pack_chunk,
    raise_version,
    replace_fresh_chunk,
    replace_shared_chunk,
    unpack_chunk,
)
from gfscore.metadata.inodes import HAS_SEGMENTS
from gfscore.metadata.lengths import commit_length, truncate
from gfscore.metadata.remove import unlink
from gfscore.metadata.snapshot import snapshot

CHUNK = 1 << 20


def add(state: State, inode: int, index: int, goal: int = 3) -> int:
    return state.run(add_fresh_chunk, inode, index, goal, timed=False)


def code(state: State, operation: object, *args: object, **kwargs: object) -> Code:
    with pytest.raises(GfsError) as caught:
        state.run(operation, *args, **kwargs)  # type: ignore[arg-type]
    return caught.value.code


@given(*(st.integers(0, 1 << 64) for _ in range(3)), st.booleans(), st.lists(st.integers(0, 1 << 64), max_size=5))
def test_chunk_records_round_trip(version: int, references: int, goal: int, used: bool, members: list[int]) -> None:
    chunk = ChunkRecord(version, references, goal, used, tuple(members))
    assert unpack_chunk(pack_chunk(chunk)) == chunk


@pytest.mark.parametrize("operation", [lambda tx, h: mark_used(tx, [h]), lambda tx, h: raise_version(tx, h, 9)])
def test_members_are_known_until_the_chunk_is_used(state: State, operation: Callable[..., None]) -> None:
    f = state.make(b"f")
    handle = state.run(add_fresh_chunk, f, 0, 3, [7, 300], timed=False)
    assert load_chunk(state.tables, handle).members == (7, 300)
    state.run(operation, handle, timed=False)
    assert load_chunk(state.tables, handle).used and load_chunk(state.tables, handle).members == ()


def test_the_last_chunks_go_back_to_those_that_are_used(state: State) -> None:
    f = state.make(b"f")

    def last(first: int, used: int) -> list[int]:
        found = last_chunks(state.tables, state.record(f), first, used)
        assert all(handles[index] == handle for index, handle in found)
        return [index for index, _ in found]

    handles: dict[int, int] = {}
    assert last(0, 2) == []
    handles.update({index: add(state, f, index) for index in (0, 1, 3, 127, 128, 400, 401)})
    state.run(mark_used, [handles[index] for index in (0, 1, 127, 400)], timed=False)
    assert last(0, 1) == [400, 401]
    assert last(0, 2) == [127, 128, 400, 401]
    assert last(0, 3) == [1, 3, 127, 128, 400, 401]
    assert last(0, 9) == sorted(handles)
    assert last(128, 9) == [128, 400, 401]
    assert last(500, 9) == [401]


def test_fresh_chunks_fill_holes_and_extend(state: State) -> None:
    f = state.make(b"f")
    assert last_index(state.tables, f) == -1 and not state.record(f).length_pending
    handles = {index: add(state, f, index) for index in (2, 0, 127, 128, 400, 129)}
    assert last_index(state.tables, f) == 400 and state.record(f).length_pending
    got = mapping_get(state.tables, f, 0, 500)
    assert got == [handles.get(index, 0) for index in range(500)]
    assert mapping_get(state.tables, f, 126, 4) == [0, handles[127], handles[128], handles[129]]
    assert mapping_get(state.tables, f, INDEX_MAX, 3) == [0, 0, 0]
    assert load_chunk(state.tables, handles[0]) == ChunkRecord(1, 1, 3, used=False)
    assert code(state, add_fresh_chunk, f, 400, 3, timed=False) is Code.EXISTS
    assert code(state, add_fresh_chunk, f, INDEX_MAX + 1, 3, timed=False) is Code.FILE_TOO_LARGE
    assert code(state, add_fresh_chunk, 1, 0, 3, timed=False) is Code.IS_DIRECTORY
    removed = state.run(unlink, parent=1, name=b"f")
    assert sorted(removed.freed_chunks) == sorted(handles.values())


def test_the_last_possible_chunk_can_be_used(state: State) -> None:
    f = state.make(b"f")
    handle = add(state, f, INDEX_MAX)
    assert last_index(state.tables, f) == INDEX_MAX
    assert mapping_get(state.tables, f, INDEX_MAX, 1) == [handle]


def test_a_failed_fresh_chunk_is_replaced_once(state: State) -> None:
    f = state.make(b"f")
    failed = add(state, f, 0)
    new = state.run(replace_fresh_chunk, f, 0, failed, timed=False)
    assert new > failed and find_chunk(state.tables, failed) is None
    assert code(state, replace_fresh_chunk, f, 0, failed, timed=False) is Code.STALE_VERSION
    state.run(raise_version, new, 2, timed=False)
    assert code(state, replace_fresh_chunk, f, 0, new, timed=False) is Code.STALE_VERSION
    assert code(state, replace_fresh_chunk, f, 5, 0, timed=False) is Code.STALE_VERSION


def test_versions_only_rise(state: State) -> None:
    handle = add(state, state.make(b"f"), 0)
    state.run(raise_version, handle, 7, timed=False)
    state.run(raise_version, handle, 7, timed=False)
    assert load_chunk(state.tables, handle).version == 7
    assert code(state, raise_version, handle, 6, timed=False) is Code.STALE_VERSION
    assert code(state, raise_version, 9999, 6, timed=False) is Code.UNKNOWN_CHUNK


def test_copy_on_write_gives_one_side_a_handle_of_its_own(state: State) -> None:
    f = state.make(b"f")
    old = add(state, f, 0, goal=2)
    assert code(state, replace_shared_chunk, f, 0, old, timed=False) is Code.STALE_VERSION
    copy = state.run(snapshot, source=f, new_parent=1, new_name=b"g").inode
    assert load_chunk(state.tables, old).references == 2
    assert code(state, replace_fresh_chunk, f, 0, old, timed=False) is Code.STALE_VERSION
    new = state.run(replace_shared_chunk, f, 0, old, timed=False)
    assert mapping_get(state.tables, f, 0, 1) == [new] and mapping_get(state.tables, copy, 0, 1) == [old]
    assert load_chunk(state.tables, old) == ChunkRecord(1, 1, 2, used=False)
    assert load_chunk(state.tables, new) == ChunkRecord(1, 1, 2, used=True)


def test_a_committed_length_only_grows(state: State) -> None:
    f = state.make(b"f")
    state.run(mark_pending, f, timed=False)
    assert state.run(commit_length, f, 100).length_pending
    record = state.run(commit_length, f, 50, mtime_ns=77, release=True)
    assert (record.size, record.mtime_ns, record.length_pending) == (100, 77, False)
    record = state.run(commit_length, f, 150, mtime_ns=0)  # somebody set the time since that was written
    assert (record.size, record.mtime_ns) == (150, 77)
    record = state.run(commit_length, f, 200)
    assert (record.size, record.mtime_ns) == (200, state.now_ns)
    before = state.dump()
    state.run(commit_length, f, 100, release=True)
    assert state.dump() == before  # a commit that says nothing new writes nothing
    assert code(state, commit_length, f, -1) is Code.INVALID
    assert code(state, commit_length, f, 1 << 63) is Code.FILE_TOO_LARGE
    assert code(state, commit_length, 99, 1) is Code.STALE_INODE


def test_truncate_frees_chunks_and_names_the_boundary(state: State) -> None:
    f = state.make(b"f")
    handles = [add(state, f, index) for index in range(130)]
    state.run(commit_length, f, 130 * CHUNK, release=True)
    done = state.run(truncate, f, 128 * CHUNK + 5, chunk_size=CHUNK)
    assert done.freed_chunks == [handles[129]] and done.boundary == (128, handles[128], 5)
    done = state.run(truncate, f, 3 * CHUNK, chunk_size=CHUNK)
    assert done.freed_chunks == handles[3:129] and done.boundary is None
    assert not state.record(f).flags & HAS_SEGMENTS and state.record(f).size == 3 * CHUNK
    grown = state.run(truncate, f, 9 * CHUNK + 1, chunk_size=CHUNK)
    assert grown.freed_chunks == [] and grown.boundary is None and state.record(f).size == 9 * CHUNK + 1
    assert state.run(truncate, f, 5 * CHUNK + 1, chunk_size=CHUNK).boundary is None  # a hole
    assert state.run(truncate, f, 0, chunk_size=CHUNK).freed_chunks == handles[:3]
    assert last_index(state.tables, f) == -1
    assert code(state, truncate, f, (INDEX_MAX + 1) * CHUNK + 1, chunk_size=CHUNK) is Code.FILE_TOO_LARGE
    assert code(state, truncate, 1, 0, chunk_size=CHUNK) is Code.IS_DIRECTORY


def test_truncate_to_the_hole_before_a_chunk_leaves_no_empty_tail(state: State) -> None:
    f = state.make(b"f")
    first, last = add(state, f, 0), add(state, f, 9)
    state.run(commit_length, f, 10 * CHUNK)
    assert state.run(truncate, f, 8 * CHUNK, chunk_size=CHUNK).freed_chunks == [last]
    assert last_index(state.tables, f) == 0 and mapping_get(state.tables, f, 0, 1) == [first]


def test_a_shared_chunk_is_not_freed_by_one_side(state: State) -> None:
    f = state.make(b"f")
    handle = add(state, f, 0)
    state.run(snapshot, source=f, new_parent=1, new_name=b"g")
    assert state.run(truncate, f, 0, chunk_size=CHUNK).freed_chunks == []
    assert state.run(unlink, parent=1, name=b"g").freed_chunks == [handle]
