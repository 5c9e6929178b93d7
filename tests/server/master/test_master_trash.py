"""The trash of a master: what reaches it, who may change what is in it, and when it is emptied."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.ids import ROOT_INODE, TRASH_INODE, TRASH_NAME
from gfscore.proto import gfs_pb2 as pb


async def keep_deleted(client: Any, seconds: int, inode: int = ROOT_INODE) -> None:
    await client.change("Policy", pb.PolicyRequest(inode=inode, values={"trash_seconds": str(seconds)}))


async def listed(client: Any, **request: Any) -> list[Any]:
    return list((await client.call("TrashList", pb.TrashListRequest(**request))).entries)


async def written_file(world: Any, client: Any, name: bytes, length: int) -> tuple[int, int]:
    """A closed file of one chunk: (inode, handle)."""
    created = await client.create(name, with_chunk=True)
    body = pb.GrantBody.FromString(created.grant.body)
    world.written(body, length)
    await client.commit(created.attr.inode, length)
    return created.attr.inode, body.handle


def refused(code: Code) -> Any:
    return pytest.raises(GfsError, check=lambda error: error.code is code)


async def test_an_expired_file_is_collected_within_a_heartbeat_or_two(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c")
    await keep_deleted(client, 100)
    inode, handle = await written_file(world, client, b"f", 10)
    await client.unlink(b"f")
    (entry,) = await listed(client)
    assert (entry.path, entry.attr.inode, entry.attr.size, entry.attr.nlink) == (b"/f", inode, 10, 0)
    assert entry.expires_ns - entry.deleted_ns == 100 * 10**9
    await trio.sleep(97)
    assert all(not server.collected for server in servers.values())
    assert (await client.lookup(entry.name, parent=TRASH_INODE)).attr.inode == inode
    status = await client.call("Status", pb.Empty())
    assert (status.files, status.trash_files, status.trash_bytes) == (0, 1, 10)
    await trio.sleep(6)
    assert all(server.collected == [handle] for server in servers.values())
    assert await listed(client) == []
    status = await client.call("Status", pb.Empty())
    assert (status.files, status.trash_files, status.trash_bytes, status.chunks) == (0, 0, 0, 0)


async def test_retention_zero_frees_within_two_heartbeats(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c")
    _, handle = await written_file(world, client, b"f", 10)
    await client.unlink(b"f")
    await trio.sleep(2.1)  # the servers of this world beat once a second
    assert all(server.collected == [handle] for server in servers.values())


async def test_many_that_expire_together_go_in_slices(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c")
    await keep_deleted(client, 50)
    for number in range(250):
        await client.create(b"f%d" % number)
        await client.unlink(b"f%d" % number)
    assert len(await listed(client)) == 250
    await trio.sleep(60)
    assert await listed(client) == []


async def test_a_wall_clock_that_was_set_back_leaves_nothing_behind(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c")
    await keep_deleted(client, 50)
    await client.create(b"f")
    await client.unlink(b"f")
    await trio.sleep(60)
    assert await listed(client) == []
    world.clock.wall_offset_ns = -3600 * 10**9
    await client.create(b"g")
    await client.unlink(b"g")
    assert [entry.path for entry in await listed(client)] == [b"/g"]
    await trio.sleep(100)
    assert await listed(client) == []


async def test_restoring_makes_directories_and_tells_everybody(world: Any, autojump_clock: Any) -> None:
    client, other = await world.client("c"), await world.client("o")
    await keep_deleted(client, 100)
    directory = (await client.create(b"d", kind=2)).attr.inode
    inode = (await client.create(b"f", parent=directory)).attr.inode
    for seen in (ROOT_INODE, directory, TRASH_INODE):
        await other.call("List", pb.ListRequest(inode=seen))
    await client.unlink(b"f", parent=directory)
    await client.unlink(b"d", directory=True)
    other.heard.clear()
    (entry,) = await listed(client)
    request = pb.TrashRestoreRequest(name=entry.name, caller=pb.Caller(uid=5, gid=6))
    reply = await client.change("TrashRestore", request, request_id=900)
    assert (reply.attr.inode, reply.attr.nlink) == (inode, 1)
    told = {(item.inode, tuple(item.names)) for item in other.heard}
    assert {(ROOT_INODE, (b"d",)), (TRASH_INODE, (entry.name,))} <= told
    assert (inode, ()) not in told, "the client has said that it has the file not open, and has forgotten it"
    made = (await client.lookup(b"d")).attr
    assert made.uid == 5 and (await client.lookup(b"f", parent=made.inode)).attr.inode == inode
    again = await client.change("TrashRestore", request, request_id=900)
    assert again.attr.inode == inode
    with refused(Code.NOT_FOUND):
        await client.change("TrashRestore", request)
    await client.unlink(b"f", parent=made.inode)
    await client.create(b"f", parent=made.inode)
    (entry,) = await listed(client)
    with refused(Code.EXISTS):
        await client.change("TrashRestore", pb.TrashRestoreRequest(name=entry.name))
    await client.change("TrashRestore", pb.TrashRestoreRequest(name=entry.name, path=b"/d/g"))
    assert (await client.lookup(b"g", parent=made.inode)).attr.inode == inode


async def test_emptying_is_by_path_and_age_and_may_be_asked_twice(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c")
    await keep_deleted(client, 10_000)
    for name in (b"old", b"young"):
        await client.create(name)
        await client.unlink(name)
        await trio.sleep(100)
    empty = pb.TrashEmptyRequest(below=b"/nothing")
    assert (await client.change("TrashEmpty", empty)).files == 0
    empty = pb.TrashEmptyRequest(older_than_seconds=150)
    assert (await client.change("TrashEmpty", empty, request_id=800)).files == 1
    repeated = await client.change("TrashEmpty", empty, request_id=800)
    assert repeated.files == 1 and repeated.next
    assert [entry.path for entry in await listed(client)] == [b"/young"]
    assert (await client.change("TrashEmpty", pb.TrashEmptyRequest(after=repeated.next))).files == 1
    assert await listed(client) == []


async def test_a_file_in_the_trash_is_changed_by_nobody_but_who_had_it_open(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    owner, remover, other = await world.client("w"), await world.client("r"), await world.client("o")
    await keep_deleted(owner, 100)
    inode, handle = await written_file(world, owner, b"f", 10)
    owner.held.add(inode)  # has it open
    await remover.lookup(b"f")
    await remover.unlink(b"f")
    assert (await listed(other))[0].attr.inode == inode
    _, body = await owner.lease(inode)
    assert body.handle == handle
    await owner.change("SetAttr", pb.SetAttrRequest(inode=inode, size=5))
    for stranger in (remover, other):
        with refused(Code.NOT_PERMITTED):
            await stranger.lease(inode)
        for request in (pb.SetAttrRequest(inode=inode, size=0), pb.SetAttrRequest(inode=inode, mode=0o777)):
            with refused(Code.NOT_PERMITTED):
                await stranger.change("SetAttr", request)
        with refused(Code.NOT_PERMITTED):
            await stranger.change("SetXattr", pb.XattrRequest(inode=inode, name=b"user.a", value=b"b"))
        with refused(Code.NOT_PERMITTED):
            await keep_deleted(stranger, 5, inode)
    assert (await other.call("GetAttr", pb.InodeRequest(inode=inode))).attr.size == 5


async def test_open_files_outlive_their_time_in_the_trash(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client, other = await world.client("c"), await world.client("o")
    await keep_deleted(client, 20)
    ours, own_chunk = await written_file(world, client, b"ours", 10)
    theirs, their_chunk = await written_file(world, client, b"theirs", 10)
    await client.unlink(b"ours", hold=True)
    await client.unlink(b"theirs")
    entry = next(entry for entry in await listed(client) if entry.path == b"/theirs")
    await other.lookup(entry.name, parent=TRASH_INODE)
    other.held.add(theirs)  # opened under its special name, and asked for when its time is over
    await trio.sleep(30)
    assert await listed(client) == []
    assert any(item.inode == theirs and item.unlinked for item in other.heard)
    for inode in (ours, theirs):
        assert (await client.call("GetAttr", pb.InodeRequest(inode=inode))).attr.nlink == 0
    assert all(not server.collected for server in servers.values())
    await client.change("Release", pb.ReleaseRequest(inodes=[ours]))
    await other.change("Release", pb.ReleaseRequest(inodes=[theirs]))
    await trio.sleep(3)
    assert all(sorted(server.collected) == sorted([own_chunk, their_chunk]) for server in servers.values())


async def test_deleting_again_reclaims_and_spares_who_has_it_open(world: Any, autojump_clock: Any) -> None:
    client, other = await world.client("c"), await world.client("o")
    await keep_deleted(client, 1000)
    held, free = (await client.create(b"held")).attr.inode, (await client.create(b"free")).attr.inode
    await client.unlink(b"held", hold=True)
    await client.unlink(b"free")
    entries = {entry.attr.inode: entry.name for entry in await listed(client)}
    await other.unlink(entries[free], parent=TRASH_INODE)
    await other.unlink(entries[held], parent=TRASH_INODE)
    assert await listed(client) == []
    with refused(Code.STALE_INODE):
        await client.call("GetAttr", pb.InodeRequest(inode=free))
    await client.call("GetAttr", pb.InodeRequest(inode=held))
    await client.change("Release", pb.ReleaseRequest(inodes=[held]))
    with refused(Code.STALE_INODE):
        await client.call("GetAttr", pb.InodeRequest(inode=held))


async def test_a_restarted_master_has_the_trash_and_reclaims_nothing_before_it_has_heard_from_all(
    world: Any, autojump_clock: Any
) -> None:
    servers = await world.three_servers()
    client = await world.client("c")
    await keep_deleted(client, 10)
    inode, handle = await written_file(world, client, b"f", 10)
    await client.unlink(b"f")
    await world.kill_master()
    world.network.disconnect("m", "a")
    await world.start_master()
    operator = await world.client("operator")
    await trio.sleep(60)
    assert [entry.attr.inode for entry in await listed(operator)] == [inode]
    world.network.reconnect("m", "a")
    await trio.sleep(60)
    assert await listed(operator) == []
    assert all(server.collected == [handle] for server in servers.values())


async def test_the_trash_is_found_but_not_listed(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c")
    assert (await client.lookup(TRASH_NAME)).attr.inode == TRASH_INODE
    assert list((await client.call("List", pb.ListRequest(inode=ROOT_INODE))).entries) == []
    reply = await client.call("List", pb.ListRequest(inode=TRASH_INODE))
    assert list(reply.entries) == [] and reply.parent == ROOT_INODE
    for request in (pb.UnlinkRequest(parent=1, name=TRASH_NAME, directory=True),):
        with refused(Code.NOT_PERMITTED):
            await client.change("Unlink", request)
    with refused(Code.NOT_PERMITTED):
        await client.create(b"new", parent=TRASH_INODE)
