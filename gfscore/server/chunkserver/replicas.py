"""The replicas on this server: which chunks there are, and what is known of those in use.

A replica in use has the lock under which everything changes it, its serial gate, and its primary when the lease is
held here. The table creates a fresh chunk's replica on first use (rule 13) and takes versions to a new number (rule 1).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import VerifiedGrant
from gfscore.replica.reconcile import NO_DOUBT, POWER_LOST, RESTARTED
from gfscore.replica.serial import SerialGate
from gfscore.server.chunkserver.primary import Primary
from gfscore.server.chunkserver.store_io import StoreIo, is_damage
from gfscore.storage.chunk_copy import IncomingCopy
from gfscore.storage.chunk_store import Chunk, ChunkStore

log = logging.getLogger(__name__)

_SCAN_SLICE = 256
_REVOKED_MAX = 200_000
_LOADED_MAX = 4_000  # about 10 KB each
_LOADED_STEP = 500  # those under a lease cannot be forgotten: do not look at them again for every new one


class Replica:
    """One chunk replica in use. `changed_beat`: the heartbeat before which its version last changed here. `doubt`:
    whether it has all that was acknowledged, until it takes part in a mutation again: it is made equal before (rule 9).
    """

    __slots__ = ("_turn", "changed_beat", "chunk", "doubt", "gate", "handle", "lock", "mtime_ns", "primary")

    def __init__(self, handle: int, chunk: Chunk, gate: SerialGate) -> None:
        self.handle = handle
        self.chunk = chunk
        self.gate = gate
        self.lock = trio.Lock()
        self.primary: Primary | None = None
        self.mtime_ns = 0
        self.changed_beat = 0
        self.doubt = NO_DOUBT
        self._turn: trio.Event | None = None

    async def take_lock(self) -> None:
        """Without a detour through the scheduler when it is free."""
        try:
            self.lock.acquire_nowait()
        except trio.WouldBlock:
            await self.lock.acquire()

    async def wait_turn(self, seconds: float) -> None:
        """Until a mutation was applied or the gate changed. Raises GfsError(SERIAL_GAP) when neither happens."""
        if self._turn is None:
            self._turn = trio.Event()
        with trio.move_on_after(seconds) as scope:
            await self._turn.wait()
        if scope.cancelled_caught:
            raise GfsError(Code.SERIAL_GAP, f"chunk {self.handle:016x}: the mutation before this one did not come")

    def wake(self) -> None:
        if self._turn is not None:
            self._turn.set()
            self._turn = None

    def end_lease(self) -> None:
        if self.primary is not None:
            self.primary.lease.revoke()

    def busy(self) -> bool:
        return self.lock.locked() or (self.primary is not None and self.primary.lease.in_flight > 0)


class ReplicaTable:
    """All replicas of this server."""

    def __init__(self, io: StoreIo, store: ChunkStore, beat_soon: Callable[[], None]) -> None:
        self.store = store
        self.bad_found = 0  # replicas that turned out damaged or missing since the start
        self.beat = 0  # number of the heartbeat that is being prepared
        self.index: dict[int, tuple[int, int]] = {}  # handle → (version, length when last looked at)
        self.changed: set[int] = set()  # handles to report
        self.corrupt: set[int] = set()  # damaged ones: they take no mutation and no new version
        self.collecting: set[int] = set()  # on their way to be deleted: not reported, and no copy is made over them
        self.missing: set[int] = set()  # whose files disappeared, until the master has heard it
        self._io = io
        self._beat_soon = beat_soon
        self._loaded: dict[int, Replica] = {}
        self._forget_at = _LOADED_MAX
        self._revoked: dict[int, None] = {}
        self._revoked_below = 0
        self._first_epoch = 0  # of the first session since this server started

    async def open(self) -> None:
        """Learn what is on the disk."""
        scan = iter(self.store.scan())

        def some() -> list[tuple[int, int, int]]:
            return [found for _, found in zip(range(_SCAN_SLICE), scan, strict=False)]

        while True:
            found = await self._io.run(some)
            self.index.update((handle, (version, length)) for handle, version, length in found)
            if len(found) < _SCAN_SLICE:
                break
        for handle in self.store.corrupt_handles():
            self.mark_corrupt(handle, "found when the server started")

    # ------------------------------------------------------------ finding

    def loaded(self, handle: int) -> Replica | None:
        """The replica, if it is in use already."""
        return self._loaded.get(handle)

    async def get(self, handle: int) -> Replica:
        """Raises GfsError(UNKNOWN_CHUNK)."""
        replica = self._loaded.get(handle)
        if replica is None:
            if handle not in self.index:
                raise GfsError(Code.UNKNOWN_CHUNK, f"chunk {handle:016x} is not here")
            chunk = await self._io.quick(self.store.get, handle)
            # Nobody knows what it applied before the restart: closed until a new version.
            known = self._loaded.get(handle)
            replica = known or self._add(handle, chunk, SerialGate(closed=True))
            if known is None:
                replica.doubt = POWER_LOST if self.store.power_was_lost else RESTARTED
        return replica

    async def _locked(self, handle: int) -> Replica:
        """The replica, with its lock taken. While that was waited for, a copy may have taken the place of the one that
        was here. Raises GfsError(UNKNOWN_CHUNK)."""
        while True:
            replica = await self.get(handle)
            await replica.take_lock()
            if self._loaded.get(handle) is replica:
                return replica
            replica.lock.release()

    async def for_grant(self, grant: VerifiedGrant) -> Replica:
        """The replica a grant is for, created empty when the grant is fresh. Raises GfsError."""
        replica = self._loaded.get(grant.handle)
        if replica is not None:
            return replica
        if grant.handle in self.index or not grant.fresh:
            return await self.get(grant.handle)
        self.check_not_revoked(grant)
        # On the event loop: two file system calls in the page cache, and nobody can come in between.
        chunk = self._io.now(self.store.create, grant.handle, grant.version)
        return self._created(grant.handle, chunk)

    def _created(self, handle: int, chunk: Chunk) -> Replica:
        self.index[handle] = (chunk.version, chunk.length)
        self.missing.discard(handle)
        self.changed.add(handle)
        replica = self._add(handle, chunk, SerialGate())
        replica.changed_beat = self.beat
        return replica

    def _add(self, handle: int, chunk: Chunk, gate: SerialGate) -> Replica:
        if len(self._loaded) >= self._forget_at:
            self._forget_some()
            self._forget_at = max(_LOADED_MAX, len(self._loaded) + _LOADED_STEP)
        replica = Replica(handle, chunk, gate)
        self._loaded[handle] = replica
        return replica

    def _forget_some(self) -> None:
        # Those loaded first come first. What is forgotten takes no mutation before a new version, as after a restart.
        for handle, replica in list(self._loaded.items())[: _LOADED_MAX // 4]:
            if not replica.busy() and (replica.primary is None or replica.primary.lease.ended):
                self.current(handle)
                del self._loaded[handle]

    # ------------------------------------------------------------ changing

    async def prepare(self, handle: int, version: int, old_version: int, truncate: int | None) -> Replica:
        """Take a replica to a new version, durable, which ends every lease on the old one (rule 1).

        Raises GfsError: STALE_VERSION when the replica is not at `old_version`; CHECKSUM_MISMATCH when it is damaged:
        such a one is in no new set; UNKNOWN_CHUNK, and it will never be created here then. Repeating it is fine.
        """
        if handle not in self.index:
            self.revoke_unseen(handle)
        replica = await self._locked(handle)
        try:
            chunk = replica.chunk
            has_version = chunk.version
            self.check_sound(replica)
            if has_version == version:
                return replica
            if has_version != old_version:
                raise GfsError(Code.STALE_VERSION, f"chunk {handle:016x} has version {chunk.version} here")
            replica.end_lease()
            await self._io.run(self.store.set_version, handle, old_version, version, truncate)
            replica.primary = None
            replica.gate = SerialGate()
            replica.changed_beat = self.beat
            self._revoked.pop(handle, None)
            self.changed.add(handle)
            return replica
        finally:
            replica.lock.release()
            replica.wake()

    async def clone(
        self, handle: int, version: int, new_handle: int, new_version: int, truncate: int | None
    ) -> Replica:
        """Copy a replica inside the local file system [0116]. Repeating it is fine. Raises GfsError."""
        if new_handle in self.index:
            replica = await self.get(new_handle)
            if replica.chunk.version != new_version:
                raise GfsError(Code.STALE_VERSION, f"chunk {new_handle:016x} has version {replica.chunk.version} here")
            return replica
        source = await self._locked(handle)
        try:
            if source.chunk.version != version:
                raise GfsError(Code.STALE_VERSION, f"chunk {handle:016x} has version {source.chunk.version} here")
            self.check_sound(source)
            chunk = await self._io.run(self.store.clone, handle, version, new_handle, new_version, truncate)
            made = self._created(new_handle, chunk)
            made.doubt = source.doubt
            return made
        finally:
            source.lock.release()

    def version_here(self, handle: int) -> int | None:
        """The version of a good replica, None where there is none."""
        report = self.report(handle)
        return None if report is None or report.corrupt else report.version

    async def take_copy(self, copy: IncomingCopy, version: int, doubt: int) -> None:
        """A complete copy from another server becomes the replica, instead of an older or corrupt one [0069]. `doubt`:
        of its source.

        Like one found on the disk it takes no mutation before a new version. Raises GfsError(STALE_VERSION) when there
        is a good replica of this version or a later one by now.
        """
        handle = copy.handle
        before = await self._locked(handle) if handle in self.index else None
        try:
            here = self.version_here(handle)
            if here is not None and here >= version:
                raise GfsError(Code.STALE_VERSION, f"chunk {handle:016x} has version {here} here")
            if before is not None:
                before.end_lease()
                before.gate.close()
            chunk = await self._io.run(copy.finish, version)
            self.corrupt.discard(handle)
            self._loaded.pop(handle, None)
            self.index[handle] = (version, chunk.length)
            self.changed.add(handle)
            made = self._add(handle, chunk, SerialGate(closed=True))
            made.changed_beat = self.beat
            made.doubt = max(doubt, RESTARTED)  # what its source lacks, it lacks
        finally:
            if before is not None:
                before.lock.release()
                before.wake()

    async def collect(self, handle: int, *, unless_changed_since: int | None = None) -> None:
        """Delete a replica; one that is not here is fine.

        `unless_changed_since`: the number of the heartbeat that the wish answers. A replica whose version changed
        after that was sent is kept: the master spoke of an older state.
        """
        if handle not in self.index:
            return
        replica = await self._locked(handle)
        try:
            if unless_changed_since is not None and replica.changed_beat >= unless_changed_since:
                return
            replica.end_lease()
            replica.gate.close()
            await self._io.run(self.store.delete, handle)
            self.index.pop(handle, None)
            self._loaded.pop(handle, None)
            self.changed.discard(handle)
            self.corrupt.discard(handle)
            self.missing.discard(handle)
            self.revoke_unseen(handle)
        finally:
            replica.lock.release()
            replica.wake()

    def may_have_lost(self, handle: int) -> bool:
        """A chunk that is not here may have been: its file is gone, or it was granted before the power failed. Who does
        not have it is no witness then that nobody wrote to it."""
        return handle in self.missing or (self.store.booted_since and handle < self._first_epoch)

    # ------------------------------------------------------------ leases that were taken back

    def revoke_unseen(self, handle: int) -> None:
        """A chunk that is not here is not to be created by a fresh grant: its lease was revoked before it was used, or
        a replica was here and is gone. The grant may still be in a client's hands."""
        self._revoked[handle] = None
        if len(self._revoked) > _REVOKED_MAX:
            oldest = next(iter(self._revoked))
            del self._revoked[oldest]
            # Handles only grow; too much is refused, never too little, and who is refused asks the master anew.
            self._revoked_below = max(self._revoked_below, oldest)

    def new_session(self, epoch: int) -> None:
        """What was granted before the session and never used here is not created any more: handles and epochs come from
        one clock, and this server may have said, before it restarted, that it has no such chunk."""
        self._first_epoch = self._first_epoch or epoch
        self._revoked.clear()
        self._revoked_below = max(self._revoked_below, epoch)

    def check_not_revoked(self, grant: VerifiedGrant) -> None:
        """Raises GfsError(NOT_PRIMARY) for a fresh chunk whose lease was taken back before its first use."""
        if grant.fresh and (
            grant.handle in self._revoked or (grant.handle <= self._revoked_below and grant.handle not in self.index)
        ):
            raise GfsError(Code.NOT_PRIMARY, f"the lease on chunk {grant.handle:016x} was revoked")

    def primaries(self) -> Iterable[tuple[Replica, Primary]]:
        """Replicas that have, or had, a lease here."""
        for replica in list(self._loaded.values()):
            if replica.primary is not None:
                yield replica, replica.primary

    def end_leases(self) -> None:
        """The session they hung on is over."""
        for _, primary in self.primaries():
            primary.lease.revoke()

    # ------------------------------------------------------------ reporting

    def report(self, handle: int) -> pb.ChunkReport | None:
        """What the master is told about a chunk; None when it is not here, and was not. Version 0: it is gone."""
        entry = self.current(handle)
        if entry is None:
            return pb.ChunkReport(handle=handle) if handle in self.missing else None
        return pb.ChunkReport(handle=handle, version=entry[0], length=entry[1], corrupt=handle in self.corrupt)

    def current(self, handle: int) -> tuple[int, int] | None:
        """(version, length) as far as it is known: of a replica that cannot be read any more, what it was before."""
        entry = self.index.get(handle)
        replica = self._loaded.get(handle)
        if entry is not None and replica is not None:
            try:
                entry = self.index[handle] = (replica.chunk.version, replica.chunk.length)
            except GfsError as error:
                self.found_damage(handle, error)
                entry = self.index.get(handle)
        return entry

    # ------------------------------------------------------------ damage [00127], [00131]

    def check_sound(self, replica: Replica) -> None:
        """Raises GfsError(CHECKSUM_MISMATCH) for a replica that is known to be damaged."""
        handle = replica.handle
        if replica.chunk.corrupt and handle not in self.corrupt:
            self.mark_corrupt(handle, "a header page is damaged")
        if handle in self.corrupt:
            raise GfsError(Code.CHECKSUM_MISMATCH, f"the replica of chunk {handle:016x} here is damaged")

    def found_damage(self, handle: int, error: GfsError) -> None:
        """Something of the replica could not be used: `error` says whether that is damage. The master hears of it."""
        if is_damage(error):
            self.mark_corrupt(handle, str(error))
        elif error.code is Code.UNKNOWN_CHUNK and handle in self.index and not self.store.present(handle):
            log.error("event=chunk_missing chunk=%016x error=%r", handle, str(error))
            self.bad_found += 1
            self._end_lease(handle)
            self.store.forget(handle)
            self.index.pop(handle, None)
            self._loaded.pop(handle, None)
            self.corrupt.discard(handle)
            self.missing.add(handle)
            self.changed.add(handle)
            self.revoke_unseen(handle)
            self._beat_soon()

    def mark_corrupt(self, handle: int, reason: str) -> None:
        """Its stored bytes do not match their checksums, or cannot be read. A lease held on it ends."""
        if handle in self.corrupt or handle not in self.index:
            return
        log.error("event=chunk_corrupt chunk=%016x error=%r", handle, reason)
        self.bad_found += 1
        self.corrupt.add(handle)
        self.changed.add(handle)
        self._end_lease(handle)
        self._beat_soon()

    def mark_sound(self, handle: int) -> None:
        """All of it was read and verified."""
        if handle in self.corrupt:
            log.warning("event=chunk_sound_again chunk=%016x", handle)
            self.corrupt.discard(handle)
            self.changed.add(handle)
            self._beat_soon()

    def _end_lease(self, handle: int) -> None:
        replica = self._loaded.get(handle)
        if replica is not None and replica.primary is not None:
            replica.primary.lease.fail()
