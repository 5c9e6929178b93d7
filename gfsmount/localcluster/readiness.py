"""Waits until a cluster can be used: its master answers and its chunkservers have registered."""

from __future__ import annotations

import trio

from gfscore.client import open_client
from gfscore.errors import Code, GfsError

_POLL_SECONDS = 0.05


def wait_registered(master: str, servers: int, seconds: float) -> None:
    """Until `servers` chunkservers are up. Raises GfsError(NOT_READY) with what is missing after `seconds`."""
    trio.run(_wait_registered, master, servers, seconds)


async def _wait_registered(master: str, servers: int, seconds: float) -> None:
    state = f"the master at {master} does not answer"
    with trio.move_on_after(seconds):
        while True:
            try:
                async with open_client(master, name="gfs up") as client:
                    while True:
                        rows = (await client.status())["chunkservers"]
                        up = [row for row in rows if row["state"] in ("up", "draining", "drained")]
                        if len(up) >= servers:
                            return
                        state = f"only {len(up)} of {servers} chunkservers have registered with the master"
                        await trio.sleep(_POLL_SECONDS)
            except GfsError as error:
                if not (error.retryable or error.code is Code.TIMED_OUT):
                    raise
                state = str(error)
            await trio.sleep(_POLL_SECONDS)
    raise GfsError(Code.NOT_READY, f"{state} after {seconds:g} s")
