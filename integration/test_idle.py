"""A cluster that has nothing to do fits a laptop: little memory, next to no processor time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from harness import Cluster

MIB = 1024 * 1024
MEMORY_BYTES_MAX = 100 * MIB
WATCHED_SECONDS = 4
SHARE_OF_A_CORE_MAX = 0.10  # several times what it takes, for slow machines


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_cluster_is_small_and_quiet(cluster: Cluster) -> None:
    (cluster.mount / "file").write_bytes(b"x" * MIB)
    processes = cluster.processes()
    before = {process["pid"]: processor_seconds(process["pid"]) for process in processes}
    time.sleep(WATCHED_SECONDS)  # idleness can only be watched
    for process in processes:
        assert resident_bytes(process["pid"]) < MEMORY_BYTES_MAX, process
        spent = processor_seconds(process["pid"]) - before[process["pid"]]
        assert spent < WATCHED_SECONDS * SHARE_OF_A_CORE_MAX, (process, spent)
