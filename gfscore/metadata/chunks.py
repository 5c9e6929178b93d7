"""Which chunks a file has, and what the master records of a chunk: version, references, goal [0046]-[0048].

Handles are logical times, never used twice. Where replicas are is not known here, nor how many exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from struct import Struct
from typing import NamedTuple

from gfscore.errors import Code, GfsError
from gfscore.ids import CHUNKS_MAX
from gfscore.metadata.inodes import HAS_SEGMENTS, InodeRecord, load, load_file, store
from gfscore.metadata.keys import after_prefix, pack8, pack_varints, segment_key, unpack8, unpack_varints
from gfscore.metadata.tables import CHUNKS, MAPPING, Tables
from gfscore.metadata.transaction import CHUNK_COUNT, Transaction

SEGMENT_CHUNKS = 128  # handles in one value of the mapping
INDEX_MAX = CHUNKS_MAX - 1
HOLE = bytes(8)

_SEGMENTS = [Struct(f">{count}Q") for count in range(SEGMENT_CHUNKS + 1)]


class ChunkRecord(NamedTuple):
    """What is recorded of a chunk."""

    version: int
    references: int  # mappings that name it
    goal: int  # replicas wanted
    used: bool  # some server has said that it has a replica: when no server has one any more, data is lost
    # Until then, the numbers of the servers that it was granted to: what is acknowledged is on all of them.
    members: tuple[int, ...] = ()


def pack_chunk(chunk: ChunkRecord) -> bytes:
    return pack_varints(chunk.version, chunk.references, chunk.goal << 1 | chunk.used, *chunk.members)


def unpack_chunk(raw: bytes) -> ChunkRecord:
    if len(raw) == 3:  # three bytes: each below 128
        version, references, goal = raw
        return ChunkRecord(version, references, goal >> 1, bool(goal & 1))
    version, references, goal, *members = unpack_varints(raw)
    return ChunkRecord(version, references, goal >> 1, bool(goal & 1), tuple(members))


def load_chunk(t: Tables, handle: int) -> ChunkRecord:
    """Raises UNKNOWN_CHUNK."""
    raw = t.get(CHUNKS, pack8(handle))
    if raw is None:
        raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {handle:x} does not exist")
    return unpack_chunk(raw)


def find_chunk(t: Tables, handle: int) -> ChunkRecord | None:
    """The record, None where no file has this chunk (any more)."""
    raw = t.get(CHUNKS, pack8(handle))
    return None if raw is None else unpack_chunk(raw)


def store_chunk(tx: Transaction, handle: int, chunk: ChunkRecord) -> None:
    tx.put(CHUNKS, pack8(handle), pack_chunk(chunk))


def unpack_segment(raw: bytes) -> tuple[int, ...]:
    """The handles of one value of the mapping; what is behind its end is a hole."""
    return _SEGMENTS[len(raw) >> 3].unpack(raw)


def mapping_get(t: Tables, inode: int, first: int, count: int) -> list[int]:
    """`count` handles from chunk index `first` on; 0 is a hole, as is everything behind the end."""
    handles: list[int] = []
    index = first
    end = first + count
    while index < end:
        segment, within = divmod(index, SEGMENT_CHUNKS)
        take = min(SEGMENT_CHUNKS - within, end - index)
        raw = t.get(MAPPING, segment_key(inode, segment)) if index <= INDEX_MAX else None
        found = unpack_segment(raw)[within : within + take] if raw is not None else ()
        handles += found
        handles += (0,) * (take - len(found))
        index += take
    return handles


def segments(t: Tables, inode: int) -> list[tuple[int, bytes]]:
    """(segment, packed handles) of a file, in order; segments without a chunk do not appear."""
    return [(int.from_bytes(key[8:], "big"), raw) for key, raw in t.range(MAPPING, pack8(inode), after_prefix(inode))]


def segments_of(t: Tables, record: InodeRecord) -> list[tuple[int, bytes]]:
    """As `segments`, without a range for the files that have one segment at most."""
    if record.flags & HAS_SEGMENTS:
        return segments(t, record.inode)
    raw = t.get(MAPPING, segment_key(record.inode, 0))
    return [] if raw is None else [(0, raw)]


def file_handles(t: Tables, record: InodeRecord) -> list[int]:
    """All chunks of a file, without the holes."""
    return [handle for _, raw in segments_of(t, record) for handle in unpack_segment(raw) if handle]


def enumerate_chunks(t: Tables, inode: int) -> list[tuple[int, int]]:
    """(index, handle) of all chunks of a file, without the holes. Raises STALE_INODE."""
    return [
        (segment * SEGMENT_CHUNKS + within, handle)
        for segment, raw in segments_of(t, load(t, inode))
        for within, handle in enumerate(unpack_segment(raw))
        if handle
    ]


def chunks_from(t: Tables, inode: int, first: int) -> Iterator[tuple[int, int]]:
    """(index, handle) of the chunks of a file from index `first` on, without the holes."""
    for key, raw in t.range(MAPPING, segment_key(inode, first // SEGMENT_CHUNKS), after_prefix(inode)):
        start = int.from_bytes(key[8:], "big") * SEGMENT_CHUNKS
        for index, handle in enumerate(unpack_segment(raw), start):
            if handle and index >= first:
                yield index, handle


def index_of(t: Tables, inode: int, handle: int) -> int:
    """Where in the file the chunk is, -1 where it is not. Raises STALE_INODE."""
    return next((index for index, known in enumerate_chunks(t, inode) if known == handle), -1)


def last_index(t: Tables, inode: int) -> int:
    """The index of the last chunk, -1 where there is none. Raises STALE_INODE."""
    found = segments_of(t, load(t, inode))
    if not found:
        return -1
    segment, raw = found[-1]
    return segment * SEGMENT_CHUNKS + (len(raw) >> 3) - 1  # the end of a value is never a hole


def last_chunks(t: Tables, record: InodeRecord, first: int, used: int) -> list[tuple[int, int]]:
    """(index, handle), ascending, of the last chunks of a file: from index `first` on, the very last one in any case,
    but not further back than the `used` last ones that some server has."""
    found: list[tuple[int, int]] = []
    for segment, raw in reversed(segments_of(t, record)):
        for index, handle in reversed(list(enumerate(unpack_segment(raw), segment * SEGMENT_CHUNKS))):
            if not used or (found and index < first):
                return found[::-1]
            if handle:
                found.append((index, handle))
                used -= load_chunk(t, handle).used
    return found[::-1]


def _put_handle(tx: Transaction, inode: int, index: int, handle: int) -> None:
    segment, within = divmod(index, SEGMENT_CHUNKS)
    key = segment_key(inode, segment)
    raw = tx.get(MAPPING, key) or b""
    at = within * 8
    tx.put(MAPPING, key, raw[:at].ljust(at, b"\0") + pack8(handle) + raw[at + 8 :])


def handle_at(t: Tables, inode: int, index: int) -> int:
    """The chunk at `index`, 0 for a hole."""
    segment, within = divmod(index, SEGMENT_CHUNKS)
    if index > INDEX_MAX:
        return 0
    raw = t.get(MAPPING, segment_key(inode, segment))
    return 0 if raw is None else unpack8(raw[within * 8 : within * 8 + 8])


def _new_chunk(
    tx: Transaction, inode: int, index: int, goal: int, members: Iterable[int] = (), *, used: bool = False
) -> int:
    handle = tx.tick()
    store_chunk(tx, handle, ChunkRecord(1, 1, goal, used, tuple(members)))
    _put_handle(tx, inode, index, handle)
    tx.count(CHUNK_COUNT, 1)
    return handle


def _expect(t: Tables, inode: int, index: int, handle: int) -> ChunkRecord:
    """The record of `handle`. Raises STALE_VERSION when the file has another chunk there by now."""
    if handle == 0 or handle_at(t, inode, index) != handle:
        raise GfsError(Code.STALE_VERSION, f"chunk {index} of inode {inode} is not {handle:x} any more")
    return load_chunk(t, handle)


def mark_pending(tx: Transaction, inode: int) -> None:
    """From now on `size` is a lower bound, until a commit with `release`. Raises STALE_INODE, IS_DIRECTORY, INVALID."""
    record = load_file(tx, inode)
    if not record.length_pending:
        record.length_pending = True
        store(tx, record)


def add_fresh_chunk(tx: Transaction, inode: int, index: int, goal: int, members: Iterable[int] = ()) -> int:
    """Fill the hole at `index` with a new chunk of version 1, granted to `members` (numbers of servers); its handle.
    The length is pending from now on.

    Raises EXISTS where there is a chunk, FILE_TOO_LARGE, STALE_INODE, IS_DIRECTORY, INVALID (no regular file).
    """
    if index > INDEX_MAX:
        raise GfsError(Code.FILE_TOO_LARGE, f"a file has at most {INDEX_MAX + 1} chunks")
    record = load_file(tx, inode)
    if handle_at(tx, inode, index):
        raise GfsError(Code.EXISTS, f"inode {inode} has a chunk {index} already")
    if index >= SEGMENT_CHUNKS:
        record.flags |= HAS_SEGMENTS
    record.length_pending = True
    store(tx, record)
    return _new_chunk(tx, inode, index, goal, members)


def replace_fresh_chunk(
    tx: Transaction, inode: int, index: int, failed_handle: int, members: Iterable[int] = ()
) -> int:
    """Another new chunk, granted to `members`, in the place of one in which nothing was acknowledged, which is gone.

    Raises STALE_VERSION when it is not there any more, or not fresh (a later version, or shared by a snapshot).
    """
    chunk = _expect(tx, inode, index, failed_handle)
    if chunk.version != 1 or chunk.references != 1:
        raise GfsError(Code.STALE_VERSION, f"chunk {failed_handle:x} is not fresh any more")
    unreference(tx, failed_handle)
    mark_pending(tx, inode)
    return _new_chunk(tx, inode, index, chunk.goal, members)


def drop_fresh_chunk(tx: Transaction, inode: int, index: int, handle: int) -> bool:
    """Make a hole again of a new chunk that nobody wrote to; False, and nothing is done, when it is no longer fresh."""
    if handle_at(tx, inode, index) != handle:
        return False
    chunk = load_chunk(tx, handle)
    if chunk.version != 1 or chunk.references != 1:
        return False
    unreference(tx, handle)
    _put_handle(tx, inode, index, 0)
    key = segment_key(inode, index // SEGMENT_CHUNKS)
    raw = tx.get(MAPPING, key) or b""
    while raw.endswith(HOLE):  # the end of a value is never a hole
        raw = raw[:-8]
    if raw:
        tx.put(MAPPING, key, raw)
    else:
        tx.delete(MAPPING, key)
    return True


def replace_shared_chunk(
    tx: Transaction, inode: int, index: int, old_handle: int, members: Iterable[int] = (), *, copied: bool = True
) -> int:
    """Copy-on-write [0116]: this file gets a handle of its own (version 1, same goal), the others keep the old one.

    `copied`: there are replicas of the new one already; else it is granted to `members`. Raises STALE_VERSION when the
    file has another chunk there, or the chunk is not shared any more.
    """
    chunk = _expect(tx, inode, index, old_handle)
    if chunk.references < 2:
        raise GfsError(Code.STALE_VERSION, f"chunk {old_handle:x} is not shared any more")
    unreference(tx, old_handle)
    mark_pending(tx, inode)
    return _new_chunk(tx, inode, index, chunk.goal, members, used=copied)


def mark_used(tx: Transaction, handles: Iterable[int]) -> None:
    """Some server has a replica of each of these chunks. Chunks that are gone are passed over."""
    for handle in handles:
        chunk = find_chunk(tx, handle)
        if chunk is not None and not chunk.used:
            store_chunk(tx, handle, chunk._replace(used=True, members=()))


def raise_version(tx: Transaction, handle: int, version: int) -> None:
    """Record a higher version, of a grant [0092] or found on a replica. Raises STALE_VERSION for a lower one,
    UNKNOWN_CHUNK."""
    chunk = load_chunk(tx, handle)
    if version < chunk.version:
        raise GfsError(Code.STALE_VERSION, f"chunk {handle:x} has version {chunk.version}, not {version}")
    if version > chunk.version:
        store_chunk(tx, handle, chunk._replace(version=version, used=True, members=()))


def unreference(tx: Transaction, handle: int) -> bool:
    """One mapping less names the chunk. True when it was the last one: the record is gone."""
    chunk = load_chunk(tx, handle)
    if chunk.references > 1:
        store_chunk(tx, handle, chunk._replace(references=chunk.references - 1))
        return False
    tx.delete(CHUNKS, pack8(handle))
    tx.count(CHUNK_COUNT, -1)
    return True


def drop_mapping(tx: Transaction, record: InodeRecord) -> list[int]:
    """Take all chunks from a file; the handles that became free. The record is the caller's to store."""
    return cut_mapping(tx, record, 0)


def cut_mapping(tx: Transaction, record: InodeRecord, count: int) -> list[int]:
    """Keep the first `count` chunks; the handles that became free. The caller stores the record."""
    freed = []
    first_segment, within = divmod(count, SEGMENT_CHUNKS)
    for segment, raw in segments_of(tx, record):
        if segment < first_segment:
            continue
        keep = raw[: within * 8] if segment == first_segment else b""
        for handle in unpack_segment(raw)[len(keep) >> 3 :]:
            if handle and unreference(tx, handle):
                freed.append(handle)
        while keep.endswith(HOLE):
            keep = keep[:-8]
        if keep:
            tx.put(MAPPING, segment_key(record.inode, segment), keep)
        else:
            tx.delete(MAPPING, segment_key(record.inode, segment))
    if count <= SEGMENT_CHUNKS:
        record.flags &= ~HAS_SEGMENTS
    return freed
