"""What the commands of `gfs` do on a cluster: their work is run on the cluster in this process."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import click
import pytest
import trio
import trio.testing
from cluster_probes import QUIET, leases_given_back, replica_path
from memory_cluster import memory_cluster

from gfscore.client import ROOT_INODE, FileType
from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfsmount.cli import cluster_client
from gfsmount.cli import trash as trash_command
from gfsmount.cli.cluster_client import Session
from gfsmount.cli.du import command as du_command
from gfsmount.cli.fsck import command as fsck_command
from gfsmount.cli.get_policy import command as get_policy_command
from gfsmount.cli.rm import command as rm_command
from gfsmount.cli.set import command as set_command
from gfsmount.cli.tree import command as tree_command
from gfsmount.cli.usage import UsageProblem

MASTER = "master:7100"


class _Kept(Exception):
    pass


@pytest.fixture
def work_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[Session], Awaitable[Any]]]:
    """Gives the work that a command would do on the cluster."""
    kept = []

    def on_cluster(address: str, work: Any) -> None:
        kept.append(work)
        raise _Kept

    monkeypatch.setattr(cluster_client, "on_cluster", on_cluster)

    def work(command: click.Command, **arguments: Any) -> Any:
        assert command.callback is not None
        with pytest.raises(_Kept):
            command.callback(master=MASTER, **arguments)
        return kept.pop()

    return work


# ------------------------------------------------------------ gfs trash


@pytest.mark.parametrize("prefix", ["", f"gfs://{MASTER}/.trash/"])
async def test_trash_ls_and_empty_of_one_entry_are_for_that_one(
    autojump_clock: trio.testing.MockClock, work_of: Any, prefix: str
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client)
        for name in ("/a", "/b", "/c"):
            await paths.write(name, b"x")
            await paths.remove(name)
        typed = prefix + os.fsdecode((await client.trash.list("/b"))[0].entry)
        rows = await work_of(trash_command.ls, path=typed, as_json=True)(Session(client))
        assert [row["path"] for row in rows] == ["/b"]
        empty = work_of(trash_command.empty, path=typed, older_than=0)
        assert await empty(Session(client)) == 1
        assert [file.path for file in await client.trash.list()] == [b"/a", b"/c"]
        with pytest.raises(GfsError, check=lambda error: error.code is Code.NOT_FOUND):
            await empty(Session(client))
        assert len(await client.trash.list()) == 2


def test_trash_empty_of_one_entry_does_not_go_with_an_age() -> None:
    assert trash_command.empty.callback is not None
    with pytest.raises(UsageProblem):
        trash_command.empty.callback(path="20261121T052852Z.2a.notes", older_than=1, master=MASTER)


# ------------------------------------------------------------ what is walked


async def test_fsck_of_everything_looks_at_the_trash(autojump_clock: trio.testing.MockClock, work_of: Any) -> None:
    async with memory_cluster(1, 1, server_options=QUIET) as cluster, cluster.client() as client:
        paths = Paths(client)
        fsck = work_of(fsck_command, path=None, as_json=True, repair=False, wait_seconds=0.0)
        assert (await fsck(Session(client)))["problems"] == []  # there is no trash yet
        await paths.write("/a", b"x" * 1000)
        chunk = await replica_path(client, "/a")
        await paths.remove("/a")
        await leases_given_back()
        await cluster.kill("cs1")
        cluster.disks["cs1"].unlink(chunk)
        await cluster.start("cs1")
        await trio.sleep(100)
        problems = (await fsck(Session(client)))["problems"]
        assert {problem["kind"] for problem in problems} >= {"lost"}
        assert all(problem["path"].startswith("/.trash/") for problem in problems)


async def test_commands_that_walk_follow_a_symlink_that_they_are_given(
    autojump_clock: trio.testing.MockClock, work_of: Any
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client)
        await paths.makedirs("/real/below")
        await paths.write("/real/below/f", b"four")
        await client.create(ROOT_INODE, b"link", FileType.SYMLINK, 0, 0, 0, target=b"real")
        link = f"gfs://{MASTER}/link"
        fsck = work_of(fsck_command, path=link, as_json=True, repair=False, wait_seconds=0.0)
        assert (await fsck(Session(client)))["chunks"] == 1
        assert (await work_of(du_command, path=link, summarize=True, as_json=True)(Session(client)))["bytes"] == 4
        tree = await work_of(tree_command, path=link, as_json=True)(Session(client))
        assert [entry["name"] for entry in tree["entries"]] == ["below"]
        settings = {"settings": ("replication=2",), "recursive": True, "as_json": True}
        await work_of(set_command, path=link, **settings)(Session(client))
        assert (await client.get_policy((await paths.stat("/real/below/f")).inode))["replication"] == "2"


# ------------------------------------------------------------ gfs rm


async def test_rm_removes_all_though_another_removes_some_of_it_meanwhile(
    autojump_clock: trio.testing.MockClock, work_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_cluster() as cluster, cluster.client("one") as one, cluster.client("two") as two:
        paths, other = Paths(one), Paths(two)
        for name in ("a/f", "b/sub/f", "c/f"):
            await paths.makedirs(f"/d/{name.rpartition('/')[0]}")
            await paths.write(f"/d/{name}", b"x")
        kept = await other.open("/d/c/f", write=True)  # its length has to be asked for, and it is gone then
        await kept.write(0, b"more")
        unlink, list_page = one.unlink, one.list_page

        async def unlink_late(parent: int, name: bytes) -> None:
            if not gone:
                gone.append("/d/a and /d/b")
                await other.remove("/d/a", recursive=True)
                await other.remove("/d/b", recursive=True)
            await unlink(parent, name)

        async def list_early(inode: int, after: bytes, limit: int) -> Any:
            page = await list_page(inode, after, limit)
            if any(entry.attr.volatile for entry in page[0]):
                await kept.close()
                await other.remove("/d/c", recursive=True)
                await trio.sleep(10)
            return page

        gone: list[str] = []
        monkeypatch.setattr(one, "unlink", unlink_late)
        monkeypatch.setattr(one, "list_page", list_early)
        await one.set_policy(ROOT_INODE, {"trash_seconds": "0"})
        await work_of(rm_command, paths=(f"gfs://{MASTER}/d",), recursive=True, force=True)(Session(one))
        assert await other.list("/") == []


async def test_rm_of_what_is_not_there_is_an_error_without_force(
    autojump_clock: trio.testing.MockClock, work_of: Any
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        arguments = {"paths": (f"gfs://{MASTER}/d",), "recursive": True}
        await work_of(rm_command, **arguments, force=True)(Session(client))
        with pytest.raises(GfsError, check=lambda error: error.code is Code.NOT_FOUND):
            await work_of(rm_command, **arguments, force=False)(Session(client))


async def test_a_tree_is_removed_however_deep_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        paths = Paths(client)
        await paths.makedirs("/d" * 1200)
        await paths.remove("/d", recursive=True)
        assert await paths.list("/") == []


# ------------------------------------------------------------ gfs get-policy


async def test_get_policy_tells_for_how_long_a_deleted_file_would_stay(
    autojump_clock: trio.testing.MockClock, work_of: Any
) -> None:
    async with memory_cluster() as cluster, cluster.client() as client, cluster.client("other") as other:
        paths = Paths(client)
        directory = await paths.makedirs("/d")
        await client.set_policy(directory.inode, {"trash_seconds": "100"})
        await paths.write("/d/inherits", b"x")
        await paths.write("/d/own", b"x")
        own = (await paths.stat("/d/own")).inode
        await client.set_policy(own, {"trash_seconds": "50"})
        await client.set_policy(directory.inode, {"trash_seconds": "7"})
        for name, seconds in (("/d/inherits", "7"), ("/d/own", "50"), ("/d", "7"), ("/", "86400")):
            work = work_of(get_policy_command, path=f"gfs://{MASTER}{name}", as_json=True)
            assert (await work(Session(other)))["trash_seconds"] == seconds
        inherits = (await paths.stat("/d/inherits")).inode
        assert (await client.set_policy(inherits, {"replication": "2"}))["trash_seconds"] == "7"
        await paths.rename("/d/inherits", "/elsewhere")
        work = work_of(get_policy_command, path=f"gfs://{MASTER}/elsewhere", as_json=True)
        assert (await work(Session(other)))["trash_seconds"] == "86400"
