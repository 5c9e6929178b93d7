"""Chunkservers at the master: sessions, reports, and what may be collected (rules 1, 2, 22, 23)."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb


async def test_a_server_of_another_cluster_is_refused(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    stranger = world.servers[0]
    with pytest.raises(GfsError) as caught:
        await stranger.register("another")
    assert caught.value.code is Code.WRONG_CLUSTER


async def test_a_copy_of_a_live_server_is_refused_but_not_one_of_a_dead_one(world: Any, autojump_clock: Any) -> None:
    await world.server("a")
    request = pb.RegisterRequest(
        protocol=1, server_id="a", incarnation=2, address=pb.Address(host="z", port=1, control_port=2)
    )
    control = world.network.transport("z").control_channel("m", 7100, "Master")
    with pytest.raises(GfsError) as caught:
        await control.call("Register", request, timeout=10)
    assert caught.value.code is Code.BUSY
    world.network.disconnect("m", "a")
    reply, _ = await control.call("Register", request, timeout=10)
    assert reply.epoch


async def register_from(world: Any, host: str, server_id: str, incarnation: int) -> pb.RegisterReply:
    request = pb.RegisterRequest(
        protocol=1, server_id=server_id, incarnation=incarnation, address=pb.Address(host=host, port=1, control_port=2)
    )
    reply, _ = (
        await world.network.transport(host).control_channel("m", 7100, "Master").call("Register", request, timeout=10)
    )
    return reply  # type: ignore[no-any-return]


async def test_a_copy_of_a_server_that_is_busy_waits_until_its_session_ends(world: Any, autojump_clock: Any) -> None:
    server = await world.server("a", beating=False)

    async def busy(request: Any, context: Any) -> Any:
        await trio.sleep(100)

    server.service["Info"] = busy
    for _ in range(2):
        with pytest.raises(GfsError, match="does not answer; waiting") as caught:
            await register_from(world, "z", "a", 2)
        assert caught.value.code is Code.NOT_READY
    await server.beat()
    await trio.sleep(world.config.lease_seconds * 1.2)
    assert (await register_from(world, "z", "a", 2)).epoch


async def test_an_old_copy_is_refused_even_when_the_original_is_gone(world: Any, autojump_clock: Any) -> None:
    server = await world.server("a", beating=False)
    server.incarnation = 5
    await server.register()
    await trio.sleep(world.config.lease_seconds * 1.2)
    for incarnation in (1, 4, 5):
        with pytest.raises(GfsError, match=r"is a copy, or was restored from one.* started 5 times") as caught:
            await register_from(world, "z", "a", incarnation)
        assert caught.value.code is Code.BUSY
    await server.register()
    server.incarnation = 6
    await server.register()
    assert (await server.beat()) is not None


async def test_old_sessions_are_unknown(world: Any, autojump_clock: Any) -> None:
    server = await world.server("a", beating=False)
    old = server.epoch
    await server.register()
    assert server.epoch > old
    server.epoch = old
    with pytest.raises(GfsError) as caught:
        await server.beat()
    assert caught.value.code is Code.UNKNOWN_SESSION


async def test_a_silent_server_goes_down_and_its_leases_with_it(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 10)
    world.network.disconnect("m", body.primary)
    await trio.sleep(8)
    states = {s.server.id: s.state for s in (await client.call("Status", pb.Empty())).chunkservers}
    assert states.pop(body.primary) == "suspect" and set(states.values()) == {"up"}
    await trio.sleep(world.config.lease_seconds * 1.5)
    status = await client.call("Status", pb.Empty())
    assert {s.server.id: s.state for s in status.chunkservers}[body.primary] == "down"
    assert (status.healthy, status.under_replicated, status.lost) == (0, 1, 0)
    _, new = await client.lease(made.attr.inode)
    assert new.version == 2 and new.primary != body.primary
    assert servers[body.primary].replicas[body.handle][0] == 1


async def test_a_higher_version_on_a_replica_is_adopted(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 10)
    for name in ("a", "b"):
        servers[name].replicas[body.handle] = (5, 11)
    await trio.sleep(3)
    request = pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=made.attr.inode, first=0, count=1)])
    chunk = (await client.call("Locate", request)).files[0].chunks[0]
    assert chunk.version == 5 and {server.id for server in chunk.replicas} == {"a", "b"}
    _, new = await client.lease(made.attr.inode)
    assert new.version == 6
    await trio.sleep(5)
    assert body.handle in servers["c"].replicas  # two good ones are fewer than the goal of three: kept


async def test_stale_replicas_go_only_when_enough_good_ones_exist(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    inode = (await client.create(b"f")).attr.inode
    await client.change("Policy", pb.PolicyRequest(inode=inode, values={"replication": "2"}))
    _, body = await client.lease(inode)
    assert len(body.replicas) == 2
    world.written(body, 10)
    third = next(server for name, server in servers.items() if name not in {r.id for r in body.replicas})
    await client.lease(inode, stale_version=1)
    third.replicas[body.handle] = (1, 3)
    await trio.sleep(4)
    assert third.collected == [body.handle]
    assert all(body.handle in servers[replica.id].replicas for replica in body.replicas)


async def test_the_last_copy_is_never_collected_however_stale(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 10)
    await client.lease(made.attr.inode, stale_version=1)
    for server in servers.values():
        server.replicas[body.handle] = (1, 10)
    await trio.sleep(10)
    assert all(server.collected == [] for server in servers.values())


async def test_a_fresh_master_deletes_nothing_before_it_has_heard_everybody(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    servers["a"].replicas[2] = (1, 1)  # a logical time that was no chunk: garbage
    servers["a"].replicas[1 << 40] = (1, 1)  # one that has not come yet: never garbage
    world.network.disconnect("m", "c")
    await world.restart_master()
    await trio.sleep(10)
    assert servers["a"].collected == []
    world.network.reconnect("m", "c")
    await trio.sleep(10)
    assert servers["a"].collected == [2]
    assert 1 << 40 in servers["a"].replicas


async def test_file_info_names_every_replica_and_its_state(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 70)
    del servers["a"].replicas[body.handle]
    world.network.disconnect("m", "b")
    info = await client.call("FileInfo", pb.FileInfoRequest(inode=made.attr.inode))
    states = {replica.server.id: (replica.state, replica.path) for replica in info.chunks[0].replicas}
    assert states == {
        "a": ("missing", ""), "b": ("unreachable", ""), "c": ("good", f"/c/{body.handle}"),
    }  # fmt: skip
    assert info.chunks[0].length == 70 and info.length == 70 and info.replication == 3


async def test_after_a_restart_new_chunks_wait_for_the_servers_to_come_back(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    client = await world.client("c1")
    await world.restart_master()
    await client.connect()
    first = world.servers[0]
    await first.register(world.cluster_id)
    made = await client.create(b"f", with_chunk=True)
    assert not made.grant.body
    _, body = await client.lease(made.attr.inode)
    assert len(body.replicas) == 3


async def test_a_server_that_stays_away_does_not_hold_up_new_chunks_for_long(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    client = await world.client("c1")
    world.network.disconnect("m", "c")
    await world.restart_master()
    await client.connect()
    before = trio.current_time()
    made = await client.create(b"f")
    _, body = await client.lease(made.attr.inode)
    assert len(body.replicas) == 2 and trio.current_time() - before < 6
