"""A file that is open stays usable when another client unlinks it, whatever the master could ask meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import MemoryCluster, memory_cluster

from gfscore.client import Client, OpenFile
from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE
from gfscore.server.master import sessions

both = pytest.mark.parametrize("trash_seconds", ["0", "86400"])


async def open_log(client: Client, trash_seconds: str) -> OpenFile:
    """/log, open for writing, and known to the master with all its length."""
    await client.set_policy(ROOT_INODE, {"trash_seconds": trash_seconds})
    paths = Paths(client)
    await paths.write("/log", b"begin ")
    await trio.sleep(10)
    file = await client.open((await paths.stat("/log")).inode, write=True)
    assert await file.read(0, 10) == b"begin "
    return file


async def still_usable(cluster: MemoryCluster, file: OpenFile) -> None:
    """It is read and written, and gone (but for the trash) when it is closed."""
    await trio.sleep(90)  # more than a session: whoever should be back is, and orphans that nobody holds are dropped
    assert await file.read(0, 10) == b"begin "
    await file.write(6, b"more")
    await file.fsync()
    assert await file.read(0, 20) == b"begin more"
    await file.close()
    await trio.sleep(5)
    async with cluster.client("later") as later:
        status = await later.status()
        assert status["master"]["files"] == 0


def reconnects_after(client: Client, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    connect = client._session._connect

    async def slow() -> Any:
        await trio.sleep(seconds)
        return await connect()

    monkeypatch.setattr(client._session, "_connect", slow)


@both
async def test_unlink_after_a_restart_of_the_master(autojump_clock: trio.testing.MockClock, trash_seconds: str) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        file = await open_log(one, trash_seconds)
        await cluster.restart("master")
        await trio.sleep(200)
        await two.unlink(ROOT_INODE, b"log")
        await still_usable(cluster, file)


@both
async def test_unlink_before_the_holder_is_back_after_a_restart(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, trash_seconds: str
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        file = await open_log(one, trash_seconds)
        reconnects_after(one, monkeypatch, 10)
        await cluster.restart("master")
        await two.unlink(ROOT_INODE, b"log")
        await still_usable(cluster, file)


@both
@pytest.mark.parametrize("back", [True, False])
async def test_unlink_after_a_broken_stream_with_missed_call_backs(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, trash_seconds: str, back: bool
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        file = await open_log(one, trash_seconds)
        await Paths(one).write("/other", b"x")
        reconnects_after(one, monkeypatch, 10)
        assert one._session._channel is not None
        await one._session._channel.aclose()
        await trio.sleep(1)
        await Paths(two).remove("/other")
        await trio.sleep(30 if back else 1)
        await two.unlink(ROOT_INODE, b"log")
        await still_usable(cluster, file)


async def test_unlink_after_the_holder_has_seen_too_many_other_files(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "WATCHED_FILES_MAX", 20)
    monkeypatch.setattr(sessions, "_EVICTED_AT_ONCE", 5)
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        file = await open_log(one, "0")
        for number in range(40):
            await Paths(two).write(f"/f{number}", b"x")
        for number in range(40):
            await Paths(one).stat(f"/f{number}")
        for number in range(40):
            await Paths(two).remove(f"/f{number}")
        await two.unlink(ROOT_INODE, b"log")
        await still_usable(cluster, file)


async def test_reading_a_file_in_the_trash_does_not_make_it_writable_after_a_restart(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one:
        await (await open_log(one, "86400")).close()
        await Paths(one).remove("/log")
        [deleted] = await one.trash.list()
        file = await one.open(deleted.attr.inode)
        await cluster.restart("master")
        await trio.sleep(30)
        assert await file.read(0, 10) == b"begin "
        with pytest.raises(GfsError, check=lambda error: error.code is Code.NOT_PERMITTED):
            await one.open(deleted.attr.inode, write=True)
        await file.close()


async def test_a_client_that_has_ended_keeps_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(trash_seconds=0) as cluster, cluster.client("one") as one:
        for name in ("/a", "/b"):
            await Paths(one).write(name, b"x")
        async with cluster.client("two") as two:
            await Paths(two).list("/")
            opened = [await two.open(entry.attr.inode) for entry in await Paths(two).list("/")]
            await one.unlink(ROOT_INODE, b"a")
            assert (await one.status())["master"]["files"] == 2
            assert len(opened) == 2
        await one.unlink(ROOT_INODE, b"b")
        assert (await one.status())["master"]["files"] == 0
