"""Grants, versions and lengths, with chunkservers that do as told."""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb


async def test_create_brings_a_signed_grant_without_asking_chunkservers(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    secret = (await servers["a"].call("Register", _register("a"))).secret
    client = await world.client("c1")
    reply = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(reply.grant.body)
    assert hmac.digest(secret, reply.grant.body, "sha256") == reply.grant.signature
    assert hmac.new(secret, reply.grant.body, sha256).digest() == reply.grant.signature
    assert {replica.id for replica in body.replicas} == {"a", "b", "c"}
    assert body.fresh and body.version == 1 and body.primary == body.replicas[0].id
    assert reply.attr.length_pending
    assert all(server.asked == [] for server in servers.values())


def _register(name: str) -> pb.RegisterRequest:
    address = pb.Address(host=name, port=1, control_port=2)
    return pb.RegisterRequest(protocol=1, server_id=name, address=address, total_bytes=1 << 40, incarnation=1)


async def test_a_second_writer_gets_the_same_grant_and_the_first_is_told(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    reply, _ = await two.lease(made.attr.inode, last=True)
    assert reply.grant.body == made.grant.body and reply.index == 0 and not reply.sole_writer
    assert [item.inode for item in one.heard if item.writers] == [made.attr.inode]


async def test_an_unreachable_primary_is_fenced_off_by_a_new_version(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    world.written(old, 100)
    world.network.disconnect("m", old.primary)
    before = trio.current_time()
    _, new = await client.lease(made.attr.inode, stale_version=1, avoid=[old.primary])
    assert trio.current_time() - before < 5
    assert new.version > 1 and not new.fresh and new.primary != old.primary
    assert old.primary not in {replica.id for replica in new.replicas} and len(new.replicas) == 2
    assert all(servers[replica.id].replicas[new.handle] == (new.version, 100) for replica in new.replicas)
    assert servers[old.primary].replicas[old.handle] == (1, 100)


async def test_a_failed_fresh_chunk_is_replaced_by_another(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    old = pb.GrantBody.FromString(made.grant.body)
    _, new = await client.lease(made.attr.inode, failed_handle=old.handle, stale_version=1, avoid=[old.primary])
    assert new.fresh and new.handle != old.handle
    _, body = await client.lease(made.attr.inode, failed_handle=old.handle, stale_version=1)
    assert body.handle == new.handle
    servers["a"].replicas[old.handle] = (1, 5)  # it was created there all the same
    await servers["a"].beat()
    await servers["a"].beat()
    assert old.handle in servers["a"].collected


async def test_two_leases_on_the_next_chunk_create_one(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    inode = (await one.create(b"f", with_chunk=True)).attr.inode
    handles: set[int] = set()

    async def ask(client: Any) -> None:
        handles.add((await client.lease(inode, 1))[1].handle)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, one)
        nursery.start_soon(ask, two)
    assert len(handles) == 1


async def test_others_learn_of_a_growing_length_from_the_primary_or_at_the_end(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    made = await writer.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    seen = await reader.lookup(b"f")
    assert seen.attr.length_pending and seen.chunks[0].primary == body.primary
    await writer.commit(made.attr.inode, 77)
    assert [item.inode for item in reader.heard if item.attr] == [made.attr.inode]
    seen = await reader.lookup(b"f")
    assert seen.attr.size == 77 and not seen.attr.length_pending
    reader.heard.clear()
    await writer.lease(made.attr.inode)
    assert [item.attr for item in reader.heard] == [True]  # from now on the size may be wrong again


async def test_a_writer_that_vanishes_leaves_the_length_of_the_replicas(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    made = await writer.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 4321)
    await writer.channel.aclose()
    await trio.sleep(world.config.lease_seconds * 1.5)
    seen = await reader.lookup(b"f")
    assert seen.attr.size == 4321 and not seen.attr.length_pending


async def test_after_a_restart_a_pending_length_is_learnt_from_reports(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    writer = await world.client("w")
    made = await writer.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 999)
    await world.restart_master()
    await writer.connect()
    seen = await writer.lookup(b"f")  # the servers register while it waits
    assert seen.attr.size == 999 and not seen.attr.length_pending
    located = await writer.call(
        "Locate", pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=made.attr.inode, first=0, count=8)])
    )
    assert len(located.files[0].chunks[0].replicas) == 3
    _, again = await writer.lease(made.attr.inode)
    assert again.version > 1 and len(again.replicas) == 3


async def test_locations_are_not_ready_while_servers_are_awaited(world: Any, autojump_clock: Any) -> None:
    server = await world.server("a", beating=False)
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 10)
    await client.commit(made.attr.inode, 10)
    await world.restart_master()
    await client.connect()
    request = pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=made.attr.inode, first=0, count=1)])
    assert (await client.call("Locate", request)).files[0].error == Code.NOT_READY
    with pytest.raises(GfsError) as caught:
        await client.lease(made.attr.inode)
    assert caught.value.code is Code.NOT_READY
    await server.register(world.cluster_id)
    assert (await client.call("Locate", request)).files[0].chunks[0].replicas[0].id == "a"


async def test_truncation_cuts_the_replicas_and_frees_the_rest(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    inode = (await client.create(b"f")).attr.inode
    _, first = await client.lease(inode, 0)
    _, second = await client.lease(inode, 1)
    world.written(first, 1 << 20)
    world.written(second, 500)
    await client.commit(inode, (1 << 20) + 500)
    reply = await client.change("SetAttr", pb.SetAttrRequest(inode=inode, size=1000, mode=0o600))
    assert (reply.attr.size, reply.attr.mode, reply.attr.length_pending) == (1000, 0o600, False)
    assert all(server.replicas[first.handle] == (2, 1000) for server in servers.values())
    await trio.sleep(3)
    assert all(server.collected == [second.handle] for server in servers.values())
    _, grown = await client.lease(inode, 0)
    assert grown.length_floor == 1000


async def test_an_extended_file_is_appended_to_behind_its_end(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    client = await world.client("c1")
    inode = (await client.create(b"f")).attr.inode
    await client.change("SetAttr", pb.SetAttrRequest(inode=inode, size=(3 << 20) + 5))
    reply, body = await client.lease(inode, last=True)
    assert reply.index == 3 and body.length_floor == 5


async def test_idle_leases_are_given_back_with_the_length(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    made = await writer.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 64)
    report = pb.ChunkReport(handle=body.handle, version=1, length=64)
    reply = await servers[body.primary].beat(released=[report])
    assert list(reply.confirmed_released) == [body.handle]
    seen = await reader.lookup(b"f")
    assert seen.attr.size == 64 and not seen.attr.length_pending
    _, again = await writer.lease(made.attr.inode)
    assert again.version == 2


async def test_a_replica_that_failed_leaves_no_lease_behind(world: Any, autojump_clock: Any) -> None:
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 10)
    lost = next(replica.id for replica in body.replicas if replica.id != body.primary)
    del servers[lost].replicas[body.handle]
    report = pb.ChunkReport(handle=body.handle, version=1)
    await servers[body.primary].beat(failed=[report], failed_servers=[lost])
    _, new = await client.lease(made.attr.inode)
    assert new.version == 2 and lost not in {replica.id for replica in new.replicas}


async def test_a_late_commit_does_not_undo_a_truncation_by_another(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    writer, other = await world.client("w"), await world.client("o")
    made = await writer.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 1000)
    await other.change("SetAttr", pb.SetAttrRequest(inode=made.attr.inode, size=0))
    assert any(item.writers and item.chunks for item in writer.heard)
    await writer.commit(made.attr.inode, 1000)
    seen = await other.lookup(b"f")
    assert seen.attr.size == 0 and not seen.attr.length_pending


async def test_a_commit_after_a_restart_counts(world: Any, autojump_clock: Any) -> None:
    await world.three_servers()
    writer = await world.client("w")
    made = await writer.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 1000)
    await world.restart_master()
    await writer.connect()
    await writer.commit(made.attr.inode, 1000)
    seen = await writer.lookup(b"f")
    assert seen.attr.size == 1000 and not seen.attr.length_pending


async def test_a_writer_of_before_a_restart_is_not_forgotten_when_another_one_is_done(
    world: Any, autojump_clock: Any
) -> None:
    """Its primary has not noticed the restart yet and goes on taking appends under the old grant."""
    servers = await world.three_servers()
    one, two = await world.client("one"), await world.client("two")
    made = await one.create(b"f", with_chunk=True)
    _, body = await two.lease(made.attr.inode)
    world.written(body, 1000)
    await world.restart_master()
    await one.connect()
    await one.commit(made.attr.inode, 1000)
    world.written(body, 1500)  # by the other one
    seen = await one.lookup(b"f")
    assert seen.attr.size == 1500 or seen.attr.length_pending
    await trio.sleep(25)
    assert all(server.replicas[body.handle][1] == 1500 for server in servers.values())
    assert (await one.lookup(b"f")).attr.size == 1500


async def test_a_snapshot_fences_a_lease_that_was_never_used(world: Any, autojump_clock: Any) -> None:
    """Its primary knows nothing to revoke, yet the grant in the client's hands would be good for the shared chunk."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    inode = made.attr.inode
    world.written(pb.GrantBody.FromString(made.grant.body), 10)
    _, unused = await client.lease(inode, stale_version=1)
    assert unused.version == 2
    await client.change("Snapshot", pb.SnapshotRequest(source=inode, new_parent=1, new_name=b"s"))
    assert {server.replicas[unused.handle][0] for server in servers.values()} == {3}


async def test_the_length_is_found_behind_a_chunk_that_was_asked_for_ahead_of_time(
    world: Any, autojump_clock: Any
) -> None:
    await world.three_servers()
    writer, reader = await world.client("w"), await world.client("r")
    made = await writer.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 777)
    _, ahead = await writer.lease(made.attr.inode, 1)
    seen = await reader.lookup(b"f")
    assert [chunk.index for chunk in seen.chunks] == [0, 1]
    await writer.channel.aclose()
    await trio.sleep(world.config.lease_seconds * 1.5)
    seen = await reader.lookup(b"f")
    assert seen.attr.size == 777 and not seen.attr.length_pending
    info = await reader.call("FileInfo", pb.FileInfoRequest(inode=made.attr.inode))
    assert ahead.handle not in {chunk.handle for chunk in info.chunks}  # nobody can use it any more: a hole again


async def test_a_release_that_arrives_after_a_newer_lease_releases_nothing(world: Any, autojump_clock: Any) -> None:
    """A client closed the file, its commit was lost and sent again; by then it had opened the file and writes."""
    servers = await world.three_servers()
    client = await world.client("c1")
    made = await client.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 100)
    client.requests += 1
    late = client.requests
    await client.lease(made.attr.inode)
    commit = pb.CommitRequest()
    commit.lengths.add(inode=made.attr.inode, size=100, release=True)
    await client.change("Commit", commit, late)
    await client.change("Snapshot", pb.SnapshotRequest(source=made.attr.inode, new_parent=1, new_name=b"s"))
    assert "Revoke" in servers[body.primary].asked, "nobody may write into the snapshot"


async def test_a_length_is_not_agreed_on_while_the_next_writer_is_given_its_grant(
    world: Any, autojump_clock: Any
) -> None:
    """The last writer was done while the servers were asked for the next one: who looked just then knew for good."""
    servers = await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    world.written(pb.GrantBody.FromString(made.grant.body), 100)
    seen = []

    async def meanwhile(method: str) -> None:
        if method == "Prepare" and not seen:
            seen.append(True)
            await one.commit(made.attr.inode, 100)
            seen.append((await reader.lookup(b"f")).attr.length_pending)

    servers["a"].before = meanwhile
    await two.lease(made.attr.inode, stale_version=1)
    assert len(seen) == 2
    told = [item for item in reader.heard if item.inode == made.attr.inode and item.attr]
    assert seen[1] or told, "the reader would take 100 bytes for the length for ever"
    await two.commit(made.attr.inode, 300)
    look = await reader.lookup(b"f")
    assert look.attr.size == 300 and not look.attr.length_pending


async def test_a_grant_waits_until_all_know_what_the_one_before_it_has_changed(
    world: Any, autojump_clock: Any, nursery: Any
) -> None:
    """Two clients write a file whose length was settled in between. A reader is slow to forget it when the first of
    them gets his next grant; the second one's changes nothing more, and he must not write before the reader knows."""
    servers = await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 64)
    await two.lease(made.attr.inode)
    await servers[body.primary].beat(released=[pb.ChunkReport(handle=body.handle, version=1, length=64)])
    assert not (await reader.lookup(b"f")).attr.length_pending
    order = []

    async def slow() -> None:
        await trio.sleep(2)
        order.append("forgotten")

    reader.before_answer = slow

    async def lease(client: Any, what: str) -> None:
        await client.lease(made.attr.inode)
        order.append(what)

    nursery.start_soon(lease, one, "one")
    await trio.sleep(0.5)
    await lease(two, "two")
    assert order[0] == "forgotten" and "two" in order


async def test_one_of_several_writers_is_told_that_the_length_is_open_again(world: Any, autojump_clock: Any) -> None:
    """Its own grant tells it too, but perhaps later than the next writer gets his."""
    servers = await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 64)
    await two.lease(made.attr.inode)
    await servers[body.primary].beat(released=[pb.ChunkReport(handle=body.handle, version=1, length=64)])
    assert not (await one.lookup(b"f")).attr.length_pending
    one.heard.clear()
    reply, _ = await one.lease(made.attr.inode)
    assert not reply.sole_writer
    assert [item.inode for item in one.heard if item.attr] == [made.attr.inode]
