"""Names through a whole master: idempotency, restarts, counters, bad input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio

from gfscore.env.memory import memory_env
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.server import run_master


async def test_acknowledged_changes_survive_power_loss(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    made: list[bytes] = []

    async def make(number: int) -> None:
        await client.create(b"f%d" % number, kind=2)
        made.append(b"f%d" % number)

    with trio.move_on_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(make, number)
    await world.restart_master()
    await client.connect()
    assert len(made) == 60
    for name in made:
        assert (await client.lookup(name)).attr.type == 2


async def test_a_retry_is_recognised_also_across_a_restart(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    request = pb.CreateRequest(parent=1, name=b"once", type=pb.FILE, mode=0o600, exclusive=True)
    first = await client.change("Create", request, request_id=7)
    again = await client.change("Create", request, request_id=7)
    assert again.attr.inode == first.attr.inode
    await world.restart_master()
    await client.connect()
    assert not client.hello.resumed
    third = await client.change("Create", request, request_id=7)
    assert third.attr.inode == first.attr.inode
    with pytest.raises(GfsError) as caught:
        await client.change("Create", request, request_id=8)
    assert caught.value.code is Code.EXISTS
    await client.unlink(b"once")
    assert (await client.change("Unlink", pb.UnlinkRequest(parent=1, name=b"once"), request_id=1)).inode


async def test_a_client_keeps_its_id_across_a_restart_but_not_for_ever(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    mine = client.client_id
    await world.restart_master()
    await client.connect()
    assert client.client_id == mine
    await world.restart_master()
    await trio.sleep(world.config.lease_seconds + 5)
    await client.connect()
    assert client.client_id != mine
    old = pb.CreateRequest(id=pb.RequestId(client_id=mine, request_id=99), parent=1, name=b"x", type=pb.FILE)
    with pytest.raises(GfsError) as caught:
        await client.call("Create", old)
    assert caught.value.code is Code.UNKNOWN_SESSION


async def test_calls_are_counted_by_method(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    await client.create(b"a")
    await client.create(b"b")
    await client.lookup(b"a")
    status = await client.call("Status", pb.Empty())
    assert status.calls["Create"] == 2
    assert status.calls["Lookup"] == 1
    assert status.files == 2 and status.directories == 1


async def test_another_chunk_size_is_refused_naming_both(world: Any, autojump_clock: Any) -> None:
    await world.kill_master()
    good = world.config
    world.config = replace(good, chunk_size=2 << 20)
    with pytest.raises(GfsError, match=r"2097152.*1048576"):
        await run_master(world.config, memory_env(world.network.transport("m"), disk=world.disk))
    world.config = good
    await world.start_master()


async def test_create_without_servers_gives_a_file_without_a_grant(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    reply = await client.create(b"f", with_chunk=True)
    assert reply.attr.inode and not reply.grant.body and not reply.attr.length_pending
    with pytest.raises(GfsError) as caught:
        await client.lease(reply.attr.inode)
    assert caught.value.code is Code.NO_SERVERS


async def test_a_file_with_several_names_tells_its_directories(world: Any, autojump_clock: Any) -> None:
    client = await world.client("c1")
    made = await client.create(b"one")
    linked = await client.change("Link", pb.LinkRequest(inode=made.attr.inode, new_parent=1, new_name=b"two"))
    assert linked.attr.nlink == 2 and linked.parent.inode == 1
    left = await client.unlink(b"one")
    assert left.attr.inode == made.attr.inode and left.attr.nlink == 1 and left.parent.inode == 1
    moved = await client.change("Rename", pb.RenameRequest(parent=1, name=b"two", new_parent=1, new_name=b"three"))
    assert moved.attr.inode == made.attr.inode
    listed = await client.call("List", pb.ListRequest(inode=1))
    assert [entry.name for entry in listed.entries] == [b"three"] and not listed.more


@pytest.mark.parametrize(
    ("method", "request_message", "code"),
    [
        ("Lookup", pb.LookupRequest(parent=1, name=b"n" * 256), Code.NAME_TOO_LONG),
        ("Lookup", pb.LookupRequest(parent=99, name=b"n"), Code.STALE_INODE),
        ("Create", pb.CreateRequest(parent=1, name=b"a/b", type=pb.FILE), Code.INVALID),
        ("Create", pb.CreateRequest(parent=1, name=b"a"), Code.INVALID),
        ("GetAttr", pb.InodeRequest(inode=12345), Code.STALE_INODE),
        ("Lease", pb.LeaseRequest(inode=1), Code.IS_DIRECTORY),
        ("FileInfo", pb.FileInfoRequest(inode=1), Code.IS_DIRECTORY),
        ("Hello", pb.HelloRequest(protocol=99), Code.WRONG_PROTOCOL),
        ("Policy", pb.PolicyRequest(inode=1, values={"colour": "red"}), Code.INVALID),
        ("SetXattr", pb.XattrRequest(inode=1, name=b"user.x", value=b"v" * 70000), Code.ATTRIBUTE_TOO_LARGE),
    ],
)
async def test_bad_input_is_answered_with_its_error(
    world: Any, autojump_clock: Any, method: str, request_message: Any, code: Code
) -> None:
    client = await world.client("c1")
    with pytest.raises(GfsError) as caught:
        await client.call(method, request_message)
    assert caught.value.code is code
    assert (await client.call("GetAttr", pb.InodeRequest(inode=1))).attr.inode == 1
