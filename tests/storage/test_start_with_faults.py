"""A store is opened though the disk refuses something of single chunks: the others are served."""

from __future__ import annotations

import errno
import os

import pytest
from chunk_model import open_store

from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES

A, X = (bytes([letter]) * BLOCK_BYTES for letter in b"AX")


def _refuse(disk: MemoryDisk, operation: str, path: str, number: int, after: int = 0) -> None:
    """`operation` on `path` fails with error `number`, but for the first `after` calls."""
    left = [after]

    def check(called: str, where: str) -> None:
        if (called, where) == (operation, path):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), path)

    disk.faults.on_call = check


# Opening it; its header and its block checksums; the block that a journal record names.
@pytest.mark.parametrize(("operation", "after"), [("open", 0), ("pread", 0), ("pread", 1)])
def test_an_unreadable_chunk_in_the_journal_is_damaged_and_keeps_no_server_from_starting(
    operation: str, after: int
) -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    for handle in (1, 2):
        store.create(handle, 1).write([(0, A)], sync=True)
        store.get(handle).write([(0, X)], sync=True)
    disk.kill()
    _refuse(disk, operation, store.path_of(1), errno.EIO, after)
    store = open_store(disk)
    list(store.scan())
    assert store.corrupt_handles() == [1]
    assert bytes(store.get(2).read(0, BLOCK_BYTES)) == X


def test_a_disk_too_full_for_a_replay_keeps_no_server_from_starting() -> None:
    """The chunk is padded with a hole, which needs room when it is overwritten; killed before that was in place."""
    disk = MemoryDisk()
    store = open_store(disk)
    store.create(1, 1).pad(0, sync=True)

    def kill(operation: str, path: str) -> None:
        if (operation, path) == ("pwrite", store.path_of(1)):
            raise Killed("in place")

    disk.faults.on_call = kill
    with pytest.raises(Killed):
        store.get(1).write([(0, X)], sync=True)
    disk.kill()
    _refuse(disk, "pwrite", store.path_of(1), errno.ENOSPC)
    store = open_store(disk)
    assert store.handles() == store.corrupt_handles() == [1]


@pytest.mark.parametrize("boot_id", ["boot", "after a power loss"])
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_shortage_of_descriptors_or_memory_says_nothing_about_a_replica(number: int, boot_id: str) -> None:
    disk = MemoryDisk()
    path = open_store(disk).create(1, 1).path
    disk.kill()
    store = open_store(disk, boot_id)
    _refuse(disk, "open", path, number)
    with pytest.raises(GfsError) as caught:
        list(store.scan())
    assert caught.value.code is Code.NOT_READY and store.corrupt_handles() == []
    disk.faults.reset()
    assert list(store.scan()) == [(1, 1, 0)] and store.corrupt_handles() == []
