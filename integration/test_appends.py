"""Many processes on two mounts append to one file, with and without a chunkserver that dies again and again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from append_check import check_records, check_replicas, read_reports
from harness import Cluster, local_cluster, wait_until

WORKER = Path(__file__).with_name("append_worker.py")
PROCESSES = 8
RECORDS = 40_000
RECORDS_UNDER_FAULTS = 8_000
KILLS_MIN, KILLS_MAX = 3, 12


def start_workers(paths: list[Path], records: int, tmp_path: Path) -> list[tuple[subprocess.Popen, Path]]:
    workers = []
    for number in range(PROCESSES):
        report = tmp_path / f"report{number}"
        path = paths[number % len(paths)]
        command = [sys.executable, WORKER, path, records // PROCESSES, number, f"w{number}", report]
        arguments = [str(part) for part in command]
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        workers.append((process, report))
    return workers


def finish(workers: list[tuple[subprocess.Popen, Path]], seconds: float) -> list[Path]:
    for process, _ in workers:
        try:
            out, err = process.communicate(timeout=seconds)
        finally:
            process.kill()
        assert process.returncode == 0, f"{out}\n{err}"
    return [report for _, report in workers]


def test_eight_processes_on_two_mounts(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "var") as cluster:
        other = cluster.second_mount()
        (cluster.mount / "log").touch()
        reports = finish(start_workers([cluster.mount / "log", other / "log"], RECORDS, tmp_path), seconds=900)
        records = read_reports(reports)
        assert len(records) == RECORDS
        for mount in (cluster.mount, other):
            data = (mount / "log").read_bytes()
            check_records(data, records)
        check_replicas(cluster.file_info(cluster.mount / "log"), data, cluster.chunk_bytes)


@pytest.mark.parametrize("victim", [0, 1])
def test_no_acknowledged_record_is_lost_when_a_chunkserver_dies_again_and_again(tmp_path: Path, victim: int) -> None:
    with local_cluster(tmp_path / "var") as cluster:
        other = cluster.second_mount()
        (cluster.mount / "log").touch()
        workers = start_workers([cluster.mount / "log", other / "log"], RECORDS_UNDER_FAULTS, tmp_path)
        try:
            kills = kill_again_and_again(cluster, [process for process, _ in workers], victim)
        finally:
            reports = finish(workers, seconds=900)
        assert kills >= KILLS_MIN, "the appends were over too soon to say anything"
        records = read_reports(reports)
        assert len(records) == RECORDS_UNDER_FAULTS
        for mount in (cluster.mount, other):
            check_records((mount / "log").read_bytes(), records, extra=True)


def kill_again_and_again(cluster: Cluster, workers: list[subprocess.Popen], victim: int) -> int:
    """SIGKILL and restart one chunkserver until the workers are done; how often that happened while they worked."""
    name = cluster.chunkservers()[victim]["name"]
    kills = 0
    while any(worker.poll() is None for worker in workers) and kills < KILLS_MAX:
        cluster.kill(name)
        cluster.gfs("restart", "--root", cluster.root, name)
        wait_until(lambda: all(s["state"] == "up" for s in cluster.status()["chunkservers"]), "the server to be up")
        kills += 1
    return kills
