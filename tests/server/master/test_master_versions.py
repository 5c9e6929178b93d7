"""A version belongs to one set of replicas: whoever was left out of it must never look as if it were in it (rule 3)."""

from __future__ import annotations

from typing import Any

import trio

from gfscore.proto import gfs_pb2 as pb


async def _located(client: Any, inode: int) -> tuple[int, set[str]]:
    request = pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=inode, first=0, count=1)])
    (chunk,) = (await client.call("Locate", request)).files[0].chunks
    return chunk.version, {replica.id for replica in chunk.replicas}


def _slow(server: Any, method: str) -> None:
    """It does what it is asked, but later than the master waits."""

    async def before(asked: str) -> None:
        if asked == method:
            await trio.sleep(4)

    server.before = before


async def test_a_replica_that_takes_a_version_too_late_is_stale(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    world.written(old, 100)
    late = servers[old.replicas[2].id]
    _slow(late, "Prepare")
    _, new = await client.lease(made.attr.inode, stale_version=1)
    assert {replica.id for replica in new.replicas} == {name for name in servers if name != late.name}
    world.written(new, 200)  # the one that was left out misses this
    await trio.sleep(5)
    assert late.replicas[new.handle][0] > 1  # it has taken the version that it was asked to take
    version, found = await _located(client, made.attr.inode)
    assert version == new.version and late.name not in found


async def test_a_copy_that_is_made_too_late_is_stale(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 100)
    await client.commit(made.attr.inode, 100)
    await client.change("Snapshot", pb.SnapshotRequest(source=made.attr.inode, new_parent=1, new_name=b"s"))
    late = servers[body.replicas[2].id]
    _slow(late, "Clone")
    _, new = await client.lease(made.attr.inode)
    assert new.handle != body.handle and late.name not in {replica.id for replica in new.replicas}
    world.written(new, 200)
    await trio.sleep(5)
    assert new.handle in late.replicas
    version, found = await _located(client, made.attr.inode)
    assert version == new.version and late.name not in found


async def test_a_version_that_an_earlier_master_tried_is_not_given_again(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 100)
    await client.commit(made.attr.inode, 100)
    _, before = await client.lease(made.attr.inode, stale_version=1)
    await client.commit(made.attr.inode, 100)
    tried = before.version + 1
    servers["a"].replicas[body.handle] = (tried, 100)  # the master died before it could log this
    world.network.disconnect("m", "a")
    await world.restart_master()
    await trio.sleep(30)  # the others are back, it is not
    again = await world.client("c2")
    _, new = await again.lease(made.attr.inode)
    assert {replica.id for replica in new.replicas} == {"b", "c"}
    world.written(new, 200)
    world.network.reconnect("m", "a")
    await trio.sleep(30)
    version, found = await _located(again, made.attr.inode)
    assert version == new.version > tried and found == {"b", "c"}
