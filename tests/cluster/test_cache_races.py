"""Answers that cross with what the master calls back: what a client then believes about its own changes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, Code, FileType, GfsError


async def _exists(client: Client, name: bytes) -> bool:
    try:
        await client.lookup(ROOT_INODE, name)
    except GfsError as error:
        assert error.code is Code.NOT_FOUND
        return False
    return True


def _delay_answers(client: Client, event: trio.Event, *methods: str) -> None:
    """From now on the client takes in an answer to a change (or to these calls) only after `event`."""
    session = client._session
    change, call = session.change, session.call

    async def late_change(method: str, request: object) -> object:
        reply = await change(method, request)
        if not methods:
            await event.wait()
        return reply

    async def late(method: str, request: object, *more: Any) -> object:
        reply = await call(method, request, *more)
        if method in methods:
            await event.wait()
        return reply

    session.change = late_change  # type: ignore[method-assign]
    session.call = late  # type: ignore[method-assign]


async def test_a_name_made_while_somebody_else_changed_the_directory_is_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        event = trio.Event()
        watched = (await one.create(ROOT_INODE, b"watched", FileType.FILE, 0o644, 1, 1)).inode
        assert (await one.list_page(ROOT_INODE, b"", 10))[0]  # complete: a name not in it does not exist
        _delay_answers(one, event)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.create, ROOT_INODE, b"new", FileType.FILE, 0o644, 1, 1)
            await trio.sleep(1)
            await two.setattr(watched, AttrChanges(mode=0o600))  # heard of before the answer comes
            event.set()
        assert await _exists(one, b"new")


async def test_a_name_that_somebody_removed_before_its_maker_had_the_answer_is_gone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        event = trio.Event()
        inode = (await one.create(ROOT_INODE, b"file", FileType.FILE, 0o644, 1, 1)).inode
        await one.list_page(ROOT_INODE, b"", 10)
        _delay_answers(one, event)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.link, inode, ROOT_INODE, b"link")
            await trio.sleep(1)
            await two.unlink(ROOT_INODE, b"link")
            event.set()
        assert not await _exists(one, b"link")


async def test_a_name_made_anew_before_its_remover_had_the_answer_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        event = trio.Event()
        for name in (b"file", b"moved"):
            await one.create(ROOT_INODE, name, FileType.FILE, 0o644, 1, 1)
        await one.list_page(ROOT_INODE, b"", 10)
        _delay_answers(one, event)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.unlink, ROOT_INODE, b"file")
            nursery.start_soon(one.rename, ROOT_INODE, b"moved", ROOT_INODE, b"target")
            await trio.sleep(1)
            for name in (b"file", b"moved"):
                await two.create(ROOT_INODE, name, FileType.FILE, 0o644, 1, 1)
            await two.unlink(ROOT_INODE, b"target")
            event.set()
        assert await _exists(one, b"file") and await _exists(one, b"moved") and not await _exists(one, b"target")


async def test_an_open_file_survives_a_master_that_dies_with_the_answer_to_its_removal(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one", timeout_seconds=200) as one:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"kept")
        await file.flush()
        channel = await one._session.connected()
        call = channel.call

        async def lose_the_answer(method: str, request: Any, *more: Any, **options: Any) -> Any:
            reply = await call(method, request, *more, **options)
            if method == "Unlink":
                await cluster.restart("master")
                await trio.sleep(90)  # all clients are back, or given up, before it asks again
                raise GfsError(Code.UNREACHABLE, "the answer was lost")
            return reply

        channel.call = lose_the_answer  # type: ignore[method-assign]
        await one.unlink(ROOT_INODE, b"file")
        await trio.sleep(10)
        assert bytes(await file.read(0, 10)) == b"kept"
        await file.close()


async def test_a_client_that_lost_its_master_does_not_answer_from_what_it_knew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A master that has just started cannot call back those that have not found it yet."""
    async with (
        memory_cluster() as cluster,
        cluster.client("other") as other,
        cluster.client("reader", timeout_seconds=5) as reader,
    ):
        made = await other.create(ROOT_INODE, b"name", FileType.FILE, 0o644, 1, 1)
        assert (await reader.lookup(ROOT_INODE, b"name")).inode == made.inode
        await cluster.kill("master")
        cluster.network.disconnect("reader", "master")
        await cluster.start("master")
        await other.unlink(ROOT_INODE, b"name")
        with pytest.raises(GfsError) as caught:
            await reader.lookup(ROOT_INODE, b"name")
        assert caught.value.code is not Code.NOT_FOUND
        cluster.network.reconnect("reader", "master")
        with pytest.raises(GfsError) as caught:
            await reader.lookup(ROOT_INODE, b"name")
        assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("asked", ["GetAttr", "Lookup"])
async def test_an_answer_from_before_the_length_was_told_is_not_believed_after(
    asked: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The master leaves the length to the only writer, which tells it a moment after close, and knows no more then.

    `open` with `truncate` once took such a file for an empty one, which needs no cut.
    """
    async with memory_cluster() as cluster, cluster.client("one") as one:
        attr, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 5000)
        event = trio.Event()
        _delay_answers(one, event, asked)
        sizes: list[int] = []

        async def look() -> None:
            one._cache.attrs.pop(attr.inode, None)  # as if somebody had changed its mode just now
            if asked == "Lookup":
                one._cache.names_changed(ROOT_INODE, [b"file"])
                sizes.append((await one.lookup(ROOT_INODE, b"file")).size)
            sizes.append((await one.getattr(attr.inode)).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await file.close()
            await trio.sleep(2)  # the length is at the master
            event.set()
        sizes.append((await one.getattr(attr.inode)).size)
        assert set(sizes) == {5000}


async def test_an_answer_from_before_a_change_of_ours_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """The answer to chmod is slow; meanwhile the file is written, closed, and its length told."""
    async with memory_cluster() as cluster, cluster.client("one") as one:
        inode = (await one.create(ROOT_INODE, b"file", FileType.FILE, 0o644, 1, 1)).inode
        event = trio.Event()
        _delay_answers(one, event, "SetAttr")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.setattr, inode, AttrChanges(mode=0o600))
            await trio.sleep(1)
            file = await one.open(inode, write=True)
            await file.write(0, b"x" * 5000)
            await file.close()
            await trio.sleep(2)
            event.set()
        found = await one.getattr(inode)
        assert (found.size, found.mode) == (5000, 0o600)


async def test_a_length_that_nobody_can_tell_just_now_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    """It was taken for that which the master knew: 0, for a file that was closed a moment ago."""
    async with memory_cluster() as cluster, cluster.client("writer") as writer, cluster.client("reader") as reader:
        _, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 5000)
        await file.flush()
        for name in cluster.names:
            cluster.network.disconnect("reader", name)
        found: list[int] = []

        async def look() -> None:
            found.append((await reader.lookup(ROOT_INODE, b"file")).size)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.sleep(5)
            assert not found
            assert (await reader.lookup(ROOT_INODE, b"file", any_length=True)).volatile  # the name is there
            for name in cluster.names:
                cluster.network.reconnect("reader", name)
        assert found == [5000]


async def test_a_name_that_exists_already_is_opened_though_somebody_writes_the_file(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("writer") as writer, cluster.client("other") as other:
        _, file = await writer.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, b"x" * 5000)
        await file.flush()
        attr, opened = await other.create_file(ROOT_INODE, b"file", 0o644, 1, 1, exclusive=False)
        assert attr.size == 5000
        await opened.close()
        await file.close()
