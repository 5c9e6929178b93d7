"""Which mode bits a change of a file's bytes takes away. Pure. The kernel leaves it to the driver (libfuse promises
it that, `FUSE_CAP_HANDLE_KILLPRIV`); a change of owner is handled by the master.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gfscore.client import Attr


def mode_after_change(attr: Attr) -> int | None:
    """The new mode when somebody other than root changes the bytes; None if it stays as it is."""
    lost = stat.S_ISUID
    if attr.mode & stat.S_IXGRP:  # without it the bit means mandatory locking, not a group
        lost |= stat.S_ISGID
    return attr.mode & ~lost if attr.mode & lost else None
