"""Answers that cross with changes by others: what a client remembers afterwards is right."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client import ROOT_INODE, AttrChanges, Client, FileType
from gfscore.client.paths import Paths


def between_answer_and_use(client: Client, method: str, happens: Callable[[], Awaitable[Any]]) -> None:
    """The next answer to `method` waits, come from the master but not yet looked at, until `happens` is done."""
    session: Any = client._session
    call = session.call

    async def waiting(name: str, request: Any, **options: Any) -> Any:
        reply = await call(name, request, **options)
        if name == method:
            session.call = call
            await happens()
        return reply

    session.call = waiting


async def test_a_name_made_while_somebody_changes_another_file_is_there(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once the name was left out of a listing that still counted as complete: the file was there for all others."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        mine = await one.create(ROOT_INODE, b"mine", FileType.DIRECTORY, 0o755, 1, 1)
        other = await one.create(ROOT_INODE, b"other", FileType.DIRECTORY, 0o755, 1, 1)
        between_answer_and_use(one, "Create", lambda: two.setattr(other.inode, AttrChanges(mode=0o700)))
        made = await one.create(mine.inode, b"name", FileType.DIRECTORY, 0o755, 1, 1)
        assert (await one.lookup(mine.inode, b"name")).inode == made.inode
        await one.create(made.inode, b"below", FileType.DIRECTORY, 0o755, 1, 1)
        assert [entry.name for entry in (await one.list_page(made.inode, b"", 10))[0]] == [b"below"]


async def test_attributes_that_others_changed_right_after_the_creation_are_not_remembered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:

        async def change() -> None:
            made = await two.lookup(ROOT_INODE, b"name")
            await two.setattr(made.inode, AttrChanges(mode=0o700))

        between_answer_and_use(one, "Create", change)
        made = await one.create(ROOT_INODE, b"name", FileType.DIRECTORY, 0o755, 1, 1)
        assert (await one.getattr(made.inode)).mode & 0o777 == 0o700


async def test_a_name_that_others_removed_right_after_a_rename_is_not_remembered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await one.create(ROOT_INODE, b"old", FileType.DIRECTORY, 0o755, 1, 1)
        await two.list_page(ROOT_INODE, b"", 10)
        between_answer_and_use(one, "Rename", lambda: two.rename(ROOT_INODE, b"new", ROOT_INODE, b"last"))
        await one.rename(ROOT_INODE, b"old", ROOT_INODE, b"new")
        assert await names(one) == [b"last"]
        assert (await one.lookup(ROOT_INODE, b"last")).type == FileType.DIRECTORY


async def test_a_listing_on_its_way_does_not_take_away_what_was_made_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await two.create(ROOT_INODE, b"first", FileType.DIRECTORY, 0o755, 1, 1)

        async def make() -> None:
            await one.create(ROOT_INODE, b"second", FileType.DIRECTORY, 0o755, 1, 1)

        between_answer_and_use(one, "List", make)
        await names(one)
        assert (await one.lookup(ROOT_INODE, b"second")).type == FileType.DIRECTORY
        assert await names(one) == [b"first", b"second"]


async def test_a_listing_on_its_way_does_not_bring_back_what_was_removed_meanwhile(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        await two.create(ROOT_INODE, b"first", FileType.DIRECTORY, 0o755, 1, 1)
        between_answer_and_use(one, "List", lambda: one.rmdir(ROOT_INODE, b"first"))
        await names(one)
        assert await names(one) == []


async def test_a_listing_that_crosses_with_a_change_elsewhere_leaves_the_names_that_were_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once the names were dropped and the empty rest still counted as complete."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        mine = await one.create(ROOT_INODE, b"mine", FileType.DIRECTORY, 0o755, 1, 1)
        other = await one.create(ROOT_INODE, b"other", FileType.DIRECTORY, 0o755, 1, 1)
        _, file = await one.create_file(mine.inode, b"file", 0o644, 1, 1)
        await file.write(0, b"x")
        await file.flush()
        await Paths(two).append("/mine/file", b"y")  # two writers: its length is asked for at every look
        between_answer_and_use(one, "List", lambda: two.setattr(other.inode, AttrChanges(mode=0o700)))
        await one.list_page(mine.inode, b"", 10)
        assert (await one.lookup(mine.inode, b"file")).size >= 1
        await file.close()


async def test_the_end_of_a_directory_is_not_taken_for_the_whole(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        for name in (b"a", b"b", b"c"):
            await two.create(ROOT_INODE, name, FileType.DIRECTORY, 0o755, 1, 1)
        assert [entry.name for entry in (await one.list_page(ROOT_INODE, b"b", 10))[0]] == [b"c"]
        assert (await one.lookup(ROOT_INODE, b"a")).type == FileType.DIRECTORY
        assert await names(one) == [b"a", b"b", b"c"]


async def test_a_name_that_appeared_between_two_pages_is_known(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        for name in (b"a", b"c", b"d"):
            await two.create(ROOT_INODE, name, FileType.DIRECTORY, 0o755, 1, 1)
        page, more = await one.list_page(ROOT_INODE, b"", 2)
        assert [entry.name for entry in page] == [b"a", b"c"] and more
        await two.create(ROOT_INODE, b"b", FileType.DIRECTORY, 0o755, 1, 1)
        await one.list_page(ROOT_INODE, b"c", 2)
        assert (await one.lookup(ROOT_INODE, b"b")).type == FileType.DIRECTORY


async def names(client: Client) -> list[bytes]:
    return [entry.name for entry in (await client.list_page(ROOT_INODE, b"", 10))[0]]


async def test_a_length_on_its_way_to_the_master_does_not_undo_a_truncation(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once a file that was closed and cut to nothing grew back, with zeros: its old length came after the cut."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, bytes(3000))
        await file.close()
        session: Any = one._session
        call = session.call
        on_its_way = trio.Event()

        async def slow_commits(name: str, request: Any, **options: Any) -> Any:
            if name == "Commit":
                on_its_way.set()
                await trio.sleep(5)
            return await call(name, request, **options)

        session.call = slow_commits
        inode = (await one.lookup(ROOT_INODE, b"file")).inode
        await on_its_way.wait()
        await one.setattr(inode, AttrChanges(size=0))
        await trio.sleep(20)
        assert (await one.getattr(inode)).size == 0
        assert (await two.lookup(ROOT_INODE, b"file")).size == 0


async def test_attributes_from_before_a_change_of_ours_are_forgotten_when_its_answer_cannot_be_kept(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Once a file that was cut kept its old length on the mount that had cut it, with zeros behind the new one."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        other = await one.create(ROOT_INODE, b"other", FileType.DIRECTORY, 0o755, 1, 1)
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.write(0, bytes(3000))
        await file.close()
        await trio.sleep(5)
        inode = (await one.lookup(ROOT_INODE, b"file")).inode
        between_answer_and_use(one, "SetAttr", lambda: two.setattr(other.inode, AttrChanges(mode=0o700)))
        await one.setattr(inode, AttrChanges(size=0))
        assert (await one.getattr(inode)).size == 0


async def test_a_file_that_others_changed_right_after_one_of_its_names_went_is_asked_for_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        _, file = await one.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
        await file.close()
        inode = (await one.lookup(ROOT_INODE, b"file")).inode
        await one.link(inode, ROOT_INODE, b"second")
        between_answer_and_use(one, "Unlink", lambda: two.setattr(inode, AttrChanges(mode=0o600)))
        await one.unlink(ROOT_INODE, b"file")
        assert (await one.getattr(inode)).mode & 0o777 == 0o600
