"""How fast a cluster makes up for a lost chunkserver, beside what the same disk copies locally.

    bench_repair.py [--directory DIR] [--chunkservers 5] [--mib 2048] [--kill 1]

Starts a cluster of its own, writes files of 1 to 64 MiB through a mount, kills chunkservers for good while programs go
on reading and writing there, and waits until every chunk is at its goal again. Then copies as many bytes with `cp` and
an fsync on the same disk. Prints MiB/s and their ratio; any error that reaches a program ends it with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import trio
from harness import Cluster, drop_caches, local_cluster

from gfscore.client import open_client

MIB = 1024 * 1024
SETTLE_SECONDS = 1800
DOWN_SECONDS = 10.0  # how long the master waits before it takes a silent server for down
SIZES = (1, 1, 2, 4, 8, 16, 32, 64)


def write_files(directory: Path, mib: int, rng: random.Random) -> dict[Path, str]:
    """Files of random bytes, `mib` MiB in all; the SHA-256 of each."""
    made: dict[Path, str] = {}
    directory.mkdir()
    left = mib
    while left > 0:
        size = min(rng.choice(SIZES), left)
        data = rng.randbytes(size * MIB)
        path = directory / f"f{len(made)}"
        path.write_bytes(data)
        made[path] = hashlib.sha256(data).hexdigest()
        left -= size
    os.sync()
    return made


class Load:
    """Programs on the mount: one reads the files again and again, one writes small files, one appends lines."""

    def __init__(self, mount: Path, files: dict[Path, str]) -> None:
        self.errors: list[str] = []
        self.operations = 0
        self._mount = mount
        self._files = files
        self._stop = threading.Event()
        parts = (self._read, self._write, self._append)
        self._threads = [threading.Thread(target=self._run, args=(part,)) for part in parts]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)

    def _run(self, part: object) -> None:
        number = 0
        while not self._stop.is_set():
            try:
                part(number)  # type: ignore[operator]
                self.operations += 1
            except OSError as error:
                self.errors.append(repr(error))
            number += 1
            time.sleep(0.02)  # a load, not a race with what is measured

    def _read(self, number: int) -> None:
        small = [path for path in self._files if path.stat().st_size <= 2 * MIB]
        path = small[number % len(small)]
        if hashlib.sha256(path.read_bytes()).hexdigest() != self._files[path]:
            self.errors.append(f"{path}: wrong bytes")

    def _write(self, number: int) -> None:
        path = self._mount / f"small{number % 50}"
        path.write_bytes(b"%d\n" % number * 100)
        if path.read_bytes() != b"%d\n" % number * 100:
            self.errors.append(f"{path}: wrong bytes")

    def _append(self, number: int) -> None:
        with open(self._mount / "log", "ab", buffering=0) as log:
            log.write(b"line %d\n" % number)


def local_rate(directory: Path, mib: int) -> float:
    """MiB/s of a plain copy of files on the disk under `directory`, from the disk to the disk."""
    source = directory / "local"
    source.mkdir()
    for number in range(mib // 64):
        (source / f"f{number}").write_bytes(os.urandom(64 * MIB))
    drop_caches()
    started = time.perf_counter()
    subprocess.run(["cp", "-r", source, directory / "copy"], check=True, timeout=1800)
    subprocess.run(["sync", "-f", directory / "copy"], check=True, timeout=1800)
    seconds = time.perf_counter() - started
    shutil.rmtree(source)
    shutil.rmtree(directory / "copy")
    return mib // 64 * 64 / seconds


async def wait_healed(master: str, killed: int) -> tuple[float, float]:
    """When `killed` servers were taken for down, and when every chunk was at its goal again (`perf_counter`).

    Asks over one connection: a `gfs status` each time would take half a core from what is measured.
    """
    noticed = None
    async with open_client(master) as client:
        with trio.fail_after(SETTLE_SECONDS):
            while True:
                status = await client.status()
                down = sum(server["state"] == "down" for server in status["chunkservers"])
                if down == killed and noticed is None:
                    noticed = time.perf_counter()
                chunks = status["chunks"]
                if noticed is not None and not chunks["under_replicated"] and not chunks["lost"]:
                    return noticed, time.perf_counter()
                await trio.sleep(0.1)


def used_mib(cluster: Cluster, names: set[str]) -> float:
    """What the servers `names` hold on their disks."""
    command = ["du", "-sm", *(str(cluster.root / name) for name in sorted(names))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return sum(float(line.split()[0]) for line in done.stdout.splitlines())


def measure(arguments: argparse.Namespace, root: Path) -> int:
    rng = random.Random(1)
    options = {"chunkservers": arguments.chunkservers, "replication": 3, "down_seconds": DOWN_SECONDS}
    with local_cluster(root / "var", chunk_size="64MiB", **options) as cluster:
        files = write_files(cluster.mount / "data", arguments.mib, rng)
        victims = {server["name"] for server in cluster.chunkservers()[: arguments.kill]}
        others = {server["name"] for server in cluster.chunkservers()} - victims
        drop_caches()
        before = used_mib(cluster, others)
        with Load(cluster.mount, files) as load:
            for name in victims:
                cluster.kill(name)
            started = time.perf_counter()
            first, done = trio.run(wait_healed, cluster.master_address(), arguments.kill)
        cloned = used_mib(cluster, others) - before
        for path, digest in files.items():
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                load.errors.append(f"{path}: wrong bytes")
    local = local_rate(root, min(arguments.mib, 1024))
    seconds = done - first
    rate = cloned / seconds
    print(f"{arguments.kill} of {arguments.chunkservers} chunkservers killed; {cloned:.0f} MiB cloned")
    print(f"at the goal after {done - started:.1f} s, of which {first - started:.1f} s until that was noticed")
    print(f"re-replication {rate:.0f} MiB/s, local copy {local:.0f} MiB/s, ratio {rate / local:.2f}")
    print(f"{load.operations} operations of programs meanwhile, {len(load.errors)} errors")
    for error in load.errors[:10]:
        print(error)
    return 1 if load.errors else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, help="on the disk to measure; default: a temporary one")
    parser.add_argument("--chunkservers", type=int, default=5)
    parser.add_argument("--mib", type=int, default=2048)
    parser.add_argument("--kill", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gfs-repair.", dir=arguments.directory or "/var/tmp") as root:
        return measure(arguments, Path(root))


if __name__ == "__main__":
    sys.exit(main())
