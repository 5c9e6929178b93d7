"""The trash against a model: files with their names, who has them open, what was deleted and until when.

Time is the model's own and may jump back. `State.run` validates everything after each step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.ids import TRASH_INODE
from gfscore.metadata.chunks import add_fresh_chunk, find_chunk
from gfscore.metadata.inodes import FileType
from gfscore.metadata.lengths import commit_length
from gfscore.metadata.link import link
from gfscore.metadata.lookup import find
from gfscore.metadata.policies import set_policy
from gfscore.metadata.remove import orphans, reclaim, release_orphan, unlink
from gfscore.metadata.rename import rename
from gfscore.metadata.snapshot import snapshot
from gfscore.metadata.tables import CHUNKS
from gfscore.metadata.trash import expired, find_info, page, restore, trashed

SECOND = 1_000_000_000
DEFAULT_SECONDS = 50
NAMES = [b"a", b"b"]  # few, so that most steps meet a file
_NAME = st.sampled_from(NAMES)
_DIRECTORY = st.sampled_from([b"d", b"e"])


@dataclass(eq=False)
class File:
    inode: int
    chunk: int
    names: set[tuple[bytes, bytes]] = field(default_factory=set)  # (directory, name)
    open: bool = False
    own_seconds: int | None = None
    trash: tuple[bytes, int] | None = None  # (path, expiry)
    orphan: bool = False


class TrashMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.now_ns = 1_000_000 * SECOND
        self.directories: dict[bytes, int] = {}
        self.seconds = {b"d": DEFAULT_SECONDS, b"e": DEFAULT_SECONDS}
        self.files: list[File] = []

    @initialize()
    def start(self) -> None:
        for name in self.seconds:
            self.directories[name] = self.state.mkdir(name)

    def _at(self, directory: bytes, name: bytes) -> File | None:
        return next((file for file in self.files if (directory, name) in file.names), None)

    def _trashed(self) -> list[File]:
        return [file for file in self.files if file.trash is not None]

    def _end(self, file: File, freed: list[int]) -> None:
        """Nothing refers to the file any more: its chunk is freed unless a copy shares it."""
        self.files.remove(file)
        shared = any(other.chunk == file.chunk for other in self.files)
        assert freed == ([] if shared else [file.chunk])

    def _lost_name(self, file: File, directory: bytes, name: bytes, removed: object) -> None:
        file.names.discard((directory, name))
        if file.names:
            return
        seconds = self.seconds[directory] if file.own_seconds is None else file.own_seconds
        if seconds:
            assert removed.trashed and not removed.held and not removed.freed_chunks  # type: ignore[attr-defined]
            file.trash = (b"/%s/%s" % (directory, name), self.now_ns + seconds * SECOND)
        elif file.open:
            assert removed.held and not removed.freed_chunks  # type: ignore[attr-defined]
            file.orphan = True
        else:
            self._end(file, removed.freed_chunks)  # type: ignore[attr-defined]

    # ------------------------------------------------------------ steps

    @rule(seconds=st.sampled_from([1, 20, 60, 500, -30, -5000]))
    def time_passes(self, seconds: int) -> None:
        self.now_ns += seconds * SECOND

    @rule(directory=_DIRECTORY, seconds=st.sampled_from([0, 10, 100]))
    def keep_for(self, directory: bytes, seconds: int) -> None:
        self.state.run(set_policy, self.directories[directory], {"trash_seconds": str(seconds)})
        self.seconds[directory] = seconds

    @rule(directory=_DIRECTORY, name=_NAME, own=st.none() | st.sampled_from([0, 30]), is_open=st.booleans())
    def create(self, directory: bytes, name: bytes, own: int | None, is_open: bool) -> None:
        if self._at(directory, name) is not None:
            return
        inode = self.state.make(name, self.directories[directory], FileType.FILE)
        chunk = self.state.run(add_fresh_chunk, inode, 0, 3, timed=False)
        self.state.run(commit_length, inode, inode, release=True)
        if own is not None:
            self.state.run(set_policy, inode, {"trash_seconds": str(own)})
        self.files.append(File(inode, chunk, {(directory, name)}, is_open, own))

    @rule(source=st.tuples(_DIRECTORY, _NAME), directory=_DIRECTORY, name=_NAME)
    def hard_link(self, source: tuple[bytes, bytes], directory: bytes, name: bytes) -> None:
        file = self._at(*source)
        if file is None or self._at(directory, name) is not None:
            return
        self.state.run(link, file.inode, new_parent=self.directories[directory], new_name=name)
        file.names.add((directory, name))

    @rule(source=st.tuples(_DIRECTORY, _NAME), directory=_DIRECTORY, name=_NAME)
    def copy(self, source: tuple[bytes, bytes], directory: bytes, name: bytes) -> None:
        file = self._at(*source)
        if file is None or self._at(directory, name) is not None:
            return
        record = self.state.run(snapshot, source=file.inode, new_parent=self.directories[directory], new_name=name)
        self.files.append(File(record.inode, file.chunk, {(directory, name)}, own_seconds=file.own_seconds))

    @rule(directory=_DIRECTORY, name=_NAME)
    def delete(self, directory: bytes, name: bytes) -> None:
        file = self._at(directory, name)
        try:
            removed = self.state.run(
                unlink, parent=self.directories[directory], name=name, now_ns=self.now_ns,
                hold=file is not None and file.open, trash_seconds=DEFAULT_SECONDS,
            )  # fmt: skip
        except GfsError as error:
            assert error.code is Code.NOT_FOUND and file is None
            return
        assert file is not None
        self._lost_name(file, directory, name, removed)

    @rule(source=st.tuples(_DIRECTORY, _NAME), over=st.tuples(_DIRECTORY, _NAME))
    def replace(self, source: tuple[bytes, bytes], over: tuple[bytes, bytes]) -> None:
        file, other = self._at(*source), self._at(*over)
        if file is None or file is other:
            return
        renamed = self.state.run(
            rename, parent=self.directories[source[0]], name=source[1], new_parent=self.directories[over[0]],
            new_name=over[1], now_ns=self.now_ns, trash_seconds=DEFAULT_SECONDS,
            hold_replaced=other is not None and other.open,
        )  # fmt: skip
        file.names.discard(source)
        file.names.add(over)
        if other is not None:
            self._lost_name(other, *over, renamed.replaced)

    @precondition(lambda self: self._trashed())
    @rule(data=st.data(), elsewhere=st.none() | st.tuples(_DIRECTORY, _NAME), by_rename=st.booleans())
    def restore(self, data: st.DataObject, elsewhere: tuple[bytes, bytes] | None, by_rename: bool) -> None:
        file = data.draw(st.sampled_from(self._trashed()))
        assert file.trash is not None
        _, directory, name = file.trash[0].split(b"/")
        if elsewhere is not None:
            directory, name = elsewhere
        entry = trashed(self.state.tables, file.inode).entry
        there = self._at(directory, name)
        try:
            if by_rename:
                self.state.run(
                    rename, parent=TRASH_INODE, name=entry, new_parent=self.directories[directory], new_name=name,
                    no_replace=True,
                )  # fmt: skip
            else:
                path = b"" if elsewhere is None else b"/%s/%s" % (directory, name)
                self.state.run(restore, entry, path=path, uid=0, gid=0)
        except GfsError as error:
            assert error.code is Code.EXISTS and there is not None
            return
        assert there is None
        file.trash = None
        file.names.add((directory, name))

    @rule(count=st.integers(1, 3))
    def expire(self, count: int) -> None:
        due = expired(self.state.tables, now_ns=self.now_ns, limit=count)
        over = [file for file in self._trashed() if file.trash is not None and file.trash[1] <= self.now_ns]
        assert len(due) == min(count, len(over))
        assert {inode for _, inode in due} <= {file.inode for file in over}
        for _, inode in due:
            self._reclaim(next(file for file in over if file.inode == inode))

    @precondition(lambda self: self._trashed())
    @rule(data=st.data())
    def delete_again(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(self._trashed()))
        entry = trashed(self.state.tables, file.inode).entry
        removed = self.state.run(unlink, parent=TRASH_INODE, name=entry, hold=file.open, trash_seconds=DEFAULT_SECONDS)
        self._reclaimed(file, removed)

    def _reclaim(self, file: File) -> None:
        self._reclaimed(file, self.state.run(reclaim, file.inode, hold=file.open, timed=False))

    def _reclaimed(self, file: File, removed: object) -> None:
        file.trash = None
        if file.open:
            assert removed.held and not removed.freed_chunks  # type: ignore[attr-defined]
            file.orphan = True
        else:
            self._end(file, removed.freed_chunks)  # type: ignore[attr-defined]

    @precondition(lambda self: any(file.open for file in self.files))
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from([file for file in self.files if file.open]))
        file.open = False
        freed = self.state.run(release_orphan, file.inode, timed=False)
        if file.orphan:
            self._end(file, freed)
        else:
            assert freed == []

    # ------------------------------------------------------------ always

    @invariant()
    def the_state_is_as_the_model(self) -> None:
        if not self.directories:
            return
        tables = self.state.tables
        found, more = page(tables, after=b"", below=b"", limit=1000)
        assert not more
        assert {item.inode: (item.info.path, item.info.expires_ns) for item in found} == {
            file.inode: file.trash for file in self._trashed()
        }
        assert set(orphans(tables)) == {file.inode for file in self.files if file.orphan}
        for directory, inode in self.directories.items():
            for name in NAMES:
                file = self._at(directory, name)
                assert find(tables, inode, name) == (file.inode if file is not None else None)
        assert len(list(tables.range(CHUNKS, b"", None))) == len({file.chunk for file in self.files})
        for file in self.files:
            assert find_chunk(tables, file.chunk) is not None
            assert (find_info(tables, file.inode) is None) == (file.trash is None)


TrashMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestTrash = TrashMachine.TestCase
