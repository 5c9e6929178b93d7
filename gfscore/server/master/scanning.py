"""Looking through whole tables of the state without keeping everybody else waiting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import islice

import trio

from gfscore.metadata.tables import Tables

_SLICE_ROWS = 1000


async def slices(tables: Tables, table: str) -> AsyncIterator[list[tuple[bytes, bytes]]]:
    """All (key, value) of a table, in order. Others run between two slices, and may change what is ahead."""
    start = b""
    while rows := list(islice(tables.range(table, start, None), _SLICE_ROWS)):
        yield rows
        if len(rows) < _SLICE_ROWS:
            return
        start = rows[-1][0] + b"\0"
        await trio.lowlevel.checkpoint()
