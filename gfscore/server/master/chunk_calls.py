"""Calls to chunkservers: new versions, copies, the end of leases, inspection. All servers at once, each with a limit.

A server that does not answer is marked suspect and missing in the result; nothing here raises for it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.servers import Servers, ServerState

log = logging.getLogger(__name__)

CALL_SECONDS = 2.0
_ITEMS_PER_CALL = 1000
_RECONCILE_SECONDS = 10.0  # who wants to write to the chunk waits meanwhile
_SHARED_SECONDS = 10.0  # a batch of copies or of revocations may take longer than one


class Wanted(NamedTuple):
    """A new version (or, with `new_handle`, a local copy) of one chunk on these servers."""

    handle: int
    old_version: int
    version: int
    servers: list[ServerState]
    truncate: int | None = None  # and cut to so many bytes
    new_handle: int = 0


class Answer(NamedTuple):
    """What one replica said. `length` in bytes."""

    server: ServerState
    error: Code
    version: int
    length: int
    doubt: int = 0  # see `PrepareReply.Item`
    digest: int = 0


class Length(NamedTuple):
    version: int
    length: int
    unequal: bool = False  # the replicas may differ
    mtime_ns: int = 0  # when the replica last changed, if that is known


Call = Callable[[ServerState, list[Any]], Awaitable[None]]


class ChunkCalls:
    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def prepare(self, wanted: Iterable[Wanted]) -> dict[int, list[Answer]]:
        """`Prepare` everywhere; the answers by handle. One at the version already has taken part in an earlier try."""

        async def one(server: ServerState, items: list[Wanted]) -> None:
            request = pb.PrepareRequest(epoch=server.epoch)
            for item in items:
                request.items.append(
                    pb.PrepareRequest.Item(
                        handle=item.handle, version=item.version, old_version=item.old_version, truncate=item.truncate
                    )
                )
            await self._ask(server, "Prepare", request, items, answers)

        answers: dict[int, list[Answer]] = {}
        await self._everywhere(wanted, one)
        return answers

    async def clone(self, wanted: Iterable[Wanted]) -> dict[int, list[Answer]]:
        """`Clone` everywhere; the answers by the handle of the source."""

        async def one(server: ServerState, items: list[Wanted]) -> None:
            request = pb.CloneRequest(epoch=server.epoch)
            for item in items:
                request.items.append(
                    pb.CloneRequest.Item(
                        handle=item.handle, version=item.old_version, new_handle=item.new_handle,
                        new_version=item.version, truncate=item.truncate,
                    )
                )  # fmt: skip
            await self._ask(server, "Clone", request, items, answers)

        answers: dict[int, list[Answer]] = {}
        await self._everywhere(wanted, one)
        return answers

    async def _ask(
        self, server: ServerState, method: str, request: Any, items: list[Wanted], answers: dict[int, list[Answer]]
    ) -> None:
        reply = await self._call(server, method, request, len(items))
        if reply is None:
            return
        for item, answer in zip(items, reply.items, strict=False):
            found = Answer(server, _code(answer.error), answer.version, answer.length, answer.doubt, answer.digest)
            answers.setdefault(item.handle, []).append(found)

    async def revoke(self, by_server: dict[ServerState, list[int]]) -> tuple[dict[int, Length], set[ServerState]]:
        """End leases; what the primaries said of those that they held, and the servers that did not answer."""
        lengths: dict[int, Length] = {}
        silent: set[ServerState] = set()

        async def one(server: ServerState, handles: list[int]) -> None:
            request = pb.RevokeRequest(handles=handles, epoch=server.epoch)
            reply = await self._call(server, "Revoke", request, len(handles))
            if reply is None:
                silent.add(server)
                return
            for chunk in reply.chunks:
                lengths[chunk.handle] = Length(chunk.version, chunk.length, chunk.unequal, chunk.mtime_ns)

        await self._split(by_server, one)
        return lengths, silent

    async def inspect(
        self, by_server: dict[ServerState, list[int]], *, digest: bool = False
    ) -> dict[int, list[tuple[ServerState, Any]]]:
        """`Inspect` without reading the data: by handle, (server, item). Servers that do not answer are missing."""
        found: dict[int, list[tuple[ServerState, Any]]] = {}

        async def one(server: ServerState, handles: list[int]) -> None:
            reply = await self._call(server, "Inspect", pb.InspectRequest(handles=handles, digest=digest), len(handles))
            if reply is not None:
                for item in reply.items:
                    found.setdefault(item.handle, []).append((server, item))

        await self._split(by_server, one)
        return found

    async def reconcile(self, primary: ServerState, grant: pb.Grant) -> tuple[int, list[str]]:
        """`Reconcile` at the primary that the grant names: the length, bytes, and the servers that are at fault where
        it did not work."""
        try:
            reply, _ = await primary.channel.call(
                "Reconcile", pb.ReconcileRequest(grant=grant), timeout=_RECONCILE_SECONDS
            )
        except GfsError as error:
            log.warning("event=reconcile_failed server=%s error=%r", primary.id, str(error))
            return 0, [primary.id]
        return reply.length, list(reply.failed)

    async def _everywhere(self, wanted: Iterable[Wanted], one: Call) -> None:
        by_server: dict[ServerState, list[Wanted]] = {}
        for item in wanted:
            for server in item.servers:
                by_server.setdefault(server, []).append(item)
        await self._split(by_server, one)

    async def _split(self, by_server: dict[ServerState, list[Any]], one: Call) -> None:
        """All servers at once, the pieces of each one after the other."""

        async def pieces(server: ServerState, items: list[Any]) -> None:
            for start in range(0, len(items), _ITEMS_PER_CALL):
                await one(server, items[start : start + _ITEMS_PER_CALL])

        if len(by_server) == 1:
            for server, items in by_server.items():
                await pieces(server, items)
            return
        async with trio.open_nursery() as nursery:
            for server, items in by_server.items():
                nursery.start_soon(pieces, server, items)

    async def _call(self, server: ServerState, method: str, request: Any, items: int) -> Any:
        """The reply, None when there is none to be had."""
        if server.gone:
            return None
        timeout = CALL_SECONDS if items <= 4 else _SHARED_SECONDS
        try:
            reply, _ = await server.channel.call(method, request, timeout=timeout)
        except GfsError as error:
            if not server.suspect:  # said once, not for every chunk that it has
                log.warning("event=chunkserver_silent server=%s method=%s error=%r", server.id, method, str(error))
            server.suspect = True
            self._servers.reported()
            return None
        return reply


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL
