"""Holds what appenders say was acknowledged against the bytes of the file and of every replica on disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from gfscore.storage.chunk_format import data_start


class Acknowledged(NamedTuple):
    offset: int
    length: int
    digest: str


def read_reports(reports: list[Path]) -> list[Acknowledged]:
    records = []
    for report in reports:
        for line in report.read_text().splitlines():
            offset, length, digest = line.split()
            records.append(Acknowledged(int(offset), int(length), digest))
    return records


def check_records(data: bytes, records: list[Acknowledged], *, padding: bytes = b"\0", extra: bool = False) -> None:
    """Every record is whole at its offset, none overlap; what is left is padding (`extra`: or unacknowledged ones)."""
    end = 0
    for record in sorted(records):
        assert record.offset >= end, f"records overlap at {record.offset}"
        if not extra:
            gap = data[end : record.offset]
            assert gap == padding * len(gap), f"bytes {end}..{record.offset} are neither record nor padding"
        piece = data[record.offset : record.offset + record.length]
        assert hashlib.sha256(piece).hexdigest()[:24] == record.digest, f"the record at {record.offset} is damaged"
        end = record.offset + record.length
    if not extra:
        assert data[end:] == padding * (len(data) - end), f"bytes behind {end} are neither record nor padding"


def file_info(gfs: Path, path: Path) -> dict:
    done = subprocess.run([gfs, "fileinfo", path, "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def replica_bytes(path: str, length: int, chunk_bytes: int) -> bytes:
    """The chunk's data out of a chunk file: behind the headers and the checksum table (docs/chunk_format.md)."""
    with open(path, "rb") as file:
        file.seek(data_start(chunk_bytes))
        return file.read(length)


def check_replicas(info: dict, data: bytes, chunk_bytes: int, replicas: int = 3) -> None:
    """All replicas of all chunks hold exactly the bytes that the mount shows."""
    assert info["length"] == len(data)
    for chunk in info["chunks"]:
        start = chunk["index"] * chunk_bytes
        want = data[start : start + chunk_bytes]
        assert chunk["length"] == len(want)
        good = [replica for replica in chunk["replicas"] if replica["state"] == "good"]
        assert len(good) == replicas, f"chunk {chunk['index']}: {[r['state'] for r in chunk['replicas']]}"
        for replica in good:
            got = replica_bytes(replica["path"], chunk["length"], chunk_bytes)
            assert got == want, f"chunk {chunk['index']} on {replica['chunkserver']} differs"
