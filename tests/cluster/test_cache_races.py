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


def _delay_answers(client: Client, event: trio.Event) -> None:
    """From now on the client takes in an answer to a change only after `event`."""
    change = client._session.change

    async def late(method: str, request: object) -> object:
        reply = await change(method, request)
        await event.wait()
        return reply

    client._session.change = late  # type: ignore[method-assign]


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
    async with memory_cluster() as cluster, cluster.client("one") as one:
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
