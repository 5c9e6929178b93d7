"""What the master does without being asked, while its disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gfscore.errors import Code, GfsError


@contextmanager
def put_off_when_full() -> Iterator[None]:
    """What is done inside may fail for want of room in the log: nothing was changed then, and whoever uses this comes
    back to it later. `MasterState` has logged that the disk is full, once."""
    try:
        yield
    except GfsError as error:
        if error.code is not Code.NO_SPACE:
            raise
