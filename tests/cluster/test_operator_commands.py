"""What the commands of `gfs` do on a cluster: their work is run on the cluster in this process."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import click
import pytest
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfsmount.cli import cluster_client
from gfsmount.cli import trash as trash_command
from gfsmount.cli.cluster_client import Session
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
