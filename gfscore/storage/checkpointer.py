"""When a checkpoint is due and how it is made while the master goes on serving [0053].

The server asks `due` after each commit and runs `run` in a task of its own. The state changes hands here only in
steps without an await; everything that blocks goes through the `IoRunner`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import lmdb

from gfscore.env.interfaces import Disk, IoRunner
from gfscore.metadata.tables import FrozenLayer
from gfscore.storage.checkpoint import prune, write_checkpoint
from gfscore.storage.lmdb_tables import LmdbTables
from gfscore.storage.recovery import Recovered, checkpoint_directory

_log = logging.getLogger(__name__)

_KEYS_MAX_LIMIT = 200_000  # what is replayed after a crash has to be replayed in a second or so
_SHARE_OF_BASE = 16  # a large state is copied less often: when so small a part of it has changed


class Checkpointer:
    """Makes checkpoints of `recovered`. `running` while one is being made."""

    def __init__(
        self,
        recovered: Recovered,
        disk: Disk,
        run_io: IoRunner,
        *,
        keys_max: int = 100_000,
        log_bytes_max: int = 16 * 1024 * 1024,
        keep: int = 3,
    ) -> None:
        self.running = False
        self.checkpoint_lsn = recovered.checkpoint_lsn
        self._tables = recovered.tables
        self._log = recovered.log
        self._cluster_id = recovered.cluster_id
        self._directory = checkpoint_directory(recovered.directory)
        self._disk = disk
        self._run_io = run_io
        self._keys_configured = keys_max
        self._log_bytes_max = log_bytes_max
        self._keep = keep
        self._log_bytes_before = self._log.appended_bytes
        self._adapt()

    @property
    def due(self) -> bool:
        """True when enough has changed since the last checkpoint, and none is being made."""
        return not self.running and (
            self._tables.overlay_size >= self._keys_max
            or self._log.appended_bytes - self._log_bytes_before >= self._log_bytes_max
        )

    async def run(self, applied: Callable[[], int], flushed: Callable[[int], Awaitable[None]]) -> bool:
        """Make the checkpoint of the state as it is when this starts to run; False if that failed.

        `applied` says which log record that state is after; `flushed` waits until a record is on disk, because a
        checkpoint must not hold what the log may still lose. A failure (a full disk, say) is logged and leaves
        everything as it was; the next attempt comes after as many changes. Does nothing while another one runs.
        Raises CheckpointDamaged, which ends the process: what it serves from is not what was written.
        """
        lsn = applied()
        if self.running or lsn == self.checkpoint_lsn:
            return True
        self.running = True
        layer = self._tables.freeze()  # before any await: exactly the state after `lsn`
        keys = len(layer)
        self._log_bytes_before = self._log.appended_bytes
        rebased = False
        try:
            await flushed(lsn)
            await self._run_io(self._log.switch_segment)
            base_lsn = self.checkpoint_lsn or None
            base = await self._run_io(
                write_checkpoint, self._disk, self._directory, base_lsn, layer, lsn, self._cluster_id
            )
            self._tables.rebase(base)  # the old base lives as long as somebody iterates over it
            rebased = True
            self.checkpoint_lsn = lsn
            self._adapt()
            await self._run_io(_discard, layer)
            needed = await self._run_io(prune, self._disk, self._directory, self._keep)
            removed = await self._run_io(self._log.remove_before, needed)
            _log.info("checkpoint lsn=%d keys=%d log_segments_removed=%d", lsn, keys, removed)
            return True
        except (OSError, lmdb.Error) as error:
            _log.error("no checkpoint of record %d: %s; trying again later", lsn, error)
            if not rebased:
                self._keys_max = self._tables.overlay_size + keys + self._keys_configured
            return False
        finally:
            if not rebased:
                self._tables.thaw()
            self.running = False

    def _adapt(self) -> None:
        base = self._tables.base
        entries = base.entries if isinstance(base, LmdbTables) else 0
        self._keys_max = max(self._keys_configured, min(_KEYS_MAX_LIMIT, entries // _SHARE_OF_BASE))


def _discard(layer: FrozenLayer) -> None:
    for _ in layer.discard():
        time.sleep(0)
