"""Leases that end, or are tried again, under the version they had."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import QUIET, fsck, leases_given_back, leave_unequal
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges
from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.server.chunkserver import mutate


async def test_a_try_that_is_late_comes_after_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """A request that was given up on is still on its way (an old connection); the same piece is tried again, then its
    range is written anew. What is late must not win: it needs another version for the second try."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"0" * 100_000)
        await file.fsync()
        call, late, held = one._servers.call, trio.Event(), []

        async def slow(lane: str, server: Any, method: str, request: Any, *more: Any, **options: Any) -> Any:
            if method == "Write" and request.extents and request.extents[0].offset == 70_000 and not held:
                held.append((lane, server, method, request, *more))
                await late.wait()
                raise GfsError(Code.UNREACHABLE, "did not answer Write in time")
            return await call(lane, server, method, request, *more, **options)

        one._servers.call = slow  # type: ignore[method-assign]
        await file.write(70_000, b"1" * 100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.flush)
            await trio.sleep(0.1)
            theirs = await two.open(file.inode, write=True)
            await theirs.write(CHUNK_BYTES, b"x")  # another chunk of the file: the locations of all are called back
            await theirs.flush()
            first = one._chunks.known_grant(file.inode, 0)
            assert first is None
            await one._chunks.grant(file.inode, 0)  # as another piece of this chunk, or another handle, does
            await trio.sleep(1)
            late.set()
        await file.write(70_000, b"2" * 100)
        await file.fsync()
        assert bytes(await file.read(70_000, 3)) == b"222"
        with pytest.raises(GfsError):
            await call(*held[0])  # now it arrives
        async with cluster.client("reader") as reader:
            assert (await Paths(reader).read("/file", 70_000, 3)) == b"222"


async def test_a_write_that_was_given_up_comes_after_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one", timeout_seconds=5) as one:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"0" * 100_000)
        await file.fsync()
        call, held = one._servers.call, []

        async def slow(lane: str, server: Any, method: str, request: Any, *more: Any, **options: Any) -> Any:
            if method == "Write" and request.extents and not held:
                held.append((lane, server, method, request, *more))
                await trio.sleep_forever()
            return await call(lane, server, method, request, *more, **options)

        one._servers.call = slow  # type: ignore[method-assign]
        await file.write(70_000, b"1" * 100)
        with pytest.raises(GfsError) as caught:
            await file.flush()
        assert caught.value.code is Code.TIMED_OUT
        await file.write(70_000, b"2" * 100)
        await file.fsync()
        with pytest.raises(GfsError):
            await call(*held[0])  # now it arrives
        async with cluster.client("reader") as reader:
            assert (await Paths(reader).read("/file", 70_000, 3)) == b"222"


async def test_a_write_that_was_given_up_for_want_of_room_comes_after_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The next try ends in a definite refusal by the master, not by time."""
    async with memory_cluster() as cluster, cluster.client("one") as one:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"0" * 100_000)
        await file.fsync()
        call, held, change = one._servers.call, [], one._session.change
        full: list[int] = []

        async def slow(lane: str, server: Any, method: str, request: Any, *more: Any, **options: Any) -> Any:
            if method == "Write" and request.extents and not held:
                held.append((lane, server, method, request, *more))
                await trio.sleep(10)
                full.append(1)
                raise GfsError(Code.UNREACHABLE, "did not answer Write in time")
            return await call(lane, server, method, request, *more, **options)

        async def changed(method: str, request: Any) -> Any:
            if method == "Lease" and full:
                raise GfsError(Code.NO_SPACE, "the disk of the master is full")
            return await change(method, request)

        one._servers.call = slow  # type: ignore[method-assign]
        one._session.change = changed  # type: ignore[method-assign]
        await file.write(70_000, b"1" * 100)
        with pytest.raises(GfsError) as caught:
            await file.flush()
        assert caught.value.code is Code.NO_SPACE
        one._session.change = change  # type: ignore[method-assign]
        await file.write(70_000, b"2" * 100)
        await file.fsync()
        with pytest.raises(GfsError):
            await call(*held[0])  # now it arrives
        async with cluster.client("reader") as reader:
            assert (await Paths(reader).read("/file", 70_000, 3)) == b"222"


async def test_what_was_left_is_not_forgotten_for_an_older_failure(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"0" * 100_000)
        await file.fsync()
        chunks = one._chunks
        v0 = chunks.known_grant(file.inode, 0)
        assert v0 is not None
        v1 = await chunks.grant(file.inode, 0, v0)
        chunks.leave(file.inode, v1)  # one piece gives up under v1
        other = await chunks.grant(file.inode, 0, v0)  # another piece had failed under v0
        again = await chunks.grant(file.inode, 0)  # the range of the first is written anew
        assert again.body.version != v1.body.version and other.body.version != v1.body.version


@pytest.mark.parametrize("interrupted", [True, False])
async def test_a_lease_that_is_revoked_while_the_replicas_are_made_equal(
    interrupted: bool, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer and its primary died with a mutation half done, which the master knows. The next writer gets a lease;
    while its primary still copies, somebody cuts the file, and that writer dies too."""
    on, copying = trio.Event(), trio.Event()
    copy = mutate.Mutations._copy

    async def slow(self: Any, *more: Any) -> int:
        if not copying.is_set():  # the first one is slow
            copying.set()
            await on.wait()
        return await copy(self, *more)

    async with (
        memory_cluster(server_options=QUIET, clones_max=0, lease_seconds=5.0) as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("cutter") as cutter,
        cluster.client("next") as following,
        cluster.client() as client,
    ):
        await Paths(client, 1, 1).write("/f", b"")
        inode = (await Paths(client).stat("/f")).inode
        primary = await leave_unequal(cluster, client, "/f")
        await cluster.start(primary)
        monkeypatch.setattr(mutate.Mutations, "_copy", slow)
        if not interrupted:
            on.set()
        file = await following.open(inode, write=True)
        await file.write(0, b"b")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_flush, file)
            await copying.wait()
            cluster.network.crash("next")
            for host in ("master", *cluster.names):
                cluster.network.disconnect("next", host)
            await cutter.setattr(inode, AttrChanges(size=2 * BLOCK_BYTES))
            on.set()
            nursery.cancel_scope.cancel()
        await trio.sleep(200)  # whatever settles what was left unequal has had its time
        for host in ("master", *cluster.names):
            cluster.network.reconnect("next", host)
        cluster.network.reconnect("client", "master")
        verifier = await fsck(observer)
        assert [(problem.kind, problem.path) for problem in verifier.problems] == []


async def _flush(file: Any) -> None:
    with suppress(GfsError):
        await file.flush()


@pytest.mark.parametrize("size", [1000, 0])
async def test_a_length_does_not_overtake_the_truncation_that_it_comes_from(
    size: int, autojump_clock: trio.testing.MockClock
) -> None:
    """A closed file is cut while its length is still to be committed. The master, which is busy, must not be told the
    new length first: it would have nothing to cut, and the replicas would bring the old bytes back."""
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"before" * 500)
        await file.close()
        change = client._session.change

        async def slow(method: str, request: Any) -> Any:
            if method == "SetAttr":
                await trio.sleep(5)  # lengths of closed files are committed meanwhile
            return await change(method, request)

        client._session.change = slow  # type: ignore[method-assign]
        await client.setattr(file.inode, AttrChanges(size=size))
        await leases_given_back()
        assert await Paths(client).read("/f") == (b"before" * 500)[:size]
        await client.setattr(file.inode, AttrChanges(size=3000))
        assert await Paths(client).read("/f") == (b"before" * 500)[:size].ljust(3000, b"\0")


async def test_a_sync_while_the_file_is_cut_says_the_length_behind_the_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client() as client:
        _, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"before" * 500)
        await file.flush()
        change, methods = client._session.change, []

        async def slow(method: str, request: Any) -> Any:
            if method == "SetAttr":
                await trio.sleep(5)
            methods.append(method)
            return await change(method, request)

        client._session.change = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.setattr, file.inode, AttrChanges(size=1000))
            await trio.sleep(1)
            await file.fsync()
        assert methods == ["SetAttr", "Commit"]
        await file.close()
        await leases_given_back()
        assert await Paths(client).read("/f") == (b"before" * 500)[:1000]
