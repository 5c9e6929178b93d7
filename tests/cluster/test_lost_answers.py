"""A change whose answer is lost is asked for again: what the client knows then is what there is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client import Client, FileType
from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE


class _Losing:
    """The client's stream, on which the next answer to `method` is lost; `before` the client asks again."""

    def __init__(self, client: Client, method: str, before: Callable[[], Awaitable[None]] | None = None) -> None:
        self._client = client
        self._channel: Any = client._session._channel
        self._method = method
        self._before = before
        client._session._channel = self  # type: ignore[assignment]

    async def call(self, name: str, request: Any, **options: Any) -> Any:
        reply = await self._channel.call(name, request, **options)
        if name != self._method:
            return reply
        self._client._session._channel = self._channel
        if self._before is not None:
            await self._before()
        raise GfsError(Code.UNREACHABLE, "the answer is lost")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)


async def names(client: Client) -> list[bytes]:
    return [entry.name for entry in await Paths(client).list("/")]


async def test_an_unlink_of_one_of_two_names_leaves_an_open_file_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await Paths(one).write("/a", b"x")
        inode = (await Paths(one).stat("/a")).inode
        await one.link(inode, ROOT_INODE, b"b")
        file = await one.open(inode, write=True)
        _Losing(one, "Unlink")
        await one.unlink(ROOT_INODE, b"a")
        assert (await one.getattr(inode)).nlink == 1
        assert not one._session.held
        await file.write(0, b"yy")
        await file.close()
        assert await Paths(two).read("/b") == b"yy"


async def test_a_rename_over_one_of_two_names_leaves_an_open_file_as_it_is(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one:
        paths = Paths(one)
        await paths.write("/a", b"x")
        await paths.write("/new", b"new")
        inode = (await paths.stat("/a")).inode
        await one.link(inode, ROOT_INODE, b"b")
        file = await one.open(inode, write=True)
        _Losing(one, "Rename")
        await one.rename(ROOT_INODE, b"new", ROOT_INODE, b"a")
        assert (await one.getattr(inode)).nlink == 1
        assert not one._session.held
        assert await names(one) == [b"a", b"b"]
        assert await paths.read("/a") == b"new" and await paths.read("/b") == b"x"
        await file.close()


async def test_a_rename_between_two_names_of_one_file_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await Paths(one).write("/a", b"x")
        inode = (await Paths(one).stat("/a")).inode
        await one.link(inode, ROOT_INODE, b"b")
        file = await one.open(inode)
        assert await names(one) == [b"a", b"b"]
        for lost in (False, True):
            if lost:
                _Losing(one, "Rename")
            await one.rename(ROOT_INODE, b"a", ROOT_INODE, b"b")
            assert await names(one) == await names(two) == [b"a", b"b"]
            assert (await one.getattr(inode)).nlink == 2
            assert not one._session.held
        await file.close()


async def test_a_snapshot_is_answered_with_the_copy_though_the_source_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        paths = Paths(one)
        await paths.makedirs("/d")
        await paths.write("/d/f", b"x")

        async def remove_source() -> None:
            await Paths(two).remove("/d", recursive=True)

        _Losing(one, "Snapshot", remove_source)
        copy = await paths.snapshot("/d", "/copy")
        assert copy.inode == (await Paths(two).stat("/copy")).inode
        assert await paths.read("/copy/f") == b"x"


@pytest.mark.parametrize("what", ["mkdir", "write"])
async def test_a_change_that_was_asked_for_while_the_session_ended_is_made_in_the_next_one(
    what: str, autojump_clock: trio.testing.MockClock
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"x")
        await file.fsync()
        cluster.network.disconnect("one", "master")
        await trio.sleep(50)
        async with trio.open_nursery() as nursery:
            if what == "mkdir":
                nursery.start_soon(one.create, ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)
            else:
                await file.write(0, b"y")
                nursery.start_soon(file.flush)
            await trio.sleep(20)
            cluster.network.reconnect("one", "master")
            started = trio.current_time()
        assert trio.current_time() - started < 5
        await file.close()
        assert await names(two) == ([b"d", b"f"] if what == "mkdir" else [b"f"])
        assert await Paths(two).read("/f") == (b"x" if what == "mkdir" else b"y")


async def test_a_change_whose_answer_was_lost_with_the_session_is_not_made_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    running = memory_cluster()
    async with running as cluster, cluster.client("one", timeout_seconds=200) as one, cluster.client("two") as two:

        async def lose_the_session() -> None:
            cluster.network.disconnect("one", "master")
            await two.rmdir(ROOT_INODE, b"d")
            await trio.sleep(100)
            cluster.network.reconnect("one", "master")

        _Losing(one, "Create", lose_the_session)
        with pytest.raises(GfsError) as failed:
            await one.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1)
        assert failed.value.code is Code.TIMED_OUT and "done, or not" in str(failed.value)
        assert await names(two) == []


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_a_change_whose_outcome_is_unknown_is_looked_up(how: str, autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one", timeout_seconds=5) as one:
        await one.create(ROOT_INODE, b"old", FileType.FILE, 0o644, 1, 1)
        assert await names(one) == [b"old"]  # complete: a name not in it does not exist
        channel: Any = await one._session.connected()
        call = channel.call

        async def never_answered(method: str, *args: Any, **options: Any) -> Any:
            reply = await call(method, *args, **options)
            if method in ("Create", "Rename"):
                await trio.sleep(1)
                raise GfsError(Code.UNREACHABLE, "the answer is lost")
            return reply

        channel.call = never_answered
        for change in (
            partial(one.create, ROOT_INODE, b"new", FileType.DIRECTORY, 0o755, 1, 1),
            partial(one.rename, ROOT_INODE, b"old", ROOT_INODE, b"newer"),
        ):
            with suppress(GfsError), trio.move_on_after(0.5 if how == "cancelled" else 100):
                await change()
        await trio.sleep(10)
        assert await names(one) == [b"new", b"newer"]
