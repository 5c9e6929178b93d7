"""Disks that lie, in a whole cluster: no wrong byte is ever read, all damage is reported, nothing good is deleted."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import trio
import trio.testing
from cluster_probes import DATA_START, EAGER, QUIET, chunk_path, chunks_of, leases_given_back, states, wait_until
from memory_cluster import CHUNK_BYTES, MemoryCluster, memory_cluster

from gfscore.client import ROOT_INODE, Client, Code, GfsError
from gfscore.client.paths import Paths
from gfscore.ids import BLOCK_BYTES
from gfscore.storage import chunk_format as fmt


async def fill(client: Client, files: int, seed: int = 1) -> dict[str, bytes]:
    rng = random.Random(seed)
    sizes = [100, BLOCK_BYTES, 5 * BLOCK_BYTES + 7, 2 * CHUNK_BYTES + 9]
    contents = {f"/f{number}": rng.randbytes(rng.choice(sizes)) for number in range(files)}
    paths = Paths(client, 1, 1)
    for path, data in contents.items():
        await paths.write(path, data)
    return contents


def damage(cluster: MemoryCluster, rng: random.Random, host: str, handle: int) -> None:
    """Anything in the file of one replica: a header page, an entry of the table in use, a block."""
    disk, path = cluster.disks[host], chunk_path(handle)
    size = len(disk.contents(path))
    length = size - DATA_START
    kind = rng.choice(["header", "block", "block"] + (["table"] if length >= BLOCK_BYTES else []))
    if kind == "header":
        place = rng.randrange(fmt.HEADER_PAGES) * fmt.PAGE_BYTES + rng.randrange(fmt.PAGE_BYTES)
    elif kind == "table":
        place = fmt.TABLE_START + rng.randrange(4 * (length // BLOCK_BYTES))
    else:
        place = DATA_START + rng.randrange(length)
    disk.corrupt(path, place, 1 << rng.randrange(8))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("restarted", [False, True])
async def test_the_scrub_finds_what_nobody_reads_and_no_wrong_byte_is_read(
    autojump_clock: trio.testing.MockClock, seed: int, restarted: bool
) -> None:
    rng = random.Random(seed)
    # Repair is off: what was found has to be there to be counted.
    async with memory_cluster(server_options=EAGER, clones_max=0) as cluster, cluster.client() as client:
        contents = await fill(client, 12, seed)
        await trio.sleep(3)
        bad = set()
        for (path, index), chunk in (await chunks_of(client, list(contents))).items():
            host = rng.choice(cluster.names)
            damage(cluster, rng, host, int(chunk["handle"], 16))
            bad.add((path, index, host))
        if restarted:
            for name in cluster.names:
                await cluster.restart(name)
        for path, data in contents.items():
            assert await Paths(client).read(path) == data

        async def all_found() -> bool:
            found = await states(client, list(contents))
            return {key for key, state in found.items() if state == "corrupt"} == bad

        await wait_until(all_found)
        assert set((await states(client, list(contents))).values()) == {"corrupt", "good"}
        status = await client.status()
        assert all(server["scrub"]["bad"] for server in status["chunkservers"])
        assert status["chunks"]["lost"] == 0
        for path, data in contents.items():
            assert await Paths(client).read(path) == data
        # Nothing was deleted: no other replica has taken the place of a damaged one.
        for (_, _, host), chunk in zip(sorted(bad), [
            chunk for _, chunk in sorted((await chunks_of(client, list(contents))).items())
        ], strict=True):  # fmt: skip
            assert chunk_path(int(chunk["handle"], 16)) in cluster.disks[host].paths()


async def test_the_scrub_goes_on_where_it_was_and_says_when_it_was_round(
    autojump_clock: trio.testing.MockClock,
) -> None:
    options = {"scrub_bytes_per_second": 1 << 14, "scrub_pause_seconds": 1e6}
    running = memory_cluster(chunkservers=1, replication=1, server_options=options)
    async with running as cluster, cluster.client() as client:

        async def scrub() -> dict[str, Any]:
            found: dict[str, Any] = (await client.status())["chunkservers"][0]["scrub"]
            return found

        paths = Paths(client, 1, 1)
        for number in range(40):
            await paths.write(f"/f{number}", bytes([number + 1]) * BLOCK_BYTES)

        async def half_way() -> bool:
            return bool((await scrub())["percent"] > 50)

        await wait_until(half_way, 1000)
        before = (await scrub())["percent"]
        await trio.sleep(31)  # it does not save its place all the time
        await cluster.restart("cs1")
        await trio.sleep(2)
        after = await scrub()
        assert not after["finished"] and before <= after["percent"] < before + 15, (before, after)

        async def round() -> bool:
            return bool((await scrub())["finished"])

        await wait_until(round, 1000)
        await trio.sleep(2)
        assert (await scrub())["percent"] == 0


async def test_damage_in_the_middle_of_writing_is_routed_around(autojump_clock: trio.testing.MockClock) -> None:
    """Each of the replicas in turn, the primary included: writes go on, and what was acknowledged is there."""
    for victim in range(3):
        async with memory_cluster(chunkservers=4, server_options=QUIET) as cluster, cluster.client() as client:
            _, file = await client.create_file(ROOT_INODE, b"file", 0o644, 1, 1)
            model = bytearray(random.Random(victim).randbytes(4 * BLOCK_BYTES))
            await file.write(0, bytes(model))
            await file.flush()
            chunk = (await client.file_info(file.inode))["chunks"][0]
            ordered = sorted(chunk["replicas"], key=lambda replica: replica["chunkserver"] != chunk["primary"])
            host = ordered[victim]["address"].split(":")[0]
            cluster.disks[host].corrupt(chunk_path(int(chunk["handle"], 16)), DATA_START + BLOCK_BYTES + 5)
            model[BLOCK_BYTES + 100 : BLOCK_BYTES + 110] = b"part of it"
            await file.write(BLOCK_BYTES + 100, b"part of it")
            await file.fsync()
            assert await Paths(client).read("/file") == model
            after = (await client.file_info(file.inode))["chunks"][0]
            by_host = {replica["address"].split(":")[0]: replica["state"] for replica in after["replicas"]}
            assert by_host.pop(host) == "corrupt" and set(by_host.values()) == {"good"} and len(by_host) == 2
            assert after["version"] > chunk["version"] and after["primary"] != ordered[victim]["chunkserver"] * (
                victim == 0
            )
            await file.close()


async def test_a_snapshot_of_a_damaged_replica_is_written_on_the_good_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    base = random.Random(5).randbytes(3 * BLOCK_BYTES)
    async with memory_cluster(server_options=QUIET) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        await paths.write("/f", base)
        chunk = (await chunks_of(client, ["/f"]))["/f", 0]
        cluster.disks["cs2"].corrupt(chunk_path(int(chunk["handle"], 16)), DATA_START + BLOCK_BYTES + 5)
        await paths.snapshot("/f", "/g")
        for start in range(0, len(base), BLOCK_BYTES):
            await paths.write("/g", b"new", start + 50)
        expected = bytearray(base)
        for start in range(0, len(base), BLOCK_BYTES):
            expected[start + 50 : start + 53] = b"new"
        assert await paths.read("/g") == expected
        assert await paths.read("/f") == base


async def test_when_every_replica_is_damaged_nothing_is_deleted_and_the_good_blocks_are_readable(
    autojump_clock: trio.testing.MockClock,
) -> None:
    data = random.Random(6).randbytes(4 * BLOCK_BYTES)
    async with memory_cluster(server_options=EAGER) as cluster:
        async with cluster.client() as client:
            await Paths(client, 1, 1).write("/f", data)
            chunk = (await chunks_of(client, ["/f"]))["/f", 0]
            path = chunk_path(int(chunk["handle"], 16))
            for name in cluster.names:
                cluster.disks[name].corrupt(path, DATA_START + BLOCK_BYTES + 5)

            async def lost() -> bool:
                return bool((await client.status())["chunks"]["lost"] == 1)

            await wait_until(lost)
        for again in range(2):
            async with cluster.client("reader", timeout_seconds=20) as client:
                paths = Paths(client)
                assert set((await states(client, ["/f"])).values()) == {"corrupt"}
                assert await paths.read("/f", 0, BLOCK_BYTES) == data[:BLOCK_BYTES]
                assert await paths.read("/f", 2 * BLOCK_BYTES) == data[2 * BLOCK_BYTES :]
                before = trio.current_time()
                with pytest.raises(GfsError) as caught:
                    await paths.read("/f", BLOCK_BYTES + 10, 10)
                assert caught.value.code is Code.IO and trio.current_time() - before < 10
                with pytest.raises(GfsError):
                    await paths.write("/f", b"x", 3 * BLOCK_BYTES)
            await trio.sleep(150)  # long after every lease and session
            assert all(path in cluster.disks[name].paths() for name in cluster.names)
            if not again:
                for name in ("master", *cluster.names):
                    await cluster.kill(name)
                for name in ("master", *cluster.names):
                    await cluster.start(name)
                await trio.sleep(10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chunkservers", [3, 5])
async def test_what_is_damaged_in_different_places_is_put_together(
    autojump_clock: trio.testing.MockClock, chunkservers: int, seed: int
) -> None:
    """Every block and checksum of one replica only, but every replica somewhere: nothing is lost, all is repaired."""
    rng = random.Random(seed)
    async with memory_cluster(chunkservers, server_options=EAGER) as cluster, cluster.client() as client:
        paths = Paths(client, 1, 1)
        contents = {f"/f{number}": rng.randbytes(rng.randrange(3, 9) * BLOCK_BYTES + 100) for number in range(6)}
        for path, data in contents.items():
            await paths.write(path, data)
        await trio.sleep(3)
        before = await chunks_of(client, list(contents))
        for chunk in before.values():
            hosts = [replica["address"].split(":")[0] for replica in chunk["replicas"]]
            rng.shuffle(hosts)
            handle = int(chunk["handle"], 16)
            for block, host in enumerate(hosts):
                table = fmt.TABLE_START + 4 * block
                place = rng.choice([DATA_START + block * BLOCK_BYTES + rng.randrange(BLOCK_BYTES), table])
                cluster.disks[host].corrupt(chunk_path(handle), place, 1 << rng.randrange(8))
            if seed == 2:  # and one that does not even know how much it has
                cluster.disks[hosts[0]].corrupt(chunk_path(handle), rng.randrange(3) * fmt.PAGE_BYTES + 100)

        async def repaired() -> bool:
            status = await client.status()
            found = await states(client, list(contents))
            by_chunk = Counter((path, index) for (path, index, _), state in found.items() if state == "good")
            settled = set(found.values()) == {"good"} and set(by_chunk.values()) == {3}
            return settled and sum(server["scrub"]["bad"] for server in status["chunkservers"]) >= 2 * len(before)

        await wait_until(repaired, 600)
        assert (await client.status())["chunks"]["lost"] == 0
        for path, data in contents.items():
            assert await Paths(client).read(path) == data
        for path in contents:
            assert set((await states(client, [path])).values()) == {"good"}


async def test_what_is_damaged_everywhere_is_put_together_after_a_start_of_the_master_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It is reported while nothing may be cloned yet, and the last server that is waited for has nothing of it."""
    data = random.Random(1).randbytes(4 * BLOCK_BYTES)
    async with memory_cluster(5, server_options=EAGER) as cluster:
        async with cluster.client() as client:
            await Paths(client, 1, 1).write("/f", data)
            await leases_given_back()
            chunk = (await chunks_of(client, ["/f"]))["/f", 0]
            hosts = [replica["address"].split(":")[0] for replica in chunk["replicas"]]
            other = next(name for name in cluster.names if name not in hosts)
            await cluster.kill("master")
            for block, host in enumerate(hosts):
                cluster.disks[host].corrupt(chunk_path(int(chunk["handle"], 16)), DATA_START + block * BLOCK_BYTES + 5)
            await trio.sleep(5)  # the scrub finds it
            await cluster.kill(other)
            await cluster.start("master")
            await trio.sleep(5)
            await cluster.start(other)
        async with cluster.client("again") as client:

            async def repaired() -> bool:
                return list((await states(client, ["/f"])).values()).count("good") == 3

            await wait_until(repaired, 300)
            assert await Paths(client).read("/f") == data


async def killed_with_an_uncommitted_length(cluster: MemoryCluster) -> tuple[int, int]:
    """Everything killed after appends of which the master knows no length yet: (inode, handle)."""
    async with cluster.client("one", timeout_seconds=5) as one:
        _, file = await one.create_file(ROOT_INODE, b"log", 0o644, 1, 1)
        for _ in range(3):
            await file.append(b"record" * 20_000)
        chunk = (await one.file_info(file.inode))["chunks"][0]
        for name in ("master", *cluster.names):
            await cluster.kill(name)
        cluster.network.disconnect("one", "master")
    return file.inode, int(chunk["handle"], 16)


async def append(client: Client, inode: int, record: bytes) -> None:
    file = await client.open(inode, write=True, append=True)
    try:
        await file.append(record)
    finally:
        await file.close()


@pytest.mark.parametrize("what", ["header", "block"])
async def test_an_uncommitted_length_and_its_chunk_are_kept_when_every_replica_is_damaged(
    autojump_clock: trio.testing.MockClock, what: str
) -> None:
    """The first chunk of a file of which the master knows no length yet is not taken for one that was never used."""
    async with memory_cluster(server_options=EAGER) as cluster:
        inode, handle = await killed_with_an_uncommitted_length(cluster)
        path = chunk_path(handle)
        for name in cluster.names:
            place = DATA_START + BLOCK_BYTES + 5
            if what == "header":
                raw = cluster.disks[name].contents(path)[: fmt.TABLE_START]
                headers, _ = fmt.parse_headers(raw, handle, CHUNK_BYTES)
                place = min(range(3), key=lambda page: headers[page].generation) * fmt.PAGE_BYTES + 100  # type: ignore[union-attr]
            cluster.disks[name].corrupt(path, place)
        for name in ("master", *cluster.names):
            await cluster.start(name)
        async with cluster.client("two", timeout_seconds=20) as two:

            async def lost() -> bool:
                return bool((await two.status())["chunks"]["lost"] == 1)

            await wait_until(lost)
            with pytest.raises(GfsError):
                await append(two, inode, b"more")
            await trio.sleep(150)
            info = await two.file_info(inode)
            assert int(info["chunks"][0]["handle"], 16) == handle
            assert {replica["state"] for replica in info["chunks"][0]["replicas"]} == {"corrupt"}
            for name in cluster.names:
                assert path in cluster.disks[name].paths()
            if what == "block":  # a header that is in doubt tells no length; this one does
                assert (await two.getattr(inode)).size == 360_000
                assert await Paths(two).read("/log", 0, BLOCK_BYTES) == (b"record" * 20_000)[:BLOCK_BYTES]


async def test_a_chunk_file_that_disappeared_counts_as_missing(autojump_clock: trio.testing.MockClock) -> None:
    data = random.Random(7).randbytes(100_000)
    async with memory_cluster(server_options=EAGER) as cluster, cluster.client() as client:
        await Paths(client, 1, 1).write("/f", data)
        chunk = (await chunks_of(client, ["/f"]))["/f", 0]
        cluster.disks["cs3"].unlink(chunk_path(int(chunk["handle"], 16)))

        async def missing() -> bool:
            return (await states(client, ["/f"]))["/f", 0, "cs3"] == "missing"

        await wait_until(missing)
        assert (await client.status())["chunks"]["under_replicated"] == 1
        assert await Paths(client).read("/f") == data


async def test_the_only_copy_of_a_chunk_is_not_made_of_damaged_bytes(autojump_clock: trio.testing.MockClock) -> None:
    """Once it was, for a file that was written again after a snapshot, while the servers with the good replicas were
    away: they came back, and nobody had the file's bytes any more."""
    running = memory_cluster(server_options=QUIET)
    async with running as cluster, cluster.client() as client, trio.open_nursery() as nursery:
        data = random.Random(1).randbytes(3 * BLOCK_BYTES)
        paths = Paths(client, 1, 1)
        await paths.write("/f", data)
        await trio.sleep(5)
        await paths.snapshot("/f", "/copy")
        [chunk] = (await chunks_of(client, ["/f"])).values()
        cluster.disks["cs1"].corrupt(chunk_path(int(chunk["handle"], 16)), DATA_START + 5, 1)
        await cluster.kill("cs2")
        await cluster.kill("cs3")
        nursery.start_soon(paths.append, "/f", b"record")
        await trio.sleep(20)
        await cluster.start("cs2")
        await cluster.start("cs3")

        async def appended() -> bool:
            return await paths.read("/f") == data + b"record"

        await wait_until(appended)
