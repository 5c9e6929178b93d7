"""One replica of every chunk is damaged on disk: no wrong byte is read through a mount, and the servers live on."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from chaos_check import chunks_of
from damage import damage_one_replica_each
from harness import Cluster, drop_caches, local_cluster, take_down

SEEDS = [1]
FILES = 25
FILE_BYTES_MAX = 2 * 1024 * 1024


def write_files(mount: Path, rng: random.Random) -> dict[Path, str]:
    """Files of all sizes, some of several chunks; path → SHA-256."""
    written = {}
    for number in range(FILES):
        data = rng.randbytes(int(FILE_BYTES_MAX * rng.random() ** 3) + 1)
        path = mount / f"file{number}"
        path.write_bytes(data)
        written[path] = hashlib.sha256(data).hexdigest()
    return written


def read_all(written: dict[Path, str]) -> list[str]:
    """What is not as it was written."""
    wrong = []
    for path, digest in written.items():
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                wrong.append(f"{path}: WRONG BYTES")
        except OSError as error:
            wrong.append(f"{path}: {error}")
    return wrong


def servers_alive(cluster: Cluster) -> bool:
    return all(server["state"] == "up" for server in cluster.status()["chunkservers"])


@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
@pytest.mark.parametrize("seed", SEEDS)
def test_no_wrong_byte_is_read_when_one_replica_of_each_chunk_is_damaged(
    tmp_path: Path, seed: int, restarted: bool
) -> None:
    rng = random.Random(seed)
    with local_cluster(tmp_path / "var", chunkservers=4) as cluster:
        written = write_files(cluster.mount, rng)
        chunks = [chunk for path in written for chunk in chunks_of(path)]
        if restarted:  # found at the start, not while reading
            cluster.gfs("down", "--root", cluster.root)
            take_down(cluster.mount)
        damaged = damage_one_replica_each(chunks, cluster.chunk_bytes, rng)
        print(*damaged, sep="\n")
        assert len(damaged) >= FILES
        if restarted:
            cluster.up()
        drop_caches()
        assert read_all(written) == []
        assert read_all({cluster.second_mount() / path.name: digest for path, digest in written.items()}) == []
        assert servers_alive(cluster)
        new = cluster.mount / "new"
        new.write_bytes(b"still writable")
        assert new.read_bytes() == b"still writable"


def test_a_file_that_is_damaged_everywhere_is_an_error_and_never_wrong(tmp_path: Path) -> None:
    """The proof that the damage of the other tests is real: with no good replica left the reads do fail."""
    with local_cluster(tmp_path / "var") as cluster:
        path = cluster.mount / "file"
        path.write_bytes(random.Random(3).randbytes(100_000))
        for replica in chunks_of(path)[0]["replicas"]:
            with open(replica["path"], "r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]))
        drop_caches()
        mount = cluster.second_mount()
        with pytest.raises(OSError), open(mount / "file", "rb") as file:
            file.read()
        assert servers_alive(cluster)
