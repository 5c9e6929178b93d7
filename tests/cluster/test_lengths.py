"""How long a file is where others cut it, where writes fail, and where it is written and appended to."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import fill_disk
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, FileType, GfsError
from gfscore.client.paths import Paths

OLD, NEW = b"x" * 5000, b"y" * 10
COMMITTED_SECONDS = 5.0  # a length goes to the master within a second after the close


async def test_a_file_that_another_client_cuts_is_short_for_its_writer_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("writer") as writer,
        cluster.client("other") as other,
    ):
        attr, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, OLD)
        await file.flush()
        await other.setattr(attr.inode, AttrChanges(size=100))
        assert ((await writer.getattr(attr.inode)).size, len(await file.read(0, 9000))) == (100, 100)
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert ((await writer.getattr(attr.inode)).size, (await observer.getattr(attr.inode)).size) == (100, 100)


@pytest.mark.parametrize("told", [True, False], ids=["told", "not told"])
@pytest.mark.parametrize("open_at_the_cut", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("append", [True, False], ids=["append", "write"])
async def test_a_file_that_another_client_cuts_does_not_grow_back(
    append: bool, open_at_the_cut: bool, told: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """As logrotate does with copytruncate. Once 4990 zeros were left where the old bytes had been."""
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("writer") as writer,
        cluster.client("other") as other,
    ):
        attr, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, OLD)
        await file.flush()
        if not open_at_the_cut:
            await file.close()
        if not told:
            cluster.network.disconnect("writer", "master")
        await other.setattr(attr.inode, AttrChanges(size=0))
        if not told:
            cluster.network.reconnect("writer", "master")
            await trio.sleep(COMMITTED_SECONDS)
        if not open_at_the_cut:
            file = await writer.open(attr.inode, write=True)
        await (file.append(NEW) if append else file.write(0, NEW))
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await observer.getattr(attr.inode)).size == len(NEW)


async def test_what_is_acknowledged_in_one_chunk_counts_while_the_answer_about_another_is_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Two leases are asked for after a cut. The answer that makes the client a writer again comes last."""
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("writer") as writer,
        cluster.client("other") as other,
    ):
        attr, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, OLD)
        await file.flush()
        await other.setattr(attr.inode, AttrChanges(size=0))
        change: Any = writer._session.change
        first = True

        async def slow(method: str, request: Any, **options: Any) -> Any:
            nonlocal first
            late, first = first and method == "Lease", False
            reply = await change(method, request, **options)
            if late:
                await trio.sleep(5)
            return reply

        writer._session.change = slow  # type: ignore[method-assign]
        await file.write(0, NEW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.flush)
            await trio.sleep(1)
            await file.write(CHUNK_BYTES, NEW)
            await file.flush()
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await observer.getattr(attr.inode)).size == CHUNK_BYTES + len(NEW)


async def test_an_append_under_way_does_not_undo_a_cut_of_the_same_client(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.append(OLD)
        append: Any = client._mutator.append

        async def slow(*args: Any) -> Any:
            reply = await append(*args)
            await trio.sleep(0.05)
            return reply

        client._mutator.append = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.append, NEW)
            await trio.sleep(0.02)
            other = await client.open(attr.inode, write=True, truncate=True)
        await other.close()
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await observer.getattr(attr.inode)).size in (0, len(NEW))


async def test_a_write_that_gets_no_lease_has_no_length(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("client", timeout_seconds=5) as client,
    ):
        inode = (await client.create(ROOT_INODE, b"f", FileType.FILE, 0o644, 1, 1)).inode
        for name in cluster.names:
            await cluster.kill(name)
        await trio.sleep(100)  # all are down
        file = await client.open(inode, write=True)
        await file.write(0, OLD)
        with pytest.raises(GfsError):
            await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert ((await observer.getattr(inode)).size, (await client.getattr(inode)).size) == (0, 0)


async def test_a_write_to_full_disks_has_no_length(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        for name in cluster.names:
            fill_disk(cluster.disks[name])
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"x" * 500_000)
        with pytest.raises(GfsError):
            await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await observer.getattr(attr.inode)).size == 0


async def test_an_append_is_behind_what_the_same_client_wrote(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.append(NEW)
        await file.write(CHUNK_BYTES + 100, NEW)
        assert await file.append(NEW) >= CHUNK_BYTES + 110
        await file.close()


@pytest.mark.parametrize("chunk", ["granted", "copied"])
async def test_the_only_writer_of_a_file_opened_again_knows_its_length(
    chunk: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Also where the file gets a chunk of its own first. Once each look at it was a call then, and its end was asked of
    the replicas after each close."""
    async with memory_cluster() as cluster, cluster.client() as writer:
        attr, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        if chunk == "copied":
            await file.write(0, OLD)
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        if chunk == "copied":
            await writer.snapshot(attr.inode, ROOT_INODE, b"copy")
        file = await writer.open(attr.inode, write=True, append=True)
        end = await file.append(NEW) + len(NEW)
        before = writer.info()["calls"]
        assert (await writer.getattr(attr.inode)).size == end
        assert writer.info()["calls"] == before
        await file.close()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("full", [False, True])
async def test_an_append_that_meets_a_cut_leaves_no_hole_before_it(
    when: str, full: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """A log is cut on another mount, as logrotate does with copytruncate, while its program goes on."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        await file.write(0, bytes(2 * CHUNK_BYTES - (0 if full else 100)))
        await file.append(b"a line")
        call = one._servers.call

        async def slow(*args: Any, **options: Any) -> Any:
            await trio.sleep(0.1 if when == "before" else 0)
            reply = await call(*args, **options)
            await trio.sleep(0.1 if when == "after" else 0)
            return reply

        one._servers.call = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.append, bytes(200))
            await trio.sleep(0.05)
            await two.setattr(attr.inode, AttrChanges(size=0))
        one._servers.call = call  # type: ignore[method-assign]
        assert await file.append(b"a line") <= 200
        await file.close()


async def test_a_length_that_was_cut_while_its_writer_was_away_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.append(OLD)
        cluster.network.disconnect("one", "master")
        await two.setattr(attr.inode, AttrChanges(size=0))
        await trio.sleep(5)
        cluster.network.reconnect("one", "master")
        await trio.sleep(5)
        assert (await one.getattr(attr.inode)).size == 0
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await one.getattr(attr.inode)).size == 0


@pytest.mark.parametrize("asked", [False, True])
async def test_a_length_that_was_cut_while_its_answer_was_on_the_way_is_forgotten(
    asked: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        call = one._servers.call

        async def late(*args: Any, **options: Any) -> Any:
            answer = await call(*args, **options)
            await trio.sleep(1)
            return answer

        one._servers.call = late  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.append, OLD)
            await trio.sleep(0.5)
            await two.setattr(attr.inode, AttrChanges(size=0))
            await one.getattr(attr.inode)
        assert not asked or (await one.getattr(attr.inode)).size == 0
        await file.close()
        await trio.sleep(COMMITTED_SECONDS)
        assert (await one.getattr(attr.inode)).size == 0


async def test_whoever_follows_a_log_that_others_write_asks_the_master_only_when_its_chunks_change(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("one") as one,
        cluster.client("two") as two,
        cluster.client("reader") as reader,
    ):
        attr, first = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        second = await two.open(attr.inode, write=True)
        end, asked, chunks = 0, [], set()
        for number in range(60):
            end = await (first, second)[number % 2].append(bytes(CHUNK_BYTES // 16)) + CHUNK_BYTES // 16
            chunks.add(end // CHUNK_BYTES)
            for client in (one, two, reader):
                assert (await client.getattr(attr.inode)).size == end
            asked.append(reader.info()["calls"]["GetAttr"])
        assert len(chunks) >= 4 and asked[-1] <= 3 * len(chunks)
        await cluster.restart("cs1")
        await cluster.restart("cs2")
        assert (await reader.getattr(attr.inode)).size == end
        end = await first.append(NEW) + len(NEW)
        assert (await reader.getattr(attr.inode)).size == end
        await two.setattr(attr.inode, AttrChanges(size=5))
        assert (await reader.getattr(attr.inode)).size == 5
        await first.close()
        await second.close()


async def test_who_closes_while_another_one_begins_to_write_sees_what_that_one_writes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The answer to the close waits for a third client, and came after the other's first bytes were seen."""
    async with (
        memory_cluster() as cluster,
        cluster.client("slow") as slow,
        cluster.client("two") as two,
        cluster.client("one") as one,
    ):
        attr, first = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await first.append(NEW)
        await slow.getattr(attr.inode)

        async def take_time(_: Any) -> None:
            slow.on_invalidate = None
            await trio.sleep(3)

        slow.on_invalidate = take_time
        await first.close()
        await trio.sleep(1.5)
        second = await two.open(attr.inode, write=True)
        for seconds in (0, 5, 1):
            await trio.sleep(seconds)
            end = await second.append(NEW) + len(NEW)
            assert (await one.getattr(attr.inode)).size == end
        await trio.sleep(5)
        assert (await one.getattr(attr.inode)).size == end
        await second.close()


@pytest.mark.parametrize("lost", ["the master's memory", "a call-back"])
async def test_a_length_counts_no_more_when_a_cut_could_not_be_told(
    lost: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The master has the length of a closed file, its answer is on its way; and then it is not known here, but there,
    that another mount has cut the file."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"before" * 500)
        call, committed, answered = one._session.call, trio.Event(), trio.Event()

        async def slow(method: str, request: Any, **more: Any) -> Any:
            reply = await call(method, request, **more)
            if method == "Commit":
                committed.set()
                await answered.wait()
            return reply

        one._session.call = slow  # type: ignore[method-assign]
        await file.close()
        await committed.wait()
        if lost == "a call-back":
            cluster.network.disconnect("one", "master")
        else:
            await cluster.restart("master")
        other = await two.open(file.inode, write=True, truncate=True)
        await other.write(0, b"after" * 100)
        await other.close()
        cluster.network.reconnect("one", "master")
        assert await Paths(one).read("/f") == b"after" * 100
        answered.set()
        await trio.sleep(60)
        for reader in (one, two):
            assert await Paths(reader).read("/f") == b"after" * 100
