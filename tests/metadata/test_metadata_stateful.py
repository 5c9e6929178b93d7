"""Random histories of namespace operations, side by side with a model made of plain dictionaries."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import add_fresh_chunk, mapping_get, replace_shared_chunk
from gfscore.metadata.inodes import FileType
from gfscore.metadata.lengths import commit_length, truncate
from gfscore.metadata.link import link
from gfscore.metadata.lookup import list_page
from gfscore.metadata.remove import orphans, release_orphan, rmdir, unlink
from gfscore.metadata.rename import rename
from gfscore.metadata.snapshot import snapshot
from gfscore.metadata.tables import LayeredTables
from gfscore.metadata.validate import validate

CHUNK = 100
_IDENTITIES = count()


@dataclass(eq=False)
class Node:
    """An inode of the model. `content` names the writes that reached each chunk; holes are absent."""

    entries: dict[bytes, Node] | None = None
    content: dict[int, int] = field(default_factory=dict)
    size: int = 0
    number: int = 0

    def below(self) -> set[Node]:
        found = {self}
        for child in (self.entries or {}).values():
            found |= child.below()
        return found


_PATHS = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=4)
_FLAGS = st.sampled_from([{}, {}, {}, {"no_replace": True}, {"exchange": True}])


class Namespace(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.root = Node({}, number=1)
        self.held: set[int] = set()
        self.by_handle: dict[int, int] = {}  # real chunk → what the model says is in it

    def _find(self, path: list[bytes]) -> tuple[Node, bytes]:
        """The directory as far as the path exists, and the next name: always something to try."""
        directory = self.root
        for name in path[:-1]:
            child = (directory.entries or {}).get(name)
            if child is None or child.entries is None:
                return directory, name
            directory = child
        return directory, path[-1]

    def _file(self, path: list[bytes]) -> Node | None:
        directory, name = self._find(path)
        node = (directory.entries or {}).get(name)
        return node if node is not None and node.entries is None else None

    def _do(self, expected: Code | None, operation: object, *args: object, **kwargs: object) -> object:
        try:
            result = self.state.run(operation, *args, **kwargs)  # type: ignore[arg-type]
        except GfsError as error:
            assert error.code == expected, f"{error.code} instead of {expected}"
            return None
        assert expected is None, f"should have failed with {expected}"
        return result

    @initialize()
    def start(self) -> None:
        for name in (b"a", b"b"):
            self.make([name], True)

    @rule(path=_PATHS, directory=st.booleans())
    def make(self, path: list[bytes], directory: bool) -> None:
        parent, name = self._find(path)
        assert parent.entries is not None
        if name in parent.entries:
            number = 0
            try:
                self.state.make(name, parent.number)
            except GfsError as error:
                assert error.code is Code.EXISTS
        else:
            kind = FileType.DIRECTORY if directory else FileType.FILE
            number = self.state.make(name, parent.number, kind)
            parent.entries[name] = Node({} if directory else None, number=number)

    @rule(path=_PATHS, hold=st.booleans())
    def remove(self, path: list[bytes], hold: bool) -> None:
        parent, name = self._find(path)
        assert parent.entries is not None
        node = parent.entries.get(name)
        expected = Code.NOT_FOUND if node is None else None
        operation = unlink
        if node is not None and node.entries is not None:
            operation = rmdir
            expected = Code.NOT_EMPTY if node.entries else None
        self._do(expected, operation, parent=parent.number, name=name, hold=hold)
        if expected is None:
            assert node is not None
            del parent.entries[name]
            if hold and node not in self.root.below():
                self.held.add(node.number)

    @rule()
    def release(self) -> None:
        if self.held:
            self.state.run(release_orphan, self.held.pop(), timed=False)

    @rule(path=_PATHS, to=_PATHS)
    def hard_link(self, path: list[bytes], to: list[bytes]) -> None:
        node = self._file(path)
        parent, name = self._find(to)
        assert parent.entries is not None
        if node is None:
            return
        expected = Code.EXISTS if name in parent.entries else None
        self._do(expected, link, node.number, new_parent=parent.number, new_name=name)
        if expected is None:
            parent.entries[name] = node

    def _rename_error(self, parent: Node, name: bytes, target: Node, new_name: bytes, flags: dict) -> Code | None:
        assert parent.entries is not None and target.entries is not None
        node, other = parent.entries.get(name), target.entries.get(new_name)
        if node is None:
            return Code.NOT_FOUND
        if other is None and "exchange" in flags:
            return Code.NOT_FOUND
        if other is not None and "no_replace" in flags:
            return Code.EXISTS
        if node is other:
            return None
        if target in node.below():
            return Code.INVALID
        if other is None:
            return None
        if "exchange" in flags:
            return Code.INVALID if parent in other.below() else None
        if other.entries is not None:
            if node.entries is None:
                return Code.IS_DIRECTORY
            return Code.NOT_EMPTY if other.entries else None
        return Code.NOT_DIRECTORY if node.entries is not None else None

    @rule(path=_PATHS, to=_PATHS, flags=_FLAGS)
    def move(self, path: list[bytes], to: list[bytes], flags: dict) -> None:
        (parent, name), (target, new_name) = self._find(path), self._find(to)
        expected = self._rename_error(parent, name, target, new_name, flags)
        self._do(
            expected, rename, parent=parent.number, name=name, new_parent=target.number, new_name=new_name, **flags
        )
        assert parent.entries is not None and target.entries is not None
        node, other = parent.entries.get(name), target.entries.get(new_name)
        if expected is not None or node is other or node is None:
            return
        del parent.entries[name]
        target.entries[new_name] = node
        if "exchange" in flags and other is not None:
            parent.entries[name] = other

    @rule(path=_PATHS, index=st.sampled_from([0, 1, 127, 128, 300]))
    def write(self, path: list[bytes], index: int) -> None:
        """What the master does for a write to one chunk: a fresh one, a copy of a shared one, or nothing."""
        node = self._file(path)
        if node is None:
            return
        handle = mapping_get(self.state.tables, node.number, index, 1)[0]
        if not handle:
            handle = self.state.run(add_fresh_chunk, node.number, index, 3, timed=False)
        else:
            try:
                handle = self.state.run(replace_shared_chunk, node.number, index, handle, timed=False)
            except GfsError as error:
                assert error.code is Code.STALE_VERSION  # not shared: written in place
        node.content[index] = self.by_handle[handle] = next(_IDENTITIES)
        node.size = max(node.size, (index + 1) * CHUNK)
        self.state.run(commit_length, node.number, node.size, release=True)

    @rule(path=_PATHS, size=st.sampled_from([0, 50, 100, 150, 12_800, 12_850, 40_000]))
    def cut(self, path: list[bytes], size: int) -> None:
        node = self._file(path)
        if node is None:
            return
        done = self.state.run(truncate, node.number, size, chunk_size=CHUNK)
        index = size // CHUNK
        assert (done.boundary is not None) == (size < node.size and size % CHUNK > 0 and index in node.content)
        node.size = size
        node.content = {at: what for at, what in node.content.items() if at * CHUNK < size}

    @rule(path=_PATHS, to=_PATHS)
    def copy(self, path: list[bytes], to: list[bytes]) -> None:
        (parent, name), (target, new_name) = self._find(path), self._find(to)
        assert parent.entries is not None and target.entries is not None
        node = parent.entries.get(name)
        if node is None or len(self.root.below()) > 60:
            return
        expected = None
        if new_name in target.entries:
            expected = Code.EXISTS
        elif target in node.below():
            expected = Code.INVALID
        self._do(expected, snapshot, source=node.number, new_parent=target.number, new_name=new_name)
        if expected is None:
            target.entries[new_name] = self._duplicate(node, {})
            self._learn_numbers(target)

    def _duplicate(self, node: Node, known: dict[Node, Node]) -> Node:
        if node not in known:
            known[node] = Node(None, dict(node.content), node.size)
            if node.entries is not None:
                known[node].entries = {name: self._duplicate(child, known) for name, child in node.entries.items()}
        return known[node]

    def _learn_numbers(self, directory: Node) -> None:
        assert directory.entries is not None
        for name, number in list_page(self.state.tables, directory.number, b"", 1000)[0]:
            child = directory.entries[name]
            assert child.number in (0, number), "a hard link was torn apart"
            child.number = number
            if child.entries is not None:
                self._learn_numbers(child)

    @rule()
    def checkpoint(self) -> None:
        """The overlay becomes part of the base, as after a real checkpoint."""
        tables = self.state.tables
        base = LayeredTables(tables.base)
        for table, items in tables.freeze():
            base.apply([(table, key, value) for key, value in items])
        tables.rebase(base)

    @invariant()
    def the_trees_are_equal(self) -> None:
        tables = self.state.tables
        validate(tables)
        assert set(orphans(tables)) == self.held
        nodes = self.root.below()
        assert len({node.number for node in nodes}) == len(nodes)
        for node in nodes:
            if node.entries is not None:
                expected = sorted((name, child.number) for name, child in node.entries.items())
                assert list_page(tables, node.number, b"", 1000) == (expected, False)
            else:
                assert self.state.record(node.number).size == node.size
                handles = mapping_get(tables, node.number, 0, 301)
                found = {index: self.by_handle[handle] for index, handle in enumerate(handles) if handle}
                assert found == node.content, "a file has bytes of another one"


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(max_examples=40, stateful_step_count=40)
