"""Chunk files damaged behind the servers' backs: no wrong byte through the mount, every one named by `gfs fsck`."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, drop_caches, local_cluster, wait_until

MIB = 1024 * 1024
BLOCK = 64 * 1024
PAGE = 4096
TABLE_START = 3 * PAGE
DATA_START = 4 * PAGE  # for chunks of 1 MiB


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster whose scrub is off: what is found is found by who reads."""
    with local_cluster(tmp_path / "var", chunkservers=4, scrub_rate=0) as cluster:
        yield cluster


def file_info(path: Path) -> dict:
    """As `gfs fileinfo`, without a process for each."""
    return json.loads(os.getxattr(path, "gfs.fileinfo"))


def write_files(cluster: Cluster, rng: random.Random, count: int) -> dict[Path, str]:
    """Path → SHA-256; sizes from one block to several chunks."""
    sums = {}
    for number in range(count):
        path = cluster.mount / f"d{number % 5}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        data = rng.randbytes(rng.choice([1000, BLOCK, 5 * BLOCK + 9, MIB, 3 * MIB + 77]))
        path.write_bytes(data)
        sums[path] = hashlib.sha256(data).hexdigest()
    return sums


def damage(rng: random.Random, file: Path) -> None:
    """A few bytes of a chunk file become others: of a block, of its checksum, of a header page."""
    length = file.stat().st_size - DATA_START
    kind = rng.choice(["header", "block", "block", "table"] if length >= BLOCK else ["header", "block"])
    if kind == "header":
        place = rng.randrange(3) * PAGE + rng.randrange(PAGE - 8)
    elif kind == "table":
        place = TABLE_START + 4 * rng.randrange(length // BLOCK)
    else:
        place = DATA_START + rng.randrange(length - 8)
    with open(file, "r+b") as chunk:
        chunk.seek(place)
        old = chunk.read(4)
        chunk.seek(place)
        chunk.write(bytes(byte ^ 0x5A for byte in old))


def damage_one_replica_of_each_chunk(cluster: Cluster, rng: random.Random, paths: list[Path]) -> set[tuple]:
    """(path in the file system, chunk index, server) of each."""
    bad = set()
    for path in paths:
        for chunk in file_info(path)["chunks"]:
            replica = rng.choice(chunk["replicas"])
            damage(rng, Path(replica["path"]))
            bad.add((f"/{path.relative_to(cluster.mount)}", chunk["index"], replica["chunkserver"]))
    return bad


def fsck(cluster: Cluster, *arguments: object) -> tuple[int, dict]:
    done = cluster.gfs("fsck", *arguments, "--json", check=False)
    return done.returncode, json.loads(done.stdout)


def all_alive(cluster: Cluster) -> bool:
    return all(process["state"] == "running" for process in cluster.processes())


def test_a_hundred_damaged_chunks_are_named_and_no_wrong_byte_is_read(own: Cluster) -> None:
    rng = random.Random(1)
    sums = write_files(own, rng, 60)
    status, found = fsck(own)
    assert (status, found["problems"]) == (0, []) and found["files"] == 60 and found["chunks"] >= 90
    assert found["replicas"] == 3 * found["chunks"]
    bad = damage_one_replica_of_each_chunk(own, rng, list(sums))
    assert len(bad) == found["chunks"]
    status, found = fsck(own)
    assert status == 1
    assert {(p["path"], p["index"], p["server"]) for p in found["problems"] if p["kind"] == "corrupt"} == bad
    assert {p["kind"] for p in found["problems"]} == {"corrupt"}
    fresh = own.second_mount()
    for path, digest in sums.items():
        assert hashlib.sha256((fresh / path.relative_to(own.mount)).read_bytes()).hexdigest() == digest, path
    assert own.status()["chunks"]["lost"] == 0 and all_alive(own)
    for path in sums:  # and what is damaged is not written to: overwrites go to the good replicas
        with open(path, "r+b") as file:
            file.seek(500)
            file.write(b"overwritten")
    for path in sums:
        assert path.read_bytes()[500:511] == b"overwritten"


def test_damage_found_at_the_start_and_files_that_are_gone(own: Cluster) -> None:
    rng = random.Random(2)
    sums = write_files(own, rng, 12)
    replicas = [chunk["replicas"] for path in sums for chunk in file_info(path)["chunks"]]
    victims = [Path(rng.choice(choice)["path"]) for choice in replicas]
    own.gfs("down", "--root", own.root)
    for number, victim in enumerate(victims):
        if number % 3 == 0:
            victim.unlink()
        elif number % 3 == 1:
            with open(victim, "r+b") as file:
                file.truncate(rng.randrange(DATA_START + 500))
        else:
            with open(victim, "r+b") as file:
                file.write(bytes(TABLE_START))
    own.up()
    assert all_alive(own)
    for path, digest in sums.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path
    assert own.status()["chunks"]["lost"] == 0 and all_alive(own)
    wait_until(lambda: fsck(own)[0] == 0, "three good replicas of everything", seconds=120)
    for path, digest in sums.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path


def test_the_scrub_of_a_real_server_finds_what_nobody_reads(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "var", scrub_rate="1GiB") as cluster:
        rng = random.Random(3)
        (path,) = write_files(cluster, rng, 1)
        replica = file_info(path)["chunks"][0]["replicas"][0]
        cluster.gfs("down", "--root", cluster.root)
        damage(rng, Path(replica["path"]))
        cluster.up()  # a pass begins with the start

        def reported() -> bool:
            server = next(s for s in cluster.status()["chunkservers"] if s["id"] == replica["chunkserver"])
            return server["scrub"]["bad"] == 1

        wait_until(reported, "the scrub to report the damage")
        assert "1 bad" in cluster.gfs("status", check=False).stdout
        wait_until(lambda: fsck(cluster)[0] == 0, "a good replica in the place of the bad one")


def test_a_thousand_damaged_blocks_are_repaired_also_where_nobody_reads(tmp_path: Path) -> None:
    """One replica of each chunk has many bad blocks and checksums. Half of the files are read, the others never."""
    rng = random.Random(3)
    with local_cluster(tmp_path / "var", chunkservers=4, scrub_rate="256MiB") as cluster:
        sums = {}
        for number in range(30):
            path = cluster.mount / f"f{number}"
            data = rng.randbytes(4 * MIB)
            path.write_bytes(data)
            sums[path] = hashlib.sha256(data).hexdigest()
        chunks = [chunk for path in sums for chunk in file_info(path)["chunks"]]
        victims = [Path(rng.choice(chunk["replicas"])["path"]) for chunk in chunks]

        def walked() -> bool:
            return all(server["scrub"]["finished"] for server in cluster.status()["chunkservers"])

        wait_until(walked, "the first pass of the scrub")  # the next one begins with the start of a server
        cluster.gfs("down", "--root", cluster.root)
        places = rng.sample([(victim, block) for victim in victims for block in range(MIB // BLOCK)], 1000)
        for victim, block in places:
            at = rng.choice([TABLE_START + 4 * block, DATA_START + block * BLOCK + rng.randrange(BLOCK - 4)])
            with open(victim, "r+b") as chunk_file:
                old = os.pread(chunk_file.fileno(), 4, at)
                os.pwrite(chunk_file.fileno(), bytes(byte ^ 0x5A for byte in old), at)
        cluster.up()
        drop_caches()
        fresh = cluster.second_mount()
        read = dict(list(sums.items())[:15])
        for path, digest in read.items():
            assert hashlib.sha256((fresh / path.name).read_bytes()).hexdigest() == digest, path

        def repaired() -> bool:
            """No damaged replica is where it was: a good copy has taken its place, or lies elsewhere."""
            now = [chunk for path in sums for chunk in file_info(path)["chunks"]]
            states = [[replica["state"] for replica in chunk["replicas"]] for chunk in now]
            found = sum(server["scrub"]["bad"] for server in cluster.status()["chunkservers"])
            return found >= len({victim for victim, _ in places}) and all(state == ["good"] * 3 for state in states)

        wait_until(repaired, "three good replicas of everything", seconds=300)
        assert fsck(cluster)[1]["problems"] == []
        for path, digest in sums.items():
            assert hashlib.sha256((fresh / path.name).read_bytes()).hexdigest() == digest, path
        assert all_alive(cluster)
