"""Taking names away: Unlink, Rename, Release, and the end of files without a name.

A file that loses its last name and that other sessions know about is asked for first: whoever has it open keeps it
alive. Until the answers are in, its name and the file itself are locked, so that nobody can open it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from gfscore.env import Env
from gfscore.metadata import remove
from gfscore.metadata import rename as renaming
from gfscore.metadata.inodes import FileType, load
from gfscore.metadata.keys import pack8
from gfscore.metadata.locks import directory_key, inode_key, path_reads
from gfscore.metadata.lookup import find
from gfscore.metadata.policies import Policy
from gfscore.metadata.tables import INODES
from gfscore.metadata.transaction import Transaction
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.background import put_off_when_full
from gfscore.server.master.calls import Calls
from gfscore.server.master.convert import attr_of
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.locking import Keys, Locks, name_keys
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Item, Session, Sessions, Told
from gfscore.server.master.state import MasterState

_DROPPED_AT_ONCE = 1000  # orphans, in between other calls have their turn

Decide = Callable[[Transaction, bool], tuple[Any, remove.Removed | None]]
"""Decide with or without holding what loses its last name: the core's result, and what was removed."""


class Removing:
    def __init__(
        self, state: MasterState, env: Env, calls: Calls, locks: Locks, sessions: Sessions, servers: Servers,
        leases: LeaseBook, defaults: Policy,
    ) -> None:  # fmt: skip
        self._state = state
        self._env = env
        self._calls = calls
        self._locks = locks
        self._sessions = sessions
        self._servers = servers
        self._leases = leases
        self._trash_seconds = defaults.trash_seconds

    # ------------------------------------------------------------ Unlink

    def unlink(self, request: pb.UnlinkRequest, context: CallContext) -> Any:
        """Handler of `Unlink`, of files and (`directory`) of directories."""
        session = self._sessions.of_change(request.id, context)

        def decide(tx: Transaction, hold: bool) -> tuple[remove.Removed, remove.Removed]:
            parent, name, now_ns = request.parent, request.name, self._env.clock.wall_ns()
            if request.directory:
                removed = remove.rmdir(tx, parent=parent, name=name, now_ns=now_ns, hold=hold)
            else:
                removed = remove.unlink(
                    tx, parent=parent, name=name, now_ns=now_ns, hold=hold, trash_seconds=self._trash_seconds
                )
            return removed, removed

        def answer(tx: Transaction, removed: remove.Removed) -> tuple[pb.UnlinkReply, Told]:
            reply = pb.UnlinkReply(inode=removed.inode, parent=attr_of(load(tx, request.parent)))
            if not removed.last_link:
                left = load(tx, removed.inode)
                self._sessions.watch_any(session, left)
                reply.attr.CopyFrom(attr_of(left))
            self._calls.commit(tx, request.id, removed.inode)
            items = []
            if self._sessions.watched(request.parent, session):
                items.append(Item(inode=request.parent, names=[request.name], attr=True))
            if self._sessions.watched(removed.inode, session):
                items.append(Item(inode=removed.inode, attr=True))
            self._sessions.watch_directory(session, request.parent)
            return reply, self._sessions.told(items, session)

        def repeated(outcome: tuple[int, ...]) -> pb.UnlinkReply:
            return pb.UnlinkReply(inode=outcome[0], attr=self._left(outcome[0], session))

        def keys() -> Keys:
            return self._keys((request.parent, request.name))

        return self._removal(request.id, session, request.hold, keys, decide, answer, repeated)

    # ------------------------------------------------------------ Rename

    def rename(self, request: pb.RenameRequest, context: CallContext) -> Any:
        """Handler of `Rename`, with NOREPLACE and EXCHANGE."""
        session = self._sessions.of_change(request.id, context)

        def decide(tx: Transaction, hold: bool) -> tuple[renaming.Renamed, remove.Removed | None]:
            renamed = renaming.rename(
                tx, parent=request.parent, name=request.name, new_parent=request.new_parent,
                new_name=request.new_name, now_ns=self._env.clock.wall_ns(), no_replace=request.no_replace,
                exchange=request.exchange, hold_replaced=hold, trash_seconds=self._trash_seconds,
            )  # fmt: skip
            return renamed, renamed.replaced

        def answer(tx: Transaction, renamed: renaming.Renamed) -> tuple[pb.RenameReply, Told]:
            reply = pb.RenameReply(
                attr=attr_of(load(tx, renamed.moved)),
                parent=attr_of(load(tx, request.parent)),
                new_parent=attr_of(load(tx, request.new_parent)),
                unchanged=not renamed.changed,
            )
            if renamed.replaced is not None and not renamed.replaced.last_link:
                left = load(tx, renamed.replaced.inode)
                self._sessions.watch_any(session, left)
                reply.replaced.CopyFrom(attr_of(left))
            replaced = 0 if renamed.replaced is None else renamed.replaced.inode
            self._calls.commit(tx, request.id, renamed.moved, replaced, int(renamed.changed))
            if not renamed.changed:
                return reply, {}
            for directory in (request.parent, request.new_parent):
                self._sessions.watch_directory(session, directory)
            self._sessions.watch_any(session, load(tx, renamed.moved))
            items = [
                Item(inode=request.parent, names=[request.name], attr=True),
                Item(inode=request.new_parent, names=[request.new_name], attr=True),
                Item(inode=renamed.moved, attr=True),
            ]
            if renamed.exchanged is not None:
                items.append(Item(inode=renamed.exchanged, attr=True))
            if renamed.replaced is not None:
                items.append(Item(inode=renamed.replaced.inode, attr=True))
            return reply, self._sessions.told(items, session)

        def repeated(outcome: tuple[int, ...]) -> pb.RenameReply:
            # One number alone was remembered by an older version.
            _, replaced, changed = outcome if len(outcome) == 3 else (outcome[0], 0, 1)
            return pb.RenameReply(replaced=self._left(replaced, session), unchanged=not changed)

        def keys() -> Keys:
            return self._keys((request.parent, request.name), (request.new_parent, request.new_name))

        return self._removal(request.id, session, request.hold_replaced, keys, decide, answer, repeated)

    def _left(self, inode: int, session: Session | None) -> pb.Attr | None:
        """What there is of a file that lost a name, for an answer that is given again; None if it has no other."""
        tables = self._state.tables
        if not inode or tables.get(INODES, pack8(inode)) is None:
            return None
        left = load(tables, inode)
        if not left.nlink:
            return None
        self._sessions.watch_any(session, left)
        return attr_of(left)

    def _keys(self, *names: tuple[int, bytes]) -> Keys:
        """The names, and whatever they stand for: a directory with all that is below it."""
        tables = self._state.tables
        writes = []
        for parent, name in names:
            inode = find(tables, parent, name)
            if inode is None:
                continue
            if load(tables, inode).type is FileType.DIRECTORY:
                writes.append(directory_key(len(path_reads(tables, parent)), inode))
            else:
                writes.append(inode_key(inode))
        return name_keys(tables, *names, writes=writes)

    # ------------------------------------------------------------ what both do

    def _removal(
        self, request_id: pb.RequestId, session: Session | None, hold: bool, keys: Callable[[], Keys], decide: Decide,
        answer: Callable[[Transaction, Any], tuple[Any, Told]], repeated: Callable[[tuple[int, ...]], Any],
    ) -> Any:  # fmt: skip
        def ask_first(removed: remove.Removed | None) -> bool:
            return (
                removed is not None
                and removed.last_link
                and not removed.directory
                and self._sessions.watched(removed.inode, session)
            )

        def unasked(removed: remove.Removed | None) -> bool:
            """Who cannot be asked now may have it open."""
            return (
                removed is not None
                and removed.last_link
                and not (removed.directory or removed.held or removed.trashed)
                and self.maybe_held(removed.inode)
            )

        def finish(tx: Transaction, result: Any, removed: remove.Removed | None) -> tuple[Any, Told]:
            reply = answer(tx, result)
            if removed is not None and removed.last_link:
                if hold and session is not None:
                    session.held.add(removed.inode)
                if not removed.held and not removed.trashed:
                    self.gone(removed.inode, removed.freed_chunks)
            return reply

        def operation() -> tuple[Any, Told]:
            outcome = self._calls.outcome(request_id)
            if outcome is not None:
                return repeated(outcome), {}
            tx = self._state.begin()
            result, removed = decide(tx, hold)
            if ask_first(removed):
                return None, {}
            if unasked(removed):
                tx = self._state.begin()
                result, removed = decide(tx, True)
            return finish(tx, result, removed)

        async def asking() -> Any:
            async with self._locks.hold(keys):
                outcome = self._calls.outcome(request_id)
                if outcome is not None:
                    return repeated(outcome)
                _, removed = decide(self._state.begin(), hold)
                held = False
                if removed is not None and ask_first(removed):
                    held = bool(await self._sessions.ask_who_holds([removed.inode], session))
                tx = self._state.begin()
                result, removed = decide(tx, hold or held or unasked(removed))
                reply, told = finish(tx, result, removed)
            return await self._calls.told(reply, told)

        async def queued() -> Any:
            async with self._locks.hold(keys):
                reply, told = operation()
            return await (asking() if reply is None else self._calls.told(reply, told))

        done, pair = self._locks.try_run(keys, operation)
        if not done or pair is None:
            return queued()
        reply, told = pair
        if reply is None:
            return asking()
        return self._calls.told(reply, told) if told else reply

    def maybe_held(self, inode: int) -> bool:
        """Some session has this file without a name open, or may turn out to have, after a start of the master."""
        return self._sessions.awaiting or self._sessions.held(inode)

    def gone(self, inode: int, freed: list[int]) -> None:
        """Nothing is left of an inode: its chunks are collected, its leases are void."""
        self._sessions.forget(inode)
        self._leases.drop_inode(inode)
        if freed:
            self._servers.freed(freed)

    # ------------------------------------------------------------ files without a name

    def release(self, request: pb.ReleaseRequest, context: CallContext) -> pb.Empty:
        """Handler of `Release`: held inodes that are not open any more."""
        session = self._sessions.of_change(request.id, context)
        if session is not None:
            session.held.difference_update(request.inodes)
        self.drop_orphans(list(request.inodes))
        return pb.Empty()

    def drop_orphans(self, inodes: list[int] | None = None) -> None:
        """Delete the orphans (all, or those of `inodes`) that no session holds, unless one may still come back.

        Called for all now and then: what there is no room for now goes another time, and what is too much at once.
        """
        if self._sessions.awaiting:
            return
        held = self._sessions.held
        with put_off_when_full():
            if inodes is None:  # after a start of the master there may be all that was unlinked until now
                unwanted = (inode for inode in remove.orphans(self._state.tables) if not held(inode))
                inodes = list(islice(unwanted, _DROPPED_AT_ONCE))
            for inode in inodes:
                if not held(inode):
                    tx = self._state.begin()
                    freed = remove.release_orphan(tx, inode)
                    if tx.batch:
                        self._state.commit(tx)
                        self.gone(inode, freed)
