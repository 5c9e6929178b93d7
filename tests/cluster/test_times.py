"""The time of a file's last change: what a program sets stays, whoever wrote before."""

from __future__ import annotations

import trio
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges


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
