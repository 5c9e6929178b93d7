"""The life of a file through every room, in one process, without a real clock, disk or network."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing
from memory_cluster import CHUNK_BYTES, MemoryCluster, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, FileType, GfsError, OpenFile
from gfscore.client.paths import Paths
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master import admin
from gfscore.server.master.scanning import slices


async def test_write_read_and_the_length_seen_by_another_client(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(1).randbytes(5 * CHUNK_BYTES // 2)
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        for start in range(0, len(data), 300_000):
            await file.write(start, data[start : start + 300_000])
        assert (await one.lookup(ROOT_INODE, b"file")).size == len(data)
        await file.flush()
        assert (await two.lookup(ROOT_INODE, b"file")).size == len(data)
        assert await Paths(two).read("/file") == data
        await file.close()
        assert await Paths(two).read("/file", 1000, 2000) == data[1000:3000]


async def test_small_and_overlapping_writes(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(2)
    model = bytearray(2 * CHUNK_BYTES)
    async with memory_cluster() as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, bytes(model))
        for _ in range(300):
            offset = rng.randrange(len(model) - 5000)
            piece = rng.randbytes(rng.randrange(1, 5000))
            await file.write(offset, piece)
            model[offset : offset + len(piece)] = piece
            if rng.random() < 0.05:
                await file.fsync()
            if rng.random() < 0.05:
                assert bytes(await file.read(offset, 5000)) == model[offset : offset + 5000]
        await file.close()
        assert await Paths(client).read("/file") == model


async def test_appends_of_two_clients_fill_chunks_and_pad_them(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, created = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        await created.close()
        found: list[tuple[int, bytes]] = []

        async def append(client, who: int) -> None:  # type: ignore[no-untyped-def]
            rng = random.Random(who)
            file = await client.open((await client.lookup(ROOT_INODE, b"log")).inode, write=True)
            for number in range(60):
                record = b"<%d:%d>" % (who, number) + rng.randbytes(rng.randrange(60_000)).replace(b"\0", b"\1")
                found.append((await file.append(record), record))
            await file.close()

        async with trio.open_nursery() as nursery:
            for who, client in enumerate((one, two, one, two)):
                nursery.start_soon(append, client, who)
        data = await Paths(two).read("/log")
        end = 0
        for offset, record in sorted(found):
            assert data[end:offset] == bytes(offset - end)
            assert data[offset : offset + len(record)] == record
            end = offset + len(record)
        assert data[end:] == bytes(len(data) - end)
        assert len(data) > 2 * CHUNK_BYTES


async def test_appends_of_one_client_through_handles_that_come_and_go(autojump_clock: trio.testing.MockClock) -> None:
    """A file that was closed long enough to be forgotten: its next append is no retry of an earlier one."""
    records = [b"first", b"other", b"the third is longer", b"again"]
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/log", b"")
        inode = (await client.lookup(ROOT_INODE, b"log")).inode
        offsets = []
        for record in records:
            file = await client.open(inode, write=True, append=True)
            offsets.append(await file.append(record))
            await file.close()
            await trio.sleep(10)
        data = await paths.read("/log")
        assert [data[offset:][: len(record)] for offset, record in zip(offsets, records, strict=True)] == records
        assert len(data) == sum(map(len, records))


async def test_a_chunkserver_dies_while_others_are_written_and_read(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(3).randbytes(3 * CHUNK_BYTES)
    async with memory_cluster(chunkservers=4) as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        for number, start in enumerate(range(0, len(data), 200_000)):
            await file.write(start, data[start : start + 200_000])
            if number == 5:
                await file.flush()
                await cluster.kill("cs2")
        await file.flush()
        assert await Paths(client).read("/file") == data
        await file.close()


async def test_the_primary_of_a_chunk_dies_before_anybody_used_it(autojump_clock: trio.testing.MockClock) -> None:
    """Back again, it has never heard of the chunk: the file gets another one, nothing waits for what cannot come."""
    async with memory_cluster() as cluster, cluster.client(timeout_seconds=20) as client:
        _, file = await client.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        info = await client.file_info(file.inode)
        (primary,) = [s for s in info["chunks"][0]["replicas"] if s["chunkserver"] == info["chunks"][0]["primary"]]
        await cluster.restart(primary["address"].partition(":")[0])
        await trio.sleep(10)
        assert await file.append(b"record") == 0
        await file.close()
        assert await Paths(client).read("/log") == b"record"


async def test_the_primary_of_an_unused_chunk_stays_away(autojump_clock: trio.testing.MockClock) -> None:
    """Two clients hold the grant: neither has to wait until the dead server's session is over."""
    async with (
        memory_cluster(chunkservers=4) as cluster,
        cluster.client("one", timeout_seconds=20) as one,
        cluster.client("two", timeout_seconds=20) as two,
    ):
        _, file = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        other = await two.open(file.inode, write=True, append=True)
        info = await one.file_info(file.inode)
        (primary,) = [s for s in info["chunks"][0]["replicas"] if s["chunkserver"] == info["chunks"][0]["primary"]]
        offsets: list[int] = []

        async def append(handle) -> None:  # type: ignore[no-untyped-def]
            offsets.append(await handle.append(b"record"))

        await cluster.kill(primary["address"].partition(":")[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(append, file)
            nursery.start_soon(append, other)
        assert sorted(offsets) == [0, 6]
        await file.close()
        await other.close()
        assert await Paths(two).read("/log") == b"recordrecord"


async def test_a_file_that_is_cut_before_its_first_write(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client(timeout_seconds=20) as client:
        _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await client.setattr(file.inode, AttrChanges(size=100))
        await client.setattr(file.inode, AttrChanges(size=50))
        await file.write(10, b"data")
        await file.flush()
        await file.close()
        assert await Paths(client).read("/file") == bytes(10) + b"data" + bytes(36)


async def test_everything_is_killed_and_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(4).randbytes(CHUNK_BYTES + 12345)
    async with memory_cluster() as cluster:
        async with cluster.client() as client:
            paths = Paths(client, 1, 1)
            await paths.makedirs("/a/b")
            await paths.write("/a/b/file", data)
            offsets = [await paths.append("/a/log", b"record %d" % number) for number in range(5)]
            for name in ("master", *cluster.names):
                await cluster.kill(name)
        for name in ("master", *cluster.names):
            await cluster.start(name)
        async with cluster.client("again") as client:
            paths = Paths(client)
            assert await paths.read("/a/b/file") == data
            log = await paths.read("/a/log")
            assert [log[offset : offset + 8] for offset in offsets] == [b"record %d" % n for n in range(5)]
            assert await paths.append("/a/log", b"more") >= len(log)


async def test_snapshot_shares_until_written(autojump_clock: trio.testing.MockClock) -> None:
    base = random.Random(5).randbytes(CHUNK_BYTES + 1000)
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.makedirs("/d")
        await paths.write("/d/f", base)
        chunks = (await client.status())["chunks"]["total"]
        await paths.snapshot("/d", "/e")
        await paths.snapshot("/e", "/g")
        assert (await client.status())["chunks"]["total"] == chunks
        await paths.write("/e/f", b"XX", 10)
        await paths.write("/d/f", b"YY", CHUNK_BYTES + 10)
        assert await paths.read("/d/f") == base[: CHUNK_BYTES + 10] + b"YY" + base[CHUNK_BYTES + 12 :]
        assert await paths.read("/e/f") == base[:10] + b"XX" + base[12:]
        assert await paths.read("/g/f") == base
        assert (await client.status())["chunks"]["total"] == chunks + 2


async def test_truncation_holes_and_unlinked_but_open(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(trash_seconds=0) as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"0123456789")
        await one.setattr(file.inode, AttrChanges(size=5))
        await file.write(8, b"end")
        await file.flush()
        assert bytes(await file.read(0, 100)) == b"01234\0\0\0end"
        await one.setattr(file.inode, AttrChanges(size=3 * CHUNK_BYTES))
        assert (await two.lookup(ROOT_INODE, b"file")).size == 3 * CHUNK_BYTES
        assert bytes(await file.read(2 * CHUNK_BYTES, 10)) == bytes(10)
        await two.unlink(ROOT_INODE, b"file")
        with pytest.raises(GfsError) as caught:
            await one.lookup(ROOT_INODE, b"file")
        assert caught.value.code is Code.NOT_FOUND
        await file.write(0, b"still here")
        await file.flush()
        assert bytes(await file.read(0, 10)) == b"still here"
        await file.close()
        with pytest.raises(GfsError):
            await two.open(file.inode)


async def test_changes_of_one_client_are_seen_by_the_other_at_once(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        directory = await one.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)
        assert (await two.list_page(ROOT_INODE, b"", 10))[0][0].name == b"d"
        assert (await two.list_page(directory.inode, b"", 10)) == ([], False)
        await one.create(directory.inode, b"new", FileType.DIRECTORY, 0o755, 1, 1)
        assert (await two.lookup(directory.inode, b"new")).type == FileType.DIRECTORY
        assert (await two.getattr(directory.inode)).nlink == 3
        await two.rename(directory.inode, b"new", ROOT_INODE, b"moved")
        with pytest.raises(GfsError):
            await one.lookup(directory.inode, b"new")
        moved = await one.lookup(ROOT_INODE, b"moved")
        await two.setattr(moved.inode, AttrChanges(mode=0o700))
        assert (await one.getattr(moved.inode)).mode == 0o700


async def test_a_first_chunk_that_was_never_written_is_a_hole(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, grown = await one.create_file(ROOT_INODE, b"grown", 0o644, 1, 1)
        await one.setattr(grown.inode, AttrChanges(size=3000))
        assert bytes(await grown.read(0, 4000)) == bytes(3000)
        await grown.close()
        _, sparse = await one.create_file(ROOT_INODE, b"sparse", 0o644, 1, 1)
        await sparse.write(CHUNK_BYTES + 5, b"end")
        assert bytes(await sparse.read(CHUNK_BYTES - 1, 100)) == bytes(6) + b"end"
        await sparse.close()
        _, empty = await one.create_file(ROOT_INODE, b"empty", 0o644, 1, 1)
        await empty.close()
        await trio.sleep(5)  # simulated: the lengths are with the master
        assert await Paths(two).read("/grown") == bytes(3000)
        assert await Paths(two).read("/sparse") == bytes(CHUNK_BYTES + 5) + b"end"
        status = await two.status()
        assert status["chunks"] == {"total": 1, "healthy": 1, "under_replicated": 0, "over_replicated": 0, "lost": 0}
        await Paths(two).write("/empty", b"filled")
        assert await Paths(one).read("/empty") == b"filled"


async def test_a_listing_by_path_knows_lengths_that_are_not_committed_yet(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"123")
        await file.flush()
        assert [(entry.name, entry.attr.size) for entry in await Paths(two).list("/")] == [(b"file", 3)]
        await file.close()


async def test_a_name_made_while_something_else_is_called_back_is_not_taken_for_missing(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        directory = await client.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)
        assert await client.list_page(directory.inode, b"", 10) == ([], False)
        change = client._session.change

        async def called_back_meanwhile(method: str, request: Any) -> Any:
            reply = await change(method, request)
            item = pb.InvalidateRequest.Item(inode=ROOT_INODE, attr=True)
            await client._invalidate(pb.InvalidateRequest(items=[item]), cast(Any, None))
            return reply

        monkeypatch.setattr(client._session, "change", called_back_meanwhile)
        made = await client.create(directory.inode, b"new", FileType.DIRECTORY, 0o755, 1, 1)
        assert (await client.lookup(directory.inode, b"new")).inode == made.inode
        assert [entry.name for entry in (await client.list_page(directory.inode, b"", 10))[0]] == [b"new"]


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_hole_in_front_of_the_only_write_of_an_open_file(
    reopened: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """The first chunk was granted with the file and never used; it once was an error after a minute."""
    start = 2 * CHUNK_BYTES + 77
    async with memory_cluster() as cluster, cluster.client() as client, cluster.client("other") as other:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(start, b"data")
        await file.flush()
        if reopened:
            await file.close()
            file = await client.open(file.inode, write=True, append=True)
            await file.append(b"more")
        for reader in (client, other):
            assert (await Paths(reader).read("/f")).startswith(bytes(start) + b"data")
        await file.close()


async def test_a_file_synced_by_its_last_reader_is_let_go_all_the_same(autojump_clock: trio.testing.MockClock) -> None:
    """The master once counted its client among the writers for ever: everybody else had to ask for the length."""
    async with memory_cluster() as cluster, cluster.client() as client, cluster.client("other") as other:
        attr, writer = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        reader = await client.open(attr.inode)
        await writer.write(0, b"data")
        await writer.close()
        await reader.fsync()
        await reader.close()
        await trio.sleep(5)
        found = await other.getattr(attr.inode)
        assert found.size == 4 and not found.length_pending


async def test_asking_for_the_status_all_the_time_does_not_keep_the_master_counting(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a million chunks a count takes seconds; `gfs drain --wait` asks twice a second. What is told adds up."""
    counting = 0.0

    async def slow(tables: Any, table: str) -> AsyncIterator[Any]:
        nonlocal counting
        await trio.sleep(2)
        counting += 2
        async for rows in slices(tables, table):
            yield rows

    monkeypatch.setattr(admin, "slices", slow)
    async with memory_cluster() as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/f", b"data")
        before, counting = trio.current_time(), 0.0
        while trio.current_time() < before + 100:
            chunks = (await client.status())["chunks"]
            assert chunks.pop("total") == sum(chunks.values())
            await trio.sleep(0.5)
        assert 10 < counting < 30
        await Paths(client, 1, 1).write("/g", b"data")
        chunks = (await client.status())["chunks"]
        assert chunks.pop("total") == sum(chunks.values())
        server = (await client.status())["chunkservers"][0]["id"]
        await client.operator.drain(server)
        rows = (await client.status())["chunkservers"]
        assert next(row["chunks_left"] for row in rows if row["id"] == server) == 2, "it was counted anew"


@pytest.mark.parametrize("how", ["write", "append"])
async def test_a_file_that_gets_too_large_is_refused_and_the_client_goes_on(
    how: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        end = CHUNK_BYTES << 32
        with pytest.raises(GfsError) as refused:
            if how == "write":
                await file.write(end, b"x")
            else:
                await client.setattr(attr.inode, AttrChanges(size=end))
                await file.append(b"x")
        assert refused.value.code is Code.FILE_TOO_LARGE
        await file.write(end - 1, b"y")
        await file.fsync()
        assert (await client.getattr(attr.inode)).size == end
        assert bytes(await file.read(end - 2, 10)) == b"\0y"
        await file.close()


async def test_a_file_that_was_not_closed_is_written_when_the_client_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster:
        async with cluster.client("one") as one:
            _, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
            await file.write(0, b"x")
            _, log = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
            await log.append(b"x")
        async with cluster.client("two") as two:
            for name in (b"f", b"log"):
                attr = await two.lookup(ROOT_INODE, name)
                assert attr.size == 1 and not attr.length_pending
                assert await Paths(two).read(b"/" + name) == b"x"


async def test_a_close_that_is_cancelled_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one:
        _, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"a" * 1000)
        call = one._servers.call

        async def late(*more: Any, **options: Any) -> Any:
            await trio.sleep(3)
            return await call(*more, **options)

        one._servers.call = late  # type: ignore[method-assign]
        with trio.move_on_after(1):
            await file.flush()
        await file.write(0, b"b" * 1000)
        with trio.move_on_after(1):
            await file.close()
        await trio.sleep(30)
        one._servers.call = call  # type: ignore[method-assign]
        assert one._files._budget.used == 0
        assert await Paths(one).read("/f") == b"b" * 1000


async def one_stuck(cluster: MemoryCluster, client: Client) -> tuple[OpenFile, OpenFile]:
    """Two files open for writing: the chunkserver of the first is gone, that of the other not."""
    found: dict[str, OpenFile] = {}
    for number in range(20):
        attr, file = await client.create_file(ROOT_INODE, b"%d" % number, 0o644, 1, 1)
        grant = client._chunks.known_grant(attr.inode, 0)
        assert grant is not None
        found.setdefault(grant.primary.address.host, file)
    (gone, stuck), (_, fine) = found.items()
    await stuck.write(0, b"x")
    await stuck.flush()
    await cluster.kill(gone)
    await stuck.write(0, b"y")
    return stuck, fine


async def test_a_file_whose_servers_are_gone_keeps_no_other_from_being_written_when_the_client_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(2, 1) as cluster, cluster.client("two") as two:
        async with cluster.client("one", timeout_seconds=20) as one:
            _, fine = await one_stuck(cluster, one)
            await fine.write(0, b"x" * 100)
        assert (await two.getattr(fine.inode)).size == 100


async def test_a_close_that_was_cancelled_does_not_hold_up_the_lengths_of_other_files(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(2, 1) as cluster, cluster.client("one") as one, cluster.client("two") as two:
        stuck, fine = await one_stuck(cluster, one)
        with trio.move_on_after(1):
            await stuck.close()
        await fine.write(0, b"x" * 100)
        await fine.close()
        await trio.sleep(5)
        attr = await two.getattr(fine.inode)
        assert attr.size == 100 and not attr.length_pending


@pytest.mark.parametrize("first", [0, 1])
async def test_a_file_with_two_names_in_a_listed_directory_is_read_from_its_middle(
    first: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever reads a file asks for those listed behind it too. Its own second name was one: zeros were read."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        data = random.Random(3).randbytes(2 * CHUNK_BYTES)
        await Paths(one).write("/a", data)
        attr = await one.lookup(ROOT_INODE, b"a")
        await one.link(attr.inode, ROOT_INODE, b"b")
        await trio.sleep(5)
        await two.list_page(ROOT_INODE, b"", 1000)
        file = await two.open(attr.inode)
        start = first * CHUNK_BYTES
        assert bytes(await file.read(start, 1000)) == data[start : start + 1000]
        await file.close()
