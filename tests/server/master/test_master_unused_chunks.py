"""Chunks that were granted and perhaps never used: given up when that is sure, kept when it is not."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.reconcile import POWER_LOST


async def test_a_chunk_that_was_never_used_before_its_servers_were_restarted_is_replaced(
    world: Any, autojump_clock: Any
) -> None:
    """Nobody will ever report it: whoever waits for that waits for ever."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    for server in servers.values():
        server.incarnation += 1
        await server.register(world.cluster_id)
    _, new = await client.lease(made.attr.inode, stale_version=1, avoid=[old.primary])
    assert new.fresh and new.handle != old.handle
    for name in ("a", "b"):  # the third is asked, and says that it has no such chunk
        servers[name].incarnation += 1
        await servers[name].register(world.cluster_id)
    _, third = await client.lease(made.attr.inode, stale_version=1, avoid=[new.primary])
    assert third.fresh and third.handle != new.handle
    await client.commit(made.attr.inode, 100)  # the length of a write that failed
    for server in servers.values():
        server.incarnation += 1
        await server.register(world.cluster_id)
    _, fourth = await client.lease(made.attr.inode)
    assert fourth.fresh and fourth.handle != third.handle


async def test_a_chunk_that_was_shared_before_its_first_use_is_replaced(world: Any, autojump_clock: Any) -> None:
    """Nobody has it, so nobody can copy it."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    for server in servers.values():
        await server.register(world.cluster_id)  # the lease is over
    await client.commit(made.attr.inode, 100)  # the length of a write that failed
    await client.change("Snapshot", pb.SnapshotRequest(source=made.attr.inode, new_parent=1, new_name=b"s"))
    _, new = await client.lease(made.attr.inode)
    assert new.fresh and new.handle != old.handle


async def test_a_fresh_chunk_with_a_committed_length_is_kept(world: Any, autojump_clock: Any) -> None:
    """Written, closed and opened again: the client does not remember what was acknowledged, the length does."""
    await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 100)
    await client.commit(made.attr.inode, 100)
    _, new = await client.lease(made.attr.inode, failed_handle=body.handle, stale_version=1, avoid=[body.primary])
    assert new.handle == body.handle and new.version == 2


async def test_a_fresh_chunk_that_another_client_may_have_written_to_is_kept(world: Any, autojump_clock: Any) -> None:
    """Once lost an acknowledged record: after a restart the master took the one who asked for the only writer."""
    await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    await two.lease(made.attr.inode)
    world.written(body, 100)  # by the second client
    await world.restart_master()
    await one.connect()
    _, kept = await one.lease(made.attr.inode, failed_handle=body.handle, stale_version=1)
    assert kept.handle == body.handle and len(kept.replicas) == 3
    _, again = await one.lease(made.attr.inode, failed_handle=body.handle, stale_version=kept.version)
    assert again.handle == body.handle


async def test_an_unused_first_chunk_is_given_back_unless_another_client_used_it(
    world: Any, autojump_clock: Any
) -> None:
    await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")

    async def give_back(client: Any, inode: int, handle: int) -> None:
        request = pb.CommitRequest()
        request.lengths.add(inode=inode, release=True, unused_chunk=handle)
        await client.change("Commit", request)

    async def chunks(inode: int) -> list[int]:
        info = await one.call("FileInfo", pb.FileInfoRequest(inode=inode))
        return [chunk.handle for chunk in info.chunks]

    alone = await one.create(b"alone", with_chunk=True)
    await give_back(one, alone.attr.inode, pb.GrantBody.FromString(alone.grant.body).handle)
    assert await chunks(alone.attr.inode) == []
    shared = await one.create(b"shared", with_chunk=True)
    body = pb.GrantBody.FromString(shared.grant.body)
    await two.lease(shared.attr.inode)
    world.written(body, 100)
    await two.commit(shared.attr.inode, 100)
    await give_back(one, shared.attr.inode, body.handle)
    assert await chunks(shared.attr.inode) == [body.handle]


@pytest.mark.parametrize("restarted", [("primary",), ("secondary",), ("primary", "secondary")])
async def test_a_chunk_that_nobody_has_is_replaced_also_when_its_servers_have_restarted(
    restarted: tuple[str, ...], world: Any, autojump_clock: Any
) -> None:
    """Once stuck for ever: a server killed before the first append reached it came back without the chunk."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    second = next(replica.id for replica in old.replicas if replica.id != old.primary)
    for which in restarted:
        server = servers[old.primary if which == "primary" else second]
        server.incarnation += 1
        await server.register(world.cluster_id)
    reply, new = await client.lease(made.attr.inode, stale_version=1, avoid=[old.primary])
    assert reply.index == 0 and new.handle != old.handle and new.fresh


async def test_a_chunk_whose_report_was_passed_over_is_not_replaced(world: Any, autojump_clock: Any) -> None:
    """A server that is back and has not been heard of this chunk is asked before the chunk is given up."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    await client.commit(made.attr.inode, 100, release=False)  # so the length says that there is something
    back = servers[old.primary]
    back.incarnation += 1
    await back.register(world.cluster_id)
    back.replicas[old.handle] = (1, 100)
    with pytest.raises(GfsError) as caught:
        await client.lease(made.attr.inode, stale_version=1, avoid=[old.primary])
    assert caught.value.code is Code.NOT_READY
    await trio.sleep(2)
    _, new = await client.lease(made.attr.inode, stale_version=1, avoid=[old.primary])
    assert new.handle == old.handle and [replica.id for replica in new.replicas] == [old.primary]


@pytest.mark.parametrize("written", [0, 2])
async def test_a_chunk_that_was_granted_before_a_restart_and_never_used_becomes_a_hole_again(
    written: int, world: Any, autojump_clock: Any
) -> None:
    """Once it counted as lost for ever: the lease that would have told that it was unused was forgotten."""
    servers = await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    inode = (await writer.create(b"f")).attr.inode
    size = written * world.config.chunk_size
    for index in range(written):
        _, body = await writer.lease(inode, index)
        world.written(body, world.config.chunk_size)
    await writer.commit(inode, size)
    await writer.lease(inode, written)
    await writer.channel.aclose()
    await world.restart_master()
    await reader.connect()
    for server in servers.values():
        await server.register(world.cluster_id)
    await trio.sleep(world.config.lease_seconds * 2)
    seen = await reader.lookup(b"f")
    assert seen.attr.size == size and not seen.attr.length_pending
    info = await reader.call("FileInfo", pb.FileInfoRequest(inode=inode))
    assert [chunk.index for chunk in info.chunks if chunk.handle] == list(range(written))
    assert (await reader.call("Status", pb.Empty())).lost == 0


async def test_a_chunk_whose_servers_are_all_silent_does_not_become_a_hole(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    made = await writer.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 100)
    await writer.channel.aclose()
    await world.kill_master()
    for name in servers:
        world.network.disconnect("m", name)
    await world.start_master()
    await reader.connect()
    await reader.lookup(b"f")  # the master tries to learn the length, in vain
    for name, server in servers.items():
        world.network.reconnect("m", name)
        await server.register(world.cluster_id)
    await trio.sleep(world.config.lease_seconds * 2)
    assert (await reader.lookup(b"f")).attr.size == 100
    info = await reader.call("FileInfo", pb.FileInfoRequest(inode=made.attr.inode))
    assert [chunk.handle for chunk in info.chunks] == [body.handle]


async def test_a_chunk_whose_replicas_are_all_damaged_is_not_replaced(world: Any, autojump_clock: Any) -> None:
    servers = {name: await world.server(name, beating=False) for name in "abc"}
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    world.written(old, 100)
    for name, server in servers.items():
        report = pb.ChunkReport(handle=old.handle, version=1, length=100, corrupt=True)
        await server.call("Heartbeat", pb.HeartbeatRequest(server_id=name, epoch=server.epoch, report=[report]))
    with pytest.raises(GfsError) as caught:
        await client.lease(made.attr.inode, stale_version=1)
    assert caught.value.code is Code.NOT_READY


async def test_an_acknowledged_fresh_chunk_is_not_unused_because_its_primary_lost_it(
    world: Any, autojump_clock: Any
) -> None:
    """The file of the primary's replica disappears (its lease ends with that); the two others have all. Then anybody
    asks for the length: here, for a snapshot."""
    servers = await world.three_servers()
    one, reader = await world.client("c1"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 1000)
    await trio.sleep(3)  # the servers have reported it
    primary = servers[body.primary]
    primary.replicas.pop(body.handle)
    primary.leases.pop(body.handle)
    report = pb.ChunkReport(handle=body.handle)  # as a chunkserver says it: version 0, it is gone
    await primary.call("Heartbeat", pb.HeartbeatRequest(server_id=primary.name, epoch=primary.epoch, report=[report]))
    await reader.change("Snapshot", pb.SnapshotRequest(source=inode, new_parent=1, new_name=b"s"))
    seen = await reader.lookup(b"f")
    assert await reader.chunks(inode) == [body.handle]
    assert seen.attr.size == 1000


async def test_a_used_chunk_is_not_replaced_because_one_replica_is_missing_and_the_others_are_slow(
    world: Any, autojump_clock: Any
) -> None:
    servers = await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    await two.lease(inode)
    world.written(body, 1000)  # acknowledged
    await trio.sleep(3)  # reported: the master knows that it is used
    lost, *others = servers.values()
    lost.replicas.pop(body.handle)
    lost.leases.pop(body.handle, None)

    async def slow(method: str) -> None:
        if method == "Prepare":
            await trio.sleep(3)

    for server in others:
        server.before = slow
    try:
        _, new = await one.lease(inode, stale_version=1, avoid=[body.primary])
    except GfsError as error:
        assert error.code is Code.NOT_READY
    else:
        assert new.handle == body.handle


async def test_a_member_that_lost_power_does_not_say_that_a_chunk_was_never_used(
    world: Any, autojump_clock: Any
) -> None:
    """Acknowledged, not synced, not reported yet. One member loses power, and with it the new file; the two others
    cannot be reached just then."""
    servers = await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    await two.lease(inode)
    lost = servers[body.primary]
    for name in servers:
        if name != lost.name:
            world.network.disconnect("m", name)
    world.written(body, 1000)
    lost.replicas.clear()
    lost.incarnation += 1
    await lost.register(world.cluster_id, report=False)
    await lost.beat(first=True, power_lost=True)
    lost.doubt = POWER_LOST
    try:
        _, new = await one.lease(inode, stale_version=1, avoid=[body.primary])
    except GfsError as error:
        assert error.code is Code.NOT_READY
    else:
        assert new.handle == body.handle
