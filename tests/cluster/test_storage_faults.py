"""Disks that are full, hang, fail or lose what was not synced: what a client notices, and what it never loses."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import QUIET, fill_disk, fill_master, fsck, leases_given_back
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, FileType, GfsError
from gfscore.client.paths import Paths
from gfscore.env.memory_disk import MemoryDisk


async def wait_until_reported(client: Client, name: str, up: int) -> None:
    """Until `up` chunkservers are up, and the fullness of the disk of `name` has reached the master."""
    await trio.sleep(3)
    servers = (await client.status())["chunkservers"]
    assert sum(server["state"] == "up" for server in servers) == up, name


def replica_hosts(info: dict) -> list[set[str]]:  # type: ignore[type-arg]
    return [
        {replica["address"].partition(":")[0] for replica in chunk["replicas"] if replica["state"] == "good"}
        for chunk in info["chunks"]
    ]


async def info_of(client: Client, path: str) -> dict:  # type: ignore[type-arg]
    return await client.file_info((await Paths(client).stat(path)).inode)


# ---------------------------------------------------------------- power


@pytest.mark.parametrize("lost", ["cs1", "cs2", "cs3"])
async def test_a_replica_that_lost_its_tail_in_a_power_cut_is_not_made_the_model_of_the_others(
    autojump_clock: trio.testing.MockClock, lost: str
) -> None:
    shorter = 0
    for seed in range(6):
        async with memory_cluster() as cluster:
            async with cluster.client() as client:
                paths = Paths(client, 1, 1)
                _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
                offsets = [await file.append(b"record %d;" % number) for number in range(10)]
                await file.fsync()  # so that the replica stays, and only its tail goes
                offsets += [await file.append(b"record %d;" % number) for number in range(10, 30)]
                for name in cluster.names:
                    await cluster.kill(name)
            before = largest_chunk(cluster.disks[lost])
            cluster.disks[lost].crash(random.Random(seed))
            shorter += largest_chunk(cluster.disks[lost]) < before
            for name in cluster.names:
                await cluster.start(name)
            async with cluster.client("again") as client:
                paths = Paths(client, 1, 1)
                await paths.append("/log", b"more;")
                data = await paths.read("/log")
                for number, offset in enumerate(offsets):
                    record = b"record %d;" % number
                    assert data[offset : offset + len(record)] == record
    assert shorter, "no seed lost anything: the test shows nothing"


@pytest.mark.parametrize("lost", ["cs1", "cs2", "cs3"])
@pytest.mark.parametrize("snapshot", [True, False])
async def test_a_power_cut_of_one_server_takes_nothing_back(
    autojump_clock: trio.testing.MockClock, lost: str, snapshot: bool
) -> None:
    """Nobody writes any more. Without a snapshot what is closed is made equal again; with one, the copy that the next
    append makes is as good as the best replica."""
    records = [b"record %02d;" % number for number in range(30)]
    for seed in range(4):
        async with memory_cluster(server_options=QUIET) as cluster, cluster.client(caching=False) as client:
            paths = Paths(client, 1, 1)
            _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
            await file.write(0, records[0])
            await file.fsync()  # so that the replica stays, and only its tail goes
            for record in records[1:]:
                await file.append(record)
            await file.close()
            await trio.sleep(5)
            if snapshot:
                await paths.snapshot("/log", "/copy")
            await cluster.kill(lost)
            cluster.disks[lost].crash(random.Random(seed))
            await cluster.start(lost)
            if snapshot:
                await trio.sleep(10)
                await paths.append("/log", b"more;")
                assert await paths.read("/log") == b"".join([*records, b"more;"])
            else:
                await leases_given_back()
                assert not (await fsck(client)).problems
                assert await paths.read("/log") == b"".join(records)


@pytest.mark.parametrize("known", [True, False])
async def test_the_tail_that_one_replica_lost_in_a_power_cut_is_read_from_another(
    autojump_clock: trio.testing.MockClock, known: bool
) -> None:
    """Before the replicas are made equal; the client sits on the host that lost it. `known`: it read there before."""
    data = random.Random(0).randbytes(150_000)
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client("cs1") as client:
        attr, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, data[:10])
        await file.fsync()
        await file.write(10, data[10:])
        await file.close()
        await trio.sleep(5)
        await cluster.kill("cs1")
        cluster.disks["cs1"] = without_its_tail(cluster.disks["cs1"])
        await cluster.start("cs1")
        await trio.sleep(5)
        file = await client.open(attr.inode)
        if known:
            assert await file.read(0, 10) == data[:10]
        assert await file.read(0, len(data)) == data


def without_its_tail(disk: MemoryDisk) -> MemoryDisk:
    """The disk after a power cut that took the end of its largest chunk."""
    for seed in range(100):
        after = disk.copy()
        after.crash(random.Random(seed))
        if largest_chunk(after) < largest_chunk(disk):
            return after
    raise AssertionError("nothing was lost")


def largest_chunk(disk: MemoryDisk) -> int:
    chunks = [path for path in disk.paths() if path.startswith("chunks/0")]
    return max((len(disk.contents(path).rstrip(b"\0")) for path in chunks), default=0)


async def test_what_was_synced_survives_a_power_cut_of_everything(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(1).randbytes(300_000)
    for seed in range(4):
        async with memory_cluster() as cluster:
            async with cluster.client() as client:
                _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
                await file.write(0, data)
                await file.fsync()
                await file.write(1000, b"x" * 100_000)
                await file.flush()
                for name in ("master", *cluster.names):
                    await cluster.kill(name)
            for disk in cluster.disks.values():
                disk.crash(random.Random(seed))
            for name in ("master", *cluster.names):
                await cluster.start(name)
            async with cluster.client("again") as client:
                found = await Paths(client).read("/file")
                assert len(found) == len(data)
                for start in range(0, len(data), 65536):
                    block, end = found[start : start + 65536], min(len(data), start + 65536)
                    new = bytearray(data)
                    new[1000:101_000] = b"x" * 100_000
                    assert block in (data[start:end], bytes(new[start:end]))


# ---------------------------------------------------------------- full disks


async def test_a_full_disk_of_the_master_refuses_changes_and_nothing_else(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster:
        disk = cluster.disks["master"]
        async with cluster.client() as client:
            paths = Paths(client, 1, 1)
            await paths.write("/file", b"before")
            directory = (await client.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)).inode
            await paths.write("/gone", b"x")
            fill_disk(disk, 1_000_000)  # less than the log asks for at once
            count = await fill_master(client, directory)
            assert count > 4
            started = trio.current_time()
            for _ in range(3):
                with pytest.raises(GfsError) as caught:
                    await client.create(ROOT_INODE, b"more", FileType.DIRECTORY, 0o755, 1, 1)
                assert caught.value.code is Code.NO_SPACE and "disk of the master is full" in str(caught.value)
            assert trio.current_time() - started < 1, "at once, without retries"
            assert await paths.read("/file") == b"before"
            assert await client.getxattr(directory, b"user.0")
            await client.unlink(ROOT_INODE, b"gone")
            await cluster.restart("cs1")  # its registration is logged, too
            await trio.sleep(3)
            await paths.write("/file", b"AFTER!")
            with pytest.raises(GfsError):
                await client.create(ROOT_INODE, b"more", FileType.DIRECTORY, 0o755, 1, 1)
            disk.capacity += 50_000_000
            await trio.sleep(2)
            await client.create(ROOT_INODE, b"more", FileType.DIRECTORY, 0o755, 1, 1)
            assert await fill_and_count(client, directory, 100) == 100, "as if nothing had happened"
        await cluster.restart("master")
        async with cluster.client("again") as client:
            assert await Paths(client).read("/file") == b"AFTER!"
            assert {entry.name for entry in await Paths(client).list("/")} == {b"file", b"d", b"more"}


async def test_a_master_whose_disk_stays_full_serves_on_and_catches_up_when_it_has_room(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Meanwhile a client goes, what is in the trash expires, a primary dies: all of that wants to be recorded."""
    async with (
        memory_cluster(server_options=QUIET, lease_seconds=5.0, trash_seconds=20) as cluster,
        cluster.client() as client,
    ):
        paths = Paths(client, 1, 1)
        for path in ("/open", "/trashed", "/late"):
            await paths.write(path, b"data")
        directory = (await client.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)).inode
        _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        async with cluster.client("other") as other:
            await other.create(ROOT_INODE, b"e", FileType.DIRECTORY, 0o755, 1, 1)
            await other.open((await paths.stat("/open")).inode)
            for path in ("/open", "/trashed"):
                await paths.remove(path)
            await file.write(0, b"before")
            await file.flush()
            fill_disk(cluster.disks["master"])
            await fill_master(client, directory)
            with pytest.raises(GfsError) as caught:
                for number in range(20_000):
                    await client.setattr(directory, AttrChanges(mode=0o700 + number % 8))
            assert caught.value.code is Code.NO_SPACE
            await paths.remove("/late")
            with pytest.raises(GfsError) as caught:  # what is kept for removing is used up, too
                for number in range(20_000):
                    await client.rename(ROOT_INODE, b"de"[number % 2 :][:1], ROOT_INODE, b"ed"[number % 2 :][:1])
            assert caught.value.code is Code.NO_SPACE
        await cluster.kill("cs1")
        for _ in range(6):
            await trio.sleep(10)
            assert bytes(await file.read(0, 100)) == await paths.read("/file") == b"before"
        servers = (await client.status())["chunkservers"]
        assert sorted(server["state"] for server in servers) == ["down", "up", "up"]
        cluster.disks["master"].capacity += 50_000_000
        await cluster.start("cs1")
        await trio.sleep(60)
        await file.write(6, b" and after")
        await file.close()
        assert await paths.read("/file") == b"before and after"
        assert not (await fsck(client)).problems
        assert (await client.status())["chunks"]["total"] == 1, "the trash was not swept"


async def fill_and_count(client: Client, directory: int, count: int) -> int:
    for number in range(count):
        await client.setxattr(directory, b"user.0", bytes([number]) * 60_000)
    return count


async def test_a_master_starts_and_serves_on_a_full_disk(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster:
        async with cluster.client() as client:
            await Paths(client, 1, 1).write("/file", b"before")
            directory = (await client.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)).inode
            fill_disk(cluster.disks["master"])
            await fill_master(client, directory)
            await cluster.restart("master")
            for name in cluster.names:
                await cluster.restart(name)
        async with cluster.client("again") as client:
            assert await Paths(client).read("/file") == b"before"
            with pytest.raises(GfsError) as caught:
                await client.setxattr(directory, b"user.0", b"x" * 60_000)
            assert caught.value.code is Code.NO_SPACE
            cluster.disks["master"].capacity += 50_000_000
            await trio.sleep(2)
            await client.setxattr(directory, b"user.0", b"x" * 60_000)


async def test_a_full_chunkserver_gets_no_new_chunks_and_stops_no_write(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(2).randbytes(3 * CHUNK_BYTES)
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        for number in range(6):  # chunks with a replica on each server
            await paths.write(f"/old{number}", data[:100_000])
        fill_disk(cluster.disks["cs2"])
        started = trio.current_time()
        await paths.write("/at-once", data)  # the master does not know yet
        for number in range(6):
            await paths.write(f"/old{number}", data[:100_000], 100_000)
            assert await paths.read(f"/old{number}") == data[:100_000] * 2
        await paths.write("/old0", b"over", 10)
        assert trio.current_time() - started < 60, trio.current_time() - started
        await wait_until_reported(client, "cs2", 4)
        await paths.write("/later", data)
        assert await paths.read("/at-once") == await paths.read("/later") == data
        assert all("cs2" not in hosts and len(hosts) == 3 for hosts in replica_hosts(await info_of(client, "/later")))


async def test_a_cluster_that_is_full_says_so_and_recovers_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(3).randbytes(CHUNK_BYTES // 2)
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/old", data)
        for name in cluster.names:
            fill_disk(cluster.disks[name])
        for attempt in range(2):  # the master does not know it yet, then it does
            started = trio.current_time()
            _, file = await client.create_file(ROOT_INODE, b"new%d" % attempt, 0o644, 1, 1)
            with pytest.raises(GfsError) as caught:
                await file.write(0, data)
                await file.fsync()
            assert caught.value.code is Code.NO_SPACE
            old = await client.open((await paths.stat("/old")).inode, write=True)
            with pytest.raises(GfsError) as caught:
                await old.write(len(data), data)
                await old.flush()
            assert caught.value.code is Code.NO_SPACE
            with pytest.raises(GfsError) as caught:
                await paths.append("/old", b"r" * 200_000)
            assert caught.value.code is Code.NO_SPACE
            assert trio.current_time() - started < 30
            assert await paths.read("/old", 0, len(data)) == data
            await trio.sleep(5)
        assert (await client.statfs()).free_bytes == 0
        for name in cluster.names:
            cluster.disks[name].capacity = 1 << 40
        await trio.sleep(3)
        await paths.write("/new0", data)
        assert await paths.read("/new0") == data
        await paths.append("/old", b"record")
        assert (await client.statfs()).free_bytes > 0


async def test_a_chunkserver_starts_on_a_full_disk(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(chunkservers=1, replication=1) as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", b"data")
        fill_disk(cluster.disks["cs1"])
        for _ in range(12):  # the count of the incarnation gets another digit
            await cluster.restart("cs1")
        await trio.sleep(3)
        assert await Paths(client).read("/file") == b"data"


# ---------------------------------------------------------------- disks that fail or hang


async def test_a_disk_that_cannot_read_is_a_replica_to_be_replaced(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(4).randbytes(200_000)
    async with memory_cluster() as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/file", data)
        for name in ("cs1", "cs2"):
            cluster.disks[name].faults.fail_operation("pread", errno.EIO)
        for _ in range(5):
            assert await Paths(client).read("/file") == data
        await trio.sleep(3)
        states = [r["state"] for c in (await info_of(client, "/file"))["chunks"] for r in c["replicas"]]
        assert "good" in states


async def test_a_failed_flush_of_the_log_ends_the_master_before_anybody_hears_of_the_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Rule 20."""
    with pytest.raises(BaseExceptionGroup) as ended:
        async with memory_cluster() as cluster, cluster.client(timeout_seconds=5) as client:
            cluster.disks["master"].faults.fail_operation("fdatasync", errno.EIO)
            with pytest.raises(GfsError):
                await client.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)
            raise AssertionError("the master went on")
    assert ended.group_contains(GfsError, match="operation log cannot be written", depth=None)


@pytest.mark.parametrize("name", ["cs1", "cs2", "cs3"])
async def test_a_disk_that_hangs_does_not_hang_the_cluster(autojump_clock: trio.testing.MockClock, name: str) -> None:
    data = random.Random(5).randbytes(300_000)
    async with memory_cluster(chunkservers=4) as cluster, cluster.client(caching=False) as client:
        paths = Paths(client, 1, 1)
        for number in range(4):
            await paths.write(f"/f{number}", data)
        cluster.disks[name].hang()
        try:
            started = trio.current_time()
            for number in range(4):
                assert await paths.read(f"/f{number}") == data
            assert trio.current_time() - started < 25, "one attempt, then the others"
            started = trio.current_time()
            await paths.write("/f0", b"over", 5)
            await paths.append("/f1", b"record")
            await paths.write("/fresh", data)
            assert trio.current_time() - started < 50
            assert await paths.read("/fresh") == data
            assert (await client.status())["chunks"]["lost"] == 0
        finally:
            cluster.disks[name].resume()
        await trio.sleep(20)
        for number in range(4):
            expected = data[:5] + b"over" + data[9:] if number == 0 else data
            assert (await paths.read(f"/f{number}"))[: len(data)] == expected


@pytest.mark.parametrize("first", ["write", "append"])
@pytest.mark.parametrize("caching", [False, True])
async def test_a_first_chunk_is_not_given_up_after_the_file_was_closed_and_opened_again(
    autojump_clock: trio.testing.MockClock, first: str, caching: bool
) -> None:
    """A chunkserver died, and the retry of a later write threw the chunk away with what was acknowledged in it."""
    async with memory_cluster(chunkservers=4) as cluster, cluster.client(caching=caching) as client:
        paths = Paths(client, 1, 1)
        for number in range(4):
            if first == "write":
                await paths.write(f"/f{number}", b"acknowledged")
            else:
                await paths.append(f"/f{number}", b"acknowledged")
        await trio.sleep(5)  # the file is forgotten, the grant is not
        await cluster.kill("cs1")
        for number in range(4):
            await paths.write(f"/f{number}", b"later", 20)
            assert await paths.read(f"/f{number}") == b"acknowledged" + bytes(8) + b"later"


async def test_a_first_chunk_is_not_given_up_for_a_write_after_an_append_to_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        files = []
        for number in range(4):
            made = await client.create(ROOT_INODE, b"f%d" % number, FileType.FILE, 0o644, 1, 1)
            files.append(await client.open(made.inode, write=True))
            await files[-1].append(b"acknowledged")
        await cluster.kill("cs1")
        for file in files:
            await file.write(12, b", later")
            await file.flush()
            assert bytes(await file.read(0, 100)) == b"acknowledged, later"


async def test_a_first_chunk_is_not_given_up_while_an_answer_about_it_is_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The first piece is applied, its answer on the way, when the push of the second is refused: push buffer full."""
    async with memory_cluster(chunkservers=6) as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        call = client._servers.call
        refused, on_its_way = False, False

        async def busy(lane: str, server: Any, method: str, request: Any, *payload: Any, **options: Any) -> Any:
            nonlocal refused, on_its_way
            if method == "Push" and on_its_way and not refused:
                refused = True
                raise GfsError(Code.NOT_READY, "the push buffer is full")
            answer = await call(lane, server, method, request, *payload, **options)
            if method == "Write" and not on_its_way:
                on_its_way = True
                await trio.sleep(0.5)
            return answer

        client._servers.call = busy  # type: ignore[method-assign]
        await file.write(0, b"a" * 300_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.flush)
            await trio.sleep(0.1)
            assert on_its_way
            await file.write(400_000, b"b" * 200_000)
            nursery.start_soon(file.flush)
        await file.close()
        data = await Paths(client).read("/f")
        assert data[400_000:] == b"b" * 200_000
        assert data[:300_000] == b"a" * 300_000
