"""The in-memory disk: that it forgets what a disk may forget, and nothing else."""

from __future__ import annotations

import errno
from random import Random

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gfscore.env.memory import InlineRunner
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed


def test_a_kill_keeps_everything_that_was_written() -> None:
    disk = MemoryDisk()
    disk.mkdir("d")
    file = disk.open("d/f", create=True)
    file.pwrite(b"hello", 0)
    lock = disk.lock("d/lock")
    with pytest.raises(BlockingIOError):
        disk.lock("d/lock")
    disk.kill()
    with pytest.raises(Killed):
        file.pread(1, 0)
    lock.close()
    assert disk.open("d/f").pread(10, 0) == b"hello"
    disk.lock("d/lock")


def test_a_crash_loses_tears_or_keeps_what_was_not_synced() -> None:
    seen = set()
    for seed in range(200):
        disk = MemoryDisk()
        file = disk.open("f", create=True)
        file.pwrite(b"o" * 8192, 0)
        file.fdatasync()
        disk.sync_directory("")
        file.pwrite(b"n" * 8192, 0)
        disk.open("unsynced", create=True)
        disk.crash(Random(seed))
        seen.add((disk.contents("f")[::4096], "unsynced" in disk.paths()))
    assert {contents for contents, _ in seen} == {b"oo", b"no", b"on", b"nn"}
    assert {name for _, name in seen} == {True, False}


def test_synced_data_without_a_synced_name_may_be_gone() -> None:
    survived = set()
    for seed in range(50):
        disk = MemoryDisk()
        file = disk.open("f", create=True)
        file.pwrite(b"x", 0)
        file.fdatasync()
        disk.crash(Random(seed))
        survived.add(disk.exists("f"))
        if disk.exists("f"):
            assert disk.contents("f") == b"x"
    assert survived == {True, False}


def test_a_rename_is_all_or_nothing_and_durable_after_a_sync() -> None:
    for seed in range(50):
        disk = MemoryDisk()
        disk.put("old", b"old")
        new = disk.open("new.tmp", create=True)
        new.pwrite(b"new", 0)
        new.fdatasync()
        disk.rename("new.tmp", "old")
        if seed % 2:
            disk.sync_directory("")
        disk.crash(Random(seed))
        assert disk.contents("old") in ((b"new",) if seed % 2 else (b"new", b"old"))


def test_kill_in_a_write_leaves_whole_pages() -> None:
    for pages in range(4):
        disk = MemoryDisk()
        disk.put("f", b"o" * 12288)
        file = disk.open("f")
        disk.faults.kill_at(1, pages)
        with pytest.raises(Killed):
            file.pwrite(b"n" * 12288, 0)
        with pytest.raises(Killed):
            disk.exists("f")
        disk.kill()
        assert disk.contents("f") == b"n" * 4096 * pages + b"o" * 4096 * (3 - pages)


def test_planned_failures_and_a_full_disk() -> None:
    disk = MemoryDisk(capacity=10_000)
    file = disk.open("f", create=True)
    disk.faults.fail_call(2, errno.EIO)
    file.pwrite(b"a" * 6000, 0)
    with pytest.raises(OSError, match="Input/output"):
        file.fdatasync()
    file.fdatasync()
    with pytest.raises(OSError) as full:
        file.pwrite(b"b" * 5000, 6000)
    assert full.value.errno == errno.ENOSPC
    assert disk.contents("f") == b"a" * 6000
    assert disk.space() == (10_000, 4000)
    disk.faults.fail_operation("fdatasync", errno.ENOSPC)
    for _ in range(2):
        with pytest.raises(OSError):
            file.fdatasync()
    disk.faults.fail_operation("fdatasync", None)
    file.fdatasync()


def test_direct_files_insist_on_alignment() -> None:
    disk = MemoryDisk()
    file = disk.open("f", create=True, direct=True)
    with pytest.raises(OSError):
        file.pwrite(b"x", 0)
    file.pwrite(bytes(4096), 4096)
    assert file.size() == 8192


def test_corrupt_survives_a_crash_and_a_copy_is_independent() -> None:
    disk = MemoryDisk()
    disk.put("a/b/f", b"abc")
    twin = disk.copy()
    disk.corrupt("a/b/f", 1)
    disk.crash(Random(1))
    assert disk.contents("a/b/f") == b"acc"
    assert twin.contents("a/b/f") == b"abc"
    assert disk.listdir("a") == ["b"]


@given(st.lists(st.tuples(st.integers(0, 20_000), st.binary(min_size=1, max_size=9000), st.booleans()), max_size=12))
def test_after_a_crash_every_page_is_some_version_since_the_last_sync(writes: list[tuple[int, bytes, bool]]) -> None:
    disk = MemoryDisk()
    file = disk.open("f", create=True)
    disk.sync_directory("")
    model = bytearray()
    allowed: list[bytes] = [b""]
    for offset, data, sync in writes:
        file.pwrite(data, offset)
        model.extend(bytes(max(0, offset + len(data) - len(model))))
        model[offset : offset + len(data)] = data
        allowed.append(bytes(model))
        if sync:
            file.fdatasync()
            allowed = [bytes(model)]
    assert file.pread(100_000, 0) == bytes(model)
    disk.crash(Random(len(writes)))
    found = disk.contents("f")
    assert len(found) >= len(allowed[0])
    for at, byte in enumerate(found):
        # A lost write leaves an older byte, or a zero where nothing older was.
        assert byte == 0 or any(at < len(version) and version[at] == byte for version in allowed)


async def test_a_disk_that_hangs_holds_its_node_and_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    disk, other = MemoryDisk(), MemoryDisk()
    done: list[str] = []

    async def use(name: str, disk: MemoryDisk) -> None:
        await InlineRunner(disk)(disk.exists, "x")
        await InlineRunner(disk).quick(disk.exists, "x")
        done.append(name)

    disk.hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(use, "hung", disk)
        nursery.start_soon(use, "other", other)
        await trio.sleep(100)
        assert done == ["other"]
        disk.resume()
    assert done == ["other", "hung"]


def test_only_a_power_loss_is_another_boot() -> None:
    disk = MemoryDisk()
    before = disk.boot_id()
    disk.kill()
    assert disk.boot_id() == before == disk.copy().boot_id()
    disk.crash(Random(1))
    assert disk.boot_id() != before
