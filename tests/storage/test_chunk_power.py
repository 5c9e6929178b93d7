"""Power loss: what was synced is there, whole; what was not may be gone, but never reads as something else."""

from __future__ import annotations

import errno
import os
from random import Random

import pytest
from chunk_model import CHUNK_BYTES, Model, Step, append, open_store, pad, script, set_version, sync, write

from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt
from gfscore.storage.chunk_store import Chunk


def _check_survivors(disk: MemoryDisk, history: list[Model], synced: int, context: str) -> None:
    """Bytes that no later step changed are as synced; the others are of some state since the sync."""
    store = open_store(disk, boot_id="after")
    list(store.scan())
    chunk = store.get(1)
    length = chunk.length
    floor = min(len(state.data) for state in history[synced:])
    assert length >= floor, f"{context}: {length} bytes left of {floor}"
    data = bytes(chunk.read(0, length))
    states = history[synced:]
    for start in range(0, length, BLOCK_BYTES):
        end = min(start + BLOCK_BYTES, length)
        candidates = [bytes(state.data[start:end]) for state in states if len(state.data) >= end]
        assert data[start:end] in candidates, f"{context}: block at {start} was never like this"
    assert chunk.verify() == [] and not chunk.corrupt, context
    before = chunk.length
    chunk.write([(before, b"on it goes")] if before + 10 < store.chunk_size else [(0, b"on it goes")], sync=True)
    disk.kill()
    again = open_store(disk, boot_id="after").get(1)
    assert again.verify() == [] and again.length >= before


def _run_and_cut(steps: list[Step], kill_at: int | None, seed: int) -> None:
    random = Random(seed)
    disk = MemoryDisk()
    store = open_store(disk)
    chunk = store.create(1, 1)
    chunk.sync()
    history, synced = [Model()], 0
    if kill_at is not None:
        disk.faults.kill_at(kill_at, random.randrange(4))
    name = "end"
    for step in steps:
        state = history[-1].copy()
        step.apply(state)
        history.append(state)
        name = step.name
        try:
            step.run(chunk)
        except Killed:
            break
        if step.sync:
            synced = len(history) - 1
    disk.faults.reset()
    disk.crash(random)
    _check_survivors(disk, history, synced, f"seed {seed} cut at {kill_at} in {name}")


@pytest.mark.parametrize("seed", range(3))
def test_power_loss_at_every_call(seed: int) -> None:
    steps = script()
    for kill_at in range(1 + seed, 130, 3):
        _run_and_cut(steps, kill_at, seed * 1000 + kill_at)


def _random_steps(random: Random) -> list[Step]:
    steps: list[Step] = []
    model = Model()
    for number in range(random.randrange(3, 14)):
        length = len(model.data)
        kind = random.choice(["append", "append", "write", "write", "gap", "sync", "version", "cut", "pad"])
        durable = random.random() < 0.4
        if kind == "append" and length < 150_000:
            step = append(random.randrange(3), number, random.randbytes(random.choice([50, 5000, 70_000])), durable)
        elif kind == "write" and length:
            extents = []
            for _ in range(random.randrange(1, 4)):
                at = random.randrange(length)
                extents.append((at, random.randbytes(min(random.choice([1, 300, 9000]), CHUNK_BYTES - at))))
            step = write(extents, durable)
        elif kind == "gap" and length < 150_000:
            step = write([(length + random.choice([1, 5000, 80_000]), random.randbytes(100))], durable)
        elif kind == "version":
            step = set_version(model.version, model.version + 1)
        elif kind == "cut" and length:
            step = set_version(model.version, model.version + 1, random.randrange(length))
        elif kind == "pad" and random.random() < 0.3:
            step = pad(random.choice([0, 10]), durable)
        else:
            step = sync()
        step.apply(model)
        steps.append(step)
    return steps


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_power_loss_in_random_histories(start: int) -> None:
    for seed in range(start, start + 100):
        random = Random(seed)
        _run_and_cut(_random_steps(random), random.choice([None, random.randrange(1, 80)]), seed)


def test_unsynced_append_may_go_but_the_synced_one_stays() -> None:
    for seed in range(40):
        disk = MemoryDisk()
        chunk = open_store(disk).create(1, 1)
        chunk.write([(0, b"kept")], append=(1, 1), sync=True)
        for number in range(4):
            chunk.write([(4 + number, b"?")], append=(2, number + 1))
        disk.crash(Random(seed))
        again = open_store(disk, boot_id="after").get(1)
        assert bytes(again.read(0, 100))[:4] == b"kept" and again.append_slot(1) == (1, 0, 4)


@pytest.mark.parametrize("reopen", [False, True])
@pytest.mark.parametrize("appends", range(1, 7))
def test_torn_header_pages_never_take_the_synced_one(appends: int, reopen: bool) -> None:
    """Every header page that was written since the last sync is torn inside: the synced state is still found."""
    disk = MemoryDisk()
    chunk = open_store(disk).create(1, 1)
    chunk.write([(0, b"one")], sync=True)
    chunk.write([(3, b"two")], sync=True)
    if reopen:
        disk.kill()
        chunk = open_store(disk).get(1)
    pages = disk.contents(chunk.path)[: fmt.TABLE_START]
    for number in range(appends):
        chunk.write([(6 + number, b"?")])
    now = disk.contents(chunk.path)
    for start in range(0, fmt.TABLE_START, fmt.PAGE_BYTES):
        if now[start : start + fmt.PAGE_BYTES] != pages[start : start + fmt.PAGE_BYTES]:
            disk.corrupt(chunk.path, start + 40)
    disk.kill()
    store = open_store(disk, boot_id="after")
    again = store.get(1)
    assert bytes(again.read(0, 100)) == b"onetwo" and not again.corrupt
    again.write([(6, b"three")], sync=True)
    list(store.scan())
    disk.kill()
    last = open_store(disk, boot_id="after").get(1)
    assert bytes(last.read(0, 100)) == b"onetwothree" and not last.corrupt


@pytest.mark.parametrize("scanned", [True, False])
def test_a_scan_ends_the_state_after_a_power_loss(scanned: bool) -> None:
    """From then on a page that does not verify is damage again, and not what the power loss left."""
    disk = MemoryDisk()
    open_store(disk).create(1, 1).write([(0, b"x" * 100)], sync=True)
    disk.crash(Random(1))
    store = open_store(disk, boot_id="after")
    assert store.power_was_lost
    if scanned:
        assert list(store.scan()) == [(1, 1, 100)]
    store.get(1).write([(100, b"y" * 100)])
    newest = store.get(1)
    disk.kill()
    again = open_store(disk, boot_id="after")
    assert again.power_was_lost is not scanned
    pages = range(0, fmt.TABLE_START, fmt.PAGE_BYTES)
    last = max(pages, key=lambda at: int.from_bytes(disk.contents(newest.path)[at + 40 : at + 48], "little"))
    disk.corrupt(newest.path, last + 200)
    assert again.get(1).length == 100 and again.get(1).corrupt is scanned


def _damaged_after(disk: MemoryDisk, chunk: Chunk) -> list[int]:
    """The blocks that do not verify after a power loss, of a chunk of three blocks of which one is damaged."""
    disk.corrupt(chunk.path, fmt.data_start(CHUNK_BYTES) + BLOCK_BYTES + 5)
    disk.kill()  # the cache was written back in time
    store = open_store(disk, boot_id="after")
    assert list(store.scan()) == [(1, 1, 3 * BLOCK_BYTES)]
    return store.get(1).verify()


def test_damage_of_what_was_synced_is_no_lost_tail_after_a_power_loss() -> None:
    disk = MemoryDisk()
    chunk = open_store(disk).create(1, 1)
    chunk.write([(0, b"x" * 3 * BLOCK_BYTES)], sync=True)  # and never touched again
    assert _damaged_after(disk, chunk) == [1]


def test_damage_of_what_a_power_loss_left_is_found_after_the_next_one() -> None:
    """What is cut is synced then, as far as it goes."""
    disk = MemoryDisk()
    chunk = open_store(disk).create(1, 1)
    chunk.write([(0, b"x" * 3 * BLOCK_BYTES)])
    chunk.write([(3 * BLOCK_BYTES, b"y" * 100)])
    disk.corrupt(chunk.path, fmt.data_start(CHUNK_BYTES) + 3 * BLOCK_BYTES + 5)
    disk.kill()
    assert list(open_store(disk, boot_id="between").scan()) == [(1, 1, 3 * BLOCK_BYTES)]
    assert _damaged_after(disk, chunk) == [1]


def test_to_note_how_much_was_synced_costs_no_further_sync() -> None:
    disk = MemoryDisk()
    syncs: list[str] = []

    def count(operation: str, path: str) -> None:
        if operation == "fdatasync":
            syncs.append(path)

    chunk = open_store(disk).create(1, 1)
    chunk.sync()
    disk.faults.on_call = count
    chunk.write([(0, b"x" * 100)], sync=True)
    chunk.sync()
    assert syncs == [chunk.path]


def test_damage_after_a_power_loss_is_damage_also_where_the_boot_cannot_be_noted() -> None:
    disk = MemoryDisk()
    open_store(disk).create(1, 1).sync()
    disk.crash(Random(1))

    def full(operation: str, path: str) -> None:
        if operation == "pwrite" and path == "chunks/boot":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    disk.faults.on_call = full
    store = open_store(disk, boot_id="after")
    list(store.scan())
    chunk = store.get(1)
    chunk.write([(0, b"x" * 2 * BLOCK_BYTES)])
    assert chunk.close_if_idle()  # because others are in use
    disk.corrupt(chunk.path, fmt.data_start(CHUNK_BYTES) + 100)
    assert chunk.length == 2 * BLOCK_BYTES and chunk.verify() == [0]


def test_a_store_that_lost_all_its_chunks_says_that_the_power_failed() -> None:
    """It has nothing to compare, but is no witness that a chunk was never there."""
    disk = MemoryDisk()
    chunk = open_store(disk).create(1, 1)
    disk.crash(Random(1))
    if disk.exists(chunk.path):
        disk.unlink(chunk.path)
    store = open_store(disk, boot_id="after")
    assert list(store.scan()) == []
    assert store.booted_since and not store.power_was_lost
