"""The trash of a whole cluster in one process: data, lengths, disks and restarts."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import CHUNK_BYTES, MemoryCluster, memory_cluster

from gfscore.client import AttrChanges, Client, FileType
from gfscore.client.paths import Paths
from gfscore.client.trash import latest_of_each
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE, TRASH_INODE

DATA = bytes(range(256)) * 6000  # one and a half chunks


def refused(code: Code) -> Any:
    return pytest.raises(GfsError, check=lambda error: error.code is code)


def chunk_files(cluster: MemoryCluster) -> int:
    """Chunk files on all disks."""
    disks = [cluster.disks[name] for name in cluster.names]
    return sum(
        len(disk.listdir(f"chunks/{below}")) for disk in disks for below in disk.listdir("chunks") if below != "boot"
    )


async def read_entry(client: Client, entry: bytes) -> bytes:
    return await Paths(client).read(b"/.trash/" + entry)


async def test_undelete_after_a_restart_of_everything(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster:
        async with cluster.client() as client:
            paths = Paths(client)
            await paths.makedirs("/project/src")
            await paths.write("/project/src/main", DATA)
            await paths.write("/project/notes", b"first")
            await paths.remove("/project/notes")
            await paths.write("/project/notes", b"second")
            await client.create(ROOT_INODE, b"link", FileType.SYMLINK, 0, 0, 0, target=b"project/src/main")
            await paths.remove("/link")
            await paths.remove("/project", recursive=True)
        for name in ("master", *cluster.names):
            await cluster.restart(name)
        async with cluster.client() as client:
            paths = Paths(client)
            with refused(Code.NOT_FOUND):
                await paths.stat("/project")
            deleted = await client.trash.list("/project")
            assert sorted(file.path for file in deleted) == [b"/project/notes"] * 2 + [b"/project/src/main"]
            main = next(file for file in deleted if file.path == b"/project/src/main")
            assert await read_entry(client, main.entry) == DATA
            for file in latest_of_each(deleted):
                await client.trash.restore(file.entry)
            assert await paths.read("/project/src/main") == DATA
            assert await paths.read("/project/notes") == b"second"
            assert [file.path for file in await client.trash.list()] == [b"/project/notes", b"/link"]
            link = await client.trash.find((await client.trash.list("/link"))[0].entry)
            await client.trash.restore(link.entry, "/again")
            assert await paths.read("/again") == DATA
            await paths.write("/project/src/main", b"changed")  # a restored file is a file like any other
            assert (await paths.read("/project/src/main"))[:10] == b"changed" + DATA[7:10]


async def test_a_file_deleted_right_after_it_was_written_has_its_length(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await Paths(one).write("/a", DATA)
        await Paths(one).remove("/a")
        await Paths(one).write("/b", DATA)
        await Paths(two).remove("/b")
        _, file = await one.create_file(ROOT_INODE, b"c", 0o644, 0, 0)
        await file.write(0, b"before ")
        await two.unlink(ROOT_INODE, b"c")
        await file.write(7, b"after")
        await file.close()
        await trio.sleep(10)
        for deleted in await two.trash.list():
            assert not deleted.attr.length_pending, deleted.path
            want = b"before after" if deleted.path == b"/c" else DATA
            assert deleted.attr.size == len(want)
            assert await read_entry(two, deleted.entry) == want


async def test_the_disks_are_free_again_when_the_time_is_over(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client)
        await paths.makedirs("/d")
        directory = await paths.stat("/d")
        await client.set_policy(directory.inode, {"trash_seconds": "30"})
        await paths.write("/d/f", DATA)
        await paths.write("/now", DATA)
        await client.set_policy((await paths.stat("/now")).inode, {"trash_seconds": "0"})
        assert chunk_files(cluster) == 12
        await paths.remove("/now")
        await trio.sleep(3)  # a heartbeat or two
        assert chunk_files(cluster) == 6
        await paths.snapshot("/d", "/copy")
        await paths.remove("/d/f")
        await trio.sleep(40)
        assert await client.trash.list() == []
        assert chunk_files(cluster) == 6, "the snapshot still has the chunks"
        await paths.remove("/copy/f")
        assert await client.trash.empty() == 1
        await trio.sleep(3)
        assert chunk_files(cluster) == 0


async def test_an_open_file_is_readable_until_it_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await Paths(one).write("/f", DATA)
        file = await Paths(one).open("/f")
        await Paths(two).remove("/f")
        assert await two.trash.empty() == 1
        await trio.sleep(10)
        assert bytes(await file.read(100, 100)) == DATA[100:200]
        assert chunk_files(cluster) == 6
        await file.close()
        await trio.sleep(5)
        assert chunk_files(cluster) == 0


async def test_the_trash_is_seen_as_it_is_and_cannot_be_written(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        paths = Paths(one)
        await paths.list("/")
        assert [entry.name for entry in await paths.list("/.trash")] == []
        await paths.write("/f", b"data")
        await paths.remove("/f")
        (entry,) = await paths.list("/.trash")
        assert [entry.name for entry in await paths.list("/")] == []
        where = b"/.trash/" + entry.name
        assert await paths.read(where) == b"data"
        with refused(Code.NOT_PERMITTED):
            await paths.write(where, b"more")
        with refused(Code.NOT_PERMITTED):
            await paths.write("/.trash/new", b"new")
        with refused(Code.NOT_PERMITTED):
            await one.setattr(entry.attr.inode, AttrChanges(size=0))
        with refused(Code.NOT_PERMITTED):
            await paths.rename(where, "/.trash/other")
        with refused(Code.NOT_PERMITTED):
            await paths.makedirs("/.trash/d")
        await two.trash.restore(entry.name)
        with refused(Code.NOT_FOUND):
            await one.lookup(TRASH_INODE, entry.name)
        assert await paths.read("/f") == b"data"
        await paths.remove("/f")
        (entry,) = await paths.list("/.trash")
        await paths.rename(b"/.trash/" + entry.name, "/moved")
        assert await paths.read("/moved") == b"data"
        assert await paths.list("/.trash") == []
        await paths.append("/moved", b" more")
        assert await paths.read("/moved") == b"data more"


async def test_chunk_size_is_as_the_data_expects() -> None:
    assert CHUNK_BYTES < len(DATA) < 2 * CHUNK_BYTES
