"""`gfs status` when a chunkserver is gone: it is named, and what was lost with it is told as lost."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from memory_cluster import memory_cluster

from gfscore.client.paths import Paths
from gfscore.errors import Code, GfsError
from gfsmount.cli import cluster_client
from gfsmount.cli.status import command as status_command


async def test_a_server_that_the_master_never_heard_of_since_its_start_is_down(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with memory_cluster(4, 3) as cluster, cluster.client() as client:
        ids = {row["address"].partition(":")[0]: row["id"] for row in (await client.status())["chunkservers"]}
        await cluster.kill("cs4")
        await cluster.restart("master")
        await trio.sleep(20)  # less than `down_seconds`: it may be about to register
        assert {row["state"] for row in (await client.status())["chunkservers"]} == {"up"}
        await trio.sleep(300)
        status = await client.status()
        [down] = [row for row in status["chunkservers"] if row["state"] != "up"]
        assert (down["id"], down["state"], down["address"]) == (ids["cs4"], "down", "")
        for as_json in (False, True):
            monkeypatch.setattr(cluster_client, "on_cluster", lambda address, work: status)
            assert status_command.callback is not None
            assert status_command.callback(as_json=as_json, master="master:7100") == 1
        await cluster.start("cs4")
        await trio.sleep(20)
        assert [row["state"] for row in (await client.status())["chunkservers"]] == ["up"] * 4


@pytest.mark.parametrize("timeout", [5, 25])
async def test_a_call_to_a_silent_master_ends_with_the_timeout(
    autojump_clock: trio.testing.MockClock, timeout: float
) -> None:
    async with memory_cluster() as cluster, cluster.client(timeout_seconds=timeout) as client:
        cluster.disks["master"].hang()
        try:
            started = trio.current_time()
            with pytest.raises(GfsError) as given_up:
                await Paths(client).mkdir("/directory")
            assert given_up.value.code is Code.TIMED_OUT
            assert trio.current_time() - started == pytest.approx(timeout, abs=1)
        finally:
            cluster.disks["master"].resume()
        await Paths(client).stat("/directory")


async def test_what_only_a_forgotten_server_had_is_lost(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster(3, 1) as cluster, cluster.client() as client:
        for number in range(9):
            await Paths(client).write(f"/f{number}", b"x")
        await trio.sleep(100)
        await cluster.kill("cs1")
        await trio.sleep(100)
        [down] = [row["id"] for row in (await client.status())["chunkservers"] if row["state"] == "down"]
        await client.operator.forget_server(down)
        await trio.sleep(100)
        chunks = (await client.status())["chunks"]
        assert chunks["lost"] > 0 and chunks["under_replicated"] == 0
        await cluster.restart("master")
        await trio.sleep(100)
        assert (await client.status())["chunks"] == chunks
        await cluster.start("cs1")  # it does come back
        await trio.sleep(100)
        assert (await client.status())["chunks"]["healthy"] == 9
