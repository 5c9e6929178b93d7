"""Damaged replicas on a chunkserver: found, reported at once, and out of every new set; the server lives on."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import pytest
import trio

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2 as pb
from gfscore.storage import chunk_format as fmt

BLOCK = 65536
CHUNK_SIZE = 1 << 20
DATA_START = fmt.data_start(CHUNK_SIZE)


async def refused(code: Code, call: Any) -> None:
    with pytest.raises(GfsError) as caught:
        await call
    assert caught.value.code is code, caught.value


def path_of(handle: int) -> str:
    return f"chunks/{handle & 0xFF:02x}/{handle:016x}"


def reports(cluster: Any, host: str, handle: int) -> list[pb.ChunkReport]:
    beats = [beat for beat in cluster.master.beats if beat.server_id == cluster.id(host)]
    return [report for beat in beats for report in beat.report if report.handle == handle]


async def written(cluster: Any, handle: int = 5, size: int = 3 * BLOCK + 1000) -> bytes:
    data = Random(handle).randbytes(size)
    await cluster.write(cluster.grant(handle), [(0, data)])
    return data


async def test_a_damaged_block_is_reported_before_the_next_regular_heartbeat(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    await trio.sleep(1.5)
    cluster.disks["b"].corrupt(path_of(5), DATA_START + 10)
    await refused(Code.CHECKSUM_MISMATCH, cluster.read("b", 5))
    await trio.sleep(0.01)
    assert reports(cluster, "b", 5)[-1].corrupt
    assert not reports(cluster, "a", 5)[-1].corrupt


async def test_a_damaged_primary_ends_its_lease_and_gets_no_other(autojump_clock: Any, cluster: Any) -> None:
    data = await written(cluster)
    cluster.disks["a"].corrupt(path_of(5), DATA_START + 10)
    await refused(Code.CHECKSUM_MISMATCH, cluster.read("a", 5))
    await refused(Code.NOT_PRIMARY, cluster.call("a", "Length", pb.LengthRequest(handle=5, version=1, primary=True)))
    await refused(Code.CHECKSUM_MISMATCH, cluster.append(cluster.grant(5), b"more", 1))
    assert [item.error for item in await cluster.prepare(5, 2)] == [Code.CHECKSUM_MISMATCH, 0, 0]
    await cluster.append(cluster.grant(5, 2, hosts="bc"), b"more", 1, host="b")
    assert await cluster.equal(5, 2, hosts="bc") == data + b"more"


@pytest.mark.parametrize(("host", "code"), [("a", Code.CHECKSUM_MISMATCH), ("b", Code.REPLICA_FAILED)])
async def test_a_damaged_block_is_never_overwritten_into_validity(
    autojump_clock: Any, cluster: Any, host: str, code: Code
) -> None:
    data = await written(cluster)
    cluster.disks[host].corrupt(path_of(5), DATA_START + BLOCK + 10)
    await refused(code, cluster.write(cluster.grant(5), [(BLOCK + 500, b"part of the block")]))
    await trio.sleep(0.01)
    assert reports(cluster, host, 5)[-1].corrupt
    await refused(Code.CHECKSUM_MISMATCH, cluster.read(host, 5))
    others = "abc".replace(host, "")
    assert [item.error for item in await cluster.prepare(5, 2)].count(Code.CHECKSUM_MISMATCH) == 1
    grant = cluster.grant(5, 2, hosts=others)
    await cluster.append(grant, b"after", 1, host=others[0])
    expected = data[: BLOCK + 500] + b"part of the block" + data[BLOCK + 517 :] + b"after"
    assert await cluster.equal(5, 2, hosts=others) == expected


async def test_a_primary_that_cannot_read_what_it_has_to_copy_blames_itself(autojump_clock: Any, cluster: Any) -> None:
    await cluster.write(cluster.grant(5), [(0, bytes(100))])
    await cluster.prepare(5, 2, hosts="ab")
    data = Random(1).randbytes(2 * BLOCK)
    await cluster.write(cluster.grant(5, 2, hosts="ab"), [(0, data)])
    for host, version in (("a", 2), ("b", 2), ("c", 1)):
        item = pb.PrepareRequest.Item(handle=5, version=3, old_version=version)
        await cluster.control(host, "Prepare", pb.PrepareRequest(items=[item]))
    cluster.disks["a"].corrupt(path_of(5), DATA_START + 10)
    await refused(Code.REPLICA_FAILED, cluster.append(cluster.grant(5, 3), b"more", 1))
    await trio.sleep(0.01)
    assert reports(cluster, "a", 5)[-1].corrupt
    assert not [server for beat in cluster.master.beats for server in beat.failed_servers]
    await cluster.prepare(5, 4)
    await cluster.append(cluster.grant(5, 4, hosts="bc"), b"more", 1, host="b")
    assert await cluster.equal(5, 4, hosts="bc") == data + b"more"


async def test_copies_of_a_damaged_replica_are_refused(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    cluster.disks["b"].corrupt(path_of(5), DATA_START + 10)
    item = pb.CloneRequest.Item(handle=5, version=1, new_handle=6, new_version=1, truncate=100)
    reply = await cluster.control("b", "Clone", pb.CloneRequest(items=[item]))
    assert [answer.error for answer in reply.items] == [Code.CHECKSUM_MISMATCH]
    item = pb.CloneRequest.Item(handle=5, version=1, new_handle=7, new_version=1)
    reply = await cluster.control("b", "Clone", pb.CloneRequest(items=[item]))
    assert [answer.error for answer in reply.items] == [Code.CHECKSUM_MISMATCH]


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("kind", ["flipped header", "zeroed header", "wrong magic", "truncated", "unreadable"])
async def test_damage_of_headers_is_reported_and_the_server_lives_on(
    autojump_clock: Any, cluster: Any, kind: str, running: bool
) -> None:
    data = await written(cluster)
    await written(cluster, 6)
    disk = cluster.disks["b"]
    await cluster.kill_server("b")
    if running:  # and has not looked into the file before it is damaged
        await cluster.start_server("b")
    if kind == "flipped header":
        for page in range(fmt.HEADER_PAGES):
            disk.corrupt(path_of(5), page * fmt.PAGE_BYTES + 100)
    elif kind == "zeroed header":
        newest = disk.contents(path_of(5))[: fmt.TABLE_START]
        for place, value in enumerate(newest):
            disk.corrupt(path_of(5), place, value)
    elif kind == "wrong magic":
        for page in range(fmt.HEADER_PAGES):
            disk.corrupt(path_of(5), page * fmt.PAGE_BYTES)
    elif kind == "truncated":
        disk.open(path_of(5)).truncate(DATA_START + 1000)
    else:
        bad = path_of(5)

        def fail(operation: str, path: str) -> None:
            if path == bad and operation == "pread":
                raise OSError(errno.EIO, "Input/output error", path)

        disk.faults.on_call = fail
    if not running:
        await cluster.start_server("b")
    with pytest.raises(GfsError):
        await cluster.read("b", 5)
    await trio.sleep(3)
    assert reports(cluster, "b", 5)[-1].corrupt
    last = [beat for beat in cluster.master.beats if beat.server_id == cluster.id("b")][-1]
    assert last.chunk_count == 2, "heartbeats go on"
    item = (await cluster.control("b", "Inspect", pb.InspectRequest(handles=[5], verify=True))).items[0]
    assert item.error in (Code.CHECKSUM_MISMATCH, Code.IO)
    assert await cluster.equal(5, hosts="ac") == data
    await cluster.control("b", "Collect", pb.CollectRequest(handles=[5]))
    assert path_of(5) not in disk.paths()


async def test_a_file_that_disappeared_is_reported_as_gone(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    await cluster.restart_server("b")  # has it in no memory
    await trio.sleep(1)
    cluster.disks["b"].unlink(path_of(5))
    await refused(Code.UNKNOWN_CHUNK, cluster.read("b", 5))
    await trio.sleep(0.01)
    assert [(report.version, report.corrupt) for report in reports(cluster, "b", 5)][-1] == (0, False)
    told = len(reports(cluster, "b", 5))
    await trio.sleep(3)
    assert len(reports(cluster, "b", 5)) == told, "once is enough"
    assert (await cluster.control("b", "Info", pb.Empty())).chunks == 0


async def test_the_report_of_a_file_that_disappeared_is_not_lost_with_a_heartbeat(
    autojump_clock: Any, cluster: Any
) -> None:
    await written(cluster)
    await cluster.restart_server("b")
    await trio.sleep(1)
    cluster.network.disconnect("b", "master")
    cluster.disks["b"].unlink(path_of(5))
    await refused(Code.UNKNOWN_CHUNK, cluster.read("b", 5))
    await trio.sleep(5)
    assert reports(cluster, "b", 5)[-1].version == 1
    cluster.network.reconnect("b", "master")
    await trio.sleep(5)
    assert reports(cluster, "b", 5)[-1].version == 0


async def test_a_damaged_replica_is_known_after_a_restart(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    cluster.disks["b"].corrupt(path_of(5), DATA_START + 10)
    await refused(Code.CHECKSUM_MISMATCH, cluster.read("b", 5))
    await trio.sleep(60)
    cluster.options = {"scrub_bytes_per_second": 0}
    for _ in range(2):
        cluster.master.beats.clear()
        await cluster.restart_server("b")
        await trio.sleep(60)
        assert reports(cluster, "b", 5)[0].corrupt, "in the first report already"


async def test_damaged_headers_are_in_the_first_report(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    await cluster.kill_server("b")
    cluster.disks["b"].corrupt(path_of(5), 2 * fmt.PAGE_BYTES + 100)
    cluster.options = {"scrub_bytes_per_second": 0}
    cluster.master.beats.clear()
    await cluster.start_server("b")
    await trio.sleep(1)
    assert reports(cluster, "b", 5)[0].corrupt


async def test_an_older_header_is_not_read_as_the_end_of_the_chunk(autojump_clock: Any, cluster: Any) -> None:
    grant = cluster.grant(5)
    await cluster.append(grant, b"first record", 1)
    await cluster.append(grant, b"second record", 2)
    await cluster.kill_server("b")
    disk = cluster.disks["b"]
    headers, _ = fmt.parse_headers(disk.contents(path_of(5))[: fmt.TABLE_START], 5, CHUNK_SIZE)
    newest = max(range(fmt.HEADER_PAGES), key=lambda page: headers[page].generation)  # type: ignore[union-attr]
    disk.corrupt(path_of(5), newest * fmt.PAGE_BYTES + 100)
    await cluster.start_server("b")
    await refused(Code.CHECKSUM_MISMATCH, cluster.read("b", 5))
    await refused(Code.CHECKSUM_MISMATCH, cluster.call("b", "Length", pb.LengthRequest(handle=5, version=1)))
    request = pb.ReadRequest(handle=5, version=1, length=12)
    assert (await cluster.call("b", "Read", request))[1] == b"first record", "what verifies can be read"


async def test_what_verifies_again_is_good_again_when_an_operator_asks(autojump_clock: Any, cluster: Any) -> None:
    data = await written(cluster)
    for _ in range(2):  # damaged, and back to what it was: a cable, not the platter
        cluster.disks["b"].corrupt(path_of(5), DATA_START + 10)
        await cluster.control("b", "Inspect", pb.InspectRequest(handles=[5], verify=True))
        await trio.sleep(2)
    assert not reports(cluster, "b", 5)[-1].corrupt
    assert await cluster.read("b", 5) == data
    assert [item.error for item in await cluster.prepare(5, 2)] == [0, 0, 0]


async def test_inspection_tells_equal_replicas_from_others(autojump_clock: Any, cluster: Any) -> None:
    await written(cluster)
    digests = []
    for host in "abc":
        item = (await cluster.control(host, "Inspect", pb.InspectRequest(handles=[5], verify=True))).items[0]
        digests.append((item.error, item.version, item.length, item.digest))
    assert len(set(digests)) == 1 and digests[0][3]
    await cluster.append(cluster.grant(5), b"x", 1)
    item = (await cluster.control("a", "Inspect", pb.InspectRequest(handles=[5], verify=True))).items[0]
    assert item.digest != digests[0][3]
