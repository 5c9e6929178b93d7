"""From a state directory to a running state [0050]-[0054]: the newest good checkpoint plus the tail of the log.

It changes nothing but what a torn tail and a damaged checkpoint need, and refuses to start rather than to skip a
record. Blocking. One process at a time has a state directory.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from gfscore.env.interfaces import Disk, DiskFile
from gfscore.errors import Code, GfsError
from gfscore.metadata.tables import EmptyTables, LayeredTables
from gfscore.storage.batch_codec import decode_batch
from gfscore.storage.checkpoint import list_checkpoints, open_checkpoint, set_aside
from gfscore.storage.lmdb_tables import CheckpointDamaged, LmdbTables
from gfscore.storage.operation_log import LogDamaged, OperationLog, make_directory

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovered:
    """A state directory in use: the state, its log (ready for `next_lsn`), and the lock that keeps others out."""

    tables: LayeredTables
    log: OperationLog
    cluster_id: str
    directory: str
    checkpoint_lsn: int  # 0: none, the log began with record 1
    replayed: int  # records
    lock: DiskFile

    @property
    def next_lsn(self) -> int:
        return self.log.next_lsn

    @property
    def fresh(self) -> bool:
        """True where nothing has ever been recorded: the state has to be bootstrapped."""
        return self.log.next_lsn == 1

    def close(self) -> None:
        """Let go of the directory; the state may not be read any more."""
        self.log.close()
        if isinstance(self.tables.base, LmdbTables):
            self.tables.base.close()
        self.lock.close()


def log_directory(directory: str) -> str:
    return f"{directory}/log"


def checkpoint_directory(directory: str) -> str:
    return f"{directory}/checkpoints"


def recover(disk: Disk, directory: str, *, new_cluster_id: str, cluster_id: str | None = None) -> Recovered:
    """Open the state in `directory`; an empty one becomes that of the cluster `new_cluster_id`.

    `cluster_id`: refuse any other. Raises GfsError BUSY (another process has the directory), WRONG_CLUSTER,
    NOT_SUPPORTED (another version's), IO (LogDamaged, or no way back from what is there), OSError.
    """
    make_directory(disk, checkpoint_directory(directory))
    try:
        lock = disk.lock(f"{directory}/lock")
    except BlockingIOError as error:
        raise GfsError(
            Code.BUSY, f"{disk.real_path(directory)} is in use by another master; stop that one first"
        ) from error
    try:
        return _recover_locked(disk, directory, new_cluster_id, cluster_id, lock)
    except BaseException:
        lock.close()
        raise


def _recover_locked(
    disk: Disk, directory: str, new_cluster_id: str, cluster_id: str | None, lock: DiskFile
) -> Recovered:
    checkpoints = checkpoint_directory(directory)
    lsns = list_checkpoints(disk, checkpoints)
    base, damaged = _newest_good(disk, checkpoints, lsns)
    log = OperationLog.open(
        disk,
        log_directory(directory),
        cluster_id=cluster_id or (base.cluster_id if base is not None else None),
        new_cluster_id=None if any(name.endswith(".lmdb") for name in disk.listdir(checkpoints)) else new_cluster_id,
    )
    try:
        lsn = base.lsn if base is not None else 0
        if log.next_lsn <= max(lsns, default=0):
            raise LogDamaged(
                disk.real_path(log_directory(directory)),
                f"it ends before record {log.next_lsn}, but there is a checkpoint of record {max(lsns)}",
            )
        if damaged and log.first_lsn > lsn + 1:
            raise GfsError(
                Code.IO,
                f"no way back to the state: {len(damaged)} damaged checkpoints in {disk.real_path(checkpoints)}, and "
                f"the log begins with record {log.first_lsn}, but record {lsn + 1} is needed; restore one of the "
                "checkpoints, with its .sum file, from a copy or a master replica (nothing was changed on disk)",
            )
        tables = LayeredTables(base if base is not None else EmptyTables())
        with _no_garbage_collection():
            replayed = _replay(log, tables, lsn + 1)
        for bad in damaged:  # only now, when it is sure that nobody needs to look for another way back
            set_aside(disk, checkpoints, bad)
    except BaseException:
        log.close()
        raise
    _log.info("recovered checkpoint=%d replayed=%d next_lsn=%d", lsn, replayed, log.next_lsn)
    return Recovered(tables, log, log.cluster_id, directory, lsn, replayed, lock)


def _newest_good(disk: Disk, directory: str, lsns: list[int]) -> tuple[LmdbTables | None, list[int]]:
    """The newest checkpoint that verifies, and the lsns of the damaged ones that are newer."""
    damaged: list[int] = []
    for lsn in reversed(lsns):
        try:
            return open_checkpoint(disk, directory, lsn), damaged
        except CheckpointDamaged as error:
            _log.warning("%s; trying an older one", error)
            damaged.append(lsn)
    return None, damaged


def _replay(log: OperationLog, tables: LayeredTables, first_lsn: int) -> int:
    """Apply every record from `first_lsn` on; how many there were."""
    if first_lsn == log.next_lsn:
        return 0
    apply = tables.apply
    count = 0
    for _, payload in log.read_from(first_lsn):
        apply(decode_batch(payload))
        count += 1
    return count


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A replay makes many objects and no cycles: looking for some all the time would take a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
