from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import (
    HAS_POLICY,
    HAS_SEGMENTS,
    HAS_XATTRS,
    FileType,
    InodeRecord,
    raw_not_pending,
    raw_parent,
    raw_type,
    raw_with_parent,
    unpack,
)
from gfscore.metadata.keys import pack_varints, unpack_varints
from gfscore.proto import gfs_pb2

_TIMES = st.sampled_from([0, -1, 1_700_000_000_000_000_000]) | st.integers(-(1 << 63), (1 << 63) - 1)
_U32 = st.integers(0, (1 << 32) - 1)
_U64 = st.integers(0, (1 << 64) - 1)
_RECORDS = st.builds(
    InodeRecord, st.just(7), st.sampled_from(FileType), st.integers(0, 0o7777), _U32, _U32, st.just(1) | _U32, _U64,
    _TIMES, _TIMES, _TIMES, st.just(0) | _U64, st.just(0) | _U64, st.booleans(),
    st.sampled_from([0, HAS_XATTRS, HAS_POLICY, HAS_SEGMENTS | HAS_POLICY]),
)  # fmt: skip


@given(_RECORDS)
def test_pack_and_unpack_are_inverse(record: InodeRecord) -> None:
    raw = record.pack()
    assert unpack(7, raw) == record
    assert raw_type(raw) == record.type
    record.length_pending = False
    assert unpack(7, raw_not_pending(raw)) == record
    if record.parent:
        assert raw_parent(raw) == record.parent
        record.parent = 99
        assert unpack(7, raw_with_parent(raw, 99)).parent == 99


def test_a_plain_file_takes_at_most_48_bytes() -> None:
    record = InodeRecord(1 << 60, FileType.FILE, 0o644, 1 << 31, 1 << 31, 1, 1 << 60, 1, 2, 3, length_pending=True)
    assert len(record.pack()) == 45
    record.atime_ns = record.ctime_ns = record.mtime_ns
    assert len(record.pack()) == 29


def test_types_are_those_of_the_wire() -> None:
    assert {kind.name: int(kind) for kind in FileType} == dict(gfs_pb2.FileType.items())


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 9"):
        unpack(3, b"\x09" + bytes(28))


def test_an_inode_that_is_not_there_is_stale(state: State) -> None:
    with pytest.raises(GfsError) as caught:
        state.record(77)
    assert caught.value.code is Code.STALE_INODE


@given(st.lists(st.integers(0, 1 << 70), min_size=1))
def test_varints_round_trip(numbers: list[int]) -> None:
    assert unpack_varints(pack_varints(*numbers)) == numbers


def test_a_cut_varint_is_refused() -> None:
    with pytest.raises(ValueError):
        unpack_varints(b"\x80")
