"""Client sessions: who has been told about which inode, and the calls back when that is no longer true.

A session lives on a framed stream (or, without caches, on gRPC calls). Whoever was told about an inode is asked to
forget it before the change is answered. A stream that breaks leaves its session for `session_seconds`, for the client
to come back; what it missed meanwhile makes its caches void. It stays among the watchers so long: it may have any file
that it was told about open, and such a file is kept for it when it loses its last name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.inodes import FileType, InodeRecord
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.requests import forget_client
from gfscore.metadata.tables import COUNTERS
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext, Channel
from gfscore.server.master.background import put_off_when_full
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

WATCHED_FILES_MAX = 200_000  # per session
_EVICTED_AT_ONCE = 4096
_ANSWER_SECONDS = 5.0  # a client that does not answer an invalidation for so long loses its session
_CLIENT = b"client/"  # + client id: clients whose requests are remembered

Item = pb.InvalidateRequest.Item


class Session:
    """One client. `channel` is None over gRPC and while its stream is broken."""

    __slots__ = (
        "caching", "channel", "client_id", "directories", "evicting", "files", "heard", "held", "missed", "name",
    )  # fmt: skip

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        self.name = ""
        self.channel: Channel | None = None
        self.caching = False
        self.files: dict[int, None] = {}  # in the order in which it was told
        self.evicting: set[int] = set()  # asked whether they are open; still watched, and not in `files`
        self.directories: set[int] = set()
        self.held: set[int] = set()  # unlinked inodes that it has open
        self.missed = False  # something changed while its stream was broken
        self.heard = 0.0  # boottime at which the stream broke, or of the last call over gRPC


Told = dict[Session, list[Item]]


class Sessions:
    """All clients. `on_expired` is told of those that did not come back."""

    def __init__(self, state: MasterState, env: Env, session_seconds: float, nursery: trio.Nursery) -> None:
        self.on_expired: Callable[[Session], None] = lambda _: None
        self._state = state
        self._env = env
        self._seconds = session_seconds
        self._nursery = nursery
        self._by_id: dict[int, Session] = {}
        self._by_channel: dict[Channel, Session] = {}
        self._ended: set[int] = set()  # clients whose requests are still to be forgotten
        self._telling: dict[int, dict[trio.Event, None]] = {}  # inode → call-backs under way that name it, in order
        self._watchers: dict[int, Session | tuple[Session, ...]] = {}  # one session, or several: most have one
        # Clients of before a restart, until they say hello; their requests are remembered so long.
        now = env.clock.boottime()
        prefix = _CLIENT
        self._awaited = {
            unpack8(key[len(prefix) :]): now + session_seconds
            for key, _ in state.tables.range(COUNTERS, prefix, prefix + b"\xff" * 9)
        }

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def awaiting(self) -> bool:
        """Clients of before the start may still come back."""
        return bool(self._awaited)

    def held(self, inode: int) -> bool:
        """Some session has this unlinked inode open."""
        return any(inode in session.held for session in self._by_id.values())

    def of_stream(self, context: CallContext) -> Session | None:
        """The session of the stream on which a call came; None over gRPC or before Hello."""
        channel = context.session
        return None if channel is None else self._by_channel.get(channel)

    def of_change(self, request_id: pb.RequestId, context: CallContext) -> Session | None:
        """Who asks for a change. Raises UNKNOWN_SESSION for a client id that has no session (any more)."""
        channel = context.session
        session = None if channel is None else self._by_channel.get(channel)
        client_id = request_id.client_id
        if session is not None and (not client_id or session.client_id == client_id):
            return session
        if not client_id:
            return None
        session = self._by_id.get(client_id)
        if session is None:
            raise GfsError(Code.UNKNOWN_SESSION, f"client {client_id} has no session here: say hello again")
        if session.channel is None:
            session.heard = self._env.clock.boottime()
        return session

    # ------------------------------------------------------------ beginning and end

    def hello(self, request: pb.HelloRequest, context: CallContext) -> tuple[Session, bool]:
        """Begin or take up a session: it, and whether what the client has cached is still right.

        The caller sees to what it has open.
        """
        channel = context.session
        session = self._by_id.get(request.client_id)
        resumed = session is not None and session.caching and request.caching and not session.missed
        if session is None:
            session = self._begin(request.client_id)
        elif session.channel is not None and session.channel is not channel:
            self._by_channel.pop(session.channel, None)  # the client has given up a stream that looks alive from here
            self._nursery.start_soon(session.channel.aclose)
        if not resumed:
            self._forget_all(session)
        session.name = request.name
        session.channel = channel
        session.caching = request.caching and channel is not None
        session.missed = False
        session.heard = self._env.clock.boottime()
        if channel is not None:
            self._by_channel[channel] = session
            self._nursery.start_soon(self._wait_for_end, session, channel)
        return session, resumed

    def _begin(self, wanted: int) -> Session:
        """A session for a client that is new, or that was known before this master started."""
        client_id = wanted if self._awaited.pop(wanted, None) is not None else 0
        if not client_id:
            tx = self._state.begin()
            client_id = tx.tick()
            tx.put(COUNTERS, _CLIENT + pack8(client_id), b"")
            self._state.commit(tx)
        session = Session(client_id)
        self._by_id[client_id] = session
        return session

    async def _wait_for_end(self, session: Session, channel: Channel) -> None:
        await channel.wait_closed()
        self._detach(session, channel)

    def _detach(self, session: Session, channel: Channel) -> None:
        self._by_channel.pop(channel, None)
        if session.channel is channel:
            session.channel = None
            session.heard = self._env.clock.boottime()

    def expire(self) -> None:
        """End the sessions of clients that were not heard of for too long. Called now and then."""
        before = self._env.clock.boottime() - self._seconds
        for session in [s for s in self._by_id.values() if s.channel is None and s.heard < before]:
            del self._by_id[session.client_id]
            self._forget_all(session)
            session.caching = False  # what it is still being told it does not keep
            self._ended.add(session.client_id)
            log.info("event=client_expired client=%d name=%r", session.client_id, session.name)
            self.on_expired(session)
        if self._awaited:
            now = before + self._seconds
            for client_id in [c for c, until in self._awaited.items() if until < now]:
                del self._awaited[client_id]
                self._ended.add(client_id)
        with put_off_when_full():
            for client_id in list(self._ended):
                self._forget_requests(client_id)
                self._ended.discard(client_id)

    def end_again(self, session: Session | None) -> bool:
        """Whether it has ended: then what it was given since has to be cleared away, too."""
        if session is None or self._by_id.get(session.client_id) is session:
            return False
        self.on_expired(session)
        return True

    def _forget_requests(self, client_id: int) -> None:
        tx = self._state.begin()
        forget_client(tx, client_id)
        tx.delete(COUNTERS, _CLIENT + pack8(client_id))
        self._state.commit(tx)

    # ------------------------------------------------------------ who was told what

    def watch(self, session: Session | None, inode: int) -> None:
        """`session` is being told about an inode that is not a directory."""
        if session is None or not session.caching or inode in session.files:
            return
        session.files[inode] = None
        if inode in session.evicting:  # what it is being told comes behind what it is asked to forget
            session.evicting.discard(inode)
        else:
            self._add(session, inode)
        if len(session.files) > WATCHED_FILES_MAX:
            self._evict(session)

    def watch_directory(self, session: Session | None, inode: int) -> None:
        """`session` is being told about a directory or its entries."""
        if session is not None and session.caching and inode not in session.directories:
            session.directories.add(inode)
            self._add(session, inode)

    def watch_any(self, session: Session | None, record: InodeRecord) -> None:
        """`session` is being told about this inode."""
        if record.type is FileType.DIRECTORY:
            self.watch_directory(session, record.inode)
        else:
            self.watch(session, record.inode)

    def unwatch(self, session: Session, inode: int) -> None:
        """`session` has forgotten a file, and need not be told of it any more."""
        if inode in session.files or inode in session.evicting:
            session.files.pop(inode, None)
            session.evicting.discard(inode)
            self._remove(session, inode)

    def forget(self, inode: int) -> None:
        """The inode is gone; nobody need be told of anything any more."""
        watchers = self._watchers.pop(inode, None)
        if watchers is None:
            return
        for session in watchers if isinstance(watchers, tuple) else (watchers,):
            session.files.pop(inode, None)
            session.evicting.discard(inode)
            session.directories.discard(inode)

    def _add(self, session: Session, inode: int) -> None:
        watchers = self._watchers.get(inode)
        if watchers is None:
            self._watchers[inode] = session
        elif isinstance(watchers, tuple):
            self._watchers[inode] = (*watchers, session)
        else:
            self._watchers[inode] = (watchers, session)

    def _remove(self, session: Session, inode: int) -> None:
        watchers = self._watchers.get(inode)
        if isinstance(watchers, tuple):
            left = tuple(other for other in watchers if other is not session)
            self._watchers[inode] = left[0] if len(left) == 1 else left
        elif watchers is session:
            del self._watchers[inode]

    def _forget_all(self, session: Session) -> None:
        for inode in (*session.files, *session.evicting, *session.directories):
            self._remove(session, inode)
        session.files.clear()
        session.evicting.clear()
        session.directories.clear()

    def _evict(self, session: Session) -> None:
        """Too many: have the client forget the ones it was told of first, but for those that it has open."""
        oldest = [inode for inode, _ in zip(session.files, range(_EVICTED_AT_ONCE), strict=False)]
        for inode in oldest:
            del session.files[inode]
        session.evicting.update(oldest)
        self._nursery.start_soon(self._evicted, session, oldest)

    async def _evicted(self, session: Session, inodes: list[int]) -> None:
        items = [Item(inode=inode, attr=True, chunks=True, evicted=True) for inode in inodes]
        reply = await self._ask(session, items)
        still_open = set(inodes) if reply is None else set(reply.open)
        for inode in session.evicting.intersection(inodes):  # without those that it was told of again meanwhile
            session.evicting.discard(inode)
            if inode in still_open:
                session.files[inode] = None
            else:
                self._remove(session, inode)

    # ------------------------------------------------------------ calling back

    def watched(self, inode: int, by_others_than: Session | None) -> bool:
        """Somebody else was told about the inode."""
        watchers = self._watchers.get(inode)
        return watchers is not None and watchers is not by_others_than

    def told(self, items: list[Item], author: Session | None) -> Told:
        """Which sessions have to be told of which changes; the author is not."""
        result: Told = {}
        for item in items:
            watchers = self._watchers.get(item.inode)
            if watchers is None or watchers is author:
                continue
            for session in watchers if isinstance(watchers, tuple) else (watchers,):
                if session is not author:
                    result.setdefault(session, []).append(item)
        return result

    async def tell(self, told: Told) -> set[int]:
        """Have all forget what changed; returns when they have. The unlinked inodes that somebody has open.

        A session that cannot answer is dropped; what it might have open is kept until it expires or comes back.
        """
        held: set[int] = set()
        with self._noted({item.inode for items in told.values() for item in items}):
            if len(told) == 1:
                for session, items in told.items():
                    await self._tell_one(session, items, held)
                return held
            async with trio.open_nursery() as nursery:
                for session, items in told.items():
                    nursery.start_soon(self._tell_one, session, items, held)
            return held

    async def ask_who_holds(self, inodes: list[int], author: Session | None) -> set[int]:
        """Which of these inodes, about to lose their last name, somebody else has open.

        Who has not is told of them no more. Whoever was told of one meanwhile (it was listed, or the client came back)
        may have opened it since, and is asked too.
        """
        held: set[int] = set()
        items = [Item(inode=inode, attr=True, unlinked=True) for inode in inodes]
        while told := self._unasked(items, author):
            held |= await self.tell(told)
            for session, asked in told.items():
                for inode in {item.inode for item in asked}.difference(session.held):
                    self.unwatch(session, inode)
        return held

    def _unasked(self, items: list[Item], author: Session | None) -> Told:
        told = self.told(items, author)
        unasked = {session: [item for item in its if item.inode not in session.held] for session, its in told.items()}
        return {session: its for session, its in unasked.items() if its}

    @contextmanager
    def _noted(self, inodes: set[int]) -> Iterator[None]:
        known = trio.Event()
        for inode in inodes:
            self._telling.setdefault(inode, {})[known] = None
        try:
            yield
        finally:
            known.set()
            for inode in inodes:
                del self._telling[inode][known]
                if not self._telling[inode]:
                    del self._telling[inode]

    def being_told(self, inode: int | None = None) -> list[trio.Event]:
        """When those know who are being told of something now: of this inode, or at all."""
        if inode is not None:
            return list(self._telling.get(inode, ()))
        return list(dict.fromkeys(known for all_known in self._telling.values() for known in all_known))

    async def _tell_one(self, session: Session, items: list[Item], held: set[int]) -> None:
        reply = await self._ask(session, items)
        mine = {item.inode for item in items if item.unlinked}
        if reply is not None:
            mine.intersection_update(reply.held)
        session.held |= mine
        held |= mine

    async def _ask(self, session: Session, items: list[Item]) -> pb.InvalidateReply | None:
        """What the client answers; None if it cannot: it has to ask anew for all it knows when it is back."""
        request = pb.InvalidateRequest(items=items)
        while (channel := session.channel) is not None:
            try:
                reply, _ = await channel.call("Invalidate", request, timeout=_ANSWER_SECONDS)
                return reply  # type: ignore[no-any-return]
            except GfsError as error:
                log.warning(
                    "event=session_dropped client=%d name=%r error=%r", session.client_id, session.name, str(error)
                )
                self._detach(session, channel)
                await channel.aclose()
        session.missed = True
        return None
