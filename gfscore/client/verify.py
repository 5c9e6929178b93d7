"""The check behind `gfs fsck`: every replica of every chunk is read and verified by its own server, and compared.

A cluster at work is never quite still: what looks wrong and is not damage is looked at again after a pause, and counts
only if it is the same each time. Nothing is deleted here, and nothing is written but by `repair`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from gfscore.client.session import MasterSession
from gfscore.env import Env
from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import Channel

_PER_SERVER = 2  # verifications at a server at once
_CHUNKS_AT_ONCE = 32
_CALL_SECONDS = 30.0
_VERIFY_BYTES_PER_SECOND = 4 * 1024 * 1024  # slower than this a server is taken for one that does not answer
_PAUSES = (1.0, 2.0)  # before a second and a third look at what may only be a change under way

CERTAIN = frozenset({"corrupt", "unreachable"})  # no change under way looks like this

Progress = Callable[[int, int], None]  # (bytes found to be verified, bytes verified)


@dataclass(frozen=True)
class Problem:
    """`server` is empty where it is about the chunk as a whole; `kind` as in `gfs fsck --help`."""

    path: str
    index: int
    handle: str
    server: str
    kind: str
    message: str

    def as_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "index", "handle", "server", "kind", "message")}


@dataclass
class _Chunk:
    """One chunk where it was met first: by a snapshot or a hard link it may belong to more files."""

    path: str
    inode: int
    index: int
    handle: int
    problems: list[Problem] = field(default_factory=list)
    shared: bool = False


class Verifier:
    """One check. `check` for each file, then `settle`; then `problems` are what is wrong."""

    def __init__(self, session: MasterSession, env: Env, progress: Progress) -> None:
        self.files = self.chunks = self.replicas = 0
        self.replicas_by_server: dict[str, int] = {}
        self._session = session
        self._env = env
        self._progress = progress
        self._seen: set[int] = set()
        self._suspects: list[_Chunk] = []
        self._channels: dict[str, Channel] = {}
        self._limits: dict[str, trio.CapacityLimiter] = {}
        self._at_once = trio.Semaphore(_CHUNKS_AT_ONCE)

    @property
    def problems(self) -> list[Problem]:
        found = [problem for chunk in self._suspects for problem in chunk.problems]
        return sorted(found, key=lambda problem: (problem.path, problem.index, problem.server, problem.kind))

    async def aclose(self) -> None:
        for channel in self._channels.values():
            await channel.aclose()

    async def check(self, path: str, inode: int) -> None:
        """Verify the chunks of a file that were not met before; a file that is gone by now counts for nothing."""
        info = await self._file_info(inode)
        if info is None:
            return
        self.files += 1
        async with trio.open_nursery() as nursery:
            while info is not None:
                for message in info.chunks:
                    if message.handle in self._seen:
                        continue
                    self._count(message)
                    chunk = _Chunk(path, inode, message.index, message.handle)
                    # Taken here, not in the task: at most so many tasks exist, however large the file is.
                    await self._at_once.acquire()
                    nursery.start_soon(self._first_look, chunk, message)
                info = await self._file_info(inode, info.next) if info.next else None

    def _count(self, message: pb.FileInfoReply.Chunk) -> None:
        self._seen.add(message.handle)
        self.chunks += 1
        self.replicas += len(message.replicas)
        for replica in message.replicas:
            server = replica.server.id
            self.replicas_by_server[server] = self.replicas_by_server.get(server, 0) + 1

    async def settle(self) -> None:
        """Look again at what may only have been a change under way."""
        for pause in _PAUSES:
            again = [chunk for chunk in self._suspects if any(p.kind not in CERTAIN for p in chunk.problems)]
            if not again:
                break
            await self._env.clock.sleep(pause)
            await self._each(again, self._look_again)
        await self._name_who_may_have_it()
        self._suspects = [chunk for chunk in self._suspects if chunk.problems]

    async def _name_who_may_have_it(self) -> None:
        """What a server may have that a restarted master has not heard of is out of reach, and not lost."""
        if not any(problem.kind == "lost" for problem in self.problems):
            return
        unheard = ", ".join((await self._session.call("Status", pb.Empty())).unheard)
        if unheard:
            text = f"no undamaged replica is known; not heard of since the master's start: {unheard}"
            for chunk in self._suspects:
                chunk.problems = [
                    replace(problem, kind="unreachable", message=text) if problem.kind == "lost" else problem
                    for problem in chunk.problems
                ]

    async def recheck(self) -> None:
        """Look at all problems anew: what is repaired by now is none any more."""
        await self._each(self._suspects, self._look_anew)
        await self.settle()

    def unequal(self) -> list[tuple[int, int]]:
        """(inode, chunk index) of chunks whose replicas differ, and that one file alone has: taking a lease on them
        makes them equal."""
        return [
            (chunk.inode, chunk.index)
            for chunk in self._suspects
            if not chunk.shared and any(problem.kind == "unequal" for problem in chunk.problems)
        ]

    # ------------------------------------------------------------ looking

    async def _first_look(self, chunk: _Chunk, message: pb.FileInfoReply.Chunk) -> None:
        try:
            chunk.problems = await self._look(chunk, message)
            if chunk.problems:
                self._suspects.append(chunk)
        finally:
            self._at_once.release()

    async def _look_again(self, chunk: _Chunk) -> None:
        """Keep the problems that are still there, and what was certain: it may be repaired by now, and was there."""
        before = {(problem.kind, problem.server): problem for problem in chunk.problems}
        if not await self._look_anew(chunk):
            return
        now = {(problem.kind, problem.server): problem for problem in chunk.problems}
        chunk.problems = [
            *(problem for key, problem in before.items() if problem.kind in CERTAIN and key not in now),
            *(problem for key, problem in now.items() if problem.kind in CERTAIN or key in before),
        ]

    async def _look_anew(self, chunk: _Chunk) -> bool:
        """Whether the chunk is still there and nobody else's business."""
        info = await self._file_info(chunk.inode, chunk.index, 1)
        message = info.chunks[0] if info is not None and info.chunks else None
        if message is None or message.index != chunk.index:
            chunk.problems = []  # the file, or this part of it, is gone
            return False
        if message.handle != chunk.handle and message.handle in self._seen:
            chunk.problems = []  # another file's business
            return False
        chunk.handle = message.handle
        self._seen.add(message.handle)
        chunk.problems = await self._look(chunk, message)
        return True

    async def _each(self, chunks: Collection[_Chunk], look: Callable[[_Chunk], Any]) -> None:
        async def one(chunk: _Chunk) -> None:
            try:
                await look(chunk)
            finally:
                self._at_once.release()

        async with trio.open_nursery() as nursery:
            for chunk in list(chunks):
                await self._at_once.acquire()
                nursery.start_soon(one, chunk)

    async def _look(self, chunk: _Chunk, message: pb.FileInfoReply.Chunk) -> list[Problem]:
        """One look at all replicas of a chunk."""
        chunk.shared = message.references > 1
        handle = f"{message.handle:016x}"
        problems: list[Problem] = []
        sound: dict[str, tuple[int, int]] = {}  # server → (length, digest)

        def add(kind: str, text: str, server: str = "") -> None:
            problems.append(Problem(chunk.path, chunk.index, handle, server, kind, text))

        async def one(replica: pb.FileInfoReply.Replica) -> None:
            server = replica.server.id
            if replica.state == "unreachable":
                add("unreachable", "its chunkserver does not answer", server)
                return
            try:
                item = await self._inspect(replica.server, message.handle, message.length)
            except GfsError as error:
                add("unreachable", str(error), server)
                return
            kind, text = _judge(item, message.version)
            if kind:
                add(kind, text, server)
            else:
                sound[server] = (item.length, item.digest)

        async with trio.open_nursery() as nursery:
            for replica in message.replicas:
                nursery.start_soon(one, replica)
        if not message.used and not sound and all(problem.kind == "missing" for problem in problems):
            return []  # granted, and never written as yet
        if len(set(sound.values())) > 1 and not message.primary:
            lengths = sorted({length for length, _ in sound.values()})
            what = f"lengths {lengths}" if len(lengths) > 1 else "contents"
            add("unequal", f"{len(sound)} replicas of version {message.version} have different {what}")
        if not sound and not any(problem.kind == "unreachable" for problem in problems):
            add("lost", "no undamaged replica is left")
        elif len(sound) + sum(bool(problem.server) for problem in problems) < message.goal:
            add("under_replicated", f"{len(sound)} good replicas of {message.goal} wanted")
        if len(sound) > message.goal:
            add("over_replicated", f"{len(sound)} good replicas, {message.goal} wanted")
        return problems

    # ------------------------------------------------------------ calls

    async def _file_info(self, inode: int, first: int = 0, count: int = 0) -> pb.FileInfoReply | None:
        """What the master says of the chunks from `first` on, `count` at most; None for a file that is gone."""
        request = pb.FileInfoRequest(inode=inode, first=first, count=count)
        try:
            reply: pb.FileInfoReply = await self._session.call("FileInfo", request)
            return reply
        except GfsError as error:
            if error.code in (Code.NOT_FOUND, Code.STALE_INODE):
                return None
            raise

    async def _inspect(self, server: pb.Server, handle: int, length: int) -> pb.InspectReply.Item:
        """Have a replica read and verified by its server. Raises GfsError when the server does not answer."""
        self._progress(length, 0)
        address = server.address
        channel = self._channels.get(server.id)
        if channel is None:
            channel = self._env.transport.control_channel(address.host, address.control_port, "Chunkserver")
            self._channels[server.id] = channel
            self._limits[server.id] = trio.CapacityLimiter(_PER_SERVER)
        request = pb.InspectRequest(handles=[handle], verify=True)
        try:
            async with self._limits[server.id]:
                timeout = _CALL_SECONDS + length / _VERIFY_BYTES_PER_SECOND
                reply, _ = await channel.call("Inspect", request, timeout=timeout)
        finally:
            self._progress(0, length)
        if not reply.items:
            raise GfsError(Code.BAD_MESSAGE, "the server did not answer for this chunk")
        item: pb.InspectReply.Item = reply.items[0]
        return item


def _judge(item: pb.InspectReply.Item, version: int) -> tuple[str, str]:
    """(kind, message) of what is wrong with one replica; ("", "") for a good one."""
    code = code_from_wire(item.error)
    if code in (Code.CHECKSUM_MISMATCH, Code.IO):
        return "corrupt", item.message
    if code is Code.UNKNOWN_CHUNK:
        return "missing", "its file is not there"
    if code is not Code.OK:
        return "unreachable", item.message or code.name.lower()
    if item.version != version:
        return "stale", f"version {item.version} instead of {version}"
    return "", ""
