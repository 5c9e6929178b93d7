from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.metadata.tables import ENTRIES, INODES, TABLES, Batch, EmptyTables, FrozenLayer, LayeredTables
from gfscore.metadata.transaction import CLOCK, Transaction, bootstrap, cluster_id, counter

_KEYS = st.binary(min_size=1, max_size=2)
_WRITE = st.tuples(st.just("write"), st.sampled_from(TABLES[:3]), _KEYS, st.none() | st.binary(max_size=3))
_STEP = st.one_of(_WRITE, _WRITE, _WRITE, st.tuples(st.sampled_from(["freeze", "rebase", "thaw", "range"])))


def _as_base(tables: LayeredTables) -> LayeredTables:
    """What a checkpoint does: the base and the frozen layer become a new base."""
    base = LayeredTables(tables.base)
    assert tables._frozen is not None
    for table, items in FrozenLayer(tables._frozen):
        keys = [key for key, _ in items]
        assert keys == sorted(set(keys)) and len(keys) == len(items)
        base.apply([(table, key, value) for key, value in items])
    return base


@given(st.lists(_STEP, max_size=60), _KEYS, _KEYS)
def test_layers_behave_like_one_dictionary(steps: list[tuple], start: bytes, stop: bytes) -> None:
    tables = LayeredTables(EmptyTables())
    model: dict[tuple[str, bytes], bytes] = {}
    for step in steps:
        if step[0] == "write":
            _, table, key, value = step
            tables.apply([(table, key, value)])
            model.pop((table, key), None)
            if value is not None:
                model[table, key] = value
        elif step[0] == "freeze" and not tables.frozen:
            assert len(tables.freeze()) >= 0 and tables.overlay_size == 0
        elif step[0] == "rebase" and tables.frozen:
            tables.rebase(_as_base(tables))
        elif step[0] == "thaw" and tables.frozen:
            tables.thaw()
        for table in TABLES[:3]:
            expected = sorted((key, value) for (of, key), value in model.items() if of == table)
            assert list(tables.range(table, b"", None)) == expected
            inside = [(key, value) for key, value in expected if start <= key < stop]
            assert list(tables.range(table, start, stop)) == inside
            for key, value in expected:
                assert tables.get(table, key) == value
    assert tables.get(TABLES[0], b"none") is None


@given(st.lists(_WRITE, max_size=20), st.lists(_WRITE, max_size=20), _KEYS, st.none() | _KEYS)
def test_a_transaction_reads_what_the_state_would_be(below: list, own: list, start: bytes, stop: bytes | None) -> None:
    tables, later = LayeredTables(EmptyTables()), LayeredTables(EmptyTables())
    first: Batch = [write[1:] for write in below]
    tables.apply(first)
    later.apply(first)
    tx = Transaction(tables)
    for _, table, key, value in own:
        if value is None:
            tx.delete(table, key)
        else:
            tx.put(table, key, value)
    later.apply(tx.batch)
    for table in TABLES[:3]:
        assert list(tx.range(table, start, stop)) == list(later.range(table, start, stop))
        for _, _, key, _ in below + own:
            assert tx.get(table, key) == later.get(table, key) == tx.reader(table)(key)


def test_many_new_keys_are_indexed_in_order() -> None:
    tables = LayeredTables(EmptyTables())
    keys = [(number * 7919 % 10007).to_bytes(2, "big") for number in range(10007)]
    for at in range(0, len(keys), 1500):
        tables.apply([(ENTRIES, key, b"x") for key in keys[at : at + 1500]])
        assert sum(1 for _ in tables.range(ENTRIES, b"", None)) == min(at + 1500, len(keys))
    [(table, items)] = list(tables.freeze())
    assert table == ENTRIES and [key for key, _ in items] == sorted(keys)


def test_freezing_twice_is_refused() -> None:
    tables = LayeredTables(EmptyTables())
    tables.freeze()
    with pytest.raises(AssertionError):
        tables.freeze()


def test_ticks_never_repeat_and_are_part_of_the_state() -> None:
    tables = LayeredTables(EmptyTables())
    tx = Transaction(tables)
    bootstrap(tx, 5, "cluster-é")
    assert [tx.tick(), tx.ticks(10), tx.tick()] == [2, 3, 13]
    assert tables.get(INODES, (1).to_bytes(8, "big")) is None
    tables.apply(tx.batch)
    assert counter(tables, CLOCK) == 13 and Transaction(tables).tick() == 14
    assert cluster_id(tables) == "cluster-é" and cluster_id(EmptyTables()) == ""
