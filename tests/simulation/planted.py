"""Known mistakes, each a context manager that makes the system commit it. The simulation must catch every one.

They are patches from outside: production code has no switch for being wrong. `first` are the profiles whose seeds are
tried first, because they have the faults that show the mistake; the seeds are the same two hundred.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

import gfscore.client.appender as appender
import gfscore.client.attributes as attributes
import gfscore.metadata.snapshot as snapshot
import gfscore.replica.lease as lease
import gfscore.server.chunkserver.applying as applying
import gfscore.server.chunkserver.mutate as mutate
import gfscore.server.chunkserver.primary as primary
import gfscore.server.chunkserver.read as read
import gfscore.server.chunkserver.reconcile as reconcile
import gfscore.server.chunkserver.replicas as replicas
import gfscore.server.chunkserver.session as session
import gfscore.server.master.calls as calls
import gfscore.server.master.cloning as cloning
import gfscore.server.master.equalizing as equalizing
import gfscore.server.master.fencing as fencing
import gfscore.server.master.leases as leases
import gfscore.server.master.locking as locking
import gfscore.server.master.reports as reports
import gfscore.server.master.servers as servers
import gfscore.server.master.sessions as sessions
import gfscore.server.master.state as state
import gfscore.storage.chunk_overwrite as chunk_overwrite
import gfscore.storage.chunk_read as chunk_read
import gfscore.storage.log_segment as log_segment
import gfscore.storage.operation_log as operation_log
from gfscore.checksum import crc32c
from gfscore.ids import BLOCK_BYTES


@dataclass(frozen=True)
class Planted:
    name: str
    first: tuple[str, ...]
    plant: Callable[[], AbstractContextManager[None]]


PLANTED: list[Planted] = []


@contextmanager
def _patched(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _planted(*first: str) -> Callable[[Callable[[], AbstractContextManager[None]]], None]:
    def add(plant: Callable[[], AbstractContextManager[None]]) -> None:
        PLANTED.append(Planted(plant.__name__, first, plant))

    return add


async def _nothing(*args: Any, **more: Any) -> None:
    pass


@_planted("kills", "everything")
def reply_before_flush() -> AbstractContextManager[None]:
    async def flushed(self: Any, reply: Any) -> Any:
        return reply

    async def await_flushed(self: Any, reply: Any) -> Any:
        while hasattr(reply, "__await__"):
            reply = await reply
        return reply

    flush = state.MasterState._flush

    async def in_background(self: Any) -> None:
        await trio.sleep(0.1)  # nobody waits for it
        await flush(self)

    return _patched(
        (calls.Calls, "_flushed", flushed), (calls.Calls, "_await_flushed", await_flushed),
        (state.MasterState, "_flush", in_background),
    )  # fmt: skip


@_planted("pauses", "leases", "network")
def no_version_fence() -> AbstractContextManager[None]:
    def accept(grant: Any, version: int) -> None:
        pass

    prepare = replicas.ReplicaTable.prepare

    async def without_new_gate(self: Any, handle: int, version: int, old_version: int, truncate: Any) -> Any:
        before = self._loaded.get(handle)
        gate, holder = (before.gate, before.primary) if before is not None else (None, None)
        replica = await prepare(self, handle, version, old_version, truncate)
        if gate is not None and not gate.closed:
            replica.gate, replica.primary = gate, holder
        return replica

    return _patched(
        (applying, "check_version", accept), (mutate, "check_version", accept), (reconcile, "check_version", accept),
        (replicas.ReplicaTable, "prepare", without_new_gate),
    )  # fmt: skip


@_planted("leases", "pauses")
def lease_counted_from_the_reply() -> AbstractContextManager[None]:
    beat = session.MasterSession._beat

    async def counted_late(self: Any) -> None:
        await beat(self)
        node = self._node
        node.session.valid_until = node.env.clock.boottime() + node.session.seconds

    return _patched((session.MasterSession, "_beat", counted_late))


@_planted("network", "mixed", "restarts")
def retry_without_deduplication() -> AbstractContextManager[None]:
    decide = lease.decide_append

    def forgetful(length: int, floor: int, size: int, record: int, slot: Any, sequence: int) -> Any:
        return decide(length, floor, size, record, None, sequence)

    return _patched((lease, "decide_append", forgetful))


@_planted("kills", "restarts", "rot")
def padding_not_forwarded() -> AbstractContextManager[None]:
    ask = primary.Primary._ask_secondaries

    async def only_others(self: Any, mutations: Any, serial: int, asked: Any, failed: Any) -> None:
        if mutations[0].kind != mutate.PAD:
            await ask(self, mutations, serial, asked, failed)

    return _patched((primary.Primary, "_ask_secondaries", only_others))


@_planted("rot")
def checksums_not_verified() -> AbstractContextManager[None]:
    return _patched((chunk_read, "first_bad_block", lambda *args: None))


@_planted("rot")
def checksum_computed_after_corruption() -> AbstractContextManager[None]:
    """A block that does not verify gets a new checksum when a part of it is overwritten [00130]."""
    plan = chunk_overwrite.plan

    def vouching(live: Any, extents: Any, checksums: Any) -> Any:
        try:
            return plan(live, extents, checksums)
        except chunk_overwrite.BadBlock as bad:
            length = live.state.committed[0]
            start = bad.block * BLOCK_BYTES
            content = memoryview(bytearray(min(BLOCK_BYTES, length - start)))
            chunk_read.fetch(live, content, start)
            if len(content) < BLOCK_BYTES:
                live.state.committed = (length, crc32c(content))
            else:
                change = chunk_overwrite.BlockChange(bad.block, BLOCK_BYTES, crc32c(content))
                chunk_overwrite._change_table(live, [change])
            return vouching(live, extents, checksums)

    return _patched((chunk_overwrite, "plan", vouching))


@_planted("kills")
def reference_count_off_by_one() -> AbstractContextManager[None]:
    share = snapshot._Copier._share

    def twice(self: Any, mapping: bytes) -> None:
        share(self, mapping)
        for handle in self._shared:
            self._shared[handle] -= 1

    return _patched((snapshot._Copier, "_share", twice))


@_planted("disks", "kills")
def open_file_collected() -> AbstractContextManager[None]:
    return _patched((sessions.Sessions, "held", lambda self, inode: False))


@_planted("restarts", "kills", "pauses")
def stale_replica_joins() -> AbstractContextManager[None]:
    judge = reports.Reports._judge
    prepare = replicas.ReplicaTable.prepare

    def believed(self: Any, server: Any, report: Any) -> None:
        chunk = reports.find_chunk(self._state.tables, report.handle)
        if chunk is not None and report.version < chunk.version and report.handle not in self._servers.busy:
            self._servers.add_replica(report.handle, server)
        else:
            judge(self, server, report)

    async def any_version(self: Any, handle: int, version: int, old_version: int, truncate: Any) -> Any:
        replica = await self.get(handle)
        return await prepare(self, handle, version, min(replica.chunk.version, version - 1), truncate)

    return _patched((reports.Reports, "_judge", believed), (replicas.ReplicaTable, "prepare", any_version))


@_planted("rot")
def torn_tail_accepted_in_the_middle() -> AbstractContextManager[None]:
    def trusting(segment: Any, path: str, *, last: bool) -> Any:
        found = log_segment._verified_prefix(segment.blocks.stream, segment.header.first_lsn)
        return found._replace(torn=True, sealed=False) if last else found

    return _patched((operation_log, "scan", trusting))


@_planted("restarts", "kills")
def clone_of_a_stale_replica() -> AbstractContextManager[None]:
    clone = cloning.Cloning.clone

    async def from_anybody(self: Any, handle: int, source: Any, destination: Any) -> int:
        stale = [self._servers.by_id.get(server_id) for server_id in self._servers.stale.get(handle, ())]
        others = [server for server in stale if server is not None and not server.gone and server is not destination]
        return await clone(self, handle, others[0] if others else source, destination)

    async def any_version(self: Any, handle: int, version: int) -> Any:
        return await self._node.replicas.get(handle)

    return _patched((cloning.Cloning, "clone", from_anybody), (read.Reads, "_find", any_version))


@_planted("kills", "everything", "restarts")
def locations_of_before_the_restart_believed() -> AbstractContextManager[None]:
    """As if they had been kept on disk: nothing is waited for, and what is not among them does not exist."""

    def believed(self: Any) -> None:
        self.heard_all = True

    return _patched((servers.Servers, "_note_completeness", believed))


@_planted("leases", "pauses", "network")
def locks_not_held_across_awaits() -> AbstractContextManager[None]:
    @asynccontextmanager
    async def hold(self: Any, keys: Any) -> AsyncIterator[None]:
        yield

    return _patched((locking.Locks, "hold", hold))


@_planted("kills", "disks")
def appends_numbered_per_open_file() -> AbstractContextManager[None]:
    begin = appender.Appender.__init__

    class Own:
        def __init__(self, mutator: Any) -> None:
            self._mutator = mutator
            self._last = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._mutator, name)

        def next_sequence(self) -> int:
            self._last += 1
            return self._last

    def own(self: Any, *args: Any) -> None:
        begin(self, *args)
        self._mutator = Own(self._mutator)

    return _patched((appender.Appender, "__init__", own))


@_planted("pauses", "leases")
def late_prepare_believed() -> AbstractContextManager[None]:
    sort = fencing.Fencing._sort

    def content_with_those_who_answered(self: Any, one: Any, given: Any, version: int, result: Any) -> bool:
        again = sort(self, one, given, version, result)
        if again and one.held and set(one.held.values()) == {version}:
            result.version, result.servers = version, list(one.held)
            return False
        return again

    return _patched((fencing.Fencing, "_sort", content_with_those_who_answered))


@_planted("abandoned")
def those_who_are_silent_count_as_equal() -> AbstractContextManager[None]:
    def equal_as_far_as_they_answer(self: Any, handle: int, answers: Any) -> bool:
        return len({item.digest for _, item in answers if not item.error}) <= 1

    return _patched((equalizing.Equalizing, "_known_equal", equal_as_far_as_they_answer))


@_planted("kills", "restarts", "pauses")
def no_reconciliation() -> AbstractContextManager[None]:
    return _patched((reconcile, "_reconcile", _nothing))


@_planted("kills", "restarts", "network")
def failed_secondary_ignored() -> AbstractContextManager[None]:
    failed = primary.Primary._failed

    def ignored(self: Any, local_errors: Any, failures: Any, serial: int) -> None:
        if local_errors:
            failed(self, local_errors, failures, serial)

    return _patched((primary.Primary, "_failed", ignored))


@_planted("operator", "kills")
def lower_bound_taken_for_length() -> AbstractContextManager[None]:
    """A client takes what the master said of a file that others write for its length."""

    async def ask_length(self: Any, attr: Any, reply: Any) -> bool:
        return True

    return _patched((attributes.Attributes, "_ask_length", ask_length))


@_planted("kills", "operator", "network")
def other_writers_not_asked() -> AbstractContextManager[None]:
    """Whoever writes a file believes that nobody else does."""

    def is_sole_writer(self: Any, inode: int, client: int) -> bool:
        return True

    return _patched((leases.LeaseBook, "is_sole_writer", is_sole_writer))
