"""Descriptors: each file is opened once, whoever needs it and whatever fails meanwhile."""

from __future__ import annotations

import errno
import threading
import time

import pytest
from chunk_model import open_store

from gfscore.env.interfaces import DiskFile
from gfscore.env.memory_disk import MemoryDisk
from gfscore.errors import Code, GfsError
from gfscore.storage.chunk_state import ChunkState, OpenChunk
from gfscore.storage.overwrite_journal import PATH as JOURNAL


def test_readers_at_the_same_time_open_one_direct_descriptor() -> None:
    disk = MemoryDisk()
    opened: list[DiskFile] = []

    def open_direct() -> DiskFile:
        time.sleep(0.02)  # as long as the disk takes: the others come meanwhile
        opened.append(disk.open("chunk", direct=True))
        return opened[-1]

    live = OpenChunk(disk.open("chunk", create=True), ChunkState(1, 65536), open_direct)
    readers = [threading.Thread(target=live.direct) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert len(opened) == 1 and live.direct() is opened[0]


def test_a_journal_that_a_full_disk_refuses_is_not_opened_anew_for_every_write() -> None:
    disk = MemoryDisk()
    chunk = open_store(disk).create(1, 1)
    chunk.write([(0, b"x" * 100)], sync=True)
    opened: list[str] = []

    def full(operation: str, path: str) -> None:
        if path == JOURNAL and operation == "open":
            opened.append(path)
        elif path == JOURNAL and operation == "pwrite":
            raise OSError(errno.ENOSPC, "full", path)

    disk.faults.on_call = full
    for _ in range(5):
        with pytest.raises(GfsError) as caught:
            chunk.write([(0, b"y")])
        assert caught.value.code is Code.NO_SPACE
    assert len(opened) == 1
    disk.faults.reset()
    chunk.write([(0, b"y")], sync=True)
    disk.kill()
    assert bytes(open_store(disk).get(1).read(0, 2)) == b"yx"
