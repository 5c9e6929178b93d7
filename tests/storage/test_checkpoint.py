"""Checkpoints: equal to the state they were made of, whole or not there, and told apart when damaged."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfscore.env.interfaces import Disk
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.env.real_disk import RealDisk
from gfscore.metadata.tables import EmptyTables, LayeredTables
from gfscore.storage import checkpoint
from gfscore.storage.batch_codec import TABLE_NAMES, Batch
from gfscore.storage.checkpoint import checkpoint_name, list_checkpoints, open_checkpoint, prune, write_checkpoint
from gfscore.storage.lmdb_tables import CheckpointDamaged, LmdbTables

Model = dict[tuple[str, bytes], bytes]

BATCHES = st.lists(
    st.lists(
        st.tuples(
            st.sampled_from(TABLE_NAMES[:3]),
            st.binary(min_size=1, max_size=3),
            st.one_of(st.none(), st.binary(max_size=6)),
        ),
        max_size=30,
    ),
    min_size=1,
    max_size=4,
)


def apply(model: Model, batch: Batch) -> None:
    for table, key, value in batch:
        if value is None:
            model.pop((table, key), None)
        else:
            model[table, key] = value


def everything(tables: LmdbTables | LayeredTables) -> Model:
    return {(name, key): value for name in TABLE_NAMES for key, value in tables.range(name, b"", None)}


def write(disk: Disk, base_lsn: int | None, batch: Batch, lsn: int) -> LmdbTables:
    layered = LayeredTables(EmptyTables())
    layered.apply(batch)
    return write_checkpoint(disk, "c", base_lsn, layered.freeze(), lsn, "cluster")


@settings(max_examples=40)
@given(BATCHES, st.binary(max_size=3), st.one_of(st.none(), st.binary(max_size=3)))
def test_checkpoint_upon_checkpoint_equals_a_dictionary(batches: list[Batch], start: bytes, stop: bytes | None) -> None:
    disk = MemoryDisk()
    disk.mkdir("c")
    model: Model = {}
    base_lsn = None
    for number, batch in enumerate(batches, 1):
        apply(model, batch)
        tables = write(disk, base_lsn, batch, number)
        base_lsn = number
        assert everything(tables) == model
        assert (tables.lsn, tables.cluster_id, tables.entries) == (number, "cluster", len(model))
        for name in TABLE_NAMES[:3]:
            expected = sorted(
                (key, value)
                for (table, key), value in model.items()
                if table == name and key >= start and (stop is None or key < stop)
            )
            assert list(tables.range(name, start, stop)) == expected
        for table, key, _ in batch:
            assert tables.get(table, key) == model.get((table, key))
        assert everything(open_checkpoint(disk, "c", number)) == model
        tables.close()


def test_the_map_grows_when_it_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = RealDisk(tmp_path)
    disk.mkdir("c")
    monkeypatch.setattr(checkpoint, "_MAP_BYTES_MIN", 256 * 1024)
    monkeypatch.setattr(checkpoint, "_COMMIT_KEYS", 128)
    batch: Batch = [("xattrs", number.to_bytes(4, "big"), b"v" * 3000) for number in range(1000)]
    tables = write(disk, None, batch, 1)
    assert everything(tables) == {(table, key): value for table, key, value in batch}
    statistics = tables.statistics()["xattrs"]
    assert statistics.entries == 1000
    assert 3_000_000 < statistics.bytes < 5_000_000


def test_appended_keys_fill_pages_to_the_brim(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    disk.mkdir("c")

    def batch(first: int) -> Batch:
        return [("inodes", number.to_bytes(8, "big"), b"i" * 40) for number in range(first, first + 20_000)]

    write(disk, None, batch(0), 1).close()
    tables = write(disk, 1, batch(20_000), 2)
    assert tables.statistics()["inodes"].bytes / 40_000 < 60


def test_a_cut_flipped_or_renamed_checkpoint_is_recognised() -> None:
    disk = MemoryDisk()
    disk.mkdir("c")
    write(disk, None, [("entries", b"k", b"v")], 7).close()
    path = f"c/{checkpoint_name(7)}"
    size = len(disk.contents(path))
    for offset in range(0, size, 509):
        flipped = disk.copy()
        flipped.corrupt(path, offset)
        with pytest.raises(CheckpointDamaged, match="checksum"):
            open_checkpoint(flipped, "c", 7)
    for cut in (0, 4096, size - 1):
        short = disk.copy()
        short.put(path, disk.contents(path)[:cut])
        with pytest.raises(CheckpointDamaged):
            open_checkpoint(short, "c", 7)
    unsummed = disk.copy()
    unsummed.unlink(f"{path}.sum")
    with pytest.raises(CheckpointDamaged, match="no checksum"):
        open_checkpoint(unsummed, "c", 7)
    disk.rename(path, f"c/{checkpoint_name(8)}")
    disk.rename(f"{path}.sum", f"c/{checkpoint_name(8)}.sum")
    with pytest.raises(CheckpointDamaged, match="record 7"):
        open_checkpoint(disk, "c", 8)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database " * 1000)
    lmdb.open(str(tmp_path / "empty"), subdir=False, lock=False, max_dbs=20).close()
    for name in ("text", "empty", "missing"):
        with pytest.raises(CheckpointDamaged):
            LmdbTables(str(tmp_path / name))


@pytest.mark.parametrize("power", [False, True])
def test_a_kill_at_every_step_leaves_the_old_checkpoint_or_a_complete_new_one(power: bool) -> None:
    old = {("entries", b"a"): b"1", ("inodes", b"b"): b"2"}
    for call in range(1, 1000):
        disk = MemoryDisk()
        disk.mkdir("c")
        write(disk, None, [(table, key, value) for (table, key), value in old.items()], 1).close()
        disk.sync_directory("")
        disk.faults.reset()
        disk.faults.kill_at(call)
        done = False
        try:
            write(disk, 1, [("entries", b"a", None), ("entries", b"c", b"3")], 2).close()
            done = True
        except Killed:
            if power:
                disk.crash(Random(call))
            else:
                disk.kill()
        disk.faults.reset()
        lsns = list_checkpoints(disk, "c")
        assert everything(open_checkpoint(disk, "c", 1)) == old
        if 2 in lsns:
            assert everything(open_checkpoint(disk, "c", 2)) == {("entries", b"c"): b"3", ("inodes", b"b"): b"2"}
        assert prune(disk, "c", 3) == (2 if 2 in lsns else 1)
        assert len(disk.listdir("c")) == 2 * len(lsns)
        if done:
            assert call > 10
            return
    raise AssertionError("the run never ended by itself")


def test_a_full_disk_leaves_the_old_checkpoint() -> None:
    disk = MemoryDisk()
    disk.mkdir("c")
    write(disk, None, [("entries", b"a", b"1")], 1).close()
    disk.capacity = disk.capacity - disk.space()[1] + 1000
    with pytest.raises(OSError) as full:
        write(disk, 1, [("entries", b"b", b"2")], 2)
    assert full.value.errno == errno.ENOSPC
    disk.capacity *= 10
    assert everything(write(disk, 1, [("entries", b"b", b"2")], 2)) == {
        ("entries", b"a"): b"1",
        ("entries", b"b"): b"2",
    }


def test_prune_keeps_the_newest_and_says_which_records_are_needed() -> None:
    disk = MemoryDisk()
    disk.mkdir("c")
    assert prune(disk, "c", 3) == 1
    for lsn in (10, 20, 30, 40):
        write(disk, None, [("entries", b"a", b"1")], lsn).close()
    disk.put("c/checkpoint.new", b"rubbish")
    assert prune(disk, "c", 3) == 21
    assert list_checkpoints(disk, "c") == [20, 30, 40]
    assert len(disk.listdir("c")) == 6
    assert prune(disk, "c", 1) == 1, "a single checkpoint may turn out damaged: only the whole log would do"
