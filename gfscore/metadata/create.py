"""Making a new name with a new inode: file, directory, symlink, or special file. Grants no chunk and places nothing."""

from __future__ import annotations

import stat

from gfscore.errors import Code, GfsError
from gfscore.ids import SYMLINK_BYTES_MAX
from gfscore.metadata.inodes import HAS_POLICY, FileType, InodeRecord, store
from gfscore.metadata.keys import entry_key, pack8
from gfscore.metadata.lookup import check_new_name, open_directory
from gfscore.metadata.policies import inherited
from gfscore.metadata.tables import ENTRIES, PLACES, POLICIES, SYMLINKS
from gfscore.metadata.transaction import DIRECTORIES, FILES, Transaction

_WITH_POLICY = (FileType.FILE, FileType.DIRECTORY)


def _check_target(target: bytes) -> None:
    if not target or b"\0" in target:
        raise GfsError(Code.INVALID, "the target of a symlink is 1 byte or more, none of them NUL")
    if len(target) > SYMLINK_BYTES_MAX:
        raise GfsError(Code.NAME_TOO_LONG, f"a symlink's target has at most {SYMLINK_BYTES_MAX} bytes")


def create(
    tx: Transaction,
    *,
    parent: int,
    name: bytes,
    type: FileType,
    mode: int,
    uid: int,
    gid: int,
    now_ns: int,
    rdev: int = 0,
    target: bytes = b"",
) -> InodeRecord:
    """Create `name` in the directory `parent`; the new record.

    Policies of the directory are inherited, its set-group-id bit too. Raises EXISTS, NOT_DIRECTORY, NOT_FOUND (the
    directory was removed), STALE_INODE, INVALID, NAME_TOO_LONG, NOT_PERMITTED (in the trash).
    """
    check_new_name(parent, name)
    directory = open_directory(tx, parent)
    key = entry_key(parent, name)
    if tx.get(ENTRIES, key) is not None:
        raise GfsError(Code.EXISTS, f"{name!r} exists already")
    if type is FileType.UNKNOWN:
        raise GfsError(Code.INVALID, "a file of unknown type cannot be created")
    is_directory = type is FileType.DIRECTORY
    mode &= 0o7777
    if directory.mode & stat.S_ISGID:
        gid = directory.gid
        if is_directory:
            mode |= stat.S_ISGID
    inode = tx.tick()
    record = InodeRecord(inode, type, mode, uid, gid, 1, 0, now_ns, now_ns, now_ns)
    raw_inode = pack8(inode)
    if is_directory:
        record.nlink = 2
        record.parent = parent
        tx.put(PLACES, raw_inode, key)
        directory.nlink += 1
    elif type is FileType.SYMLINK:
        _check_target(target)
        record.mode = 0o777
        record.size = len(target)
        tx.put(SYMLINKS, raw_inode, target)
    elif type in (FileType.CHARACTER_DEVICE, FileType.BLOCK_DEVICE):
        record.rdev = rdev
    if directory.flags & HAS_POLICY and type in _WITH_POLICY:
        policy = tx.get(POLICIES, pack8(parent))
        assert policy is not None, f"directory {parent} has lost its policy"
        tx.put(POLICIES, raw_inode, policy if is_directory else inherited(policy))
        record.flags = HAS_POLICY
    tx.put(ENTRIES, key, raw_inode)
    store(tx, record)
    directory.mtime_ns = directory.ctime_ns = now_ns
    store(tx, directory)
    tx.count(DIRECTORIES if is_directory else FILES, 1)
    return record
