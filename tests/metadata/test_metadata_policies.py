from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import add_fresh_chunk, load_chunk
from gfscore.metadata.inodes import FileType
from gfscore.metadata.policies import NAMES, Policy, as_text, effective, parse, set_policy, with_values
from gfscore.metadata.snapshot import snapshot


@pytest.mark.parametrize(
    ("text", "byte"),
    [("0", 0), ("\\0", 0), ("\\n", 10), ("\\x00", 0), ("\\xff", 255), ("x", 120), ("\\x30", 48), (" ", 32), ("\n", 10)],
)
def test_pad_bytes(text: str, byte: int) -> None:
    assert parse("append_pad", text) == byte


@given(st.integers(1, 16), st.integers(0, 1 << 39), st.integers(0, 255), st.booleans())
def test_text_round_trips(replication: int, trash: int, pad: int, sync: bool) -> None:
    policy = Policy(replication, trash, pad, sync)
    assert with_values(Policy(), as_text(policy)) == policy


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("replication", "0", "from 1 to 16"),
        ("replication", "17", "from 1 to 16"),
        ("replication", "", "whole number"),
        ("replication", "-1", "whole number"),
        ("replication", "²", "whole number"),
        ("trash_seconds", "1.5", "whole number"),
        ("append_pad", "ab", "one byte"),
        ("append_pad", "", "one byte"),
        ("append_pad", "é", "one byte"),
        ("append_pad", "\\xg0", "one byte"),
        ("append_pad", "\\x  ", "one byte"),
        ("append_sync", "2", "from 0 to 1"),
        ("replicas", "3", ", ".join(NAMES)),
    ],
)
def test_wrong_values_are_refused_in_one_clear_line(name: str, text: str, says: str) -> None:
    with pytest.raises(GfsError, match=says) as caught:
        parse(name, text)
    assert caught.value.code is Code.INVALID and "\n" not in str(caught.value)


def test_what_is_not_set_follows_the_defaults(state: State) -> None:
    d = state.mkdir(b"d")
    assert effective(state.tables, d, Policy(replication=5)) == Policy(replication=5)
    state.run(set_policy, d, {"append_sync": "1"})
    state.run(set_policy, d, {"trash_seconds": "300"})
    assert effective(state.tables, d, Policy(replication=5)) == Policy(5, 300, 0, True)
    assert effective(state.tables, d, Policy(replication=7)) == Policy(7, 300, 0, True)


def test_policies_are_inherited_when_something_is_created(state: State) -> None:
    d = state.mkdir(b"d")
    early = state.make(b"early", d)
    state.run(set_policy, d, {"append_pad": "\\n"})
    inner = state.mkdir(b"i", d)
    f = state.make(b"f", inner)
    link_to = state.make(b"s", inner, FileType.SYMLINK, target=b"x")
    assert effective(state.tables, f, Policy()).append_pad == 10
    assert effective(state.tables, early, Policy()).append_pad == 0
    assert effective(state.tables, link_to, Policy()).append_pad == 0


def test_another_replication_is_another_goal(state: State) -> None:
    f = state.make(b"f")
    own, shared = (state.run(add_fresh_chunk, f, index, 3, timed=False) for index in (0, 1))
    state.run(set_policy, f, {"replication": "5"})
    assert load_chunk(state.tables, own).goal == 5
    state.run(snapshot, source=f, new_parent=1, new_name=b"g")
    extra = state.run(add_fresh_chunk, f, 2, 5, timed=False)
    state.run(set_policy, f, {"replication": "2"})
    assert load_chunk(state.tables, shared).goal == 5, "the other side of a snapshot wants five"
    assert load_chunk(state.tables, extra).goal == 2


def test_a_refused_change_changes_nothing(state: State) -> None:
    s = state.make(b"s", 1, FileType.SYMLINK, target=b"x")
    for inode, values in ((s, {"replication": "1"}), (1, {"replication": "1", "colour": "red"})):
        with pytest.raises(GfsError) as caught:
            state.run(set_policy, inode, values)
        assert caught.value.code is Code.INVALID
    assert effective(state.tables, 1, Policy()) == Policy()
