"""The operation log: nothing acknowledged is ever lost, nothing damaged is ever believed."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfscore.checksum import crc32c
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.env.real_disk import RealDisk
from gfscore.errors import Code, GfsError
from gfscore.storage.log_blocks import BLOCK_BYTES, PAGE_BYTES, offset_of
from gfscore.storage.log_segment import FRAME_BYTES, segment_name
from gfscore.storage.operation_log import LogDamaged, OperationLog

FIRST = f"log/{segment_name(1)}"


def open_log(disk: MemoryDisk, **options: int) -> OperationLog:
    return OperationLog.open(disk, "log", new_cluster_id="c", **options)  # type: ignore[arg-type]


def contents(log: OperationLog, lsn: int = 1) -> list[bytes]:
    found = list(log.read_from(lsn))
    assert [number for number, _ in found] == list(range(lsn, log.next_lsn))
    return [bytes(payload) for _, payload in found]


def small_log(batches: list[list[bytes]]) -> MemoryDisk:
    """A closed log with little space allocated ahead, to keep it small."""
    disk = MemoryDisk()
    log = open_log(disk, step_bytes=2 * PAGE_BYTES)
    for batch in batches:
        log.append_batch(batch)
    log.close()
    return disk


def ends_of(payloads: list[bytes]) -> list[int]:
    """Where in the file each record ends; the first is where they begin."""
    ends = [0]
    for payload in payloads:
        ends.append(ends[-1] + FRAME_BYTES + len(payload))
    return [offset_of(end) for end in ends]


def outcome(disk: MemoryDisk) -> list[bytes] | str:
    """What recovery makes of a log: its records, or the one line of the refusal."""
    try:
        return contents(open_log(disk))
    except LogDamaged as error:
        assert "\n" not in str(error) and "restore" in str(error)
        return str(error)


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


@settings(max_examples=60)
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


PAYLOADS = [b"first", b"second" * 60, b"third", bytes(700), b"x" * 508, b"fourth\0\0", b"tail" * 130, b"\0\0"]
ZERO_BLOCK = range(PAGE_BYTES + BLOCK_BYTES, PAGE_BYTES + 2 * BLOCK_BYTES)  # inside the 700: damaged, but known anyway


def test_a_log_cut_at_every_byte_ends_in_all_its_records_or_in_a_refusal() -> None:
    disk = small_log([[payload] for payload in PAYLOADS])
    data = disk.contents(FIRST)
    end = ends_of(PAYLOADS)[-1]
    refused = 0
    for cut in range(len(data)):
        disk.put(FIRST, data[:cut])
        found = outcome(disk)
        if isinstance(found, str):
            refused += 1
            assert FIRST in found, cut
        else:
            assert found == PAYLOADS, cut
            assert cut > end
    assert refused >= end


@pytest.mark.parametrize("batches", [[[payload] for payload in PAYLOADS], [PAYLOADS], [PAYLOADS[:3], PAYLOADS[3:]]])
def test_a_flush_that_stopped_at_any_block_leaves_what_was_acknowledged(batches: list[list[bytes]]) -> None:
    """Each batch in turn is the one in flight: any set of its blocks was written, in any order."""
    random = Random(1)
    payloads = [payload for batch in batches for payload in batch]
    for count in range(len(batches)):
        before = small_log(batches[:count]).contents(FIRST)
        after = small_log(batches[: count + 1]).contents(FIRST)
        size = max(len(before), len(after))  # space is allocated, durably, before the flush
        before, after = before.ljust(size, b"\0"), after.ljust(size, b"\0")
        offsets = [o for o in range(0, size, BLOCK_BYTES) if before[o : o + BLOCK_BYTES] != after[o : o + BLOCK_BYTES]]
        acknowledged = sum(map(len, batches[:count]))
        complete = acknowledged + len(batches[count])
        subsets = [[o for o in offsets if o >= stop] for stop in (*offsets, size)]
        subsets += [[o for o in offsets if random.random() < chance] for chance in (0.1, 0.5, 0.9) for _ in range(30)]
        for missing in subsets:
            torn = bytearray(after)
            for offset in missing:
                torn[offset : offset + BLOCK_BYTES] = before[offset : offset + BLOCK_BYTES]
            disk = MemoryDisk()
            disk.put(FIRST, bytes(torn))
            log = open_log(disk)
            found = contents(log)
            assert found == payloads[: len(found)] and acknowledged <= len(found) <= complete, missing
            assert missing or len(found) == complete
            log.append_batch([b"after", bytes(3000)])
            log.close()
            assert contents(open_log(disk)) == [*found, b"after", bytes(3000)]


@pytest.mark.parametrize("batches", [[[payload] for payload in PAYLOADS], [PAYLOADS]])
def test_a_flip_of_every_byte_loses_nothing_or_is_refused(batches: list[list[bytes]]) -> None:
    random = Random(2)
    disk = small_log(batches)
    size = len(disk.contents(FIRST))
    refused = 0
    last_block = PAGE_BYTES + (ends_of(PAYLOADS)[-1] - PAGE_BYTES) // BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES
    step = 1 if len(batches) > 1 else 7
    offsets = [*range(64), *range(64, PAGE_BYTES, 61), *range(PAGE_BYTES, size, step)]  # one checksum for a header
    for offset in offsets:
        damaged = disk.copy()
        damaged.corrupt(FIRST, offset, random.choice((0xFF, 1 << random.randrange(8))))
        found = outcome(damaged)
        if isinstance(found, str):
            assert FIRST in found and ("at byte" in found or offset < PAGE_BYTES), found
            refused += 1
        else:
            assert found == PAYLOADS, offset
            assert offset >= last_block or ZERO_BLOCK.start <= offset < ZERO_BLOCK.stop
    assert refused == sum(offset < last_block and offset not in ZERO_BLOCK for offset in offsets)


def test_the_last_block_holding_an_acknowledged_record_is_refused_when_flipped_and_not_called_torn() -> None:
    disk = small_log([[b"one"], [b"the last one"]])
    disk.corrupt(FIRST, ends_of([b"one"])[-1] + FRAME_BYTES + 2)
    assert "is damaged" in str(outcome(disk))


def test_blocks_of_another_place_or_segment_do_not_verify() -> None:
    payload = b"p" * 3 * BLOCK_BYTES
    disk = small_log([[payload]])
    data = bytearray(disk.contents(FIRST))
    block = slice(PAGE_BYTES + BLOCK_BYTES, PAGE_BYTES + 2 * BLOCK_BYTES)
    data[block] = data[block.stop : block.stop + BLOCK_BYTES]  # equal data, of the block behind
    disk.put(FIRST, bytes(data))
    assert "is damaged" in str(outcome(disk))


def test_a_record_of_a_later_batch_behind_unwritten_blocks_proves_a_loss() -> None:
    disk = small_log([[b"a" * 5000], [b"b" * 5000], [b"c"]])
    data = bytearray(disk.contents(FIRST))
    start = offset_of(5020) // BLOCK_BYTES * BLOCK_BYTES + BLOCK_BYTES
    data[start : start + 4 * BLOCK_BYTES] = bytes(4 * BLOCK_BYTES)
    disk.put(FIRST, bytes(data))
    assert "record 2 does not verify, but record 3" in str(outcome(disk))


def test_a_missing_last_segment_is_noticed() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    for payload in (b"one", b"two"):
        log.append_batch([payload])
        log.switch_segment()
    log.close()
    disk.unlink(f"log/{segment_name(3)}")
    assert "a segment that begins with record 3 followed it, and is missing" in str(outcome(disk))


def test_a_segment_of_another_cluster_is_refused_wherever_it_lies() -> None:
    disk = MemoryDisk()
    log = open_log(disk)
    for payload in (b"one", b"two", b"three"):
        log.append_batch([payload])
        log.switch_segment()
    log.close()
    other = MemoryDisk()
    foreign = OperationLog.open(other, "log", new_cluster_id="foreign")
    foreign.append_batch([b"uno"])
    foreign.switch_segment()
    foreign.append_batch([b"due"])
    foreign.switch_segment()
    foreign.close()
    for first in (1, 2, 3):
        mixed = disk.copy()
        mixed.put(f"log/{segment_name(first)}", other.contents(f"log/{segment_name(first)}"))
        assert "belongs to cluster" in str(outcome(mixed))
    added = disk.copy()
    added.put(f"log/{segment_name(9)}", disk.contents(f"log/{segment_name(2)}"))
    assert "renamed" in str(outcome(added))
    older = disk.copy()  # of this cluster, but from a backup: it has fewer records than it should
    twin = MemoryDisk()
    log = open_log(twin)
    log.append_batch([b"one"])
    log.switch_segment()
    log.close()
    older.put(f"log/{segment_name(2)}", twin.contents(f"log/{segment_name(2)}"))
    assert "record 2 is missing" in str(outcome(older))


def test_a_segment_of_another_version_is_refused_as_such() -> None:
    disk = small_log([[b"one"]])
    page = bytearray(disk.contents(FIRST)[: PAGE_BYTES - 4])
    page[8] = 1
    data = bytes(page) + crc32c(bytes(page)).to_bytes(4, "little") + disk.contents(FIRST)[PAGE_BYTES:]
    disk.put(FIRST, data)
    with pytest.raises(GfsError, match=r"format 1.*start the version that wrote it") as refused:
        open_log(disk)
    assert refused.value.code is Code.NOT_SUPPORTED and not isinstance(refused.value, LogDamaged)


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
