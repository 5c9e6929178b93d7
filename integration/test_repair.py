"""A chunkserver of five is killed for good while programs work on the mount; another is drained and switched off."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import traceback
from pathlib import Path

from harness import Cluster, local_cluster, wait_until

MIB = 1024 * 1024
HEAL_SECONDS = 240.0


class Load:
    """Writes files, reads them back and appends records, in threads, until it is told to stop; keeps what failed."""

    def __init__(self, mount: Path) -> None:
        self.failures: list[str] = []
        self.written: dict[Path, str] = {}
        self.records = 0
        self.rounds = 0
        self._mount = mount
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._files, self._append)]
        for thread in self._threads:
            thread.start()

    def _guard(self, work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except BaseException:
            self.failures.append(traceback.format_exc())

    def _files(self) -> None:
        rng = random.Random(1)
        while not self._stop.is_set():
            path = self._mount / f"load{self.rounds}"
            data = rng.randbytes(rng.randrange(1, 3 * MIB))
            path.write_bytes(data)
            self.written[path] = hashlib.sha256(data).hexdigest()
            known = rng.choice(list(self.written))
            assert hashlib.sha256(known.read_bytes()).hexdigest() == self.written[known], known
            self.rounds += 1

    def _append(self) -> None:
        log = os.open(self._mount / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            while not self._stop.is_set():
                os.write(log, b"%08d\n" % self.records)
                self.records += 1
        finally:
            os.close(log)

    def wait_for_rounds(self, more: int) -> None:
        target = self.rounds + more
        wait_until(lambda: self.failures or self.rounds >= target, f"{more} more files", HEAL_SECONDS)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(HEAL_SECONDS)
            assert not thread.is_alive(), "the load hangs"


def healed(cluster: Cluster) -> dict | None:
    status = cluster.status()
    chunks, repairing = status["chunks"], status["repairing"]
    idle = not repairing["queued"] and not repairing["running"]
    return status if idle and not chunks["under_replicated"] and not chunks["lost"] else None


def test_a_server_killed_under_load_is_replaced_and_no_program_notices(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "c", chunkservers=5, down_seconds=4) as cluster:
        before = {}
        for number in range(20):
            data = random.Random(number).randbytes(MIB + number)
            (cluster.mount / f"f{number}").write_bytes(data)
            before[cluster.mount / f"f{number}"] = hashlib.sha256(data).hexdigest()
        load = Load(cluster.mount)
        try:
            load.wait_for_rounds(3)
            victim = cluster.chunkservers()[1]
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: any(s["state"] == "down" for s in cluster.status()["chunkservers"]), "it to be missed")
            load.wait_for_rounds(3)
        finally:
            load.stop()
        assert not load.failures, load.failures
        wait_until(lambda: healed(cluster), "all chunks back at their goal", HEAL_SECONDS)
        for path, digest in {**before, **load.written}.items():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest, path
        lines = (cluster.mount / "log").read_bytes().replace(b"\0", b"").split()
        assert lines == [b"%08d" % number for number in range(load.records)]
        for path in before:
            for chunk in cluster.file_info(path)["chunks"]:
                assert [replica["state"] for replica in chunk["replicas"]] == ["good"] * 3
        checked = json.loads(cluster.gfs("fsck", cluster.mount, "--json", seconds=HEAL_SECONDS).stdout)
        assert checked["problems"] == [] and checked["replicas"] == 3 * checked["chunks"]


def test_a_drained_server_holds_nothing_and_nobody_misses_it(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "c", chunkservers=4, down_seconds=4) as cluster:
        (cluster.mount / "tree").mkdir()
        for number in range(10):
            (cluster.mount / "tree" / f"f{number}").write_bytes(bytes([number]) * (MIB + 1))
        server = cluster.status()["chunkservers"][0]
        cluster.gfs("drain", server["address"], "--wait", seconds=HEAL_SECONDS)
        row = next(row for row in cluster.status()["chunkservers"] if row["id"] == server["id"])
        assert (row["state"], row["chunks"], row["chunks_left"]) == ("drained", 0, 0)
        assert "may be switched off" in cluster.gfs("status").stdout
        port = server["address"].rpartition(":")[2]
        name = next(p["name"] for p in cluster.chunkservers() if port in p["address"] or p["address"] == port)
        cluster.gfs("stop", "--root", cluster.root, name)
        for number in range(10):
            assert (cluster.mount / "tree" / f"f{number}").read_bytes() == bytes([number]) * (MIB + 1)
        cluster.gfs("set", "-r", cluster.mount / "tree", "replication=2")
        assert wait_until(lambda: healed(cluster), "health")["chunks"]["lost"] == 0  # type: ignore[index]
        wait_until(
            lambda: sum(row["chunks"] for row in cluster.status()["chunkservers"] if row["state"] == "up") == 40,
            "two replicas of each chunk",
        )
        wait_until(lambda: not cluster.gfs("forget-server", server["id"], check=False).returncode, "it to be forgotten")
        assert len(cluster.status()["chunkservers"]) == 3
        assert cluster.gfs("status", check=False).returncode == 0
        assert cluster.gfs("drain", "nobody", check=False).returncode == 1
