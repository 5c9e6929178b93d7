"""Flipped bytes, a full disk, a failing sync: found out or harmless, never wrong bytes and never a half state."""

from __future__ import annotations

import errno
from random import Random

import pytest
from chunk_model import CHUNK_BYTES, check_between, open_store, script
from chunk_model import Model as ChunkModel

from gfscore.env.memory_disk import MemoryDisk
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_copy import IncomingCopy
from gfscore.storage.chunk_store import StoreFailed


def _written() -> tuple[MemoryDisk, str, bytes]:
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    content = Random(1).randbytes(2 * BLOCK_BYTES + 1000)
    for start in range(0, len(content), 50_000):
        chunk.write([(start, content[start : start + 50_000])], append=(3, start + 1))
    store.close()
    return disk, chunk.path, content


def test_flipped_byte_anywhere_is_detected_or_harmless() -> None:
    disk, path, content = _written()
    random = Random(2)
    size = len(disk.contents(path))
    places = list(range(0, fmt.TABLE_START, 97)) + list(range(fmt.TABLE_START, fmt.TABLE_START + 24))
    places += [random.randrange(fmt.data_start(CHUNK_BYTES), size) for _ in range(150)]
    for place in places:
        damaged = disk.copy()
        damaged.corrupt(path, place, 1 << random.randrange(8))
        store = open_store(damaged)
        detected = False
        try:
            chunk = store.get(1)
            for start in range(0, len(content), 30_000):
                try:
                    data = bytes(chunk.read(start, 30_000))
                except GfsError as error:
                    assert error.code == Code.CHECKSUM_MISMATCH
                    detected = True
                else:
                    assert data == content[start : start + len(data)], f"wrong bytes after a flip at {place}"
                    detected = detected or len(data) < min(30_000, len(content) - start)
            if chunk.length < len(content) or detected:
                assert chunk.corrupt and store.corrupt_handles() == [1], f"flip at {place} lost data in silence"
        except GfsError as error:
            assert error.code == Code.CHECKSUM_MISMATCH
        if place >= fmt.data_start(CHUNK_BYTES):
            assert detected


def _zero(disk: MemoryDisk, path: str, start: int, size: int) -> None:
    for place in range(start, start + size):
        disk.corrupt(path, place, disk.contents(path)[place])


@pytest.mark.parametrize("page", range(fmt.HEADER_PAGES))
@pytest.mark.parametrize("mutations", range(6))
def test_a_zeroed_header_page_is_no_older_state_in_silence(mutations: int, page: int) -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    for number in range(mutations):
        chunk.write([(number * 100, b"x" * 100)], sync=number == 2)
    store.close()
    _zero(disk, chunk.path, page * fmt.PAGE_BYTES, fmt.PAGE_BYTES)
    store = open_store(disk)
    assert [handle for handle, _, _ in store.scan()] == [1] and store.corrupt_handles() == [1]
    again = store.get(1)
    assert again.length <= 100 * mutations and again.doubtful
    again.verify()
    assert again.corrupt


def test_zeroed_headers_are_not_taken_for_a_creation_that_was_never_finished() -> None:
    disk, path, _ = _written()
    _zero(disk, path, 0, fmt.TABLE_START)
    store = open_store(disk)
    assert list(store.scan()) == [(1, 0, 0)] and store.corrupt_handles() == [1]
    with pytest.raises(GfsError) as caught:
        store.get(1).read(0, 10)
    assert caught.value.code is Code.CHECKSUM_MISMATCH
    assert disk.contents(path), "what may be looked at by somebody is kept"


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 8192, 12288, 16384, 20000, 90_000])
def test_a_truncated_file_is_damaged_or_gone(size: int) -> None:
    disk, path, content = _written()
    disk.open(path).truncate(size)
    store = open_store(disk)
    found = list(store.scan())
    if not found:
        assert size < fmt.TABLE_START, "short enough for a creation that was never finished: nothing in it to lose"
        return
    chunk = store.get(1)
    try:
        data = bytes(chunk.read(0, 1000))
    except GfsError as error:
        assert error.code is Code.CHECKSUM_MISMATCH
    else:
        assert data == content[:1000] or (len(data) < 1000 and chunk.doubtful)
    assert chunk.corrupt or chunk.verify()


def test_verify_sees_what_a_server_that_is_running_has_in_memory_only() -> None:
    """Header and table are read once: what happens to them on the disk later is found by the scrub."""
    for place in (fmt.PAGE_BYTES + 50, 2 * fmt.PAGE_BYTES + 50, fmt.TABLE_START + 1):
        disk, path, content = _written()
        store = open_store(disk)
        chunk = store.get(1)
        assert bytes(chunk.read(0, 10)) == content[:10]
        disk.corrupt(path, place)
        assert bytes(chunk.read(0, 10)) == content[:10]
        assert chunk.verify() == [] and chunk.corrupt, place
        disk.corrupt(path, place)
        assert chunk.verify() == [] and not chunk.corrupt


def test_a_chunk_whose_file_is_gone_is_no_obstacle_to_others() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    gone, other = store.create(1, 1), store.create(2, 1)
    for chunk in (gone, other):
        chunk.write([(0, bytes(2 * BLOCK_BYTES))], sync=True)
        chunk.write([(10, b"overwritten")])
    for chunk in (gone, other):
        assert chunk.close_if_idle()
    disk.unlink(gone.path)
    assert not store.present(1) and store.present(2)
    with pytest.raises(GfsError) as caught:
        gone.read(0, 10)
    assert caught.value.code is Code.UNKNOWN_CHUNK
    store.journal.checkpoint()
    store.delete(1)
    assert store.handles() == [2] and other.verify() == []


def test_damaged_block_is_not_overwritten_in_part_but_the_others_are_served() -> None:
    disk, path, content = _written()
    disk.corrupt(path, fmt.data_start(CHUNK_BYTES) + BLOCK_BYTES + 5)
    chunk = open_store(disk).get(1)
    with pytest.raises(GfsError) as caught:
        chunk.write([(BLOCK_BYTES + 100, b"part of it")])
    assert caught.value.code == Code.CHECKSUM_MISMATCH
    assert bytes(chunk.read(0, BLOCK_BYTES)) == content[:BLOCK_BYTES]
    assert chunk.verify() == [1] and chunk.corrupt
    chunk.replace(BLOCK_BYTES, content[BLOCK_BYTES : 2 * BLOCK_BYTES], len(content), chunk.append_table_bytes())
    assert chunk.verify() == [] and not chunk.corrupt
    assert bytes(chunk.read(0, CHUNK_BYTES)) == content


def test_replay_does_not_hide_damage_of_other_bytes() -> None:
    for place in (10, BLOCK_BYTES - 1):
        disk = MemoryDisk()
        chunk = open_store(disk).create(1, 1)
        chunk.write([(0, bytes(BLOCK_BYTES))], sync=True)
        chunk.write([(500, b"journalled")], sync=True)
        disk.kill()
        disk.corrupt(chunk.path, fmt.data_start(CHUNK_BYTES) + place)
        again = open_store(disk).get(1)
        with pytest.raises(GfsError):
            again.read(0, 10)


def test_a_good_copy_takes_the_place_of_a_replica_whose_header_cannot_be_read() -> None:
    disk, path, _ = _written()

    def bad_sector(operation: str, where: str) -> None:
        if (operation, where) == ("pread", path):
            raise OSError(errno.EIO, "bad sector", where)

    disk.faults.on_call = bad_sector
    store = open_store(disk)
    list(store.scan())
    assert store.corrupt_handles() == [1]
    copy = IncomingCopy(store, 1, 2)
    copy.chunk.write([(0, b"good")])
    copy.finish(2)
    disk.faults.reset()
    assert bytes(store.get(1).read(0, 10)) == b"good" and store.corrupt_handles() == []


def test_disk_refuses_at_every_write() -> None:
    """ENOSPC at any single call: the mutation fails with NO_SPACE, and the state is as before."""
    steps = script()
    hits = 0
    for number in range(1, 140):
        disk = MemoryDisk()
        store = open_store(disk)
        chunk = store.create(1, 1)
        chunk.sync()
        disk.faults.on_call = None
        model = ChunkModel()
        armed = {"left": number}

        def fail(operation: str, path: str, armed: dict[str, int] = armed) -> None:
            if operation == "pwrite":
                armed["left"] -= 1
                if armed["left"] == 0:
                    raise OSError(errno.ENOSPC, "full", path)

        disk.faults.on_call = fail
        for step in steps:
            after = model.copy()
            step.apply(after)
            try:
                step.run(chunk)
            except GfsError as error:
                assert error.code == Code.NO_SPACE, f"{step.name} at write {number}"
                hits += 1
                disk.faults.reset()
                if not chunk.corrupt:
                    check_between(chunk, model, after, f"{step.name} at write {number}")
                disk.kill()
                again = open_store(disk).get(1)
                check_between(again, model, after, f"{step.name} at write {number}, restarted")
                break
            model = after
    assert hits > 40


def test_full_disk_leaves_the_chunk_as_it_was() -> None:
    disk = MemoryDisk(capacity=200_000)
    store = open_store(disk)
    chunk = store.create(1, 1)
    chunk.write([(0, b"a" * 100_000)])
    with pytest.raises(GfsError) as caught:
        chunk.write([(90_000, b"b" * 100_000)])
    assert caught.value.code == Code.NO_SPACE
    assert bytes(chunk.read(0, CHUNK_BYTES)) == b"a" * 100_000
    with pytest.raises(GfsError):
        chunk.pad(10)
    assert bytes(chunk.read(0, CHUNK_BYTES)) == b"a" * 100_000 and chunk.verify() == []


def test_failed_sync_refuses_everything_after_it() -> None:
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    other = store.create(2, 1)
    disk.faults.fail_operation("fdatasync", errno.EIO)
    with pytest.raises(StoreFailed):
        chunk.write([(0, b"x")], sync=True)
    disk.faults.fail_operation("fdatasync", None)
    for mutation in (lambda: other.write([(0, b"x")]), lambda: store.create(3, 1), lambda: store.delete(2)):
        with pytest.raises(StoreFailed):
            mutation()
