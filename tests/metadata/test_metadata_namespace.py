from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.attributes import read_link, set_attributes
from gfscore.metadata.chunks import add_fresh_chunk
from gfscore.metadata.create import create
from gfscore.metadata.inodes import FileType, store
from gfscore.metadata.link import LINKS_MAX, link
from gfscore.metadata.lookup import ancestors, list_page, lookup
from gfscore.metadata.remove import orphans, release_orphan, rmdir, unlink
from gfscore.metadata.rename import rename
from gfscore.metadata.transaction import DIRECTORIES, FILES, Transaction, counter


@contextmanager
def refused(code: Code) -> Iterator[None]:
    with pytest.raises(GfsError) as caught:
        yield
    assert caught.value.code is code, caught.value
    assert "\n" not in str(caught.value)


def test_lookup_finds_names_dot_and_dot_dot(state: State) -> None:
    a = state.mkdir(b"a")
    b = state.mkdir(b"b", a)
    f = state.make(b"\xff\xfe odd", b)
    assert lookup(state.tables, b, b"\xff\xfe odd") == f
    assert lookup(state.tables, b, b".") == b and lookup(state.tables, b, b"..") == a
    assert lookup(state.tables, 1, b"..") == 1
    assert ancestors(state.tables, b) == [b, a, 1]
    with refused(Code.NOT_FOUND):
        lookup(state.tables, b, b"x")
    with refused(Code.NOT_DIRECTORY):
        lookup(state.tables, f, b"x")
    with refused(Code.STALE_INODE):
        lookup(state.tables, 999, b"x")
    with refused(Code.NAME_TOO_LONG):
        lookup(state.tables, b, b"n" * 256)


@pytest.mark.parametrize(
    ("name", "code"),
    [(b"", Code.INVALID), (b".", Code.INVALID), (b"..", Code.INVALID), (b"a/b", Code.INVALID), (b"a\0", Code.INVALID),
     (b"n" * 256, Code.NAME_TOO_LONG)],
)  # fmt: skip
def test_bad_names_are_refused_everywhere(state: State, name: bytes, code: Code) -> None:
    f = state.make(b"f")
    with refused(code):
        state.make(name)
    with refused(code):
        state.run(unlink, parent=1, name=name)
    with refused(code):
        state.run(rmdir, parent=1, name=name)
    with refused(code):
        state.run(link, f, new_parent=1, new_name=name)
    with refused(code):
        state.run(rename, parent=1, name=b"f", new_parent=1, new_name=name)
    assert state.make(b"n" * 255)


def test_pages_of_a_directory_come_in_order_without_gaps(state: State) -> None:
    d = state.mkdir(b"d")
    names = [*sorted(b"n%d" % number for number in range(25)), b"\xff" * 255]
    inodes = {name: state.make(name, d) for name in reversed(names)}
    state.make(b"other")
    seen, after, more = [], b"", True
    while more:
        page, more = list_page(state.tables, d, after, 7)
        assert len(page) == 7 or not more
        seen += page
        after = page[-1][0]
    assert seen == [(name, inodes[name]) for name in names]
    assert list_page(state.tables, d, b"", 26) == (seen, False)


def test_create_keeps_books(state: State) -> None:
    d = state.mkdir(b"d")
    made_at = state.now_ns
    assert state.record(1).nlink == 3 and state.record(1).mtime_ns == made_at and state.record(d).parent == 1
    with refused(Code.EXISTS):
        state.make(b"d")
    with refused(Code.NOT_DIRECTORY):
        state.make(b"x", state.make(b"file"))
    link_to = state.make(b"s", d, FileType.SYMLINK, target=b"../x")
    assert read_link(state.tables, link_to) == b"../x" and state.record(link_to).mode == 0o777
    device = state.make(b"c", d, FileType.CHARACTER_DEVICE, rdev=0x103)
    assert state.record(device).rdev == 0x103
    with refused(Code.INVALID):
        state.make(b"t", d, FileType.SYMLINK, target=b"")
    with refused(Code.NAME_TOO_LONG):
        state.make(b"t", d, FileType.SYMLINK, target=b"x" * 4096)
    with refused(Code.INVALID):
        read_link(state.tables, d)
    assert counter(state.tables, FILES) == 3 and counter(state.tables, DIRECTORIES) == 2


def test_the_set_group_id_bit_of_a_directory_is_inherited(state: State) -> None:
    d = state.mkdir(b"d", mode=0o2775, gid=77)
    inner = state.record(state.mkdir(b"i", d, gid=5))
    f = state.record(state.make(b"f", inner.inode, gid=5))
    assert inner.gid == 77 and inner.mode & stat.S_ISGID
    assert f.gid == 77 and not f.mode & stat.S_ISGID


def test_unlink_frees_chunks_with_the_last_name_only(state: State) -> None:
    f = state.make(b"f")
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    state.run(link, f, new_parent=1, new_name=b"g")
    first = state.run(unlink, parent=1, name=b"f")
    assert (first.inode, first.freed_chunks, first.last_link) == (f, [], False)
    last = state.run(unlink, parent=1, name=b"g")
    assert (last.freed_chunks, last.last_link, last.held) == ([handle], True, False)
    with refused(Code.STALE_INODE):
        state.record(f)


def test_a_held_file_lives_until_it_is_released(state: State) -> None:
    f = state.make(b"f")
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    removed = state.run(unlink, parent=1, name=b"f", hold=True)
    assert removed.held and removed.last_link and removed.freed_chunks == []
    assert list(orphans(state.tables)) == [f] and state.record(f).nlink == 0
    with refused(Code.NOT_FOUND):
        state.run(link, f, new_parent=1, new_name=b"back")
    assert state.run(release_orphan, f, timed=False) == [handle]
    assert state.run(release_orphan, f, timed=False) == []
    assert list(orphans(state.tables)) == []


def test_unlink_and_rmdir_know_their_types(state: State) -> None:
    d = state.mkdir(b"d")
    state.make(b"f", d)
    with refused(Code.IS_DIRECTORY):
        state.run(unlink, parent=1, name=b"d")
    with refused(Code.NOT_DIRECTORY):
        state.run(rmdir, parent=d, name=b"f")
    with refused(Code.NOT_EMPTY):
        state.run(rmdir, parent=1, name=b"d")
    with refused(Code.NOT_FOUND):
        state.run(unlink, parent=1, name=b"x")
    state.run(unlink, parent=d, name=b"f")
    assert state.run(rmdir, parent=1, name=b"d").directory
    assert state.record(1).nlink == 2


def test_nothing_is_created_in_a_removed_directory_that_is_held(state: State) -> None:
    d = state.mkdir(b"d")
    state.run(rmdir, parent=1, name=b"d", hold=True)
    with refused(Code.NOT_FOUND):
        state.make(b"x", d)
    assert list_page(state.tables, d, b"", 5) == ([], False)
    state.run(release_orphan, d, timed=False)
    with refused(Code.STALE_INODE):
        state.make(b"x", d)


def test_links_have_limits(state: State) -> None:
    f, d = state.make(b"f"), state.mkdir(b"d")
    with refused(Code.NOT_PERMITTED):
        state.run(link, d, new_parent=1, new_name=b"dd")
    with refused(Code.EXISTS):
        state.run(link, f, new_parent=1, new_name=b"d")
    tx = Transaction(state.tables)
    record = state.record(f)
    record.nlink = LINKS_MAX
    store(tx, record)
    with refused(Code.TOO_MANY_LINKS):
        link(tx, f, new_parent=1, new_name=b"g", now_ns=1)


def test_chown_clears_set_id_bits_of_files_only(state: State) -> None:
    f, d = state.make(b"f", mode=0o6755), state.mkdir(b"d", mode=0o2755)
    assert state.run(set_attributes, f, uid=5).mode == 0o755
    assert state.run(set_attributes, d, gid=5).mode == 0o2755
    state.chmod(f, 0o2644)
    assert state.run(set_attributes, f, gid=6).mode == 0o2644  # not executable: mandatory locking, not set-group-id
    assert state.run(set_attributes, f, uid=1, mode=0o4755).mode == 0o4755
    record = state.run(set_attributes, f, atime_ns=-5, mtime_ns=7)
    assert (record.atime_ns, record.mtime_ns, record.ctime_ns) == (-5, 7, state.now_ns)
    with refused(Code.INVALID):
        state.run(set_attributes, f, uid=(1 << 32) - 1)


def test_create_of_unknown_type_is_refused(state: State) -> None:
    with refused(Code.INVALID):
        state.run(create, parent=1, name=b"x", type=FileType.UNKNOWN, mode=0, uid=0, gid=0)
