"""Recovery and the checkpointer: whatever happens, what was flushed is there again, or the master refuses to start."""

from __future__ import annotations

import errno
from pathlib import Path
from random import Random

import pytest
import trio

from gfscore.env.interfaces import Disk
from gfscore.env.memory import InlineRunner
from gfscore.env.memory_disk import MemoryDisk
from gfscore.env.memory_faults import Killed
from gfscore.env.real_disk import RealDisk
from gfscore.errors import Code, GfsError
from gfscore.metadata.tables import LayeredTables
from gfscore.storage import checkpoint
from gfscore.storage.batch_codec import TABLE_NAMES, Batch, encode_batch
from gfscore.storage.checkpoint import checkpoint_name
from gfscore.storage.checkpointer import Checkpointer
from gfscore.storage.lmdb_tables import CheckpointDamaged
from gfscore.storage.operation_log import LogDamaged
from gfscore.storage.recovery import Recovered, recover

Model = dict[tuple[str, bytes], bytes]


class Node:
    """A master reduced to its storage: commits random changes, flushes each, makes checkpoints."""

    def __init__(self, disk: Disk, keys_max: int = 1_000_000) -> None:
        self.recovered: Recovered = recover(disk, "m", new_cluster_id="c")
        self.checkpointer = Checkpointer(self.recovered, disk, InlineRunner(), keys_max=keys_max)
        self.lsn = self.recovered.next_lsn - 1
        self.pending: list[bytes] = []

    def commit(self, batch: Batch) -> None:
        self.recovered.tables.apply(batch)
        self.pending.append(encode_batch(batch))
        self.lsn += 1

    async def flushed(self, lsn: int) -> None:
        pending, self.pending = self.pending, []
        self.recovered.log.append_batch(pending)

    async def change(self, batch: Batch) -> None:
        self.commit(batch)
        await self.flushed(self.lsn)

    async def checkpoint(self) -> bool:
        return await self.checkpointer.run(lambda: self.lsn, self.flushed)


def state(tables: LayeredTables) -> Model:
    return {(name, key): value for name in TABLE_NAMES for key, value in tables.range(name, b"", None)}


def batch_of(number: int) -> Batch:
    random = Random(number)
    changed = {(random.choice(TABLE_NAMES), bytes([random.randrange(20)])) for _ in range(4)}
    return [(table, key, random.choice((None, random.randbytes(5)))) for table, key in sorted(changed)]


def model_of(count: int) -> Model:
    """The state after `count` batches."""
    model: Model = {}
    for number in range(count):
        for table, key, value in batch_of(number):
            model.pop((table, key), None)
            if value is not None:
                model[table, key] = value
    return model


async def history(node: Node, count: int, acknowledged: list[int]) -> None:
    """Change, and make a checkpoint after every third change."""
    for number in range(node.lsn, count):
        await node.change(batch_of(number))
        acknowledged.append(number)
        if number % 3 == 2:
            assert await node.checkpoint()


async def test_a_restart_finds_everything() -> None:
    disk = MemoryDisk()
    node = Node(disk)
    assert node.recovered.fresh
    await history(node, 20, [])
    assert state(node.recovered.tables) == model_of(20)
    disk.kill()
    again = recover(disk, "m", new_cluster_id="other")
    assert (again.cluster_id, again.next_lsn, again.checkpoint_lsn, again.replayed) == ("c", 21, 18, 2)
    assert not again.fresh
    assert state(again.tables) == model_of(20)
    assert again.log.first_lsn == 13, "segments before the oldest checkpoint kept (12) are gone"


@pytest.mark.parametrize("power", [False, True])
async def test_a_kill_at_every_disk_call_of_a_history_with_checkpoints(power: bool) -> None:
    for call in range(1, 2000, 2 if power else 1):
        disk = MemoryDisk()
        acknowledged: list[int] = []
        disk.faults.kill_at(call, call % 3)
        ended = False
        try:
            await history(Node(disk), 8, acknowledged)
            ended = True
        except Killed:
            pass
        disk.faults.reset()
        if power:
            disk.crash(Random(call))
        else:
            disk.kill()
        again = recover(disk, "m", new_cluster_id="c")
        count = again.next_lsn - 1
        assert len(acknowledged) <= count <= len(acknowledged) + 1
        assert state(again.tables) == model_of(count)
        if ended:
            assert call > 60
            return
    raise AssertionError("the history never ended by itself")


async def test_changes_during_a_checkpoint_stay_in_the_overlay() -> None:
    disk = MemoryDisk()
    node = Node(disk, keys_max=1)
    for number in range(4):
        node.commit(batch_of(number))
    assert node.checkpointer.due

    async def flushed(lsn: int) -> None:
        assert lsn == 4
        await node.flushed(lsn)
        await node.change(batch_of(4))
        assert state(node.recovered.tables) == model_of(5)
        assert not node.checkpointer.due, "one at a time"

    assert await node.checkpointer.run(lambda: 4, flushed)
    assert state(node.recovered.tables) == model_of(5)
    disk.kill()
    again = recover(disk, "m", new_cluster_id="c")
    assert (again.checkpoint_lsn, again.replayed) == (4, 1)
    assert state(again.tables) == model_of(5)


async def test_a_checkpoint_started_late_is_of_the_state_at_that_time() -> None:
    disk = MemoryDisk()
    node = Node(disk)
    async with trio.open_nursery() as nursery:
        node.commit(batch_of(0))
        nursery.start_soon(node.checkpoint)
        nursery.start_soon(node.checkpoint)  # asked for twice: made once
        node.commit(batch_of(1))
    assert node.checkpointer.checkpoint_lsn == 2
    disk.kill()
    assert state(recover(disk, "m", new_cluster_id="c").tables) == model_of(2)


async def test_a_failed_checkpoint_changes_nothing_and_is_tried_again_later() -> None:
    disk = MemoryDisk()
    node = Node(disk, keys_max=3)
    await node.change(batch_of(0))
    assert node.checkpointer.due
    disk.faults.fail_operation("sync_real_path", errno.ENOSPC)
    assert not await node.checkpoint()
    assert state(node.recovered.tables) == model_of(1)
    assert not node.checkpointer.due
    disk.faults.fail_operation("sync_real_path", None)
    for number in range(1, 9):
        await node.change(batch_of(number))
    assert node.checkpointer.due
    assert await node.checkpoint()
    disk.kill()
    again = recover(disk, "m", new_cluster_id="c")
    assert (again.checkpoint_lsn, again.replayed) == (9, 0)
    assert state(again.tables) == model_of(9)


@pytest.mark.parametrize("checkpoints", [1, 2, 3])
async def test_damaged_checkpoints_are_replaced_by_older_ones_and_the_log(checkpoints: int) -> None:
    disk = MemoryDisk()
    node = Node(disk)
    await history(node, 3 * checkpoints + 1, [])
    disk.kill()
    for lsn in range(3 * checkpoints, 3 if checkpoints > 1 else 0, -3):
        disk.corrupt(f"m/checkpoints/{checkpoint_name(lsn)}", 5000)
    again = recover(disk, "m", new_cluster_id="c")
    assert again.checkpoint_lsn == (3 if checkpoints > 1 else 0)
    assert state(again.tables) == model_of(3 * checkpoints + 1)
    again.close()
    node = Node(disk)
    await history(node, 3 * checkpoints + 5, [])
    assert state(node.recovered.tables) == model_of(3 * checkpoints + 5)


async def test_no_way_back_is_an_error_and_not_an_empty_file_system() -> None:
    disk = MemoryDisk()
    await history(Node(disk), 20, [])
    disk.kill()
    for lsn in (12, 15, 18):
        disk.corrupt(f"m/checkpoints/{checkpoint_name(lsn)}", 5000)
    for _ in range(2):
        with pytest.raises(GfsError, match=r"3 damaged checkpoints.*record 1 is needed; restore one"):
            recover(disk, "m", new_cluster_id="c")
    for path in disk.paths():
        if "segment" in path:
            disk.unlink(path)
    for _ in range(2):
        with pytest.raises(LogDamaged, match="no log segment"):
            recover(disk, "m", new_cluster_id="c")


async def test_any_damage_of_checkpoints_is_repaired_from_older_ones_and_the_log() -> None:
    """Flips and cuts anywhere in the newest checkpoint, its checksum file, or both, and the same gone altogether."""
    disk = MemoryDisk()
    await history(Node(disk), 11, [])
    disk.kill()
    newest = f"m/checkpoints/{checkpoint_name(9)}"
    random = Random(1)

    def recovered(damaged: MemoryDisk, what: str) -> int:
        again = recover(damaged, "m", new_cluster_id="c")
        assert state(again.tables) == model_of(11), what
        assert again.next_lsn == 12
        again.close()
        return again.checkpoint_lsn

    assert recovered(disk.copy(), "nothing") == 9
    size, sum_size = len(disk.contents(newest)), len(disk.contents(f"{newest}.sum"))
    for path, offsets in ((newest, range(0, size, 1733)), (f"{newest}.sum", range(sum_size))):
        for offset in offsets:
            flipped = disk.copy()
            flipped.corrupt(path, offset, 1 << random.randrange(8))
            assert recovered(flipped, f"flip at {offset} of {path}") == 6
            assert any("damaged-" in name for name in flipped.listdir("m/checkpoints"))
    for path, length in ((newest, size), (f"{newest}.sum", sum_size)):
        for cut in (0, 1, length // 2, length - 1):
            short = disk.copy()
            short.put(path, disk.contents(path)[:cut])
            assert recovered(short, f"{path} cut to {cut}") == 6
        gone = disk.copy()
        gone.unlink(path)
        assert recovered(gone, f"{path} missing") == 6


async def test_a_base_that_rots_while_it_is_served_from_goes_into_no_other_checkpoint() -> None:
    disk = MemoryDisk()
    node = Node(disk)
    await history(node, 8, [])
    disk.corrupt(f"m/checkpoints/{checkpoint_name(6)}", 5000)
    with pytest.raises(CheckpointDamaged, match="not any more what was written; restart the master"):
        await node.checkpoint()
    disk.kill()
    again = recover(disk, "m", new_cluster_id="c")
    assert again.checkpoint_lsn == 3
    assert state(again.tables) == model_of(8)


async def test_a_checkpoint_of_another_cluster_or_version_is_refused_and_not_set_aside() -> None:
    disk = MemoryDisk()
    await history(Node(disk), 7, [])
    disk.kill()
    other = MemoryDisk()
    node = Node.__new__(Node)
    node.recovered = recover(other, "m", new_cluster_id="foreign")
    node.checkpointer = Checkpointer(node.recovered, other, InlineRunner())
    node.lsn, node.pending = 0, []
    await history(node, 7, [])
    for suffix in ("", ".sum"):
        name = f"m/checkpoints/{checkpoint_name(6)}{suffix}"
        disk.put(name, other.contents(name))
    before = disk.listdir("m/checkpoints")
    with pytest.raises(GfsError, match="belongs to cluster c, not foreign") as wrong:
        recover(disk, "m", new_cluster_id="c")
    assert wrong.value.code is Code.WRONG_CLUSTER
    assert disk.listdir("m/checkpoints") == before


async def test_a_checkpoint_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = MemoryDisk()
    monkeypatch.setattr(checkpoint, "FORMAT", b"2")
    with pytest.raises(GfsError) as newer:
        await history(Node(disk), 4, [])
    disk.kill()
    with pytest.raises(GfsError, match=r"has format 2, this version.* reads 1: start the version") as newer:
        recover(disk, "m", new_cluster_id="c")
    assert newer.value.code is Code.NOT_SUPPORTED


async def test_a_lost_log_beside_a_damaged_checkpoint_is_no_new_cluster() -> None:
    disk = MemoryDisk()
    await history(Node(disk), 4, [])
    disk.kill()
    for path in disk.paths():
        if "segment" in path or path.endswith(".sum"):
            disk.unlink(path)
    disk.rename(f"m/checkpoints/{checkpoint_name(3)}", f"m/checkpoints/damaged-{checkpoint_name(3)}")
    with pytest.raises(LogDamaged, match="no log segment"):
        recover(disk, "m", new_cluster_id="c")


async def test_a_log_that_ends_before_the_checkpoint_is_refused() -> None:
    disk = MemoryDisk()
    node = Node(disk)
    await history(node, 2, [])
    early = disk.copy()
    await history(node, 3, [])
    disk.kill()
    for path in disk.paths():
        if "segment" in path:
            disk.unlink(path)
    for path in early.paths():
        if "segment" in path:
            disk.put(path, early.contents(path))
    with pytest.raises(LogDamaged, match="ends before record 3"):
        recover(disk, "m", new_cluster_id="c")


async def test_a_checkpoint_in_use_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    node = Node(disk)
    await history(node, 7, [])
    node.recovered.log.close()
    node.recovered.lock.close()  # the base stays open: LMDB refuses to open it twice in one process
    with pytest.raises(GfsError) as refused:
        recover(disk, "m", new_cluster_id="c")
    assert refused.value.code is Code.BUSY
    node.recovered.tables.base.close()  # type: ignore[attr-defined]
    again = recover(disk, "m", new_cluster_id="c")
    assert (again.checkpoint_lsn, again.replayed) == (6, 1)
    again.close()


async def test_one_master_per_directory_and_cluster(tmp_path: Path) -> None:
    disk = RealDisk(tmp_path)
    recovered = recover(disk, "m", new_cluster_id="c")
    with pytest.raises(GfsError, match="in use by another master") as refused:
        recover(RealDisk(tmp_path), "m", new_cluster_id="c")
    assert refused.value.code is Code.BUSY
    recovered.close()
    with pytest.raises(GfsError) as wrong:
        recover(disk, "m", new_cluster_id="c", cluster_id="another")
    assert wrong.value.code is Code.WRONG_CLUSTER
    recover(disk, "m", new_cluster_id="x", cluster_id="c").close()
