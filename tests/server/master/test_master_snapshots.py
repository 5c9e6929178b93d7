"""Snapshots: leases are ended first, nothing is created meanwhile, chunks are copied on the first write after."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb


async def _open_file(world: Any, client: Any, length: int) -> tuple[int, pb.GrantBody]:
    directory = (await client.create(b"d", kind=2)).attr.inode
    made = await client.create(b"f", parent=directory, with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, length)
    return directory, body


async def test_a_snapshot_has_the_length_that_its_writer_had_not_committed(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    directory, body = await _open_file(world, client, 1234)
    await client.change("Snapshot", pb.SnapshotRequest(source=directory, new_parent=1, new_name=b"s"))
    assert "Revoke" in servers[body.primary].asked
    copy = (await client.lookup(b"s")).attr.inode
    assert (await client.lookup(b"f", parent=copy)).attr.size == 1234


async def test_a_create_inside_waits_for_the_snapshot(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client, other = await world.client("c1"), await world.client("c2")
    directory, body = await _open_file(world, client, 5)
    order: list[str] = []

    async def create() -> None:
        await other.create(b"late", parent=directory)
        order.append("created")

    async def elsewhere() -> None:
        await other.create(b"elsewhere")
        order.append("elsewhere")

    async with trio.open_nursery() as nursery:

        async def before(method: str) -> None:
            if method == "Revoke":
                nursery.start_soon(create)
                nursery.start_soon(elsewhere)
                await trio.sleep(1)
                order.append("revoked")

        servers[body.primary].before = before
        await client.change("Snapshot", pb.SnapshotRequest(source=directory, new_parent=1, new_name=b"s"))
    assert order == ["elsewhere", "revoked", "created"]
    copy = (await client.lookup(b"s")).attr.inode
    listed = await client.call("List", pb.ListRequest(inode=copy))
    assert [entry.name for entry in listed.entries] == [b"f"]


async def test_the_first_write_after_it_copies_the_chunk(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client, reader = await world.client("c1"), await world.client("r")
    directory, body = await _open_file(world, client, 100)
    source = (await reader.lookup(b"f", parent=directory)).attr.inode
    await client.change("Snapshot", pb.SnapshotRequest(source=source, new_parent=1, new_name=b"s"))
    assert all(set(server.replicas) == {body.handle} for server in servers.values())
    reader.heard.clear()
    _, new = await client.lease(source, last=True)
    assert new.handle != body.handle and not new.fresh and len(new.replicas) == 3
    assert all(server.replicas[new.handle] == (1, 100) for server in servers.values())
    assert any(item.inode == source and item.chunks for item in reader.heard)
    copy = (await client.lookup(b"s")).attr.inode
    request = pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=copy, first=0, count=1)])
    assert (await client.call("Locate", request)).files[0].chunks[0].handle == body.handle
    _, own = await client.lease(copy, 0)  # not shared any more: no second copy
    assert own.handle == body.handle
    await client.unlink(b"s")
    await trio.sleep(3)
    assert all(server.collected == [body.handle] for server in servers.values())


@pytest.mark.parametrize("doubting", ["a", "b", "c"])
async def test_the_copies_are_made_equal_to_one_that_has_everything(
    world: Any, autojump_clock: Any, doubting: str
) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    directory, _ = await _open_file(world, client, 100)
    source = (await client.lookup(b"f", parent=directory)).attr.inode
    await client.change("Snapshot", pb.SnapshotRequest(source=source, new_parent=1, new_name=b"s"))
    for name, server in servers.items():
        server.doubt = 2 * (name == doubting)
    _, new = await client.lease(source, last=True)
    assert len(new.replicas) == 3 and new.replicas[-1].id == doubting


async def test_a_silent_primary_is_fenced_before_the_snapshot(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    directory, body = await _open_file(world, client, 42)
    world.network.disconnect("m", body.primary)
    await client.change("Snapshot", pb.SnapshotRequest(source=directory, new_parent=1, new_name=b"s"))
    others = [server for name, server in servers.items() if name != body.primary]
    assert {server.replicas[body.handle][1] for server in others} == {42}
    assert len({server.replicas[body.handle][0] for server in others} - {body.version}) == 1
    copy = (await client.lookup(b"s")).attr.inode
    assert (await client.lookup(b"f", parent=copy)).attr.size == 42


async def test_a_clone_that_was_never_logged_is_no_handle_of_anybody_else(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    directory, body = await _open_file(world, client, 9)
    source = (await client.lookup(b"f", parent=directory)).attr.inode
    await client.change("Snapshot", pb.SnapshotRequest(source=source, new_parent=1, new_name=b"s"))

    async def never(method: str) -> None:
        if method == "Clone":
            await trio.sleep_forever()

    stuck = servers["a"]
    stuck.before = never
    async with trio.open_nursery() as nursery:

        async def doomed() -> None:
            with pytest.raises(GfsError):
                await client.lease(source)

        nursery.start_soon(doomed)
        await trio.sleep(0.5)
        cloned = set(servers["b"].replicas) - {body.handle}
        await world.kill_master()
        nursery.cancel_scope.cancel()
    stuck.before = None
    await world.start_master()
    await client.connect()
    fresh = await client.create(b"g", with_chunk=True)
    assert len(cloned) == 1
    handles = {pb.GrantBody.FromString(fresh.grant.body).handle, fresh.attr.inode}
    assert not cloned & handles


@pytest.mark.parametrize(("name", "parent", "code"), [(b"d", 1, Code.EXISTS), (b"", 1, Code.INVALID)])
async def test_a_wrong_destination_disturbs_no_lease(
    world: Any, autojump_clock: Any, name: bytes, parent: int, code: Code
) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    directory, _ = await _open_file(world, client, 1)
    with pytest.raises(GfsError) as caught:
        await client.change("Snapshot", pb.SnapshotRequest(source=directory, new_parent=parent, new_name=name))
    assert caught.value.code is code
    assert all("Revoke" not in server.asked for server in servers.values())
