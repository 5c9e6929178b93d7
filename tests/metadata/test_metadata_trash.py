"""What deletion leaves behind: the special name, the ways back, and the end."""

from __future__ import annotations

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE, TRASH_INODE, TRASH_NAME
from gfscore.metadata.attributes import read_link
from gfscore.metadata.chunks import add_fresh_chunk, find_chunk
from gfscore.metadata.create import create
from gfscore.metadata.inodes import FileType
from gfscore.metadata.keys import pack8
from gfscore.metadata.lengths import commit_length, truncate
from gfscore.metadata.link import link
from gfscore.metadata.lookup import find, list_page, lookup
from gfscore.metadata.policies import Policy, effective, set_policy
from gfscore.metadata.remove import orphans, reclaim, release_orphan, rmdir, unlink
from gfscore.metadata.rename import rename
from gfscore.metadata.snapshot import snapshot
from gfscore.metadata.tables import INODES, PLACES, Batch, EmptyTables, LayeredTables
from gfscore.metadata.transaction import DIRECTORIES, FILES, Transaction, counter, trash_counts
from gfscore.metadata.trash import Trashed, entry_name, expired, find_info, page, path_of, restore
from gfscore.metadata.validate import validate

SECOND = 1_000_000_000


@pytest.fixture
def state() -> State:
    return State()


def refused(code: Code) -> pytest.RaisesContext[GfsError]:
    return pytest.raises(GfsError, check=lambda error: error.code is code)


def delete(state: State, name: bytes, parent: int = 1, seconds: int = 100, **more: object) -> None:
    state.run(unlink, parent=parent, name=name, trash_seconds=seconds, **more)


def trash(state: State, below: bytes = b"") -> list[Trashed]:
    found, more = page(state.tables, after=b"", below=below, limit=1000)
    assert not more
    return found


def back(state: State, entry: bytes, path: bytes = b"") -> bytes:
    """Restore; the path at which it is now."""
    directory, name = state.run(restore, entry, path=path, uid=7, gid=8).changed[-1]
    return path_of(Transaction(state.tables), directory) + b"/" + name


def test_a_deleted_file_is_found_under_its_special_name_and_restored_with_all_it_had(state: State) -> None:
    d = state.mkdir(b"d")
    f = state.make(b"f", d)
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    state.run(commit_length, f, 1000)
    state.run(unlink, parent=d, name=b"f", now_ns=1_763_702_932_000_000_123, trash_seconds=60)
    (found,) = trash(state)
    assert found.entry == b"20251121T052852Z.%x.f" % f
    assert (found.inode, found.info.path, found.info.parent, found.info.size) == (f, b"/d/f", d, 1000)
    assert found.info.expires_ns - found.info.deleted_ns == 60 * SECOND
    assert lookup(state.tables, ROOT_INODE, TRASH_NAME) == TRASH_INODE
    assert lookup(state.tables, TRASH_INODE, found.entry) == f
    assert list_page(state.tables, ROOT_INODE, b"", 10)[0] == [(b"d", d)]
    assert state.record(f).nlink == 0 and state.record(f).size == 1000
    state.run(commit_length, f, 1500)  # what was on its way when it was deleted
    assert trash_counts(state.tables) == (1, 1500)
    state.run(truncate, f, 1200, chunk_size=1 << 20)
    assert trash_counts(state.tables) == (1, 1200) and trash(state)[0].info.size == 1200
    assert back(state, found.entry) == b"/d/f"
    assert find(state.tables, d, b"f") == f and state.record(f).nlink == 1
    assert trash(state) == [] and trash_counts(state.tables) == (0, 0)
    chunk = find_chunk(state.tables, handle)
    assert chunk is not None and chunk.references == 1


def test_missing_directories_come_back_and_nothing_is_overwritten(state: State) -> None:
    a = state.mkdir(b"a")
    b = state.mkdir(b"b", a)
    f = state.make(b"f", b)
    delete(state, b"f", b)
    state.run(rmdir, parent=a, name=b"b")
    state.run(rmdir, parent=1, name=b"a")
    (found,) = trash(state)
    assert back(state, found.entry) == b"/a/b/f"
    new_a = lookup(state.tables, 1, b"a")
    new_b = lookup(state.tables, new_a, b"b")
    assert lookup(state.tables, new_b, b"f") == f
    assert (state.record(new_b).uid, state.record(new_b).gid, state.record(new_b).mode) == (7, 8, 0o755)
    delete(state, b"f", new_b)
    state.make(b"f", new_b)
    (found,) = trash(state)
    with refused(Code.EXISTS):
        back(state, found.entry)
    with refused(Code.NOT_DIRECTORY):
        back(state, found.entry, b"/a/b/f/below")
    assert back(state, found.entry, b"/elsewhere/g") == b"/elsewhere/g"
    with refused(Code.NOT_FOUND):
        back(state, found.entry)


def test_paths_follow_renames_exchanges_and_copies_of_directories(state: State) -> None:
    a = state.mkdir(b"a")
    b = state.mkdir(b"b", a)
    state.make(b"one", b)
    state.make(b"two", b)
    state.run(snapshot, source=a, new_parent=1, new_name=b"copy")
    state.run(rename, parent=a, name=b"b", new_parent=1, new_name=b"moved")
    delete(state, b"one", b)
    other = state.mkdir(b"other")
    state.run(rename, parent=1, name=b"moved", new_parent=1, new_name=b"other", exchange=True)
    delete(state, b"two", b)
    copied = lookup(state.tables, lookup(state.tables, 1, b"copy"), b"b")
    delete(state, b"one", copied)
    assert [item.info.path for item in trash(state)] == [b"/moved/one", b"/other/two", b"/copy/b/one"]
    assert find(state.tables, 1, b"moved") == other


def test_a_directory_of_a_cluster_made_before_places_were_noted_is_found(state: State) -> None:
    a = state.mkdir(b"a")
    f = state.make(b"f", a)
    batch: Batch = [(PLACES, pack8(a), None), (INODES, pack8(TRASH_INODE), None)]
    state.tables.apply(batch)
    with refused(Code.NOT_FOUND):
        lookup(state.tables, 1, TRASH_NAME)
    delete(state, b"f", a)
    info = find_info(state.tables, f)
    assert info is not None and info.path == b"/a/f"
    assert state.tables.get(PLACES, pack8(a)) is not None
    assert lookup(state.tables, 1, TRASH_NAME) == TRASH_INODE


def test_only_the_last_name_of_a_file_or_symlink_goes_to_the_trash(state: State) -> None:
    f = state.make(b"f")
    state.run(link, f, new_parent=1, new_name=b"g")
    delete(state, b"f")
    assert trash(state) == []
    delete(state, b"g")
    fifo = state.make(b"fifo", type=FileType.FIFO)
    delete(state, b"fifo")
    symlink = state.make(b"s", type=FileType.SYMLINK, target=b"where")
    delete(state, b"s")
    assert sorted(item.inode for item in trash(state)) == [f, symlink]
    assert read_link(state.tables, symlink) == b"where"
    with refused(Code.STALE_INODE):
        state.record(fifo)


def test_what_a_rename_replaces_goes_to_the_trash(state: State) -> None:
    old = state.make(b"document")
    state.make(b"document.new")
    renamed = state.run(
        rename, parent=1, name=b"document.new", new_parent=1, new_name=b"document", trash_seconds=5, hold_replaced=True
    )
    assert renamed.replaced is not None and renamed.replaced.trashed and not renamed.replaced.held
    assert [(item.inode, item.info.path) for item in trash(state)] == [(old, b"/document")]


def test_retention_zero_deletes_at_once(state: State) -> None:
    d = state.mkdir(b"d")
    state.run(set_policy, d, {"trash_seconds": "0"})
    f = state.make(b"f", d)
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    removed = state.run(unlink, parent=d, name=b"f", trash_seconds=100)
    assert removed.freed_chunks == [handle] and not removed.trashed and trash(state) == []


def test_the_directory_of_the_deletion_decides_unless_the_file_has_its_own_setting(state: State) -> None:
    d = state.mkdir(b"d")
    before = state.make(b"before", d)
    state.run(set_policy, d, {"trash_seconds": "10"})
    inherits = state.make(b"inherits", d)
    own = state.make(b"own", d)
    state.run(set_policy, own, {"trash_seconds": "77"})
    other = state.make(b"other", d)
    state.run(set_policy, other, {"replication": "2"})  # another setting leaves the inherited one inherited
    assert effective(state.tables, inherits, Policy()).trash_seconds == 10
    state.run(set_policy, d, {"trash_seconds": "20"})
    for name in (b"before", b"inherits", b"own", b"other"):
        delete(state, name, d, seconds=1)
    kept = {item.inode: (item.info.expires_ns - item.info.deleted_ns) // SECOND for item in trash(state)}
    assert kept == {before: 20, inherits: 20, own: 77, other: 20}


def test_deleting_again_frees_at_once_unless_somebody_has_it_open(state: State) -> None:
    f, g = state.make(b"f"), state.make(b"g")
    handles = [state.run(add_fresh_chunk, inode, 0, 3, timed=False) for inode in (f, g)]
    delete(state, b"f")
    delete(state, b"g", hold=True)
    entries = {item.inode: item.entry for item in trash(state)}
    assert len(entries) == 2 and list(orphans(state.tables)) == []
    removed = state.run(unlink, parent=TRASH_INODE, name=entries[f], trash_seconds=100)
    assert removed.freed_chunks == [handles[0]] and removed.last_link and not removed.trashed
    removed = state.run(unlink, parent=TRASH_INODE, name=entries[g], hold=True, trash_seconds=100)
    assert removed.held and removed.freed_chunks == [] and list(orphans(state.tables)) == [g]
    assert trash(state) == []
    assert state.run(release_orphan, g, timed=False) == [handles[1]]
    assert counter(state.tables, FILES) == 0


def test_nothing_is_reclaimed_while_a_snapshot_refers_to_it(state: State) -> None:
    d = state.mkdir(b"d")
    f = state.make(b"f", d)
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    state.run(commit_length, f, 10, release=True)
    state.run(snapshot, source=d, new_parent=1, new_name=b"copy")
    delete(state, b"f", d)
    assert state.run(reclaim, f, timed=False).freed_chunks == []
    chunk = find_chunk(state.tables, handle)
    assert chunk is not None and chunk.references == 1


def test_a_snapshot_of_everything_leaves_the_trash_out(state: State) -> None:
    d = state.mkdir(b"d")
    state.make(b"f", d)
    state.make(b"g")
    delete(state, b"g")
    with refused(Code.INVALID):  # a copy of the root would lie inside of it
        state.run(snapshot, source=ROOT_INODE, new_parent=1, new_name=b"all")
    files = counter(state.tables, FILES)
    state.run(snapshot, source=d, new_parent=1, new_name=b"copy")
    assert counter(state.tables, FILES) == files + 1
    for source in (TRASH_INODE, trash(state)[0].inode):
        with pytest.raises(GfsError):
            state.run(snapshot, source=source, new_parent=1, new_name=b"trash-copy")


def test_nothing_can_be_made_in_the_trash_or_in_its_place(state: State) -> None:
    f = state.make(b"f")
    state.mkdir(b"d")
    state.make(b"gone")
    delete(state, b"gone")
    entry = trash(state)[0].entry
    for parent, name in ((TRASH_INODE, b"new"), (ROOT_INODE, TRASH_NAME)):
        with refused(Code.NOT_PERMITTED):
            state.run(create, parent=parent, name=name, type=FileType.FILE, mode=0o644, uid=0, gid=0)
        with refused(Code.NOT_PERMITTED):
            state.run(link, f, new_parent=parent, new_name=name)
        with refused(Code.NOT_PERMITTED):
            state.run(rename, parent=1, name=b"f", new_parent=parent, new_name=name)
        with refused(Code.NOT_PERMITTED):
            state.run(snapshot, source=f, new_parent=parent, new_name=name)
    with refused(Code.NOT_PERMITTED):
        state.run(rename, parent=TRASH_INODE, name=entry, new_parent=1, new_name=b"f", exchange=True)
    with refused(Code.NOT_PERMITTED):
        state.run(rename, parent=1, name=b"f", new_parent=TRASH_INODE, new_name=entry, exchange=True)
    with refused(Code.NOT_PERMITTED):
        state.run(rmdir, parent=1, name=TRASH_NAME)
    with refused(Code.NOT_PERMITTED):
        state.run(rename, parent=1, name=TRASH_NAME, new_parent=1, new_name=b"x")
    with refused(Code.NOT_FOUND):
        state.run(link, trash(state)[0].inode, new_parent=1, new_name=b"again")


def test_moving_out_of_the_trash_restores_and_may_replace(state: State) -> None:
    f = state.make(b"f")
    delete(state, b"f")
    g = state.make(b"f")
    state.run(rename, parent=TRASH_INODE, name=trash(state)[0].entry, new_parent=1, new_name=b"f", trash_seconds=5)
    assert find(state.tables, 1, b"f") == f and state.record(f).nlink == 1
    assert [item.inode for item in trash(state)] == [g]


def test_what_expired_is_found_in_order_and_a_clock_that_jumps_back_breaks_nothing(state: State) -> None:
    now = 1_000_000 * SECOND
    inodes = [state.make(b"f%d" % number) for number in range(4)]
    for number, (at, seconds) in enumerate(((0, 50), (10, 10), (-900_000, 5), (-2_000_000, 5))):
        state.run(unlink, parent=1, name=b"f%d" % number, now_ns=now + at * SECOND, trash_seconds=seconds)
    assert expired(state.tables, now_ns=-5, limit=9) == []
    assert [inode for _, inode in expired(state.tables, now_ns=now, limit=9)] == [inodes[3], inodes[2]]
    late = expired(state.tables, now_ns=now + 100 * SECOND, limit=9)
    assert [inode for _, inode in late] == [inodes[3], inodes[2], inodes[1], inodes[0]]
    rest = expired(state.tables, now_ns=now + 100 * SECOND, limit=1, after=late[1][0])
    assert rest == [late[2]]
    assert len(trash(state)) == 4
    state.run(unlink, parent=1, name=b"f9", trash_seconds=1 << 40) if state.make(b"f9") else None
    assert expired(state.tables, now_ns=1 << 70, limit=9)[-1][1] == find_last(state)


def find_last(state: State) -> int:
    return max(item.inode for item in trash(state))


def test_pages_are_filtered_by_path_and_go_on_where_they_ended(state: State) -> None:
    for directory in (b"a", b"ab"):
        d = state.mkdir(directory)
        for number in range(5):
            state.make(b"f%d" % number, d)
            delete(state, b"f%d" % number, d)
    assert len(trash(state, b"/a")) == 5 and len(trash(state, b"/ab")) == 5 and len(trash(state, b"/ab/f3")) == 1
    seen: list[bytes] = []
    after = b""
    while True:
        found, after = page(state.tables, after=after, below=b"/ab", limit=2)
        seen += [item.info.path for item in found]
        if not after:
            break
    assert sorted(seen) == [b"/ab/f%d" % number for number in range(5)]


def test_a_path_too_long_to_keep_is_restored_into_its_directory(state: State) -> None:
    directory = 1
    for _ in range(20):
        directory = state.mkdir(b"d" * 250, directory)
    f = state.make(b"f", directory)
    delete(state, b"f", directory)
    (found,) = trash(state)
    assert found.info.path == b"f" and found.info.parent == directory
    back(state, found.entry)
    assert find(state.tables, directory, b"f") == f
    delete(state, b"f", directory)
    parent = state.record(directory).parent
    state.run(rmdir, parent=parent, name=b"d" * 250)
    with refused(Code.NOT_FOUND):
        back(state, trash(state)[0].entry)
    assert back(state, trash(state)[0].entry, b"/saved") == b"/saved"


def test_long_names_and_strange_times_have_entries(state: State) -> None:
    assert len(entry_name(1, 2, b"n" * 255)) == 255
    assert entry_name((1 << 63) - 1, 2, b"n").startswith(b"22620411T")
    assert entry_name(1 << 80, 2, b"n").startswith(b"99991231T")
    state.make(b"n" * 255)
    state.run(unlink, parent=1, name=b"n" * 255, now_ns=-5, trash_seconds=9)
    assert trash(state)[0].info.path == b"/" + b"n" * 255


def test_an_empty_state_of_before_has_neither_trash_nor_trouble() -> None:
    state = State()
    state.tables.apply([(INODES, pack8(TRASH_INODE), None)])
    validate(state.tables)
    assert counter(state.tables, DIRECTORIES) == 1
    assert trash_counts(LayeredTables(EmptyTables())) == (0, 0)
    assert page(Transaction(state.tables), after=b"", below=b"", limit=5) == ([], b"")
