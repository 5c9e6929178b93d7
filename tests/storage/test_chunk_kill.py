"""kill -9 at every disk call, with every interesting part of the write done: nothing acknowledged is ever lost."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from chunk_model import CHUNK_BYTES, Model, Step, check_between, open_store, script

from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.errors import Code, GfsError
from gfscore.storage.chunk_store import ChunkStore


def _prepared() -> MemoryDisk:
    disk = MemoryDisk()
    store = open_store(disk)
    store.create(1, 1).sync()
    return disk


def _run(store: ChunkStore, steps: list[Step]) -> tuple[Model, Model, str]:
    """(acknowledged, with the interrupted step, its name)."""
    acknowledged = Model()
    chunk = store.get(1)
    for step in steps:
        after = acknowledged.copy()
        step.apply(after)
        try:
            step.run(chunk)
        except Killed:
            return acknowledged, after, step.name
        acknowledged = after
    return acknowledged, acknowledged, "end"


def _calls(disk: MemoryDisk, run: Callable[[ChunkStore], object]) -> int:
    store = open_store(disk)
    before = disk.faults.calls
    run(store)
    return disk.faults.calls - before


@pytest.mark.parametrize("pages", [0, 1, 2, 9])
@pytest.mark.parametrize("open_limit", [1, 100])
def test_kill_at_every_call_of_a_long_history(pages: int, open_limit: int) -> None:
    prepared = _prepared()
    steps = script()
    total = _calls(prepared.copy(), lambda store: _run(store, steps))
    assert total > 60
    for number in range(1, total + 1):
        disk = prepared.copy()
        store = open_store(disk, open_limit=open_limit)
        disk.faults.kill_at(number, pages)
        old, new, name = _run(store, steps)
        disk.faults.reset()
        disk.kill()
        check_between(open_store(disk).get(1), old, new, f"call {number} pages {pages} in {name}")


def test_kill_during_recovery() -> None:
    prepared = _prepared()
    steps = script()
    total = _calls(prepared.copy(), lambda store: _run(store, steps))
    for number in range(8, total + 1, 5):
        disk = prepared.copy()
        store = open_store(disk)
        disk.faults.kill_at(number, 1)
        old, new, name = _run(store, steps)
        for again in range(1, 40, 3):
            disk.kill()
            disk.faults.reset()
            disk.faults.kill_at(again, again % 3)
            try:
                open_store(disk)
                break
            except Killed:
                continue
        disk.faults.reset()
        disk.kill()
        check_between(open_store(disk).get(1), old, new, f"call {number} in {name}, then kills in recovery")


def test_journal_that_fills_up_is_checkpointed_in_the_middle() -> None:
    prepared = _prepared()
    steps = script()
    total = _calls(prepared.copy(), lambda store: _run(store, steps))
    for number in range(1, total + 30, 2):
        disk = prepared.copy()
        store = open_store(disk, journal_bytes=16_000)
        disk.faults.kill_at(number, 1)
        old, new, name = _run(store, steps)
        disk.faults.reset()
        disk.kill()
        check_between(open_store(disk).get(1), old, new, f"call {number} in {name}")


@pytest.mark.parametrize("pages", [0, 1, 5])
def test_kill_while_creating(pages: int) -> None:
    for number in range(1, 9):
        disk = MemoryDisk()
        store = open_store(disk)
        disk.faults.kill_at(number, pages)
        acknowledged = False
        try:
            store.create(0xABC, 1).write([(0, b"first")], sync=True)
            acknowledged = True
        except Killed:
            pass
        disk.faults.reset()
        disk.kill()
        again = open_store(disk)
        found = list(again.scan())
        if acknowledged:
            assert found == [(0xABC, 1, 5)]
        assert found in ([], [(0xABC, 1, 0)], [(0xABC, 1, 5)])
        if not found:
            again.create(0xABC, 1)  # what was left does not stand in the way


@pytest.mark.parametrize("pages", [0, 1, 20])
def test_kill_while_cloning(pages: int) -> None:
    prepared = MemoryDisk()
    store = open_store(prepared)
    content = bytes(range(256)) * 400
    store.create(1, 3).write([(0, content)], append=(5, 6), sync=True)
    for number in range(1, 25):
        disk = prepared.copy()
        store = open_store(disk)
        disk.faults.kill_at(number, pages)
        acknowledged = False
        try:
            store.clone(1, 3, 2, 4, 70_000 if number % 2 else None)
            acknowledged = True
        except Killed:
            pass
        disk.faults.reset()
        disk.kill()
        again = open_store(disk)
        assert bytes(again.get(1).read(0, CHUNK_BYTES)) == content
        try:
            clone = again.get(2)
        except GfsError as error:
            assert error.code == Code.UNKNOWN_CHUNK and not acknowledged
            continue
        length = 70_000 if number % 2 else len(content)
        assert (clone.version, bytes(clone.read(0, CHUNK_BYTES))) == (4, content[:length])


def test_kill_while_deleting() -> None:
    for number in range(1, 5):
        disk = _prepared()
        store = open_store(disk)
        disk.faults.kill_at(number)
        with contextlib.suppress(Killed):
            store.delete(1)
        disk.faults.reset()
        disk.kill()
        assert [handle for handle, _, _ in open_store(disk).scan()] in ([], [1])
