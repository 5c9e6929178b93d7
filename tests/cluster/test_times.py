"""The time of a file's last change: what a program sets stays, whoever wrote before."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, FileType


async def test_a_time_set_right_after_writing_stays(autojump_clock: trio.testing.MockClock) -> None:
    """As cp -a and rsync do. Once the length, committed a moment later, brought the time of that moment."""
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        for open_then in (False, True):
            attr, file = await client.create_file(ROOT_INODE, b"%d" % open_then, 0o644, 1, 1)
            await file.write(0, b"data")
            if not open_then:
                await file.close()
            await client.setattr(attr.inode, AttrChanges(mtime_ns=5))
            assert (await observer.getattr(attr.inode)).mtime_ns == 5
            await file.close()
            await trio.sleep(5)
            found = await observer.getattr(attr.inode)
            assert (found.mtime_ns, found.size) == (5, 4)
            assert (await client.getattr(attr.inode)).mtime_ns == 5


async def test_a_snapshot_right_after_writing_has_the_time_that_was_set(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("writer") as writer, cluster.client("other") as other:
        attr, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.close()
        await writer.setattr(attr.inode, AttrChanges(mtime_ns=5))
        copy = await other.snapshot(attr.inode, ROOT_INODE, b"copy")
        assert (copy.mtime_ns, copy.size) == (5, 4)


async def test_a_time_that_another_client_sets_right_after_writing_stays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("writer") as writer, cluster.client("other") as other:
        attr, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.close()
        await other.setattr(attr.inode, AttrChanges(mtime_ns=5))
        await trio.sleep(5)
        for client in (writer, other):
            found = await client.getattr(attr.inode)
            assert (found.mtime_ns, found.size) == (5, 4)


async def test_a_write_after_a_time_was_set_brings_its_own(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        attr, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"data")
        await client.setattr(attr.inode, AttrChanges(mtime_ns=5))
        await trio.sleep(1)
        await file.write(0, b"more")
        await file.flush()
        written = (await observer.getattr(attr.inode)).mtime_ns
        assert written > attr.ctime_ns
        await file.close()
        await trio.sleep(5)
        assert (await observer.getattr(attr.inode)).mtime_ns == written


@pytest.mark.parametrize("told", [True, False], ids=["crossing", "not told"])
async def test_a_time_set_while_the_writer_commits_or_is_away_stays(
    told: bool, autojump_clock: trio.testing.MockClock
) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("writer") as writer,
        cluster.client("other") as other,
    ):
        attr, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.flush()
        await trio.sleep(10)
        if told:
            call: Any = writer._session.call

            async def commit_late(method: str, request: Any, **options: Any) -> Any:
                if method == "Commit":
                    await other.setattr(attr.inode, AttrChanges(mtime_ns=5))
                return await call(method, request, **options)

            writer._session.call = commit_late  # type: ignore[method-assign]
        else:
            cluster.network.disconnect("writer", "master")
            await other.setattr(attr.inode, AttrChanges(mtime_ns=5))
            cluster.network.reconnect("writer", "master")
            await trio.sleep(5)
        await file.close()
        await trio.sleep(10)
        assert (await observer.getattr(attr.inode)).mtime_ns == 5


@pytest.mark.parametrize("what", ["chmod", "snapshot", "writer gone"])
async def test_bytes_written_in_place_have_their_time(what: str, autojump_clock: trio.testing.MockClock) -> None:
    """Where a length says nothing new, the time has to: a backup would pass over the change."""
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client("writer") as writer,
        cluster.client("other") as other,
    ):
        attr, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.close()
        await trio.sleep(100)
        file = await writer.open(attr.inode, write=True)
        await file.write(0, b"more")
        await file.flush()
        written = (await other.getattr(attr.inode)).mtime_ns
        assert written > attr.mtime_ns
        await trio.sleep(10)
        if what == "chmod":
            await other.setattr(attr.inode, AttrChanges(mode=0o600))
        elif what == "snapshot":
            assert (await other.snapshot(attr.inode, ROOT_INODE, b"copy")).mtime_ns >= written
        else:
            cluster.network.disconnect("writer", "master")
            await trio.sleep(300)
        assert (await observer.getattr(attr.inode)).mtime_ns >= written
        cluster.network.reconnect("writer", "master")
        await file.close()


async def test_opening_an_empty_file_to_cut_it_sets_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        attr = await client.create(ROOT_INODE, b"stamp", FileType.FILE, 0o644, 1, 1)
        await trio.sleep(10)
        await (await client.open(attr.inode, write=True, truncate=True)).close()
        await trio.sleep(5)
        assert (await client.getattr(attr.inode)).mtime_ns > attr.mtime_ns


@pytest.mark.parametrize("what", ["xattr", "policy"])
async def test_a_change_of_ours_changes_ctime_here_too(what: str, autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("observer", caching=False) as observer,
        cluster.client() as client,
    ):
        inode = (await client.create(ROOT_INODE, b"f", FileType.FILE, 0o644, 1, 1)).inode
        await trio.sleep(10)
        if what == "xattr":
            await client.setxattr(inode, b"user.x", b"1")
        else:
            await client.set_policy(inode, {"replication": "2"})
        assert (await client.getattr(inode)).ctime_ns == (await observer.getattr(inode)).ctime_ns


async def test_a_write_before_the_last_chunk_sets_the_time_that_others_see(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Only the chunk with the end was asked, once the master had said which it is."""
    async with memory_cluster() as cluster, cluster.client("writer") as writer, cluster.client("other") as other:
        attr, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        for index in range(2):
            await file.write(index * CHUNK_BYTES, b"data")
        await file.flush()
        for _ in range(3):
            before = (await other.getattr(attr.inode)).mtime_ns
            await trio.sleep(10)
            await file.write(0, b"more")
            await file.flush()
            assert (await other.getattr(attr.inode)).mtime_ns >= before + 10 * 10**9
        await file.close()
