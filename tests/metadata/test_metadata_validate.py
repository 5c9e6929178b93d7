"""Each planted fault must be seen: a check that never fails protects nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from metadata_state import State

from gfscore.metadata.chunks import ChunkRecord, add_fresh_chunk, pack_chunk
from gfscore.metadata.inodes import HAS_XATTRS, FileType, load, store
from gfscore.metadata.keys import entry_key, pack8, segment_key
from gfscore.metadata.tables import CHUNKS, ENTRIES, INODES, MAPPING, ORPHANS, SYMLINKS, XATTRS
from gfscore.metadata.transaction import FILES, Transaction
from gfscore.metadata.validate import validate


def _edit(inode: int, **changes: int) -> Callable[[Transaction], None]:
    def plant(tx: Transaction) -> None:
        record = load(tx, inode)
        for name, value in changes.items():
            setattr(record, name, value)
        store(tx, record)

    return plant


# A state with directory 2 holding file 3 with chunk 4, and symlink 5 in the root.
_FAULTS: dict[str, Callable[[Transaction], None]] = {
    "names inode 77": lambda tx: tx.put(ENTRIES, entry_key(1, b"x"), pack8(77)),
    "no such directory": lambda tx: tx.put(ENTRIES, entry_key(3, b"x"), pack8(3)),
    "no valid name": lambda tx: tx.put(ENTRIES, entry_key(1, b"a/b"), pack8(3)),
    "has no name": lambda tx: tx.delete(ENTRIES, entry_key(2, b"f")),
    "links and": _edit(3, nlink=2),
    "should have": _edit(2, nlink=3),
    "has parent": _edit(2, parent=3),
    "has 2 names": lambda tx: (tx.put(ENTRIES, entry_key(1, b"d2"), pack8(2)), _edit(1, nlink=4)(tx))[1],
    "has a name or links": lambda tx: tx.put(ORPHANS, pack8(3), b"\1"),
    "do not exist": lambda tx: tx.put(ORPHANS, pack8(99), b"\1"),
    "one thing": _edit(3, flags=HAS_XATTRS),
    "the table another": lambda tx: tx.put(XATTRS, pack8(3) + b"user.x", b""),
    "wrong size": lambda tx: tx.put(SYMLINKS, pack8(5), b"longer than before"),
    "mapped but not recorded": lambda tx: tx.delete(CHUNKS, pack8(4)),
    "2 references, 1 mappings": lambda tx: tx.put(CHUNKS, pack8(4), pack_chunk(ChunkRecord(1, 2, 3, used=False))),
    "1 references, 0 mappings": lambda tx: tx.delete(MAPPING, segment_key(3, 0)),
    "ends with a hole": lambda tx: tx.put(MAPPING, segment_key(3, 0), pack8(4) + pack8(0)),
    "no such file": lambda tx: tx.put(MAPPING, segment_key(2, 0), pack8(4)),
    "does not know": lambda tx: tx.put(MAPPING, segment_key(3, 1), pack8(4)),
    "counter files": lambda tx: tx.count(FILES, 1),
    "inode 50 is ahead": lambda tx: tx.put(INODES, pack8(50), load(tx, 3).pack()),
    "chunk 32 is ahead": lambda tx: tx.put(CHUNKS, pack8(50), pack_chunk(ChunkRecord(1, 1, 1, used=False))),
}


@pytest.mark.parametrize("says", _FAULTS)
def test_a_planted_fault_is_found(says: str) -> None:
    state = State()
    d = state.mkdir(b"d")
    f = state.make(b"f", d)
    handle = state.run(add_fresh_chunk, f, 0, 3, timed=False)
    s = state.make(b"s", 1, FileType.SYMLINK, target=b"t")
    assert (d, f, handle, s) == (2, 3, 4, 5)
    tx = Transaction(state.tables)
    _FAULTS[says](tx)
    state.tables.apply(tx.batch)
    with pytest.raises(AssertionError, match=says):
        validate(state.tables)
