"""Answers that cross with changes by others: what a client remembers afterwards is right."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
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


@pytest.mark.parametrize("trash_seconds", [0, 100])
@pytest.mark.parametrize("why", ["restart", "crossed"])
async def test_an_open_file_that_its_own_client_replaces_stays_usable(
    why: str, trash_seconds: int, autojump_clock: trio.testing.MockClock
) -> None:
    """The client does not know any more what the name stood for. Once that passed for "nothing"."""
    async with (
        memory_cluster(trash_seconds=trash_seconds) as cluster,
        cluster.client("one") as one,
        cluster.client("two") as two,
    ):
        for name in (b"target", b"new", b"else"):
            await two.create(ROOT_INODE, name, FileType.FILE, 0o644, 1, 1)
        elsewhere = await one.lookup(ROOT_INODE, b"else")
        if why == "crossed":
            between_answer_and_use(one, "Lookup", lambda: two.setattr(elsewhere.inode, AttrChanges(mode=0o600)))
        file = await one.open((await one.lookup(ROOT_INODE, b"target")).inode, write=True)
        await file.write(0, b"kept")
        await file.flush()
        if why == "restart":
            await cluster.restart("master")
            await trio.sleep(30)
        await one.rename(ROOT_INODE, b"new", ROOT_INODE, b"target")
        await trio.sleep(5)
        await file.write(4, b"more")
        await file.flush()
        assert bytes(await file.read(0, 10)) == b"keptmore"
        await file.close()


async def test_the_other_name_of_a_file_that_was_replaced_has_one_link_less(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        inode = (await two.create(ROOT_INODE, b"one", FileType.FILE, 0o644, 1, 1)).inode
        await two.link(inode, ROOT_INODE, b"two")
        await two.create(ROOT_INODE, b"new", FileType.FILE, 0o644, 1, 1)
        await one.lookup(ROOT_INODE, b"one")
        await one.rename(ROOT_INODE, b"new", ROOT_INODE, b"two")
        assert (await one.getattr(inode)).nlink == 1


async def test_a_file_that_our_rename_told_about_is_called_back(autojump_clock: trio.testing.MockClock) -> None:
    """The master that started since did not know that this client has it cached."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        inode = (await two.create(ROOT_INODE, b"f", FileType.FILE, 0o644, 1, 1)).inode
        await two.link(inode, ROOT_INODE, b"other")
        await one.lookup(ROOT_INODE, b"f")
        await cluster.restart("master")
        await trio.sleep(30)
        await one.rename(ROOT_INODE, b"f", ROOT_INODE, b"g")
        await two.setattr(inode, AttrChanges(mode=0o600))
        assert (await one.getattr(inode)).mode == 0o600


async def test_a_directory_is_as_our_last_change_left_it(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        one._cache.attrs.pop(ROOT_INODE, None)
        between_answer_and_use(one, "GetAttr", lambda: one.create(ROOT_INODE, b"d", FileType.DIRECTORY, 0o755, 1, 1))
        await one.getattr(ROOT_INODE)
        assert (await one.getattr(ROOT_INODE)).nlink == (await two.getattr(ROOT_INODE)).nlink


async def test_pages_from_before_a_write_are_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """Size and time are as before: what the kernel has may be out of date nevertheless while somebody writes."""
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await two.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"old")
        await two.setattr(attr.inode, AttrChanges(mtime_ns=5))
        first = await one.open(attr.inode)
        assert bytes(await first.read(0, 3)) == b"old"
        await first.close()
        await file.write(0, b"new")
        await two.setattr(attr.inode, AttrChanges(mtime_ns=5))
        await file.close()
        await trio.sleep(5)
        again = await one.open(attr.inode)
        assert bytes(await again.read(0, 3)) == b"new" and not again.keep_cache
        await again.close()


async def test_the_answer_to_a_link_has_the_length_of_a_file_that_is_being_written(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, file = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        await file.write(0, b"data")
        await file.flush()
        assert (await two.link(attr.inode, ROOT_INODE, b"g")).size == 4
        await file.close()


async def test_a_new_file_that_another_client_writes_at_once_is_no_hole_for_its_maker(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        attr, made = await one.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        other = await two.open(attr.inode, write=True)
        await other.write(0, b"data")
        await other.close()
        assert bytes(await made.read(0, 10)) == b"data"
        await made.close()


async def test_a_length_goes_to_the_master_when_the_last_writer_closes_though_readers_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        attr, file = await client.create_file(ROOT_INODE, b"f", 0o644, 1, 1)
        reader = await client.open(attr.inode)
        await file.write(0, b"data")
        await file.close()
        await trio.sleep(5)
        assert client.info()["uncommitted"] == 0
        await reader.close()


async def test_walking_through_a_large_tree_fills_no_memory(autojump_clock: trio.testing.MockClock) -> None:
    async with (
        memory_cluster() as cluster,
        cluster.client("maker") as maker,
        cluster.client("walker", cached_inodes_max=50) as walker,
    ):
        for number in range(200):
            made = await maker.create(ROOT_INODE, b"d%03d" % number, FileType.DIRECTORY, 0o755, 1, 1)
            await maker.create(made.inode, b"file", FileType.FILE, 0o644, 1, 1)
        for _ in range(2):
            assert len([path async for path, _ in Paths(walker).walk("/")]) == 401
            directories = walker._cache.directories.values()
            assert sum(1 + len(directory.names) for directory in directories) <= 200
