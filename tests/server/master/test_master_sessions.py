"""Caches of mounts: who is told of what, and when the change is answered."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import trio

from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.memory import MemoryNetwork
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.sessions import Sessions
from gfscore.server.master.state import open_state


async def test_a_change_is_answered_after_the_others_have_forgotten(world: Any, autojump_clock: Any) -> None:
    writer, reader = await world.client("w"), await world.client("r")
    await reader.call("List", pb.ListRequest(inode=1))
    order: list[str] = []

    async def slow() -> None:
        await trio.sleep(2)
        order.append("forgotten")

    reader.before_answer = slow
    await writer.create(b"new")
    order.append("answered")
    assert order == ["forgotten", "answered"]
    assert [(item.inode, list(item.names)) for item in reader.heard] == [(1, [b"new"])]
    assert writer.heard == []


async def test_who_was_not_told_is_not_called_back(world: Any, autojump_clock: Any) -> None:
    writer, other = await world.client("w"), await world.client("o")
    plain = await world.client("p", caching=False)
    directory = (await writer.create(b"d", kind=2)).attr.inode
    await plain.call("List", pb.ListRequest(inode=directory))
    await other.call("GetAttr", pb.InodeRequest(inode=1))
    await writer.create(b"inside", parent=directory)
    assert other.heard == [] and plain.heard == []


async def test_a_session_that_does_not_answer_is_dropped(world: Any, autojump_clock: Any) -> None:
    writer, stuck = await world.client("w"), await world.client("s")
    await stuck.call("List", pb.ListRequest(inode=1))
    stuck.before_answer = trio.sleep_forever
    before = trio.current_time()
    await writer.create(b"f")
    assert 4 < trio.current_time() - before < 7
    with trio.fail_after(1):
        await stuck.channel.wait_closed()
    stuck.before_answer = None
    await stuck.connect()
    assert not stuck.hello.resumed


async def test_a_broken_stream_resumes_if_nothing_was_missed(world: Any, autojump_clock: Any) -> None:
    writer, mount = await world.client("w"), await world.client("m1")
    await mount.call("List", pb.ListRequest(inode=1))
    await mount.channel.aclose()
    await trio.sleep(0.1)
    await mount.connect()
    assert mount.hello.resumed
    await writer.create(b"seen")
    assert [list(item.names) for item in mount.heard] == [[b"seen"]]
    await mount.channel.aclose()
    await trio.sleep(0.1)
    await writer.create(b"missed")
    await mount.connect()
    assert not mount.hello.resumed


async def test_unlinked_but_open_elsewhere_lives_until_released(world: Any, autojump_clock: Any) -> None:
    writer, holder = await world.client("w"), await world.client("h")
    inode = (await writer.create(b"f")).attr.inode
    await holder.lookup(b"f")
    holder.held.add(inode)
    await writer.unlink(b"f")
    assert any(item.unlinked and item.inode == inode for item in holder.heard)
    assert (await holder.call("GetAttr", pb.InodeRequest(inode=inode))).attr.nlink == 0
    await holder.change("Release", pb.ReleaseRequest(inodes=[inode]))
    assert await _gone(writer, inode)


async def test_unlinked_and_not_open_anywhere_is_gone_at_once(world: Any, autojump_clock: Any) -> None:
    writer, other = await world.client("w"), await world.client("o")
    inode = (await writer.create(b"f")).attr.inode
    await other.lookup(b"f")
    await writer.unlink(b"f")
    assert await _gone(other, inode)


async def test_nobody_can_open_a_file_while_its_unlink_asks_around(world: Any, autojump_clock: Any) -> None:
    writer, other = await world.client("w"), await world.client("o")
    inode = (await writer.create(b"f")).attr.inode
    await other.lookup(b"f")
    results: list[str] = []

    async def open_it() -> None:
        results.append("gone" if await _gone(other, inode) else "there")

    async with trio.open_nursery() as nursery:

        async def in_between() -> None:
            nursery.start_soon(open_it)
            await trio.sleep(1)
            results.append("asked")
            other.before_answer = None

        other.before_answer = in_between
        await writer.unlink(b"f")
    assert results == ["asked", "gone"]


async def test_held_files_survive_a_restart_if_declared_again(world: Any, autojump_clock: Any) -> None:
    client, other = await world.client("c"), await world.client("o")
    kept = (await client.create(b"kept")).attr.inode
    dropped = (await other.create(b"dropped")).attr.inode
    await client.unlink(b"kept", hold=True)
    await other.unlink(b"dropped", hold=True)
    await world.restart_master()
    await client.connect(held=[kept])
    await trio.sleep(world.config.lease_seconds * 1.5)  # `other` never comes back
    assert not await _gone(client, kept)
    assert await _gone(client, dropped)


async def test_who_comes_back_while_others_are_asked_keeps_what_is_being_unlinked(
    world: Any, autojump_clock: Any
) -> None:
    writer, holder, slow = await world.client("w"), await world.client("h"), await world.client("s")
    inode = (await writer.create(b"f")).attr.inode
    await holder.lookup(b"f")
    await slow.lookup(b"f")
    await holder.channel.aclose()
    await trio.sleep(0.1)

    async def come_back() -> None:
        await holder.connect(written=[inode])

    slow.before_answer = come_back
    await writer.unlink(b"f")
    assert list(holder.hello.held) == [inode]
    await trio.sleep(10)
    assert not await _gone(writer, inode)
    await holder.change("Release", pb.ReleaseRequest(inodes=[inode]))
    assert await _gone(writer, inode)


async def _gone(client: Any, inode: int) -> bool:
    from gfscore.errors import Code, GfsError

    try:
        await client.call("GetAttr", pb.InodeRequest(inode=inode))
    except GfsError as error:
        assert error.code is Code.STALE_INODE
        return True
    return False


async def test_the_answer_to_a_commit_names_the_files_whose_length_stays_open(world: Any, autojump_clock: Any) -> None:
    """Others write on, or a damaged replica has broken the lease: the committed length is not the last word."""
    servers = await world.three_servers()
    one, two = await world.client("1"), await world.client("2")
    alone, shared, broken = [await one.create(name, with_chunk=True) for name in (b"alone", b"shared", b"broken")]
    body = pb.GrantBody.FromString(broken.grant.body)
    world.written(body, 100)
    member = servers[body.primary]
    report = pb.ChunkReport(handle=body.handle, version=1, length=100, corrupt=True)
    await member.call("Heartbeat", pb.HeartbeatRequest(server_id=body.primary, epoch=member.epoch, report=[report]))
    await two.lease(shared.attr.inode)
    commit = pb.CommitRequest()
    for made in (alone, shared, broken):
        commit.lengths.add(inode=made.attr.inode, size=100, release=True)
    reply = await one.change("Commit", commit)
    assert list(reply.pending) == [shared.attr.inode, broken.attr.inode]


async def test_call_backs_under_way_are_waited_for_in_the_order_in_which_they_began() -> None:
    """Not in that of their addresses: the history of a seed is the same in every process."""
    env = memory_env(MemoryNetwork().transport("m"), disk=MemoryDisk(), seed=1)
    state = open_state(MasterConfig(host="m", port=7100), env)
    async with trio.open_nursery() as nursery:
        sessions = Sessions(state, env, 20.0, nursery)
        with ExitStack() as stack:
            began: list[trio.Event] = []
            for other in range(20):
                stack.enter_context(sessions._noted({1, 100 + other}))
                (known,) = sessions.being_told(100 + other)
                began.append(known)
            assert sessions.being_told(1) == sessions.being_told() == began
        assert sessions.being_told() == []
    state.close()
