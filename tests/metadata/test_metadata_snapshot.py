from __future__ import annotations

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.attributes import read_link
from gfscore.metadata.chunks import add_fresh_chunk, load_chunk, mapping_get
from gfscore.metadata.inodes import FileType, InodeRecord
from gfscore.metadata.lengths import commit_length
from gfscore.metadata.link import link
from gfscore.metadata.lookup import list_page, lookup
from gfscore.metadata.policies import Policy, effective, set_policy
from gfscore.metadata.remove import unlink
from gfscore.metadata.snapshot import chunks_below, files_below, snapshot
from gfscore.metadata.xattrs import get_xattr, list_xattrs, set_xattr


def copy(state: State, source: int, name: bytes, parent: int = 1) -> int:
    return state.run(snapshot, source=source, new_parent=parent, new_name=name).inode


def code(state: State, source: int, parent: int, name: bytes) -> Code:
    with pytest.raises(GfsError) as caught:
        copy(state, source, name, parent)
    return caught.value.code


def tree(state: State, inode: int) -> dict[bytes, tuple]:
    """Everything below, by path, that a copy must have too."""
    found = {}
    for name, child in list_page(state.tables, inode, b"", 1000)[0]:
        record = state.record(child)
        attributes = [getattr(record, f) for f in ("type", "mode", "uid", "gid", "size", "mtime_ns", "rdev", "nlink")]
        extras = {xattr: get_xattr(state.tables, child, xattr) for xattr in list_xattrs(state.tables, child)}
        policy = effective(state.tables, child, Policy())
        found[name] = (*attributes, extras, policy, mapping_get(state.tables, child, 0, 300))
        if record.type is FileType.DIRECTORY:
            found |= {name + b"/" + path: value for path, value in tree(state, child).items()}
        elif record.type is FileType.SYMLINK:
            found[name] += (read_link(state.tables, child),)
    return found


def build(state: State) -> int:
    d = state.mkdir(b"d", mode=0o2750)
    state.run(set_policy, d, {"replication": "2"})
    deep = state.mkdir(b"deep", state.mkdir(b"sub", d))
    big = state.make(b"big", deep)
    for index in (0, 3, 200):
        state.run(add_fresh_chunk, big, index, 2, timed=False)
    small = state.make(b"small", d)
    state.run(add_fresh_chunk, small, 0, 2, timed=False)
    state.run(commit_length, small, 10, release=True)
    state.run(set_xattr, small, b"user.x", b"value")
    state.run(set_xattr, deep, b"user.d", b"dir")
    state.run(link, small, new_parent=deep, new_name=b"small too")
    state.make(b"sym", d, FileType.SYMLINK, target=b"deep/big")
    state.make(b"fifo", d, FileType.FIFO)
    state.make(b"empty", deep)
    return d


def test_a_tree_is_copied_with_everything_in_it(state: State) -> None:
    d = build(state)
    copied = copy(state, d, b"s")
    assert tree(state, copied) == tree(state, d)
    top = state.record(copied)
    assert (top.mode, top.parent, top.nlink) == (0o2750, 1, 3) and state.record(1).nlink == 4
    small = lookup(state.tables, copied, b"small")
    deep = lookup(state.tables, lookup(state.tables, copied, b"sub"), b"deep")
    assert lookup(state.tables, deep, b"small too") == small != lookup(state.tables, d, b"small")
    assert not state.record(lookup(state.tables, deep, b"big")).length_pending  # nobody writes the copy
    assert chunks_below(state.tables, copied) == chunks_below(state.tables, d)
    assert [load_chunk(state.tables, handle).references for handle in chunks_below(state.tables, d)] == [2] * 4


def test_snapshots_of_snapshots_share_on(state: State) -> None:
    d = build(state)
    one = copy(state, d, b"one")
    two = copy(state, one, b"two", d)  # into the original tree
    three = copy(state, d, b"three")  # which holds a copy of itself by now
    assert tree(state, three) == tree(state, d)
    handles = chunks_below(state.tables, two)
    assert {load_chunk(state.tables, handle).references for handle in handles} == {5}


def test_links_out_of_the_tree_are_not_counted_in_the_copy(state: State) -> None:
    d = state.mkdir(b"d")
    f = state.make(b"f", d)
    state.run(link, f, new_parent=1, new_name=b"outside")
    inside = lookup(state.tables, copy(state, d, b"s"), b"f")
    assert state.record(inside).nlink == 1 and state.record(f).nlink == 2
    assert state.record(copy(state, f, b"file copy")).nlink == 1


def test_files_below_names_each_file_once(state: State) -> None:
    d = build(state)
    files = list(files_below(state.tables, d))
    assert len(files) == len(set(files)) == 3
    assert list(files_below(state.tables, files[0])) == [files[0]]
    assert list(files_below(state.tables, lookup(state.tables, d, b"fifo"))) == []


def test_a_snapshot_is_refused_where_it_cannot_be(state: State) -> None:
    d = build(state)
    sub = lookup(state.tables, d, b"sub")
    f = state.make(b"f")
    assert code(state, d, sub, b"x") is Code.INVALID
    assert code(state, d, d, b"x") is Code.INVALID
    assert code(state, 1, 1, b"x") is Code.INVALID
    assert code(state, d, 1, b"f") is Code.EXISTS
    assert code(state, d, f, b"x") is Code.NOT_DIRECTORY
    assert code(state, 999, 1, b"x") is Code.STALE_INODE
    assert code(state, d, 1, b"a/b") is Code.INVALID
    state.run(unlink, parent=1, name=b"f", hold=True)
    assert code(state, f, 1, b"x") is Code.NOT_FOUND
    assert copy(state, sub, b"up", d)  # a subtree beside itself is fine


def test_special_files_and_symlinks_can_be_copied_alone(state: State) -> None:
    s = state.make(b"s", 1, FileType.SYMLINK, target=b"t")
    device = state.make(b"dev", 1, FileType.BLOCK_DEVICE, rdev=9)
    assert read_link(state.tables, copy(state, s, b"s2")) == b"t"
    copied: InodeRecord = state.record(copy(state, device, b"dev2"))
    assert (copied.type, copied.rdev) == (FileType.BLOCK_DEVICE, 9)
