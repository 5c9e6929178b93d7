"""The redo journal: its records are replayed over the contents that they were written for, and over nothing else."""

from __future__ import annotations

from chunk_model import open_store

from gfscore.env.memory_disk import MemoryDisk
from gfscore.ids import BLOCK_BYTES
from gfscore.storage.chunk_copy import IncomingCopy
from gfscore.storage.chunk_store import ChunkStore
from gfscore.storage.overwrite_journal import PATH as JOURNAL

A, X, Y, Z = (bytes([letter]) * BLOCK_BYTES for letter in b"AXYZ")


def _restarted(disk: MemoryDisk, boot_id: str = "boot") -> ChunkStore:
    disk.kill()
    return open_store(disk, boot_id)


def _contents(store: ChunkStore) -> bytes:
    return bytes(store.get(1).read(0, BLOCK_BYTES))


def test_a_copy_that_was_given_up_leaves_nothing_that_is_replayed_over_the_next_one() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    first = IncomingCopy(store, 1, 1)
    first.chunk.write([(0, A)])
    first.chunk.replace(0, X, BLOCK_BYTES, b"")  # the block was overwritten at the source meanwhile
    first.drop()
    second = IncomingCopy(store, 1, 1)
    second.chunk.write([(0, Z)])  # and once more
    second.finish(2)
    assert _contents(_restarted(disk)) == Z


def test_what_was_journalled_for_a_file_that_vanished_is_not_replayed_over_its_copy() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    store.create(1, 1).write([(0, A)], sync=True)
    store.get(1).write([(0, X)], sync=True)
    disk.unlink(store.path_of(1))
    store.forget(1)
    copy = IncomingCopy(store, 1, 2)
    copy.chunk.write([(0, Z)])
    copy.finish(2)
    assert _contents(_restarted(disk)) == Z


def test_records_that_a_power_loss_cut_off_from_the_first_one_do_not_come_back() -> None:
    """The first record of an epoch is torn and those behind it are whole; then one of its size takes its place."""
    disk = MemoryDisk()
    store = open_store(disk)
    store.create(9, 1).write([(0, A)], sync=True)
    store.get(9).write([(0, A)], sync=True)  # so that there is a journal
    store.close()
    store = _restarted(disk)
    chunk = store.create(1, 1)
    chunk.sync()
    for content in (A, X, Y):
        chunk.write([(0, content)])
    disk.corrupt(JOURNAL, 4096 + 100)  # the record of X is torn; that of Y, and the chunk, were written back
    store = _restarted(disk, "after")
    assert _contents(store) == Y
    store.get(1).write([(0, Z)], sync=True)
    assert _contents(_restarted(disk, "after")) == Z
