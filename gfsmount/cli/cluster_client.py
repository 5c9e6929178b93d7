"""Runs the work of one command against a cluster, with the client library, and gives it paths."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from gfscore.client import Attr, Client, Entry, FileType, open_client
from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfsmount.cli.targets import Target
from gfsmount.errnos import errno_of

T = TypeVar("T")

# For these the reason is the whole story, and the words are those that every other tool uses.
_PLAIN = frozenset(
    {
        Code.NOT_FOUND,
        Code.EXISTS,
        Code.NOT_DIRECTORY,
        Code.IS_DIRECTORY,
        Code.NOT_EMPTY,
        Code.NOT_PERMITTED,
        Code.ACCESS_DENIED,
        Code.NAME_TOO_LONG,
        Code.NO_SPACE,
        Code.READ_ONLY,
    }
)


@contextmanager
def about(target: Target) -> Iterator[None]:
    """Errors of the block say which of the user's paths they are about."""
    try:
        yield
    except GfsError as error:
        if target.typed in str(error):
            raise
        reason = os.strerror(errno_of(error.code)) if error.code in _PLAIN else str(error)
        raise GfsError(error.code, f"{target.typed}: {reason}") from error


class Session:
    """What a command has while it is connected."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.paths = Paths(client)

    async def stat(self, target: Target, *, follow: bool = True) -> Attr:
        with about(target):
            return await self.paths.stat(target.path, follow)

    async def find(self, target: Target, *, follow: bool = True) -> Attr:
        """See `Paths.find`."""
        with about(target):
            return await self.paths.find(target.path, follow)

    async def walk(self, target: Target) -> AsyncIterator[tuple[bytes, Attr]]:
        """See `Paths.walk`."""
        with about(target):
            async for found in self.paths.walk(target.path):
                yield found

    async def entries(self, target: Target) -> Sequence[Entry]:
        """See `Paths.list`."""
        with about(target):
            return await self.paths.list(target.path)

    async def stat_or_none(self, target: Target) -> Attr | None:
        try:
            return await self.stat(target)
        except GfsError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise

    async def placed(self, sources: Sequence[str], destination: Target) -> list[Target]:
        """Where things called `sources` go: into `destination` if that is a directory, else to it (one thing only)."""
        there = await self.stat_or_none(destination)
        if there is not None and there.type == FileType.DIRECTORY:
            return [destination.below(name) for name in sources]
        if len(sources) > 1:
            raise GfsError(Code.NOT_DIRECTORY, f"{destination.typed} is not a directory")
        return [destination]


def on_cluster(address: str, work: Callable[[Session], Awaitable[T]]) -> T:
    """Connect, do the work, close. Raises GfsError: what the work raised, or UNREACHABLE with the remedy."""

    async def run() -> T:
        async with open_client(address, name="gfs") as client:
            return await work(Session(client))

    try:
        return trio.run(run)
    except GfsError as error:
        if error.code is Code.UNREACHABLE:
            raise GfsError(error.code, f"{error}: is the master at {address} running? (gfs ps, gfs up)") from error
        raise
