"""What the kernel does not decide for the driver. Pure.

Which mode bits a change of a file's bytes takes away (libfuse promises the kernel that the driver does it,
`FUSE_CAP_HANDLE_KILLPRIV`; a change of owner is handled by the master), and who may do what with a file that the kernel
was not asked about.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gfscore.client import Attr


class MayHavePrivileges(Protocol):
    """What an open file remembers: whether they are looked for before its next change by somebody other than root."""

    strip_privileges: bool


def mode_after_change(attr: Attr) -> int | None:
    """The new mode when somebody other than root changes the bytes; None if it stays as it is."""
    lost = stat.S_ISUID
    if attr.mode & stat.S_IXGRP:  # without it the bit means mandatory locking, not a group
        lost |= stat.S_ISGID
    return attr.mode & ~lost if attr.mode & lost else None


def may_add_to(directory: Attr, uid: int, groups: Container[int]) -> bool:
    """Whether a process of `uid` in `groups` may make something new in `directory`."""
    return _may(directory, uid, groups, os.W_OK | os.X_OK)


def may_pass(directory: Attr, uid: int, groups: Container[int]) -> bool:
    """Whether it may go through `directory` to what is below."""
    return _may(directory, uid, groups, os.X_OK)


def _may(attr: Attr, uid: int, groups: Container[int], wanted: int) -> bool:
    shift = 6 if uid == attr.uid else 3 if attr.gid in groups else 0
    return uid == 0 or attr.mode >> shift & wanted == wanted
