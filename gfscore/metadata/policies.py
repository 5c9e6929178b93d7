"""Policies of files and directories: how many replicas, how long deleted files stay, how appends behave.

A record holds only what was set; the rest is the default at the time of asking. What a directory has set is
copied to what is created in it, so that reading a policy never walks up the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gfscore.errors import Code, GfsError
from gfscore.metadata.chunks import file_handles, load_chunk, store_chunk
from gfscore.metadata.inodes import HAS_POLICY, FileType, InodeRecord, load, store
from gfscore.metadata.keys import pack8, pack_varints, unpack_varints
from gfscore.metadata.tables import POLICIES, Tables
from gfscore.metadata.transaction import Transaction

NAMES = ("replication", "trash_seconds", "append_pad", "append_sync")  # the position is the bit in a record
REPLICATION_MAX = 16
TRASH_SECONDS_MAX = (1 << 40) - 1
TRASH_SECONDS_DEFAULT = 86400  # a day
_FORMAT = 1
_TRASH = 1 << NAMES.index("trash_seconds")
_TRASH_INHERITED = 1 << len(NAMES)  # beside the bits of names: a file has its trash_seconds from its directory


@dataclass(frozen=True, slots=True)
class Policy:
    """All settings of one file or directory; an instance made without arguments has the built-in defaults."""

    replication: int = 3  # replicas wanted of each chunk
    trash_seconds: int = TRASH_SECONDS_DEFAULT  # how long a deleted file can be restored; 0: not at all
    append_pad: int = 0  # the byte that fills the end of a chunk when a record does not fit
    append_sync: bool = False  # appends reach the disks of all replicas before they are acknowledged


def _number(name: str, text: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        raise GfsError(Code.INVALID, f"{name} is a whole number from {low} to {high}, not {text!r}")
    return int(text)


_PADS = {"0": 0, "\\0": 0, "\\n": 10, "\\t": 9, "\\r": 13, "\\\\": 92}


def _pad(text: str) -> int:
    """One byte: a character, 0 for NUL, or an escape."""
    known = _PADS.get(text)
    if known is not None:
        return known
    if len(text) == 1 and ord(text) < 0x80:
        return ord(text)
    if len(text) == 4 and text.startswith("\\x"):
        try:
            return bytes.fromhex(text[2:])[0]
        except (ValueError, IndexError):
            pass
    raise GfsError(Code.INVALID, f"append_pad is one byte, as 0, \\n, \\x00 or one ASCII character, not {text!r}")


def parse(name: str, text: str) -> int:
    """The value of the policy `name` given as text. Raises INVALID with a line that says what would be right."""
    if name == "replication":
        return _number(name, text, 1, REPLICATION_MAX)
    if name == "trash_seconds":
        return _number(name, text, 0, TRASH_SECONDS_MAX)
    if name == "append_pad":
        return _pad(text)
    if name == "append_sync":
        return _number(name, text, 0, 1)
    raise GfsError(Code.INVALID, f"no policy {name!r}: there are {', '.join(NAMES)}")


def as_text(policy: Policy) -> dict[str, str]:
    """Each setting as `parse` takes it."""
    pad = policy.append_pad
    escaped = next((text for text, byte in _PADS.items() if byte == pad), None)
    if escaped is None:
        escaped = chr(pad) if 0x20 < pad < 0x7F and chr(pad) not in _PADS else f"\\x{pad:02x}"
    return {
        "replication": str(policy.replication),
        "trash_seconds": str(policy.trash_seconds),
        "append_pad": escaped,
        "append_sync": str(int(policy.append_sync)),
    }


def with_values(policy: Policy, values: Mapping[str, str]) -> Policy:
    """`policy` with settings given as text, e.g. from a configuration. Raises INVALID."""
    return _with(policy, {name: parse(name, text) for name, text in values.items()})


def _with(policy: Policy, settings: Mapping[str, int]) -> Policy:
    return Policy(
        settings.get("replication", policy.replication),
        settings.get("trash_seconds", policy.trash_seconds),
        settings.get("append_pad", policy.append_pad),
        bool(settings.get("append_sync", policy.append_sync)),
    )


def inherited(raw: bytes) -> bytes:
    """The packed policy of a directory as a file created in it gets it.

    Its trash_seconds are marked: what the directory says at the time of the deletion wins over what it said then.
    """
    if raw[1] & _TRASH:
        return raw[:1] + bytes((raw[1] | _TRASH_INHERITED,)) + raw[2:]
    return raw


def trash_seconds(t: Tables, file: InodeRecord, directory: InodeRecord, default: int) -> int:
    """How long `file` stays in the trash when it loses its name in `directory` [0076]; 0: not at all.

    Its own setting wins, then that of the directory, then `default`.
    """
    for record in (file, directory):
        if record.flags & HAS_POLICY:
            raw = t.get(POLICIES, pack8(record.inode))
            if raw is not None and raw[1] & _TRASH and not raw[1] & _TRASH_INHERITED:
                return _settings(t, record.inode)["trash_seconds"]
    return default


def _settings(t: Tables, inode: int) -> dict[str, int]:
    raw = t.get(POLICIES, pack8(inode))
    if raw is None:
        return {}
    present, *numbers = unpack_varints(raw[1:])
    return dict(zip((name for bit, name in enumerate(NAMES) if present >> bit & 1), numbers, strict=True))


def effective(t: Tables, inode: int, defaults: Policy) -> Policy:
    """What holds for `inode`: what was set on it or inherited, else `defaults`. Does not ask whether it exists.

    Inherited trash_seconds of a file are those of its creation: see `effective_in`.
    """
    settings = _settings(t, inode)
    return _with(defaults, settings) if settings else defaults


def effective_in(t: Tables, record: InodeRecord, directory: InodeRecord, defaults: Policy) -> Policy:
    """What holds for a file while it is in `directory`, which says how long it stays in the trash if nobody set that
    for the file itself."""
    found = effective(t, record.inode, defaults)
    return replace(found, trash_seconds=trash_seconds(t, record, directory, defaults.trash_seconds))


def set_policy(tx: Transaction, inode: int, values: Mapping[str, str], *, now_ns: int) -> None:
    """Set what `values` names, given as text; all or nothing. On a directory it holds for what is created below later.

    Another replication becomes the goal of the file's chunks; one shared with a snapshot keeps the higher goal.
    Raises INVALID (an unknown name, a wrong value, neither file nor directory), STALE_INODE.
    """
    changes = {name: parse(name, text) for name, text in values.items()}
    record = load(tx, inode)
    if record.type not in (FileType.FILE, FileType.DIRECTORY):
        raise GfsError(Code.INVALID, "only files and directories have policies")
    if not changes:
        return
    settings = _settings(tx, inode) | changes
    present = sum(1 << bit for bit, name in enumerate(NAMES) if name in settings)
    before = tx.get(POLICIES, pack8(inode))
    if before is not None and "trash_seconds" not in changes:
        present |= before[1] & _TRASH_INHERITED
    numbers = [settings[name] for name in NAMES if name in settings]
    tx.put(POLICIES, pack8(inode), bytes((_FORMAT,)) + pack_varints(present, *numbers))
    record.flags |= HAS_POLICY
    record.ctime_ns = now_ns
    store(tx, record)
    if "replication" in changes and record.type is FileType.FILE:
        goal = changes["replication"]
        for handle in file_handles(tx, record):
            chunk = load_chunk(tx, handle)
            store_chunk(tx, handle, chunk._replace(goal=goal if chunk.references == 1 else max(goal, chunk.goal)))
