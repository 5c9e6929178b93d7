"""What the master makes of damaged replicas: out of every set at once, deleted only when there are enough good ones."""

from __future__ import annotations

from typing import Any

import trio

from gfscore.proto import gfs_pb2 as pb


async def leased(world: Any) -> tuple[Any, Any, pb.GrantBody]:
    """(client, inode, grant) of a file of three replicas that was written."""
    client = await world.client("one")
    created = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(created.grant.body)
    world.written(body, 100)
    return client, created.attr.inode, body


async def report_corrupt(server: Any, handle: int) -> None:
    version, length = server.replicas[handle]
    report = [pb.ChunkReport(handle=handle, version=version, length=length, corrupt=True)]
    request = pb.HeartbeatRequest(server_id=server.name, epoch=server.epoch, total_bytes=1 << 40, report=report)
    for collected in (await server.call("Heartbeat", request)).collect:
        server.collected.append(collected)
        del server.replicas[collected]


async def replicas(client: Any, inode: int) -> set[str]:
    reply = await client.call("Locate", pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=inode, count=1)]))
    return {server.id for server in reply.files[0].chunks[0].replicas}


async def test_a_damaged_member_leaves_with_the_next_grant(autojump_clock: Any, world: Any) -> None:
    servers = {name: await world.server(name, beating=False) for name in "abc"}
    client, inode, body = await leased(world)
    for number, victim in enumerate((body.replicas[1].id, body.primary)):
        await report_corrupt(servers[victim], body.handle)
        assert victim not in await replicas(client, inode)
        _, again = await client.lease(inode)
        assert again.version == body.version + number + 1
        assert victim not in {server.id for server in again.replicas} and again.primary != victim


async def test_a_damaged_replica_is_collected_only_when_the_goal_is_met_again(autojump_clock: Any, world: Any) -> None:
    servers = {name: await world.server(name, beating=False) for name in "abcd"}
    client, _, body = await leased(world)
    members = [server.id for server in body.replicas]
    victim = servers[members[0]]
    (spare,) = set(servers) - set(members)

    async def beats(seconds: int) -> None:
        for _ in range(seconds):
            for server in servers.values():
                await (report_corrupt(server, body.handle) if server is victim and server.replicas else server.beat())
            await trio.sleep(1)

    await beats(30)
    assert not victim.collected and (await client.call("Status", pb.Empty())).under_replicated == 1
    servers[spare].replicas[body.handle] = (1, 100)
    await beats(5)
    assert victim.collected == [body.handle]
    assert all(not server.collected for server in servers.values() if server is not victim)
    assert (await client.call("Status", pb.Empty())).healthy == 1


async def test_when_all_are_damaged_none_is_collected_and_all_are_named(autojump_clock: Any, world: Any) -> None:
    servers = {name: await world.server(name, beating=False) for name in "abc"}
    client, inode, body = await leased(world)
    for _ in range(60):
        for server in servers.values():
            await report_corrupt(server, body.handle)
        await trio.sleep(1)
    assert not any(server.collected for server in servers.values())
    status = await client.call("Status", pb.Empty())
    assert (status.lost, status.healthy) == (1, 0)
    assert await replicas(client, inode) == set(servers)
    info = await client.call("FileInfo", pb.FileInfoRequest(inode=inode))
    assert [replica.state for replica in info.chunks[0].replicas] == ["corrupt"] * 3
