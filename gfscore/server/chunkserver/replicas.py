"""The replicas on this server: which chunks there are, and what is known of those in use.

A replica in use has the lock under which everything changes it, its serial gate, and its primary when the lease is
held here. The table creates a fresh chunk's replica on first use (rule 13) and takes versions to a new number (rule 1).
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import VerifiedGrant
from gfscore.replica.serial import SerialGate
from gfscore.server.chunkserver.primary import Primary
from gfscore.server.chunkserver.store_io import StoreIo
from gfscore.storage.chunk_copy import IncomingCopy
from gfscore.storage.chunk_store import Chunk, ChunkStore

_SCAN_SLICE = 256
_REVOKED_MAX = 200_000
_LOADED_MAX = 4_000  # about 10 KB each
_LOADED_STEP = 500  # those under a lease cannot be forgotten: do not look at them again for every new one


class Replica:
    """One chunk replica in use. `changed_beat`: the heartbeat before which its version last changed here."""

    __slots__ = ("_turn", "changed_beat", "chunk", "gate", "handle", "lock", "mtime_ns", "primary")

    def __init__(self, handle: int, chunk: Chunk, gate: SerialGate) -> None:
        self.handle = handle
        self.chunk = chunk
        self.gate = gate
        self.lock = trio.Lock()
        self.primary: Primary | None = None
        self.mtime_ns = 0
        self.changed_beat = 0
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

    def __init__(self, io: StoreIo, store: ChunkStore) -> None:
        self.store = store
        self.beat = 0  # number of the heartbeat that is being prepared
        self.index: dict[int, tuple[int, int]] = {}  # handle → (version, length when last looked at)
        self.changed: set[int] = set()  # handles to report
        self.corrupt: set[int] = set()
        self._io = io
        self._loaded: dict[int, Replica] = {}
        self._forget_at = _LOADED_MAX
        self._revoked: dict[int, None] = {}
        self._revoked_below = 0

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
            replica = self._loaded.get(handle) or self._add(handle, chunk, SerialGate(closed=True))
        return replica

    async def for_grant(self, grant: VerifiedGrant) -> Replica:
        """The replica a grant is for, created empty when the grant is fresh. Raises GfsError."""
        replica = self._loaded.get(grant.handle)
        if replica is not None:
            return replica
        if grant.handle in self.index or not grant.fresh:
            return await self.get(grant.handle)
        # On the event loop: two file system calls in the page cache, and nobody can come in between.
        chunk = self._io.now(self.store.create, grant.handle, grant.version)
        return self._created(grant.handle, chunk)

    def _created(self, handle: int, chunk: Chunk) -> Replica:
        self.index[handle] = (chunk.version, chunk.length)
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
                self.index[handle] = (replica.chunk.version, replica.chunk.length)
                del self._loaded[handle]

    # ------------------------------------------------------------ changing

    async def prepare(self, handle: int, version: int, old_version: int, truncate: int | None) -> Replica:
        """Take a replica to a new version, durable, which ends every lease on the old one (rule 1).

        Raises GfsError(STALE_VERSION) when the replica is not at `old_version`. Repeating it is fine.
        """
        replica = await self.get(handle)
        await replica.take_lock()
        try:
            chunk = replica.chunk
            if chunk.version == version:
                return replica
            if chunk.version != old_version:
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
        source = await self.get(handle)
        await source.take_lock()
        try:
            if source.chunk.version != version:
                raise GfsError(Code.STALE_VERSION, f"chunk {handle:016x} has version {source.chunk.version} here")
            chunk = await self._io.run(self.store.clone, handle, version, new_handle, new_version, truncate)
            return self._created(new_handle, chunk)
        finally:
            source.lock.release()

    def version_here(self, handle: int) -> int | None:
        """The version of a good replica, None where there is none."""
        report = self.report(handle)
        return None if report is None or report.corrupt else report.version

    async def take_copy(self, copy: IncomingCopy, version: int) -> None:
        """A complete copy from another server becomes the replica, instead of an older or corrupt one [0069].

        Like one found on the disk it takes no mutation before a new version. Raises GfsError(STALE_VERSION) when there
        is a good replica of this version or a later one by now.
        """
        handle = copy.handle
        before = await self.get(handle) if handle in self.index else None
        if before is not None:
            await before.take_lock()
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
            self._add(handle, chunk, SerialGate(closed=True)).changed_beat = self.beat
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
        replica = await self.get(handle)
        await replica.take_lock()
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
        finally:
            replica.lock.release()
            replica.wake()

    # ------------------------------------------------------------ leases that were taken back

    def revoke_unseen(self, handle: int) -> None:
        """The lease on a chunk that was never used here is revoked: its grant may still be in a client's hands."""
        self._revoked[handle] = None
        if len(self._revoked) > _REVOKED_MAX:
            oldest = next(iter(self._revoked))
            del self._revoked[oldest]
            # Handles only grow; too much is refused, never too little, and who is refused asks the master anew.
            self._revoked_below = max(self._revoked_below, oldest)

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
        """What the master is told about a chunk; None when it is not here."""
        entry = self.index.get(handle)
        if entry is None:
            return None
        replica = self._loaded.get(handle)
        if replica is not None:
            entry = self.index[handle] = (replica.chunk.version, replica.chunk.length)
        return pb.ChunkReport(handle=handle, version=entry[0], length=entry[1], corrupt=handle in self.corrupt)

    def mark_corrupt(self, handle: int) -> None:
        """Its stored bytes do not match their checksums."""
        self.corrupt.add(handle)
        self.changed.add(handle)
