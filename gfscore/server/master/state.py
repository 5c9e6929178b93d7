"""The master's state and its log: a change is applied to memory at once and flushed in groups [0050].

`flushed` is what every reply waits for, those of reads too, so that nothing unflushed is ever visible. A flush that
fails ends the process: memory is ahead of the disk then, and only a restart brings them together (rule 20).
"""

from __future__ import annotations

import logging
import uuid

import trio

from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.tables import COUNTERS, ENTRIES, INODES, MAPPING, POLICIES, SYMLINKS, XATTRS, LayeredTables
from gfscore.metadata.transaction import Transaction, bootstrap
from gfscore.server.master.config import MasterConfig
from gfscore.storage.batch_codec import Batch, encode_batch
from gfscore.storage.checkpointer import Checkpointer
from gfscore.storage.log_segment import FRAME_BYTES
from gfscore.storage.recovery import Recovered, recover

log = logging.getLogger(__name__)

DIRECTORY = "state"
_CHUNK_SIZE = b"option/chunk_size"
_SECRET = b"secret"
_VERSIONS = b"versions"  # chunk versions up to here may have been given out
_VERSIONS_AT_ONCE = 10_000
_SECRET_BYTES = 32
_ROOM_SECONDS = 1.0  # between two attempts to get space on a full disk
_REMOVED = frozenset({ENTRIES, INODES})  # what is taken from these makes room, now or with the trash
_GROWING = frozenset({ENTRIES, MAPPING, POLICIES, SYMLINKS, XATTRS})


class MasterState:
    """The tables, and the way of changes into the log. `applied` is the lsn of the last change in memory."""

    def __init__(self, recovered: Recovered, env: Env, checkpoint_keys: int) -> None:
        self.tables: LayeredTables = recovered.tables
        self.cluster_id = recovered.cluster_id
        self.applied = recovered.next_lsn - 1
        self._recovered = recovered
        self._env = env
        self._durable = self.applied
        self._queue: list[bytes] = []
        self._queued_bytes = 0  # of frames that are not on the disk yet
        self._room_at = 0.0  # boottime of the next attempt to get space
        self.full = False  # changes were refused for want of space, and none was accepted since
        self._work = trio.Event()
        self._flushing: trio.Event | None = None  # set when the flush under way is done
        self._failure: GfsError | None = None
        reserved = unpack8(self.tables.get(COUNTERS, _VERSIONS) or pack8(1))  # 1 is that of every fresh chunk
        self._next_version = reserved + 1
        self._versions_reserved = self._versions_durable = reserved
        self._checkpointer = Checkpointer(recovered, env.disk, env.run_io, keys_max=checkpoint_keys)

    def begin(self) -> Transaction:
        return Transaction(self.tables)

    def commit(self, tx: Transaction) -> int:
        """Apply a decision to memory and hand it to the flusher; its lsn. Does not wait.

        Raises GfsError(NO_SPACE) when the log has no room for it: nothing changed then.
        """
        batch = tx.batch
        if batch:
            payload = encode_batch(batch)
            self._need_room(len(payload) + FRAME_BYTES, batch)
            self.tables.apply(batch)
            self._queue.append(payload)
            self._queued_bytes += len(payload) + FRAME_BYTES
            self.applied += 1
            self._work.set()
        return self.applied

    async def new_version(self, *, above: int) -> int:
        """A chunk version over `above` that no replica was ever told of, by this master or by one that died before it
        could log it [0046]. Reserved in the log, many at a time, before any is used."""
        version = self._next_version = max(self._next_version, above + 1)
        self._next_version += 1
        if version > self._versions_reserved:
            reserved = version + _VERSIONS_AT_ONCE
            tx = self.begin()
            tx.put(COUNTERS, _VERSIONS, pack8(reserved))
            self.commit(tx)
            self._versions_reserved = reserved
        if version > self._versions_durable:
            reserved = self._versions_reserved
            await self.flushed()
            self._versions_durable = max(self._versions_durable, reserved)
        return version

    def need_room(self, size: int) -> None:
        """For who has to do something that cannot be undone before `size` bytes are logged. Raises NO_SPACE."""
        self._need_room(size, [])

    def need_room_for(self, tx: Transaction) -> None:
        """As `need_room`, before this change. Raises NO_SPACE."""
        self._need_room(len(encode_batch(tx.batch)) + FRAME_BYTES, tx.batch)

    def _need_room(self, size: int, batch: Batch) -> None:
        """What the log keeps ahead is for what must go on when the disk is full: removing, leases, sessions."""
        log_file = self._recovered.log
        needed = self._queued_bytes + size
        kept = log_file.room_wanted * _kept_share(batch)
        if log_file.room - needed >= kept:
            return
        now = self._env.clock.boottime()
        if now >= self._room_at:
            if log_file.make_room(needed):
                if self.full:
                    log.warning("event=disk_has_room_again")
                self.full = False
                return
            self._room_at = now + _ROOM_SECONDS
        if not self.full:
            log.error("event=disk_full consequence=changes_refused")
            self.full = True
        raise GfsError(Code.NO_SPACE, "the disk of the master is full: no change can be recorded before it has room")

    @property
    def pending(self) -> bool:
        """Something applied is not on the disk yet."""
        return self._durable != self.applied

    async def flushed(self) -> None:
        """Returns when all that is applied now is on the disk.

        The first to wait flushes for all: at once where nobody else is about to run, else after they had their turn.
        """
        target = self.applied
        turn_given = False
        while self._durable < target:
            if self._failure is not None:
                raise self._failure
            if self._flushing is not None:
                await self._flushing.wait()
            elif not turn_given and trio.lowlevel.current_statistics().tasks_runnable > 1:  # one is the next reader
                turn_given = True
                await trio.lowlevel.checkpoint()
            else:
                await self._flush()

    async def run(self, nursery: trio.Nursery) -> None:
        """Flushes what nobody waits for; checkpoints run beside it in `nursery`.

        Raises GfsError(IO) when a flush failed: the process has to end.
        """
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                await self.flushed()
                if self._checkpointer.due:
                    nursery.start_soon(self._checkpointer.run, self._applied_now, self._flushed_until)
        finally:
            with trio.CancelScope(shield=True):
                if self._failure is None:
                    await self.flushed()

    async def _flush(self) -> None:
        queue, self._queue = self._queue, []
        target, size = self.applied, self._queued_bytes
        done = self._flushing = trio.Event()
        try:
            await self._env.run_io.quick(self._recovered.log.append_batch, queue)
            self._durable = target
            self._queued_bytes -= size
        except (OSError, GfsError) as error:
            log.critical("event=log_flush_failed error=%r consequence=stopping", str(error))
            self._failure = GfsError(Code.IO, f"the operation log cannot be written: {error}")
            self._work.set()
            raise self._failure from error
        finally:
            self._flushing = None
            done.set()

    def _applied_now(self) -> int:
        return self.applied

    async def _flushed_until(self, lsn: int) -> None:
        while self._durable < lsn:
            await self.flushed()

    def close(self) -> None:
        self._recovered.close()


def _kept_share(batch: Batch) -> float:
    """The share of what the log keeps ahead that this change must leave to more important ones: names, attributes and
    chunks that are added leave half, so that leases and sessions go on; those leave a quarter to whoever removes."""
    if any(value is None and table in _REMOVED for table, _, value in batch):
        return 0
    grows = any(value is not None and table in _GROWING for table, _, value in batch)
    return 0.5 if grows else 0.25


def secret_of(state: MasterState) -> bytes:
    """What grants are signed with; made with the cluster."""
    secret = state.tables.get(COUNTERS, _SECRET)
    assert secret is not None, "the state has no secret"
    return secret


def open_state(config: MasterConfig, env: Env) -> MasterState:
    """Recover the state, or make that of a new cluster. Blocks; the caller flushes what it made.

    Raises GfsError: INVALID when the cluster has another chunk size, BUSY, WRONG_CLUSTER, IO (a damaged log).
    """
    new_id = str(uuid.UUID(int=env.random.getrandbits(128), version=4))
    recovered = recover(env.disk, DIRECTORY, new_cluster_id=new_id)
    try:
        state = MasterState(recovered, env, config.checkpoint_keys)
        if recovered.fresh:
            tx = state.begin()
            bootstrap(tx, env.clock.wall_ns(), recovered.cluster_id)
            tx.put(COUNTERS, _CHUNK_SIZE, pack8(config.chunk_size))
            tx.put(COUNTERS, _SECRET, env.random.getrandbits(8 * _SECRET_BYTES).to_bytes(_SECRET_BYTES, "big"))
            state.commit(tx)
        found = unpack8(state.tables.get(COUNTERS, _CHUNK_SIZE) or b"")
        if found != config.chunk_size:
            raise GfsError(
                Code.INVALID,
                f"chunk_size = {config.chunk_size}, but this cluster was created with {found}: "
                "a cluster keeps its chunk size; set it back, or use another directory",
            )
        return state
    except BaseException:
        recovered.close()
        raise
