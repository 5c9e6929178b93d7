"""What becomes of deleted files: TrashList, TrashRestore, TrashEmpty, and the end of those whose time is over [0076].

Whatever is reclaimed is asked for first, where others know of it: whoever has it open keeps it, as a file without a
name. Reclaiming goes in slices, between which other calls have their turn.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.ids import TRASH_INODE
from gfscore.metadata.inodes import FileType, InodeRecord, load
from gfscore.metadata.locks import inode_key
from gfscore.metadata.lookup import find
from gfscore.metadata.remove import reclaim
from gfscore.metadata.tables import Tables
from gfscore.metadata.trash import Trashed, TrashInfo, destination, expired, find_info, page, restore, trashed
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.locking import Keys, Locks, name_keys
from gfscore.server.master.removing import Removing
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Item, Session, Sessions, Told
from gfscore.server.master.state import MasterState

log = logging.getLogger(__name__)

_LISTED_AT_ONCE = 1000
_RECLAIMED_AT_ONCE = 100
_FROM_THE_START = 600  # sweeps, after which one looks at all expiries again
_SECOND_NS = 1_000_000_000


def refuse_in_trash(t: Tables, record: InodeRecord, session: Session | None) -> None:
    """A file in the trash is changed by those only who had it open when it lost its name. Raises NOT_PERMITTED."""
    if record.nlink or record.type is FileType.DIRECTORY or find_info(t, record.inode) is None:
        return
    if session is None or record.inode not in session.held:
        raise GfsError(Code.NOT_PERMITTED, "a file in the trash can only be read: restore it first (gfs trash restore)")


def _is_still(info: TrashInfo, now: TrashInfo | None) -> bool:
    """The same deletion, whatever was written since by who has the file open."""
    return now is not None and (now.deleted_ns, now.expires_ns) == (info.deleted_ns, info.expires_ns)


class Trash:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, locks: Locks, sessions: Sessions, servers: Servers,
        removing: Removing,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._removing = removing
        self._after = b""  # up to this expiry all is reclaimed
        self._swept_ns = 0
        self._sweeps = 0

    # ------------------------------------------------------------ TrashList

    def list(self, request: pb.TrashListRequest, context: CallContext) -> pb.TrashListReply:
        """Handler of `TrashList`."""
        tables = self._state.tables
        limit = min(request.limit or _LISTED_AT_ONCE, _LISTED_AT_ONCE)
        found, following = page(tables, after=request.after, below=request.below, limit=limit)
        reply = pb.TrashListReply(next=following)
        for item in found:
            reply.entries.add(
                name=item.entry,
                path=item.info.path,
                attr=attr_of(load(tables, item.inode)),
                deleted_ns=item.info.deleted_ns,
                expires_ns=item.info.expires_ns,
            )
        return reply

    # ------------------------------------------------------------ TrashRestore

    def restore(self, request: pb.TrashRestoreRequest, context: CallContext) -> Any:
        """Handler of `TrashRestore`. Who asks is told of what changed like all others, as it may not know of it."""
        self._sessions.of_change(request.id, context)
        tables = self._state.tables

        def keys() -> Keys:
            inode = find(tables, TRASH_INODE, request.name)
            if inode is None:
                return [], []
            directory, names = destination(tables, inode, request.path)
            return name_keys(tables, (TRASH_INODE, request.name), (directory, names[0]), writes=[inode_key(inode)])

        def operation() -> tuple[pb.TrashRestoreReply, Told]:
            outcome = self._calls.outcome(request.id)
            if outcome is not None:
                return pb.TrashRestoreReply(attr=attr_of(load(tables, outcome[0]))), {}
            tx = self._state.begin()
            done = restore(
                tx, request.name, path=request.path, uid=request.caller.uid, gid=request.caller.gid,
                now_ns=self._env.clock.wall_ns(),
            )  # fmt: skip
            self._calls.commit(tx, request.id, done.inode)
            items = [
                Item(inode=TRASH_INODE, names=[request.name], attr=True),
                Item(inode=done.inode, attr=True),
                *(Item(inode=directory, names=[name], attr=True) for directory, name in done.changed),
            ]
            return pb.TrashRestoreReply(attr=attr_of(load(tables, done.inode))), self._sessions.told(items, None)

        return self._calls.quick(keys, operation)

    # ------------------------------------------------------------ TrashEmpty, and the sweep

    async def empty(self, request: pb.TrashEmptyRequest, context: CallContext) -> pb.TrashEmptyReply:
        """Handler of `TrashEmpty`: one slice."""
        self._sessions.of_change(request.id, context)
        outcome = self._calls.outcome(request.id)
        if outcome is not None:  # nothing sorts before this `next`: the caller goes on where it was
            return pb.TrashEmptyReply(files=outcome[0], next=request.after or b"\0")
        before_ns = self._env.clock.wall_ns() - request.older_than_seconds * _SECOND_NS
        found, following = page(self._state.tables, after=request.after, below=request.below, limit=_RECLAIMED_AT_ONCE)
        unwanted = [item for item in found if not request.older_than_seconds or item.info.deleted_ns <= before_ns]
        files = await self._reclaim(unwanted, request.id)
        return pb.TrashEmptyReply(files=files, next=following)

    async def sweep(self) -> None:
        """Reclaim everything whose time is over; nothing before all servers and clients of before the start are heard
        of (rule 23)."""
        if not self._servers.heard_all or self._sessions.awaiting:
            return
        while True:
            now_ns = self._env.clock.wall_ns()
            if now_ns < self._swept_ns or self._sweeps == _FROM_THE_START:
                # The wall clock was set back at least once: what was deleted meanwhile may expire before `_after`.
                self._after = b""
                self._sweeps = 0
            self._swept_ns = now_ns
            self._sweeps += 1
            due = expired(self._state.tables, now_ns=now_ns, limit=_RECLAIMED_AT_ONCE, after=self._after)
            if not due:
                return
            files = await self._reclaim([trashed(self._state.tables, inode) for _, inode in due], pb.RequestId())
            log.info("event=trash_expired files=%d", files)
            self._after = due[-1][0]
            await trio.lowlevel.checkpoint()

    async def _reclaim(self, unwanted: Sequence[Trashed], request_id: pb.RequestId) -> int:
        """The end of these files, but for those that are restored or deleted again before their locks are free, and
        those that are open: they go when they are released. How many."""
        tables, sessions = self._state.tables, self._sessions

        def keys() -> Keys:
            names = [(TRASH_INODE, item.entry) for item in unwanted]
            return name_keys(tables, *names, writes=[inode_key(item.inode) for item in unwanted])

        async with self._locks.hold(keys):
            held = await sessions.ask_who_holds([item.inode for item in unwanted], None)
            tx = self._state.begin()
            removed = []
            for item in unwanted:
                if _is_still(item.info, find_info(tx, item.inode)):
                    hold = item.inode in held or self._removing.maybe_held(item.inode)
                    removed.append(reclaim(tx, item.inode, hold=hold))
            self._calls.commit(tx, request_id, len(removed))
            for one in removed:
                if not one.held:
                    self._removing.gone(one.inode, one.freed_chunks)
            told = sessions.told([Item(inode=TRASH_INODE, names=[item.entry for item in unwanted], attr=True)], None)
        if told:
            await sessions.tell(told)
        return len(removed)
