"""Write, append and push through a primary and two secondaries."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import trio

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb

CHUNK_SIZE = 1 << 20


async def refused(code: Code, call: Any) -> None:
    with pytest.raises(GfsError) as caught:
        await call
    assert caught.value.code is code, caught.value


async def test_a_small_write_is_the_same_everywhere(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    reply = await cluster.write(grant, [(0, b"hello"), (10, b"world")])
    assert reply.length == 15
    assert await cluster.equal(5) == b"hello" + bytes(5) + b"world"


async def test_a_pushed_piece_goes_down_the_chain_and_is_written(autojump_clock: Any, cluster: Any) -> None:
    data = Random(1).randbytes(CHUNK_SIZE)
    grant = cluster.grant(5)
    await cluster.push(77, data)
    request = pb.WriteRequest(grant=grant, client_id=1, push_id=77, extents=[pb.Extent(offset=0, length=len(data))])
    assert (await cluster.call("a", "Write", request)).length == CHUNK_SIZE
    assert await cluster.equal(5) == data
    await refused(Code.UNKNOWN_PUSH, cluster.call("a", "Write", request))


async def test_many_writes_in_flight_on_one_chunk(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    pieces = {index * 3000: Random(index).randbytes(3000) for index in range(60)}
    async with trio.open_nursery() as nursery:
        for offset, piece in pieces.items():
            nursery.start_soon(cluster.write, grant, [(offset, piece)])
    assert await cluster.equal(5) == b"".join(pieces.values())


async def test_overwrites_and_sync(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.write(grant, [(0, bytes(200_000))], sync=True)
    await cluster.write(grant, [(70_000, b"x" * 10), (65_530, b"y" * 10), (3, b"z")], sync=True)
    expected = bytearray(200_000)
    expected[70_000:70_010], expected[65_530:65_540], expected[3:4] = b"x" * 10, b"y" * 10, b"z"
    assert await cluster.equal(5) == bytes(expected)
    await cluster.call("a", "Write", pb.WriteRequest(grant=grant, sync=True))


async def test_concurrent_appends_of_many_clients_are_whole_and_once(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9)
    placed: dict[int, bytes] = {}

    async def producer(client: int) -> None:
        random = Random(client)
        for sequence in range(1, 21):
            record = random.randbytes(random.randint(1, 2000))
            reply = await cluster.append(grant, record, sequence, client=client)
            assert not reply.next_chunk
            placed[reply.offset] = record

    async with trio.open_nursery() as nursery:
        for client in range(1, 9):
            nursery.start_soon(producer, client)
    assert len(placed) == 160
    assert await cluster.equal(9) == b"".join(placed[offset] for offset in sorted(placed))


async def test_a_retried_append_is_answered_with_its_first_offset(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9)
    first = await cluster.append(grant, b"one", 1)
    second = await cluster.append(grant, b"two", 2)
    assert (first.offset, second.offset) == (0, 3)
    again = await cluster.append(grant, b"two", 2)
    assert again.offset == 3
    assert await cluster.equal(9) == b"onetwo"
    await refused(Code.INVALID, cluster.append(grant, b"one", 1))


async def test_an_append_retried_while_it_is_under_way_is_applied_once(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9)
    offsets: list[int] = []

    async def one() -> None:
        offsets.append((await cluster.append(grant, b"record", 1)).offset)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(one)
    assert offsets == [0] * 5
    assert await cluster.equal(9) == b"record"


@pytest.mark.parametrize("pad_byte", [0, 10])
async def test_a_record_that_does_not_fit_pads_the_chunk_everywhere(
    autojump_clock: Any, cluster: Any, pad_byte: int
) -> None:
    grant = cluster.grant(9, pad_byte=pad_byte)
    record = bytes(range(256)) * 1000
    written = b""
    for sequence in range(1, 5):
        reply = await cluster.append(grant, record, sequence)
        assert reply.offset == len(written) and not reply.next_chunk
        written += record
    replies = []

    async def one(client: int) -> None:
        replies.append(await cluster.append(grant, record, 5, client=client))

    async with trio.open_nursery() as nursery:
        for client in (1, 2, 3):
            nursery.start_soon(one, client)
    assert all(reply.next_chunk for reply in replies)
    assert await cluster.equal(9) == written + bytes([pad_byte]) * (CHUNK_SIZE - len(written))
    assert (await cluster.append(grant, record, 4)).offset == 3 * len(record), "a retry is recognised in a full chunk"


async def test_records_start_behind_the_floor(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9, length_floor=1000)
    assert (await cluster.append(grant, b"r", 1)).offset == 1000
    assert await cluster.equal(9) == bytes(1000) + b"r"


async def test_a_synced_append_and_its_retry(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9, sync=True)
    assert (await cluster.append(grant, b"kept", 1)).offset == 0
    assert (await cluster.append(grant, b"kept", 1)).offset == 0
    for disk in cluster.disks.values():
        disk.crash(Random(3))
    for host in "abc":
        await cluster.restart_server(host)
    await cluster.prepare(9, 2)
    assert await cluster.equal(9, 2) == b"kept"


async def test_records_of_wrong_size_are_refused_and_the_server_lives(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(9)
    await refused(Code.MESSAGE_TOO_LARGE, cluster.append(grant, bytes(CHUNK_SIZE // 4 + 1), 1))
    await refused(Code.INVALID, cluster.append(grant, b"", 1))
    wrong = pb.AppendRequest(grant=grant, client_id=1, sequence=1, length=9, checksum=crc32c(b"abc"))
    await refused(Code.INVALID, cluster.call("a", "Append", wrong, b"abc"))
    damaged = pb.AppendRequest(grant=grant, client_id=1, sequence=1, length=3, checksum=1)
    await refused(Code.CHECKSUM_MISMATCH, cluster.call("a", "Append", damaged, b"abc"))
    assert (await cluster.append(grant, b"good", 1)).offset == 0


async def test_malformed_writes_and_pushes_are_refused(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await refused(Code.INVALID, cluster.write(grant, [(CHUNK_SIZE - 1, b"xx")]))
    await refused(Code.INVALID, cluster.write(grant, []))
    await refused(Code.BAD_GRANT, cluster.write(pb.Grant(body=grant.body, signature=b"x" * 32), [(0, b"x")]))
    await refused(Code.BAD_GRANT, cluster.write(pb.Grant(), [(0, b"x")]))
    await refused(Code.BAD_MESSAGE, cluster.call("a", "Push", pb.PushRequest(client_id=1, push_id=1), b"x"))
    bad = pb.PushRequest(client_id=1, push_id=1, checksums=[1])
    await refused(Code.CHECKSUM_MISMATCH, cluster.call("a", "Push", bad, b"x"))
    await refused(Code.INVALID, cluster.call("b", "Apply", pb.ApplyRequest(grant=grant, serial=1), b"x"))
    await refused(Code.NOT_PRIMARY, cluster.append(grant, b"x", 1, host="b"))
    await cluster.write(grant, [(0, b"fine")])
    assert await cluster.equal(5) == b"fine"


async def test_a_push_that_a_server_behind_does_not_take_fails(autojump_clock: Any, cluster: Any) -> None:
    cluster.network.disconnect("b", "c")
    await refused(Code.REPLICA_FAILED, cluster.push(1, bytes(300_000)))


async def test_a_full_push_buffer_holds_up_and_then_refuses(autojump_clock: Any, cluster: Any) -> None:
    for push_id in range(64):
        await cluster.push(push_id, bytes(CHUNK_SIZE), hosts="a")
    await refused(Code.NOT_READY, cluster.push(64, bytes(CHUNK_SIZE), hosts="a"))
    await trio.sleep(61)  # what was there has aged out
    await cluster.push(65, bytes(CHUNK_SIZE), hosts="a")


async def test_a_read_names_its_version_and_stops_at_the_end(autojump_clock: Any, cluster: Any) -> None:
    await cluster.write(cluster.grant(5), [(0, b"0123456789")])
    reply, data = await cluster.call("b", "Read", pb.ReadRequest(handle=5, version=1, offset=8, length=100))
    assert (reply.length, data) == (10, b"89")
    await refused(Code.STALE_VERSION, cluster.read("b", 5, 2))
    await refused(Code.UNKNOWN_CHUNK, cluster.read("b", 6))
    request = pb.ReadRequest(handle=5, version=1, length=(1 << 20) + 1)
    await refused(Code.MESSAGE_TOO_LARGE, cluster.call("b", "Read", request))
    length = await cluster.call("a", "Length", pb.LengthRequest(handle=5, version=1, primary=True))
    assert length.length == 10 and length.mtime_ns > 0
    await refused(Code.NOT_PRIMARY, cluster.call("b", "Length", pb.LengthRequest(handle=5, version=1, primary=True)))
