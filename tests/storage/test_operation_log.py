"""The operation log: nothing acknowledged is ever lost, nothing damaged is ever believed."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.env.real_disk import RealDisk
from gfscore.errors import Code, GfsError
from gfscore.storage.log_segment import PAGE_BYTES, segment_name
from gfscore.storage.operation_log import LogDamaged, OperationLog

FIRST = f"log/{segment_name(1)}"


def open_log(disk: MemoryDisk, **options: int) -> OperationLog:
    return OperationLog.open(disk, "log", new_cluster_id="c", **options)  # type: ignore[arg-type]


def contents(log: OperationLog, lsn: int = 1) -> list[bytes]:
    found = list(log.read_from(lsn))
    assert [number for number, _ in found] == list(range(lsn, log.next_lsn))
    return [bytes(payload) for _, payload in found]


def small_log(batches: list[list[bytes]]) -> MemoryDisk:
    """A closed log, cut to the end of its records to keep it small."""
    disk = MemoryDisk()
    log = open_log(disk)
    for batch in batches:
        log.append_batch(batch)
    log.close()
    data = disk.contents(FIRST)
    disk.put(FIRST, data[: len(data.rstrip(b"\0")) + 64])
    return disk


def test_what_was_appended_is_read_back_in_order(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    log = OperationLog.open(disk, "log", new_cluster_id="c")
    assert log.append_batch([b"one", b"two"]) == 2
    big = bytes(range(256)) * 4096
    assert log.append_batch([big]) == 3
    log.switch_segment()
    log.switch_segment()
    assert log.append_batch([b"four"]) == 4
    assert contents(log) == [b"one", b"two", big, b"four"]
    log.close()
    log = OperationLog.open(disk, "log", cluster_id="c")
    assert log.cluster_id == "c"
    assert contents(log, 3) == [big, b"four"]
    assert log.append_batch([b"five"]) == 5
    assert contents(log, 5) == [b"five"]
    assert list(log.read_from(6)) == []
    log.close()
    assert len(disk.listdir("log")) == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.just("switch"), st.just("reopen"), st.lists(st.binary(min_size=1, max_size=9000), min_size=1, max_size=4)
        ),
        max_size=12,
    )
)
def test_any_sequence_of_appends_switches_and_reopenings(steps: list[str | list[bytes]]) -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    model: list[bytes] = []
    for step in steps:
        if step == "switch":
            log.switch_segment()
        elif step == "reopen":
            log.close()
            log = open_log(disk)
        else:
            assert isinstance(step, list)
            model += step
            assert log.append_batch(step) == len(model)
    assert contents(log) == model
    log.close()
    assert contents(open_log(disk)) == model


def test_segments_switch_by_themselves_and_old_ones_go() -> None:
    disk = MemoryDisk()
    log = open_log(disk, segment_bytes_max=PAGE_BYTES + 1000)
    for number in range(10):
        log.append_batch([bytes([number]) * 400])
    assert len(disk.listdir("log")) == 5
    assert log.remove_before(5) == 2
    assert log.first_lsn == 5
    assert contents(log, 5) == [bytes([number]) * 400 for number in range(4, 10)]
    with pytest.raises(LogDamaged, match="record 4 is needed"):
        list(log.read_from(4))
    assert log.remove_before(100) == 2
    assert contents(log, 9) == [b"\x08" * 400, b"\x09" * 400]


def test_cut_at_every_byte_keeps_exactly_the_complete_records() -> None:
    batches = [[b"first"], [b"second", b"third"], [b"x" * 40]]
    disk = small_log(batches)
    data = disk.contents(FIRST)
    payloads = [payload for batch in batches for payload in batch]
    ends = [PAGE_BYTES]
    for payload in payloads:
        ends.append(ends[-1] + 20 + len(payload))
    for cut in range(PAGE_BYTES, len(data)):
        disk.put(FIRST, data[:cut])
        log = open_log(disk)
        complete = sum(end <= cut for end in ends[1:])
        assert contents(log) == payloads[:complete], cut
        log.append_batch([b"after"])
        log.close()
        assert contents(open_log(disk)) == [*payloads[:complete], b"after"], cut


def test_a_flip_of_every_byte_is_noticed_unless_it_is_in_the_last_batch() -> None:
    payloads = [b"first", b"second", b"third", b"fourth"]
    disk = small_log([[payload] for payload in payloads])
    end = len(disk.contents(FIRST)) - 64
    last_start = end - 20 - len(payloads[-1])
    for offset in (*range(0, PAGE_BYTES, 61), *range(PAGE_BYTES - 8, end)):
        damaged = disk.copy()
        damaged.corrupt(FIRST, offset, 0x10)
        if offset < last_start:
            with pytest.raises(LogDamaged, match="segment-"):
                open_log(damaged)
        else:
            # The very last record cannot be told from one that was never flushed.
            assert contents(open_log(damaged)) == payloads[:-1], offset


def test_a_flip_inside_a_batch_that_was_flushed_is_damage_but_a_lost_page_of_it_is_a_torn_tail() -> None:
    batch = [bytes([65 + number]) * 3000 for number in range(6)]
    disk = small_log([[b"before"], batch])
    flipped = disk.copy()
    flipped.corrupt(FIRST, PAGE_BYTES + 26 + 1000)
    with pytest.raises(LogDamaged, match="record 2 does not verify, but record 3"):
        open_log(flipped)
    torn = disk.copy()
    data = bytearray(torn.contents(FIRST))
    data[2 * PAGE_BYTES : 3 * PAGE_BYTES] = bytes(PAGE_BYTES)
    torn.put(FIRST, bytes(data))
    log = open_log(torn)
    assert contents(log) == [b"before", batch[0]]
    left = torn.contents(FIRST)[PAGE_BYTES + 26 + 3020 :]
    assert left == bytes(len(left)), "the torn tail is gone from the disk too"
    log.append_batch([b"after"])
    log.close()
    assert contents(open_log(torn)) == [b"before", batch[0], b"after"]


def test_an_acknowledged_record_that_turned_into_zeros_is_damage() -> None:
    disk = small_log([[b"a" * 5000], [b"b" * 5000], [b"c"]])
    data = bytearray(disk.contents(FIRST))
    data[PAGE_BYTES + 5020 : PAGE_BYTES + 10040] = bytes(5020)
    disk.put(FIRST, bytes(data))
    with pytest.raises(LogDamaged):
        open_log(disk)


def test_damage_in_an_older_segment_and_missing_segments_are_named() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    for payload in (b"one", b"two", b"three"):
        log.append_batch([payload])
        log.switch_segment()
    log.append_batch([b"four"])
    log.close()
    flipped = disk.copy()
    flipped.corrupt(f"log/{segment_name(2)}", PAGE_BYTES + 21)
    with pytest.raises(LogDamaged, match=rf"{segment_name(2)}.* record 2 is missing or damaged"):
        contents(open_log(flipped))
    missing = disk.copy()
    missing.unlink(f"log/{segment_name(2)}")
    with pytest.raises(LogDamaged, match="record 2 is missing"):
        contents(open_log(missing))
    renamed = disk.copy()
    renamed.rename(f"log/{segment_name(4)}", f"log/{segment_name(5)}")
    with pytest.raises(LogDamaged, match="renamed"):
        open_log(renamed)
    lost_header = disk.copy()
    lost_header.corrupt(f"log/{segment_name(4)}", 9)
    with pytest.raises(LogDamaged, match="header"):
        open_log(lost_header)


def append_all(log: OperationLog, acknowledged: list[bytes], random: Random) -> None:
    for number in range(4):
        batch = [random.randbytes(random.choice((3, 200, 5000))) for _ in range(random.randint(1, 3))]
        if number == 2:
            log.switch_segment()
        log.append_batch(batch)
        acknowledged += batch


@pytest.mark.parametrize("power", [False, True])
def test_a_kill_at_every_disk_call_loses_nothing_acknowledged(power: bool) -> None:
    pages = 0
    for call in range(1, 1000):
        disk = MemoryDisk()
        acknowledged: list[bytes] = []
        disk.faults.kill_at(call, pages := (pages + 1) % 4)
        try:
            append_all(open_log(disk), acknowledged, Random(call // 7))
            break
        except Killed:
            if power:
                disk.crash(Random(call))
            else:
                disk.kill()
        log = open_log(disk)
        found = contents(log)
        assert found[: len(acknowledged)] == acknowledged, call
        assert len(found) <= len(acknowledged) + 3
        log.append_batch([b"more"])
        disk.crash(Random(call))
        assert contents(open_log(disk)) == [*found, b"more"]
    else:
        raise AssertionError("the run never ended by itself")
    assert call > 20


def test_a_complete_record_found_after_a_kill_is_durable_before_anybody_can_see_it() -> None:
    for seed in range(20):
        disk = MemoryDisk()
        log = open_log(disk)
        log.append_batch([b"one"])
        disk.faults.kill_at(2)  # the write is done, its flush is not
        with pytest.raises(Killed):
            log.append_batch([b"two"])
        disk.kill()
        disk.faults.reset()
        assert contents(open_log(disk)) == [b"one", b"two"]
        disk.crash(Random(seed))
        assert contents(open_log(disk)) == [b"one", b"two"]


def test_a_failed_flush_ends_the_log() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    log.append_batch([b"one"])
    disk.faults.fail_operation("fdatasync", errno.EIO)
    with pytest.raises(OSError):
        log.append_batch([b"two"])
    disk.faults.fail_operation("fdatasync", None)
    for _ in range(2):
        with pytest.raises(GfsError, match="cannot be written") as refused:
            log.append_batch([b"three"])
        assert refused.value.code is Code.IO
    with pytest.raises(GfsError):
        log.switch_segment()


def test_a_full_disk_before_anything_is_written_leaves_the_log_usable() -> None:
    disk = MemoryDisk(capacity=6 * 1024 * 1024)
    log = open_log(disk)
    log.append_batch([b"one"])
    for _ in range(3):
        with pytest.raises(OSError) as full:
            log.append_batch([b"x" * 7_000_000])
        assert full.value.errno == errno.ENOSPC
    assert log.append_batch([b"two"]) == 2
    disk.capacity *= 10
    assert log.append_batch([b"x" * 7_000_000]) == 3
    assert contents(log) == [b"one", b"two", b"x" * 7_000_000]


def test_a_full_disk_at_a_switch_leaves_the_log_usable() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    log.append_batch([b"one"])
    disk.faults.fail_operation("pwrite", errno.ENOSPC)
    with pytest.raises(OSError):
        log.switch_segment()
    disk.faults.fail_operation("pwrite", None)
    assert log.append_batch([b"two"]) == 2
    log.switch_segment()
    assert log.append_batch([b"three"]) == 3
    assert contents(log) == [b"one", b"two", b"three"]


def test_another_cluster_and_a_missing_log_are_refused() -> None:
    disk = MemoryDisk()
    with pytest.raises(LogDamaged, match="no log segment"):
        OperationLog.open(disk, "log")
    open_log(disk).close()
    with pytest.raises(GfsError) as refused:
        OperationLog.open(disk, "log", cluster_id="other")
    assert refused.value.code is Code.WRONG_CLUSTER
    with pytest.raises(ValueError, match="1 to"):
        open_log(disk).append_batch([b""])
