"""Checks every invariant of the whole state, for tests, checkers and repair. Reads everything: never on a hot path."""

from __future__ import annotations

from collections import Counter

from gfscore.ids import NAME_BYTES_MAX, ROOT_INODE, TRASH_INODE
from gfscore.metadata.chunks import HOLE, SEGMENT_CHUNKS, ChunkRecord, unpack_chunk, unpack_segment
from gfscore.metadata.inodes import HAS_POLICY, HAS_SEGMENTS, HAS_XATTRS, FileType, InodeRecord, unpack
from gfscore.metadata.keys import after_prefix, pack8, unpack8
from gfscore.metadata.tables import (
    CHUNKS,
    COUNTERS,
    ENTRIES,
    INODES,
    MAPPING,
    ORPHANS,
    PLACES,
    POLICIES,
    REQUESTS,
    SYMLINKS,
    TRASH,
    TRASH_EXPIRY,
    XATTRS,
    Tables,
)
from gfscore.metadata.transaction import CHUNK_COUNT, CLOCK, DIRECTORIES, FILES, trash_counts
from gfscore.metadata.trash import entry_name, unpack_info

_Inodes = dict[int, InodeRecord]


def validate(tables: Tables) -> None:
    """Raises AssertionError with a line that says which invariant does not hold, and where."""
    inodes = {unpack8(key): unpack(unpack8(key), value) for key, value in tables.range(INODES, b"", None)}
    clock = unpack8(tables.get(COUNTERS, CLOCK) or b"")
    for inode in inodes:
        assert 0 < inode <= clock or inode == TRASH_INODE, f"inode {inode} is ahead of the clock, {clock}"
    _check_names(tables, inodes, _check_trash(tables, inodes))
    _check_belongings(tables, inodes)
    chunks = _check_chunks(tables, inodes, clock)
    directories = sum(record.type is FileType.DIRECTORY for record in inodes.values())
    shown = directories - (TRASH_INODE in inodes)
    for name, expected in ((FILES, len(inodes) - directories), (DIRECTORIES, shown), (CHUNK_COUNT, chunks)):
        counted = unpack8(tables.get(COUNTERS, name) or b"")
        assert counted == expected, f"counter {name.decode()} is {counted}, there are {expected}"
    for key, value in tables.range(REQUESTS, b"", None):
        assert len(key) in (8, 16) and len(value) % 8 == 0, f"request {key.hex()} is malformed"


def _check_trash(tables: Tables, inodes: _Inodes) -> set[int]:
    """Entries, what is kept of each file, the index by expiry and the counters agree; the inodes in the trash."""
    kept = {unpack8(key): unpack_info(value) for key, value in tables.range(TRASH, b"", None)}
    rows = tables.range(ENTRIES, pack8(TRASH_INODE), after_prefix(TRASH_INODE))
    entries = {key[8:]: unpack8(value) for key, value in rows}
    for inode, info in kept.items():
        name = entry_name(info.deleted_ns, inode, info.name)
        assert entries.get(name) == inode, f"inode {inode} in the trash has no entry {name!r}"
        assert info.deleted_ns <= info.expires_ns, f"inode {inode} in the trash expires before it was deleted"
        assert inode in inodes, f"inode {inode} in the trash does not exist"
        record = inodes[inode]
        assert record.nlink == 0, f"inode {inode} in the trash has {record.nlink} links"
        assert record.size == info.size, f"inode {inode} in the trash has {record.size} bytes, {info.size} are counted"
        assert record.type in (FileType.FILE, FileType.SYMLINK), f"inode {inode} in the trash is a {record.type.name}"
    assert len(entries) == len(kept), f"the trash has {len(entries)} entries, {len(kept)} inodes"
    expiries = {(unpack8(key[:8]), unpack8(key[8:])) for key, _ in tables.range(TRASH_EXPIRY, b"", None)}
    assert expiries == {(info.expires_ns, inode) for inode, info in kept.items()}, "the index by expiry is wrong"
    counted, expected = trash_counts(tables), (len(kept), sum(info.size for info in kept.values()))
    assert counted == expected, f"the trash is counted as {counted}, is {expected}"
    if TRASH_INODE in inodes:
        trash = inodes[TRASH_INODE]
        assert trash.type is FileType.DIRECTORY and trash.nlink == 2 and trash.parent == ROOT_INODE, f"{trash}"
    else:
        assert not kept, "there is no trash for what is in it"
    return set(kept)


def _check_places(tables: Tables, inodes: _Inodes) -> None:
    """Whatever place is noted is the entry that names the directory. Clusters of before there were any lack some."""
    for key, place in tables.range(PLACES, b"", None):
        inode = unpack8(key)
        assert inode in inodes and inodes[inode].type is FileType.DIRECTORY, f"place of inode {inode}: no directory"
        assert tables.get(ENTRIES, place) == key, f"directory {inode} is not where it is noted, {place[8:]!r}"


def _check_names(tables: Tables, inodes: _Inodes, trash: set[int]) -> None:
    """Entries, link counts, parents, orphans; everything with a name can be reached from the root."""
    _check_places(tables, inodes)
    names: Counter[int] = Counter()
    subdirectories: Counter[int] = Counter()
    for key, value in tables.range(ENTRIES, b"", None):
        parent, name, child = unpack8(key[:8]), key[8:], unpack8(value)
        where = f"entry {name!r} of inode {parent}"
        assert parent in inodes and inodes[parent].type is FileType.DIRECTORY, f"{where}: no such directory"
        assert 0 < len(name) <= NAME_BYTES_MAX and name not in (b".", b".."), f"{where}: no valid name"
        assert b"/" not in name and b"\0" not in name, f"{where}: no valid name"
        assert child in inodes, f"{where} names inode {child}, which does not exist"
        if parent == TRASH_INODE:
            assert child in trash, f"{where}: nothing is kept of inode {child}"
            continue
        names[child] += 1
        if inodes[child].type is FileType.DIRECTORY:
            subdirectories[parent] += 1
            assert inodes[child].parent == parent, f"{where}: directory {child} has parent {inodes[child].parent}"
    orphans = {unpack8(key) for key, _ in tables.range(ORPHANS, b"", None)}
    assert orphans <= inodes.keys(), f"orphans {sorted(orphans - inodes.keys())} do not exist"
    assert ROOT_INODE in inodes and inodes[ROOT_INODE].type is FileType.DIRECTORY, "there is no root directory"
    for inode, record in inodes.items():
        if inode == TRASH_INODE or inode in trash:
            assert not names[inode] and inode not in orphans, f"inode {inode}, or the trash, has a name or is an orphan"
        elif inode in orphans:
            assert record.nlink == 0 and not names[inode], f"orphan {inode} has a name or links"
            assert not subdirectories[inode], f"orphan {inode} has entries"
        elif record.type is FileType.DIRECTORY:
            expected_names = 0 if inode == ROOT_INODE else 1
            assert names[inode] == expected_names, f"directory {inode} has {names[inode]} names"
            links = 2 + subdirectories[inode]
            assert record.nlink == links, f"directory {inode} has {record.nlink} links, should have {links}"
            _check_reaches_root(inode, inodes)
        else:
            assert names[inode] > 0, f"inode {inode} has no name and is no orphan"
            assert record.nlink == names[inode], f"inode {inode} has {record.nlink} links and {names[inode]} names"
            assert record.parent == 0, f"inode {inode} is no directory and has a parent"


def _check_reaches_root(inode: int, inodes: _Inodes) -> None:
    steps = 0
    at = inode
    while at != ROOT_INODE:
        at = inodes[at].parent
        steps += 1
        assert at in inodes and steps <= len(inodes), f"directory {inode} cannot be reached from the root"


def _check_belongings(tables: Tables, inodes: _Inodes) -> None:
    """Symlink targets, xattrs and policies exist exactly where the inode says so."""
    owners = {
        SYMLINKS: {inode for inode, record in inodes.items() if record.type is FileType.SYMLINK},
        XATTRS: {inode for inode, record in inodes.items() if record.flags & HAS_XATTRS},
        POLICIES: {inode for inode, record in inodes.items() if record.flags & HAS_POLICY},
    }
    for table, expected in owners.items():
        found = {unpack8(key[:8]) for key, _ in tables.range(table, b"", None)}
        assert found == expected, f"{table}: inodes {sorted(found ^ expected)} say one thing, the table another"
    for key, target in tables.range(SYMLINKS, b"", None):
        assert inodes[unpack8(key)].size == len(target), f"symlink {unpack8(key)} has the wrong size"


def _check_chunks(tables: Tables, inodes: _Inodes, clock: int) -> int:
    """References are mappings, no chunk without one; the number of chunks."""
    references: Counter[int] = Counter()
    for key, value in tables.range(MAPPING, b"", None):
        inode, segment = unpack8(key[:8]), int.from_bytes(key[8:], "big")
        where = f"segment {segment} of inode {inode}"
        assert inode in inodes and inodes[inode].type is FileType.FILE, f"{where}: no such file"
        assert segment == 0 or inodes[inode].flags & HAS_SEGMENTS, f"{where}: the inode does not know of it"
        assert value and len(value) % 8 == 0 and len(value) <= SEGMENT_CHUNKS * 8, f"{where} is malformed"
        assert value[-8:] != HOLE, f"{where} ends with a hole"
        references.update(handle for handle in unpack_segment(value) if handle)
    chunks: dict[int, ChunkRecord] = {
        unpack8(key): unpack_chunk(value) for key, value in tables.range(CHUNKS, b"", None)
    }
    assert references.keys() <= chunks.keys(), f"mapped but not recorded: {sorted(references.keys() - chunks.keys())}"
    for handle, chunk in chunks.items():
        assert handle <= clock, f"chunk {handle:x} is ahead of the clock, {clock}"
        assert handle not in inodes, f"{handle} is an inode and a chunk"
        assert chunk.version >= 1 and chunk.goal >= 1, f"chunk {handle:x}: {chunk}"
        count = references[handle]
        assert chunk.references == count, f"chunk {handle:x} has {chunk.references} references, {count} mappings"
    return len(chunks)
