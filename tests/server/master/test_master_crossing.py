"""Requests that are late, repeated or under way at the same time, and what is refused half way."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.leasing import Leasing
from gfscore.server.master.state import MasterState, _kept_share


async def test_commit_refused_for_want_of_room_is_taken_when_it_is_repeated(
    world: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c1 appended up to 1000 (acknowledged), c2 up to 500 before. c1's last Commit finds the master's disk full."""
    await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    await two.lease(inode)
    world.written(body, 1000)
    normal = MasterState._need_room

    def full(self: MasterState, size: int, batch: Any) -> None:
        raise GfsError(Code.NO_SPACE, "the disk of the master is full")

    monkeypatch.setattr(MasterState, "_need_room", full)
    with pytest.raises(GfsError) as caught:
        await one.commit(inode, 1000)
    assert caught.value.code is Code.NO_SPACE
    monkeypatch.setattr(MasterState, "_need_room", normal)
    await one.commit(inode, 1000)  # again, as the client does
    await two.commit(inode, 500)
    seen = await reader.lookup(b"f")
    assert seen.attr.size == 1000 or seen.attr.length_pending


async def test_a_truncation_refused_for_want_of_room_cuts_nothing(
    world: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = await world.three_servers()
    one = await world.client("c1")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 1000)
    await one.commit(inode, 1000)
    normal = MasterState._need_room

    def nearly_full(self: MasterState, size: int, batch: Any) -> None:
        """Room for what leaves a quarter, not for what leaves half."""
        if _kept_share(batch) >= 0.5:
            raise GfsError(Code.NO_SPACE, "the disk of the master is full")
        normal(self, size, batch)

    monkeypatch.setattr(MasterState, "_need_room", nearly_full)
    with pytest.raises(GfsError) as caught:
        await one.change("SetAttr", pb.SetAttrRequest(inode=inode, size=10))
    assert caught.value.code is Code.NO_SPACE
    assert (await one.lookup(b"f")).attr.size == 1000
    assert {server.replicas[body.handle][1] for server in servers.values()} == {1000}


async def test_a_close_right_after_the_primary_was_lost_keeps_the_length_open(world: Any, autojump_clock: Any) -> None:
    """A mutation that was under way may be on some replicas only. The writer gives up, and closes."""
    servers = await world.three_servers()
    one, reader = await world.client("c1"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 1000)
    await trio.sleep(2.5)  # nobody is just sending a heartbeat
    # the primary registers anew (it was restarted): its lease ended without a word
    primary = servers[body.primary]
    other = next(server for server in servers.values() if server is not primary)
    other.replicas[body.handle] = (1, 1200)  # the mutation that the primary had sent when it died
    primary.incarnation += 1
    await primary.register(world.cluster_id)
    await one.commit(inode, 1000)
    seen = await reader.lookup(b"f")
    # either settled with equal replicas (a new version), or left open
    equal = len({server.replicas[body.handle][0] for server in servers.values()}) == 1 and (
        servers[body.primary].replicas[body.handle][0] > 1
    )
    assert seen.attr.length_pending or equal


@pytest.mark.parametrize("looked", [True, False])
async def test_replicas_that_a_lost_primary_left_different_are_made_equal_after_a_restart_too(
    looked: bool, world: Any, autojump_clock: Any
) -> None:
    """`looked`: somebody has asked for the lease before the writer closed."""
    servers = await world.three_servers()
    one = await world.client("c1")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 1000)
    await trio.sleep(2.5)  # nobody is just sending a heartbeat
    primary = servers[body.primary]
    other = next(server for server in servers.values() if server is not primary)
    other.replicas[body.handle] = (1, 1200)  # the mutation that the primary had sent when it died
    primary.incarnation += 1
    await primary.register(world.cluster_id)
    if looked:
        await one.call("Locate", pb.LocateRequest(ranges=[pb.LocateRequest.Range(inode=inode, first=0, count=1)]))
    await one.commit(inode, 1000)
    await world.restart_master()  # the servers register anew by themselves
    await trio.sleep(world.config.lease_seconds * 5)
    # A twin has no digests; that it was asked for them, or for a new version, shows that replicas were compared.
    assert all({"Inspect", "Prepare"}.intersection(server.asked) for server in servers.values())


async def test_a_repeated_create_gives_no_grant_to_who_is_no_writer_any_more(world: Any, autojump_clock: Any) -> None:
    """The answer to Create was lost; before it is asked again another client writes the file, cuts it and writes on."""
    await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    request = pb.CreateRequest(parent=1, name=b"f", type=1, mode=0o644, with_chunk=True, exclusive=True)
    one.requests += 1
    made = await one.change("Create", request, one.requests)  # this answer did not arrive, say
    inode = made.attr.inode
    _, body = await two.lease(inode)
    world.written(body, 100)
    await two.change("SetAttr", pb.SetAttrRequest(inode=inode, size=50))
    _, body = await two.lease(inode)
    world.written(body, 60)  # two appends 10 bytes, acknowledged
    again = await one.change("Create", request, one.requests)
    if again.grant.body:
        grant = pb.GrantBody.FromString(again.grant.body)
        assert grant.handle == body.handle and grant.version == body.version
        world.written(grant, 90)  # one appends 30 bytes under this grant, acknowledged
        await two.commit(inode, 60)
        await one.commit(inode, 90)
        seen = await reader.lookup(b"f")
        assert seen.attr.size == 90 or seen.attr.length_pending


async def test_a_late_commit_does_not_count_though_its_client_writes_again(world: Any, autojump_clock: Any) -> None:
    """c1's Commit was lost with its stream. Others cut the file to nothing; c1 becomes a writer again, then the Commit
    is sent again."""
    await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    world.written(pb.GrantBody.FromString(made.grant.body), 1000)
    one.requests += 1
    late = one.requests
    await one.channel.aclose()
    await two.change("SetAttr", pb.SetAttrRequest(inode=inode, size=0))
    await one.connect()
    assert not one.hello.resumed
    _, body = await one.lease(inode)
    commit = pb.CommitRequest()
    commit.lengths.add(inode=inode, size=1000, release=True)
    await one.change("Commit", commit, late)
    world.written(body, 10)
    await one.commit(inode, 10)
    seen = await reader.lookup(b"f")
    assert (seen.attr.size, seen.attr.length_pending) == (10, False)


@pytest.mark.parametrize("cut_first", [False, True])
async def test_a_truncation_and_a_write_unshare_one_chunk_at_the_same_time(
    cut_first: bool, world: Any, autojump_clock: Any
) -> None:
    """A file and its snapshot share a chunk: one is written, the other cut."""
    servers = await world.three_servers()
    one, two = await world.client("c1"), await world.client("c2")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    world.written(pb.GrantBody.FromString(made.grant.body), 1000)
    await one.commit(inode, 1000)
    copy = (await one.change("Snapshot", pb.SnapshotRequest(source=inode, new_parent=1, new_name=b"s"))).attr.inode

    async def slow(method: str) -> None:
        if method == "Clone":
            await trio.sleep(0.5)

    for server in servers.values():
        server.before = slow
    errors = []

    async def lease() -> None:
        try:
            await one.lease(inode)
        except GfsError as error:
            errors.append(("lease", error))

    async def cut() -> None:
        try:
            await two.change("SetAttr", pb.SetAttrRequest(inode=copy, size=10))
        except GfsError as error:
            errors.append(("cut", error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut if cut_first else lease)
        await trio.sleep(0.1)
        nursery.start_soon(lease if cut_first else cut)
    assert errors == []


async def test_a_file_is_not_held_for_a_session_that_was_never_told(
    world: Any, autojump_clock: Any, nursery: Any
) -> None:
    """A client gives up its stream while it is asked whether it has a file open: its Hello says no, and nothing tells
    it later that the file is held for it."""
    one, reader = await world.client("c1"), await world.client("r")
    inode = (await one.create(b"f")).attr.inode
    await reader.lookup(b"f")

    async def never() -> None:
        await trio.sleep(4)

    reader.before_answer = never
    nursery.start_soon(one.unlink, b"f")
    await trio.sleep(1)
    await reader.connect()
    assert list(reader.hello.held) == []
    await trio.sleep(100)
    with pytest.raises(GfsError) as caught:
        await one.call("GetAttr", pb.InodeRequest(inode=inode))
    assert caught.value.code is Code.STALE_INODE


@pytest.mark.parametrize("method", ["Rename", "Unlink", "Create"])
async def test_a_repeated_change_is_answered_when_the_others_know(
    method: str, world: Any, autojump_clock: Any, nursery: Any
) -> None:
    one, reader = await world.client("c1"), await world.client("r")
    await one.create(b"f")
    await reader.lookup(b"f")
    order = []

    async def slow() -> None:
        await trio.sleep(3)
        order.append("forgotten")

    reader.before_answer = slow
    request: Any = pb.RenameRequest(parent=1, name=b"f", new_parent=1, new_name=b"g")
    if method == "Unlink":
        request = pb.UnlinkRequest(parent=1, name=b"f")
    if method == "Create":
        request = pb.CreateRequest(parent=1, name=b"h", type=1, mode=0o644, exclusive=True)
    if method == "Unlink":  # the question about open handles is answered, the name is not forgotten yet
        reader.before_answer = None

        async def asked() -> None:
            if any(item.unlinked for item in reader.heard) and len(reader.heard) > 1:
                await slow()

        reader.before_answer = asked
    one.requests += 1
    number = one.requests

    async def first() -> None:
        with suppress(GfsError):
            await one.change(method, request, number)

    nursery.start_soon(first)
    await trio.sleep(0.5)
    await one.connect()  # its stream broke, say
    await one.change(method, request, number)
    order.append("answered")
    assert order == ["forgotten", "answered"]


async def test_what_was_granted_to_a_session_that_ended_is_called_back_all_the_same(
    world: Any, autojump_clock: Any, nursery: Any
) -> None:
    """A reader knows of a hole. A client that waits for its grant there is gone when it comes; the next writer gets the
    same grant, and the reader is not told: it would read zeros for ever."""
    world.config = replace(world.config, lease_seconds=3)
    await world.restart_master()
    servers = await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    inode = (await two.create(b"f", with_chunk=True)).attr.inode
    others = []
    for name in (b"g1", b"g2", b"g3", b"g4", b"g5"):
        made = await two.create(name, with_chunk=True)
        world.written(pb.GrantBody.FromString(made.grant.body), 100)
        others.append((made.attr.inode, name))

    async def slow(method: str) -> None:
        if method == "Revoke":
            await trio.sleep(1.9)

    for server in servers.values():
        server.before = slow

    async def snapshot(source: int, name: bytes) -> None:
        await two.change("Snapshot", pb.SnapshotRequest(source=source, new_parent=1, new_name=b"of-" + name))

    async def lost() -> None:
        with pytest.raises(GfsError):
            await one.lease(inode, 1)

    for source, name in others:  # no lease is given out meanwhile
        nursery.start_soon(snapshot, source, name)
    await trio.sleep(0.1)
    nursery.start_soon(lost)
    await trio.sleep(0.1)
    await one.channel.aclose()
    ranges = [pb.LocateRequest.Range(inode=inode, first=0, count=8)]
    located = await reader.call("Locate", pb.LocateRequest(ranges=ranges))
    assert [chunk.handle for chunk in located.files[0].chunks if chunk.index == 1] == [0]
    await trio.sleep(60)
    _, body = await two.lease(inode, 1)
    assert body.handle
    assert any(item.chunks for item in reader.heard if item.inode == inode)


async def test_who_says_hello_while_others_are_asked_keeps_what_it_has_open(
    world: Any, autojump_clock: Any, nursery: Any
) -> None:
    """After a restart of the master: the last client that is awaited comes back in the middle of an unlink, with the
    file open."""
    one, reader, four = await world.client("c1"), await world.client("r"), await world.client("c4")
    inode = (await one.create(b"f")).attr.inode
    await four.lookup(b"f")
    await world.restart_master()
    await one.connect()
    await reader.connect()
    await reader.lookup(b"f")
    four.held = {inode}

    async def slow() -> None:
        await trio.sleep(2)

    reader.before_answer = slow
    nursery.start_soon(one.unlink, b"f")
    await trio.sleep(1)
    await four.connect(written=[inode])
    await trio.sleep(30)
    assert inode in four.hello.held or any(item.unlinked for item in four.heard)
    assert (await four.call("GetAttr", pb.InodeRequest(inode=inode))).attr.nlink == 0


async def test_who_lists_a_directory_while_others_are_asked_is_asked_too(
    world: Any, autojump_clock: Any, nursery: Any
) -> None:
    """A listing brings attributes, with which a client opens the file without another call."""
    one, reader, four = await world.client("c1"), await world.client("r"), await world.client("c4")
    inode = (await one.create(b"f")).attr.inode
    await reader.lookup(b"f")
    four.held = {inode}

    async def slow() -> None:
        await trio.sleep(2)

    reader.before_answer = slow
    nursery.start_soon(one.unlink, b"f")
    await trio.sleep(1)
    listed = await four.call("List", pb.ListRequest(inode=1))
    assert [entry.attr.inode for entry in listed.entries] == [inode]
    await trio.sleep(30)
    assert any(item.unlinked for item in four.heard)
    assert (await four.call("GetAttr", pb.InodeRequest(inode=inode))).attr.nlink == 0


async def test_a_late_commit_does_not_count_after_a_restart_either(world: Any, autojump_clock: Any) -> None:
    """As above; in between the master was restarted, and knows no writers."""
    await world.three_servers()
    one, two, reader = await world.client("c1"), await world.client("c2"), await world.client("r")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    world.written(pb.GrantBody.FromString(made.grant.body), 1000)
    one.requests += 1
    late = one.requests
    await one.channel.aclose()
    await two.change("SetAttr", pb.SetAttrRequest(inode=inode, size=0))
    _, body = await two.lease(inode)
    world.written(body, 10)
    await trio.sleep(0.5)
    await world.restart_master()
    await one.connect()
    await two.connect()
    await reader.connect()
    commit = pb.CommitRequest()
    commit.lengths.add(inode=inode, size=1000, release=True)
    await one.change("Commit", commit, late)
    await two.commit(inode, 10)
    await trio.sleep(60)
    seen = await reader.lookup(b"f")
    assert (seen.attr.size, seen.attr.length_pending) == (10, False)


async def test_a_refused_lease_does_not_bring_the_old_time_back(
    world: Any, autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written, closed; its time set (touch -d, rsync -t). A lease on another chunk is refused for want of room; then
    the primary gives its idle lease back, with the time of the last write."""
    servers = await world.three_servers()
    one = await world.client("c1")
    made = await one.create(b"f", with_chunk=True)
    inode = made.attr.inode
    body = pb.GrantBody.FromString(made.grant.body)
    world.written(body, 1000)
    written_ns = (await one.lookup(b"f")).attr.mtime_ns + 1_000_000
    await one.commit(inode, 1000)
    await trio.sleep(2)
    await one.change("SetAttr", pb.SetAttrRequest(inode=inode, mtime_ns=10**18))

    def full(*_: Any) -> Any:
        raise GfsError(Code.NO_SPACE, "the disks are full")

    with monkeypatch.context() as patched:
        patched.setattr(Leasing, "place", full)
        with pytest.raises(GfsError):
            await one.lease(inode, 1)
    primary = servers[body.primary]
    released = pb.ChunkReport(handle=body.handle, version=body.version, length=1000, mtime_ns=written_ns)
    await primary.beat(released=[released])
    assert (await one.lookup(b"f")).attr.mtime_ns == 10**18
