"""What a client takes for right although something came in between."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import EAGER, fill_disk, fill_master, leases_given_back
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, FileType, GfsError
from gfscore.client.paths import Paths
from gfscore.server.master.leasing import Leasing


def _refuse(client: Client, method: str) -> None:
    """The master's log has no room for it: a definite answer, nothing was changed."""
    change = client._session.change

    async def refused(name: str, request: Any) -> Any:
        if name == method:
            raise GfsError(Code.NO_SPACE, "the disk of the master is full")
        return await change(name, request)

    client._session.change = refused  # type: ignore[method-assign]


@pytest.mark.parametrize("flushed", [True, False])
async def test_a_truncation_that_was_refused(flushed: bool, autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 1000)
        if flushed:
            await file.flush()  # what `close` promises: on all replicas
        change = one._session.change
        _refuse(one, "SetAttr")
        with pytest.raises(GfsError) as caught:
            await one.setattr(file.inode, AttrChanges(size=10))
        assert caught.value.code is Code.NO_SPACE
        one._session.change = change  # type: ignore[method-assign]
        if flushed:
            assert (await two.lookup(ROOT_INODE, b"file")).size == 1000  # nothing was cut: it is there
        await file.fsync()
        await file.close()
        await trio.sleep(3)
        assert await Paths(two).read("/file") == b"x" * 1000


async def test_rewritten_with_its_old_time(autojump_clock: trio.testing.MockClock) -> None:
    """As by `rsync --inplace -t`, `dd conv=notrunc` and `touch -r`: size and mtime are as before, the bytes are not."""
    async with memory_cluster() as cluster, cluster.client("reader") as reader, cluster.client("writer") as writer:
        _, made = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await made.write(0, b"old")
        await made.close()
        await trio.sleep(3)
        told: list[Any] = []

        async def invalidated(change: Any) -> None:
            told.append(change)

        reader.on_invalidate = invalidated
        first = await reader.open(made.inode)
        assert bytes(await first.read(0, 10)) == b"old"  # the kernel keeps these pages
        await first.close()
        before = await reader.getattr(made.inode)
        again = await writer.open(made.inode, write=True)
        await again.write(0, b"new")
        await again.close()
        await trio.sleep(3)
        await writer.setattr(made.inode, AttrChanges(mtime_ns=before.mtime_ns))
        second = await reader.open(made.inode)
        dropped = any(change.data for change in told)
        assert not second.keep_cache or dropped, "the kernel keeps its old pages, and was not told to drop them"


async def test_an_answer_that_comes_after_somebody_cut_the_file(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        write, late, applied = one._mutator.write, trio.Event(), trio.Event()

        async def slow(grant: Any, extents: Any, *more: Any, **options: Any) -> Any:
            reply = await write(grant, extents, *more, **options)
            if extents and extents[0][0] == 400_000:
                applied.set()
                await late.wait()  # the answer is on its way
            return reply

        one._mutator.write = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            await file.write(CHUNK_BYTES + 400_000, b"1" * 1000)
            nursery.start_soon(file.flush)
            await applied.wait()
            await two.setattr(file.inode, AttrChanges(size=0))
            await file.write(0, b"2" * 100)
            nursery.start_soon(file.flush)
            await trio.sleep(1)
            late.set()
        await file.fsync()
        await file.close()
        await trio.sleep(3)
        data = await Paths(two).read("/file")
        hole = bytes(CHUNK_BYTES + 399_900)
        assert data in (b"2" * 100, b"2" * 100 + hole + b"1" * 1000), (len(data), data[-10:])


async def test_what_was_changed_while_the_answer_to_a_creation_was_on_its_way(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("one") as one,
        cluster.client("two") as two,
        cluster.client("slow") as slow,
    ):
        await slow.list_page(ROOT_INODE, b"", 10)
        directory = (await two.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)).inode

        async def slowly(change: Any) -> None:
            await trio.sleep(4)

        slow.on_invalidate = slowly
        handles: list[Any] = []

        async def create() -> None:
            handles.append((await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1))[1])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            await trio.sleep(0.5)
            inode = (await two.lookup(ROOT_INODE, b"file")).inode
            theirs = await two.open(inode, write=True)
            await theirs.write(0, b"old")
            await theirs.fsync()
            await two.snapshot(inode, directory, b"copy")
            await theirs.write(0, b"new")
            await theirs.fsync()
            await theirs.close()
            assert not handles, "its answer is still on its way"
        await trio.sleep(10)
        assert await Paths(two).read("/file") == b"new"
        assert bytes(await handles[0].read(0, 10)) == b"new"
        async with cluster.client("three") as three:
            assert await Paths(three).read("/file") == b"new"


async def test_an_append_goes_behind_what_was_written_before(autojump_clock: trio.testing.MockClock) -> None:
    """The answer that names the last chunk crosses with the call-back that there is another one."""
    async with (
        memory_cluster() as cluster,
        cluster.client("one") as one,
        cluster.client("two") as two,
        cluster.client("slow") as slow,
    ):
        _, made = await two.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await made.append(b"a" * 100)
        await made.close()
        await trio.sleep(3)
        await slow.lookup(ROOT_INODE, b"file")

        async def slowly(change: Any) -> None:
            await trio.sleep(4)

        slow.on_invalidate = slowly
        mine = await one.open(made.inode, write=True, append=True)
        theirs = await two.open(made.inode, write=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.append, b"b" * 100)  # its grant waits for the slow one
            await trio.sleep(0.5)
            await theirs.write(3 * CHUNK_BYTES, b"c" * 100)
            nursery.start_soon(theirs.flush)
        await theirs.flush()
        await trio.sleep(5)
        assert (await one.getattr(made.inode)).size == 3 * CHUNK_BYTES + 100
        offset = await mine.append(b"d" * 100)
        assert offset >= 3 * CHUNK_BYTES + 100, offset


@pytest.mark.parametrize("flushed", [True, False])
async def test_a_truncation_that_a_full_master_refused(flushed: bool, autojump_clock: trio.testing.MockClock) -> None:
    """The same, without a patch: the disk of the master is full."""
    async with memory_cluster() as cluster, cluster.client("one") as one:
        directory = (await one.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)).inode
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 1000)
        await file.fsync()
        await file.write(1000, b"y" * 1000)
        if flushed:
            await file.flush()
        disk = cluster.disks["master"]
        fill_disk(disk, 1_000_000)
        await fill_master(one, directory)
        refused = False
        for number in range(20_000):  # times are changed until these are refused, too
            try:
                await one.setattr(directory, AttrChanges(mtime_ns=number))
            except GfsError as error:
                assert error.code is Code.NO_SPACE
                refused = True
                break
        assert refused
        with pytest.raises(GfsError) as caught:
            await one.setattr(file.inode, AttrChanges(size=10))
        assert caught.value.code is Code.NO_SPACE
        disk.capacity += 50_000_000
        await trio.sleep(3)
        await file.fsync()
        await file.close()
        await trio.sleep(3)
        async with cluster.client("two") as two:
            assert await Paths(two).read("/file") == b"x" * 1000 + b"y" * 1000


async def test_a_truncation_for_which_no_server_could_be_reached(autojump_clock: trio.testing.MockClock) -> None:
    """Nothing was cut (the master never could): what `flush` acknowledged is not to be hidden."""
    async with (
        memory_cluster() as cluster,
        cluster.client("one", timeout_seconds=10) as one,
        cluster.client("two") as two,
    ):
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 1000)
        await file.flush()
        for name in cluster.names:
            cluster.network.disconnect("master", name)
        with pytest.raises(GfsError) as caught:
            await one.setattr(file.inode, AttrChanges(size=10))
        assert caught.value.code is Code.TIMED_OUT
        for name in cluster.names:
            cluster.network.reconnect("master", name)
        await trio.sleep(10)
        assert (await two.lookup(ROOT_INODE, b"file")).size == 1000  # everybody sees that it was not cut
        await file.fsync()
        await file.close()
        await trio.sleep(3)
        assert await Paths(two).read("/file") == b"x" * 1000


async def test_a_sync_that_crosses_with_a_truncation_here_leaves_no_grant_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The grant that an fsync asked for comes behind the answer to the truncation, because a reader is slow to forget:
    it is for a chunk that the file has no more."""
    async with (
        memory_cluster(server_options=EAGER, trash_seconds=0) as cluster,
        cluster.client("reader") as reader,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"before" * 100)
        await file.close()
        await leases_given_back()
        assert (await Paths(reader).stat("/f")).size == 600
        calls: list[float] = []

        async def slow(_: Any) -> None:
            calls.append(trio.current_time())
            if len(calls) == 2:  # of the lease; the first is of the length that goes with the sync
                await trio.sleep(0.5)

        reader.on_invalidate = slow
        file = await writer.open(file.inode, write=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.sleep(0.2)
            await writer.setattr(file.inode, AttrChanges(size=0))
        await file.write(0, b"after")
        await file.fsync()
        await file.close()
        await trio.sleep(60)
        reader.on_invalidate = None
        assert await Paths(reader).read("/f") == b"after"


async def test_a_sync_that_crosses_with_the_release_of_the_file_leaves_no_grant_behind(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """An fsync through a handle for reading asks for a grant; while a reader is slow to forget, another file is closed,
    and the lengths of both go to the master: this client is no writer any more when the grant arrives."""
    async with (
        memory_cluster(server_options=EAGER, trash_seconds=0) as cluster,
        cluster.client("reader") as reader,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"before")
        await file.close()
        await leases_given_back()
        assert (await Paths(reader).stat("/f")).size == 6
        calls: list[float] = []

        async def slow(_: Any) -> None:
            calls.append(trio.current_time())
            if len(calls) == 1:
                await trio.sleep(3)

        reader.on_invalidate = slow
        file = await writer.open(file.inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.sleep(0.2)
            await Paths(writer, 1, 1).write("/g", b"another file")
        reader.on_invalidate = None
        await file.close()
        await trio.sleep(10)
        assert await Paths(reader).read("/f") == b"before"
        file = await writer.open(file.inode, write=True)
        await file.write(6, b"+after")
        await file.close()
        for _ in range(2):
            await trio.sleep(10)
            assert await Paths(reader).read("/f") == b"before+after"
        async with cluster.client("new") as new:
            assert await Paths(new).read("/f") == b"before+after"


async def test_a_sync_leaves_no_writer_behind(autojump_clock: trio.testing.MockClock) -> None:
    """As above, with two chunks: the grant for the second one is asked for after the release."""
    async with (
        memory_cluster(server_options=EAGER, trash_seconds=0) as cluster,
        cluster.client("reader") as reader,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, bytes(CHUNK_BYTES + 10))
        await file.close()
        await leases_given_back()
        assert (await Paths(reader).stat("/f")).size == CHUNK_BYTES + 10
        calls: list[float] = []

        async def slow(_: Any) -> None:
            calls.append(trio.current_time())
            if len(calls) == 1:
                await trio.sleep(3)

        reader.on_invalidate = slow
        file = await writer.open(file.inode)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await trio.sleep(0.2)
            await Paths(writer, 1, 1).write("/g", b"another file")
        reader.on_invalidate = None
        await file.close()
        await trio.sleep(300)
        async with cluster.client("third") as third:
            more = await third.open(file.inode, write=True)
            await more.write(0, b"x")
            await more.flush()
            assert file.inode in third._chunks.sole_writer, "somebody else counts as a writer for ever"


@pytest.mark.parametrize("lease_first", [True, False])
async def test_commit_answer_behind_a_lease_leaves_no_writer(
    lease_first: bool, autojump_clock: trio.testing.MockClock
) -> None:
    """fsync through a handle for reading, two chunks; between its two leases the file is released with another one.
    Both answers wait for a slow reader, and are taken in in the other order."""
    async with (
        memory_cluster(server_options=EAGER, trash_seconds=0) as cluster,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, bytes(CHUNK_BYTES + 10))
        await file.close()
        await leases_given_back()
        change, committed, granted = writer._session.change, trio.Event(), trio.Event()
        write, leases = writer._mutator.write, []

        async def crossed(method: str, request: Any) -> Any:
            reply = await change(method, request)
            if method == "Commit" and not committed.is_set():
                committed.set()  # the master has it
                if lease_first:
                    await granted.wait()
                    await trio.sleep(0.1)
            if method == "Lease":
                leases.append(request.index)
                if len(leases) == 2:
                    granted.set()
            return reply

        async def slow(grant: Any, *more: Any, **options: Any) -> Any:
            if grant.index == 0:
                await committed.wait()
            else:
                await trio.sleep(0.5)  # a disk
            return await write(grant, *more, **options)

        writer._mutator.write = slow  # type: ignore[method-assign]
        file = await writer.open(file.inode)
        writer._session.change = crossed  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            while not leases:
                await trio.sleep(0)
            writer._files._closed_files.set()  # another file is closed
        assert leases == [0, 1]
        writer._session.change = change  # type: ignore[method-assign]
        await file.close()
        await trio.sleep(300)
        async with cluster.client("third") as third:
            more = await third.open(file.inode, write=True)
            await more.write(0, b"x")
            await more.flush()
            assert file.inode in third._chunks.sole_writer, "somebody else counts as a writer for ever"


async def test_a_lease_that_was_overtaken_by_a_release_and_then_refused(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The master looks for the grant of an fsync through a handle for reading (a server is slow to prepare); meanwhile
    the file is released together with another one. Asked again, the grant is refused: the disk is full."""
    async with (
        memory_cluster(server_options=EAGER, trash_seconds=0) as cluster,
        cluster.client("writer") as writer,
    ):
        _, file = await writer.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, bytes(10))
        await file.close()
        await leases_given_back()
        find, calls = Leasing._find_or_grant, []

        async def slow(self: Any, *more: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise GfsError(Code.NO_SPACE, "the disk of the master is full")
            await trio.sleep(2)
            return await find(self, *more)

        monkeypatch.setattr(Leasing, "_find_or_grant", slow)
        file = await writer.open(file.inode)
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                with suppress(GfsError):
                    await file.fsync()

            nursery.start_soon(sync)
            await trio.sleep(0.5)
            writer._files._closed_files.set()  # another file is closed
        monkeypatch.setattr(Leasing, "_find_or_grant", find)
        assert len(calls) == 2
        await file.close()
        await trio.sleep(300)
        async with cluster.client("third") as third:
            more = await third.open(file.inode, write=True)
            await more.write(0, b"x")
            await more.flush()
            assert file.inode in third._chunks.sole_writer, "somebody else counts as a writer for ever"


async def test_a_commit_that_was_refused_does_not_make_a_truncation_sure(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A truncation is given up (it never reached the master), while an fsync waits for it; of the two Commits that say
    `unsure` then, the first is refused for want of room."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 1000)
        await file.flush()
        change, sure, refused = one._session.change, [], []

        async def faulty(method: str, request: Any) -> Any:
            if method == "SetAttr":
                await trio.sleep(5)
                raise GfsError(Code.TIMED_OUT, "gave up SetAttr")
            if method == "Commit" and not request.lengths[0].unsure:
                sure.append(request)
            elif method == "Commit" and not refused:
                refused.append(request)
                raise GfsError(Code.NO_SPACE, "the disk of the master is full")
            return await change(method, request)

        one._session.change = faulty  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:

            async def cut() -> None:
                with pytest.raises(GfsError):
                    await one.setattr(file.inode, AttrChanges(size=10))

            async def sync() -> None:
                with suppress(GfsError):  # it may be the one that is refused
                    await file.fsync()

            nursery.start_soon(cut)
            await trio.sleep(1)
            nursery.start_soon(sync)
        one._session.change = change  # type: ignore[method-assign]
        assert refused and not sure
        await file.close()
        await trio.sleep(30)
        assert await Paths(two).read("/file") == b"x" * 1000
