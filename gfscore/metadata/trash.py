"""The trash [0075]-[0084]: files that lost their last name stay readable under a special one until their time is over.

An entry of the directory `TRASH_INODE` is a deleted file; its inode has no link, which is what tells it from others.
`remove` decides what comes here and what becomes of it in the end; this module puts in, takes out, lists and restores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from struct import Struct

from gfscore.errors import Code, GfsError
from gfscore.ids import NAME_BYTES_MAX, ROOT_INODE, TRASH_INODE
from gfscore.metadata.create import create
from gfscore.metadata.inodes import FileType, InodeRecord, load, store
from gfscore.metadata.keys import after_prefix, entry_key, pack8, unpack8
from gfscore.metadata.lookup import check_new_name, find, not_found, open_directory
from gfscore.metadata.tables import ENTRIES, INODES, PLACES, TRASH, TRASH_EXPIRY, Tables
from gfscore.metadata.transaction import TRASH_COUNTS, Transaction, make_trash, trash_counts

KEPT_PATH_BYTES_MAX = 4096  # of a longer path only the last name is kept, and the inode of the directory
SCANNED_MAX = 2000  # entries looked at for one page

_TIME_NS_MAX = (1 << 63) - 1
_SECONDS_MAX = 253_402_300_799  # the last second that has a date
_INFO = Struct(">QQQQ")
_DIRECTORY_MODE = 0o755
_TRASH_KEY = pack8(TRASH_INODE)


@dataclass(frozen=True, slots=True)
class TrashInfo:
    """What is kept of a deleted file. Times in nanoseconds since the epoch, size in bytes.

    `path` is absolute; without a leading slash it is only the last name, in the directory `parent`.
    """

    deleted_ns: int
    expires_ns: int
    parent: int
    size: int
    path: bytes

    @property
    def name(self) -> bytes:
        return self.path.rpartition(b"/")[2]

    def pack(self) -> bytes:
        return _INFO.pack(self.deleted_ns, self.expires_ns, self.parent, self.size) + self.path


@dataclass(frozen=True, slots=True)
class Trashed:
    """One entry of the trash."""

    entry: bytes
    inode: int
    info: TrashInfo


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did."""

    inode: int
    changed: list[tuple[int, bytes]]  # (directory, name) of each name that is new: directories made, then the file


def unpack_info(raw: bytes) -> TrashInfo:
    deleted_ns, expires_ns, parent, size = _INFO.unpack_from(raw)
    return TrashInfo(deleted_ns, expires_ns, parent, size, raw[_INFO.size :])


def find_info(t: Tables, inode: int) -> TrashInfo | None:
    """What is kept of the deleted file `inode`; None for one that is not in the trash."""
    raw = t.get(TRASH, pack8(inode))
    return None if raw is None else unpack_info(raw)


@lru_cache(maxsize=16)
def _stamp(seconds: int) -> bytes:
    return datetime.fromtimestamp(min(seconds, _SECONDS_MAX), UTC).strftime("%Y%m%dT%H%M%SZ").encode()


def entry_name(deleted_ns: int, inode: int, name: bytes) -> bytes:
    """The special name: `20261121T052852Z.2a.notes.txt`. The inode, in hexadecimal, makes it unique."""
    return (b"%s.%x.%s" % (_stamp(deleted_ns // 1_000_000_000), inode, name))[:NAME_BYTES_MAX]


def _entry_of(inode: int, info: TrashInfo) -> bytes:
    return entry_name(info.deleted_ns, inode, info.name)


def _expiry_key(info: TrashInfo, inode: int) -> bytes:
    return pack8(info.expires_ns) + pack8(inode)


def path_of(tx: Transaction, directory: int) -> bytes:
    """The absolute path of a directory, empty for the root, in one step per level. Raises NOT_FOUND for a lost one."""
    names = []
    while directory != ROOT_INODE:
        place = tx.get(PLACES, pack8(directory)) or _find_place(tx, directory)
        names.append(place[8:])
        directory = unpack8(place[:8])
    names.reverse()
    return b"".join([b"/" + name for name in names])


def _find_place(tx: Transaction, directory: int) -> bytes:
    """The key of the entry that names a directory of a cluster made before there were places; noted from now on."""
    parent = load(tx, directory).parent
    wanted = pack8(directory)
    for key, child in tx.range(ENTRIES, pack8(parent), after_prefix(parent)):
        if child == wanted:
            tx.put(PLACES, wanted, key)
            return key
    raise not_found(b"inode %d" % directory)


def put_in(tx: Transaction, record: InodeRecord, directory: int, name: bytes, *, now_ns: int, seconds: int) -> None:
    """`record` (no link is left, its entry in `directory` is the caller's) can be restored for `seconds`; stores it."""
    if _count(tx, 1, record.size) == 0 and tx.get(INODES, _TRASH_KEY) is None:
        make_trash(tx, now_ns)
    path = path_of(tx, directory) + b"/" + name
    if len(path) > KEPT_PATH_BYTES_MAX:
        path = name
    deleted_ns = min(max(now_ns, 0), _TIME_NS_MAX)
    expires_ns = min(deleted_ns + seconds * 1_000_000_000, _TIME_NS_MAX)
    inode = pack8(record.inode)
    # As `TrashInfo.pack` and the functions above would: an unlink costs no more than before there was a trash.
    tx.put(ENTRIES, _TRASH_KEY + entry_name(deleted_ns, record.inode, name), inode)
    tx.put(TRASH, inode, _INFO.pack(deleted_ns, expires_ns, directory, record.size) + path)
    tx.put(TRASH_EXPIRY, pack8(expires_ns) + inode, b"")
    store(tx, record)


def take_out(tx: Transaction, inode: int) -> TrashInfo:
    """The trash forgets the file; the caller gives it a name, or deletes it. It must be there."""
    info = find_info(tx, inode)
    assert info is not None, f"inode {inode} is not in the trash"
    tx.delete(ENTRIES, entry_key(TRASH_INODE, _entry_of(inode, info)))
    tx.delete(TRASH, pack8(inode))
    tx.delete(TRASH_EXPIRY, _expiry_key(info, inode))
    _count(tx, -1, -info.size)
    return info


def resized(tx: Transaction, record: InodeRecord) -> None:
    """`record`, which has another size now and no link, may be in the trash: its bytes are counted there."""
    info = find_info(tx, record.inode)
    if info is not None:
        tx.put(TRASH, pack8(record.inode), replace(info, size=record.size).pack())
        _count(tx, 0, record.size - info.size)


def _count(tx: Transaction, files: int, size: int) -> int:
    """Change the counters; how many files there were before."""
    known_files, known_bytes = trash_counts(tx)
    tx.put(*TRASH_COUNTS, pack8(known_files + files) + pack8(known_bytes + size))
    return known_files


# ------------------------------------------------------------ looking


def trashed(t: Tables, inode: int) -> Trashed:
    """The entry of the deleted file `inode`, which must be in the trash."""
    info = find_info(t, inode)
    assert info is not None, f"inode {inode} is not in the trash"
    return Trashed(_entry_of(inode, info), inode, info)


def is_below(path: bytes, directory: bytes) -> bool:
    """`path` is `directory`, or lies in it; everything lies in the empty path, the root. None ends with a slash."""
    return not directory or path == directory or path.startswith(directory + b"/")


def page(t: Tables, *, after: bytes, below: bytes, limit: int) -> tuple[list[Trashed], bytes]:
    """At most `limit` entries behind the entry `after`, of files that were at or below the path `below` (empty: all).

    With them the entry to go on behind, empty when there are no more: a page may be empty and not the last. In the
    order of their names, which is that of their deletion to the second, as the clock of the master told it then.
    """
    start = entry_key(TRASH_INODE, after) + b"\0" if after else pack8(TRASH_INODE)
    found: list[Trashed] = []
    last = b""
    scanned = 0
    for key, raw in islice(t.range(ENTRIES, start, after_prefix(TRASH_INODE)), SCANNED_MAX):
        if len(found) == limit:
            return found, last
        last = key[8:]
        scanned += 1
        item = trashed(t, unpack8(raw))
        if is_below(item.info.path, below):
            found.append(item)
    return found, last if scanned == SCANNED_MAX else b""


def expired(t: Tables, *, now_ns: int, limit: int, after: bytes = b"") -> list[tuple[bytes, int]]:
    """(position, inode) of at most `limit` files whose time is over, the longest overdue first.

    `after` is a position up to which all was taken out before: it saves looking through what is not there any more.
    """
    start = after + b"\0" if after else b""
    stop = pack8(min(max(now_ns, 0), _TIME_NS_MAX) + 1)
    return [(key, unpack8(key[8:])) for key, _ in islice(t.range(TRASH_EXPIRY, start, stop), limit)]


# ------------------------------------------------------------ restoring


def destination(t: Tables, inode: int, path: bytes) -> tuple[int, list[bytes]]:
    """Where `inode` goes when it is restored to `path` (empty: its old one): the deepest directory of the path that is
    there, and the names below it, of directories to be made and last of the file.

    Raises NOT_FOUND, INVALID (no path of a file), NOT_DIRECTORY.
    """
    directory = int(ROOT_INODE)
    if not path:
        info = find_info(t, inode)
        if info is None:
            raise GfsError(Code.NOT_FOUND, f"inode {inode} is not in the trash (any more)")
        path = info.path
        if not path.startswith(b"/"):
            directory = info.parent
            if t.get(INODES, pack8(directory)) is None:
                raise GfsError(Code.NOT_FOUND, "the directory it was in is gone: say where to restore it to")
    names = [name for name in path.split(b"/") if name]
    if not names:
        raise GfsError(Code.INVALID, "a file cannot be restored to the root itself")
    while len(names) > 1:
        child = find(t, directory, names[0])
        if child is None:
            break
        if load(t, child).type is not FileType.DIRECTORY:
            raise GfsError(Code.NOT_DIRECTORY, f"{names[0]!r} on the way is no directory: restore it to another path")
        directory = child
        del names[0]
    return directory, names


def restore(tx: Transaction, entry: bytes, *, path: bytes = b"", uid: int, gid: int, now_ns: int) -> Restored:
    """Give the file of a trash entry a name again: `path`, or the one it had. Directories that are gone are made.

    Raises NOT_FOUND, EXISTS (nothing is overwritten), NOT_DIRECTORY, INVALID, NOT_PERMITTED, NAME_TOO_LONG.
    """
    inode = find(tx, TRASH_INODE, entry)
    if inode is None:
        raise GfsError(Code.NOT_FOUND, f"{entry!r} is not in the trash (any more)")
    directory, names = destination(tx, inode, path)
    changed = []
    for name in names[:-1]:
        changed.append((directory, name))
        directory = create(
            tx, parent=directory, name=name, type=FileType.DIRECTORY, mode=_DIRECTORY_MODE, uid=uid, gid=gid,
            now_ns=now_ns,
        ).inode  # fmt: skip
    name = names[-1]
    check_new_name(directory, name)
    if find(tx, directory, name) is not None:
        raise GfsError(Code.EXISTS, f"{name!r} exists already: restore it to another path, or move that away")
    parent = open_directory(tx, directory)
    take_out(tx, inode)
    record = load(tx, inode)
    record.nlink = 1
    record.ctime_ns = now_ns
    store(tx, record)
    tx.put(ENTRIES, entry_key(directory, name), pack8(inode))
    parent.mtime_ns = parent.ctime_ns = now_ns
    store(tx, parent)
    changed.append((directory, name))
    return Restored(inode, changed)
