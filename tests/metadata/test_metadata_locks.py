from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metadata_state import State

from gfscore.metadata.locks import LockTable, chunk_key, directory_key, inode_key, name_key, path_reads

DIRECTORY, NAME, FILE, CHUNK = directory_key(2, 5), name_key(2, 5, b"n"), inode_key(9), chunk_key(3)


def test_keys_have_one_order() -> None:
    keys = [
        directory_key(0, 1),
        name_key(0, 1, b"a"),
        directory_key(1, 7),
        directory_key(1, 8),
        DIRECTORY,
        NAME,
        FILE,
        CHUNK,
    ]
    assert sorted(keys) == keys and len(set(keys)) == len(keys)


def test_path_reads_go_from_the_root_down(state: State) -> None:
    a = state.mkdir(b"a")
    b = state.mkdir(b"b", a)
    assert path_reads(state.tables, b) == [directory_key(0, 1), directory_key(1, a), directory_key(2, b)]


def test_creates_run_side_by_side_and_a_snapshot_excludes_them() -> None:
    locks = LockTable()
    assert locks.try_acquire("one", [DIRECTORY], [NAME])
    assert locks.try_acquire("two", [DIRECTORY], [name_key(2, 5, b"m")])
    assert not locks.try_acquire("same name", [DIRECTORY], [NAME])
    assert not locks.acquire_or_queue("snapshot", [], [DIRECTORY])
    assert not locks.try_acquire("late", [DIRECTORY], [name_key(2, 5, b"k")]), "a waiting writer goes first"
    assert not locks.acquire_or_queue("later", [DIRECTORY], [name_key(2, 5, b"l")])
    assert locks.release("one") == [] and locks.release("two") == ["snapshot"]
    assert locks.release("snapshot") == ["later"]
    assert locks.release("later") == [] and len(locks) == 0


def test_a_key_in_both_is_written() -> None:
    locks = LockTable()
    assert locks.try_acquire("a", [DIRECTORY], [DIRECTORY])
    assert not locks.try_acquire("b", [DIRECTORY], [])


def test_try_takes_all_or_nothing() -> None:
    locks = LockTable()
    locks.try_acquire("a", [], [FILE])
    assert not locks.try_acquire("b", [DIRECTORY], [FILE])
    assert len(locks) == 1


def test_who_gives_up_waiting_lets_the_others_pass() -> None:
    locks = LockTable()
    locks.try_acquire("reader", [DIRECTORY], [])
    assert not locks.acquire_or_queue("writer", [], [DIRECTORY, NAME])
    assert not locks.acquire_or_queue("second", [DIRECTORY], [])
    assert locks.release("writer") == ["second"]


def test_who_waits_holds_what_comes_before_and_nothing_behind() -> None:
    locks = LockTable()
    locks.try_acquire("file", [], [FILE])
    assert not locks.acquire_or_queue("waiter", [], [FILE, DIRECTORY, CHUNK])
    assert not locks.try_acquire("other", [DIRECTORY], [])
    assert locks.try_acquire("other", [CHUNK], [])
    assert locks.release("file") == [] and locks.release("other") == ["waiter"]


def test_chunk_locks_can_be_added_behind_the_others() -> None:
    locks = LockTable()
    assert locks.try_acquire("a", [DIRECTORY], [FILE]) and locks.acquire_or_queue("a", [DIRECTORY], [FILE, CHUNK])
    assert not locks.try_acquire("b", [], [CHUNK])
    with pytest.raises(AssertionError, match="not behind"):
        locks.try_acquire("a", [NAME], [])
    with pytest.raises(AssertionError, match="cannot become"):
        locks.try_acquire("a", [], [DIRECTORY])
    locks.release("a")
    assert len(locks) == 0


_KEYS = st.sampled_from([directory_key(0, 1), directory_key(1, 2), NAME, FILE, CHUNK])
_ACTIONS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["queue", "try", "release"]), st.sets(_KEYS, max_size=3),
              st.sets(_KEYS, max_size=2)),
    max_size=60,
)  # fmt: skip


@settings(max_examples=300)
@given(_ACTIONS)
def test_exclusion_progress_and_no_leftovers(actions: list[tuple[int, str, set, set]]) -> None:
    locks = LockTable()
    running: dict[int, tuple[set, set]] = {}
    waiting: dict[int, tuple[set, set]] = {}

    def woken(owners: list) -> None:
        for owner in owners:
            running[owner] = waiting.pop(owner)

    for owner, action, reads, writes in actions:
        reads = reads - writes
        if action == "release":
            running.pop(owner, None)
            waiting.pop(owner, None)
            woken(locks.release(owner))
        elif owner not in running and owner not in waiting:
            acquire = locks.try_acquire if action == "try" else locks.acquire_or_queue
            if acquire(owner, reads, writes):
                running[owner] = (reads, writes)
            elif action == "queue":
                waiting[owner] = (reads, writes)
        for one, (one_reads, one_writes) in running.items():
            for other, (_, other_writes) in running.items():
                assert one == other or not (one_reads | one_writes) & other_writes, "two hold what excludes them"
        assert not waiting or running, "all wait for one another"
    while running:
        owner = next(iter(running))
        del running[owner]
        woken(locks.release(owner))
    assert not waiting, "somebody was forgotten in a queue"
    assert len(locks) == 0
