from __future__ import annotations

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.link import link
from gfscore.metadata.lookup import lookup
from gfscore.metadata.remove import orphans
from gfscore.metadata.rename import Renamed, rename


def move(state: State, parent: int, name: bytes, new_parent: int, new_name: bytes, **flags: bool) -> Renamed:
    return state.run(rename, parent=parent, name=name, new_parent=new_parent, new_name=new_name, **flags)


def code(state: State, *args: object, **flags: bool) -> Code:
    with pytest.raises(GfsError) as caught:
        move(state, *args, **flags)
    return caught.value.code


def test_a_directory_takes_its_parent_along(state: State) -> None:
    a, b = state.mkdir(b"a"), state.mkdir(b"b")
    x = state.mkdir(b"x", a)
    done = move(state, a, b"x", b, b"y")
    assert done.moved == x and done.replaced is None and done.changed
    assert (state.record(a).nlink, state.record(b).nlink, state.record(x).parent) == (2, 3, b)
    assert lookup(state.tables, b, b"y") == x and state.record(x).ctime_ns == state.now_ns


def test_a_file_replaces_a_file(state: State) -> None:
    f, g = state.make(b"f"), state.make(b"g")
    done = move(state, 1, b"f", 1, b"g")
    assert done.replaced is not None and done.replaced.inode == g and done.replaced.last_link
    assert lookup(state.tables, 1, b"g") == f
    h = state.make(b"h")
    done = move(state, 1, b"g", 1, b"h", hold_replaced=True)
    assert done.replaced is not None and done.replaced.held and list(orphans(state.tables)) == [h]


def test_a_directory_replaces_an_empty_directory_only(state: State) -> None:
    a, b = state.mkdir(b"a"), state.mkdir(b"b")
    state.make(b"f", b)
    assert code(state, 1, b"a", 1, b"b") is Code.NOT_EMPTY
    assert code(state, 1, b"a", b, b"f") is Code.NOT_DIRECTORY
    assert code(state, b, b"f", 1, b"a") is Code.IS_DIRECTORY
    c = state.mkdir(b"c", b)
    done = move(state, b, b"c", 1, b"a")
    assert done.replaced is not None and done.replaced.inode == a and done.replaced.directory
    assert (state.record(1).nlink, state.record(b).nlink, state.record(c).parent) == (4, 2, 1)
    move(state, 1, b"a", 1, b"z")
    assert state.record(1).nlink == 4


def test_no_directory_becomes_its_own_descendant(state: State) -> None:
    a = state.mkdir(b"a")
    b = state.mkdir(b"b", a)
    c = state.mkdir(b"c", b)
    f = state.make(b"f", c)
    assert code(state, 1, b"a", c, b"x") is Code.INVALID
    assert code(state, 1, b"a", a, b"x") is Code.INVALID
    assert code(state, 1, b"a", c, b"f", exchange=True) is Code.INVALID
    assert code(state, c, b"f", 1, b"a", exchange=True) is Code.INVALID
    assert code(state, b, b"c", 1, b"a") is Code.NOT_EMPTY
    assert lookup(state.tables, c, b"f") == f


def test_links_of_one_inode_do_nothing(state: State) -> None:
    f = state.make(b"f")
    state.run(link, f, new_parent=1, new_name=b"g")
    before = state.dump()
    assert not move(state, 1, b"f", 1, b"g").changed
    assert not move(state, 1, b"f", 1, b"f").changed
    assert not move(state, 1, b"f", 1, b"g", exchange=True).changed
    assert state.dump() == before
    assert code(state, 1, b"f", 1, b"g", no_replace=True) is Code.EXISTS


def test_exchange_swaps_a_file_and_a_directory_across_parents(state: State) -> None:
    a, b = state.mkdir(b"a"), state.mkdir(b"b")
    x, y = state.mkdir(b"x", a), state.make(b"y", b)
    inner = state.make(b"inner", x)
    done = move(state, a, b"x", b, b"y", exchange=True)
    assert (done.moved, done.exchanged, done.replaced) == (x, y, None)
    assert lookup(state.tables, a, b"x") == y and lookup(state.tables, b, b"y") == x
    assert (state.record(a).nlink, state.record(b).nlink, state.record(x).parent) == (2, 3, b)
    assert lookup(state.tables, x, b"inner") == inner


def test_flags_are_kept(state: State) -> None:
    state.make(b"f")
    assert code(state, 1, b"f", 1, b"g", exchange=True) is Code.NOT_FOUND
    assert code(state, 1, b"f", 1, b"g", exchange=True, no_replace=True) is Code.INVALID
    assert code(state, 1, b"x", 1, b"g") is Code.NOT_FOUND
    assert code(state, 1, b"f", 99, b"g") is Code.STALE_INODE
    assert move(state, 1, b"f", 1, b"g", no_replace=True).changed
