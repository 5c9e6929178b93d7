"""Damages chunk files on disk the ways disks do: flipped bytes anywhere, files cut short, files gone.

One replica of each chunk at most, drawn from a seed. Returns what was done, for a test's output.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from pathlib import Path

from gfscore.storage.chunk_format import data_start

HEADER_PAGES_BYTES = 3 * 4096
WAYS = ("block", "block", "block", "checksums", "headers", "header page", "cut", "gone")


def damage_one(path: Path, length: int, chunk_bytes: int, rng: random.Random) -> str:
    """Damage the chunk file of a replica that holds `length` bytes; what was done to it."""
    way = rng.choice(WAYS)
    if way == "gone":
        path.unlink()
        return f"{path}: gone"
    with open(path, "r+b") as file:
        start = data_start(chunk_bytes)
        if way == "cut":
            size = rng.randrange(start + length)
            file.truncate(size)
            return f"{path}: cut to {size} bytes"
        if way == "headers":
            file.write(bytes(HEADER_PAGES_BYTES))
            return f"{path}: all header pages zeroed"
        if way == "header page":
            at = 4096 * rng.randrange(3) + rng.randrange(4096)
        elif way == "checksums":
            at = HEADER_PAGES_BYTES + rng.randrange(max(4, 4 * (length // 65536)))
        else:
            at = start + rng.randrange(length)
        byte = os.pread(file.fileno(), 1, at) or b"\0"
        os.pwrite(file.fileno(), bytes([byte[0] ^ (1 << rng.randrange(8))]), at)
        return f"{path}: a bit flipped at {at} ({way})"


def damage_one_replica_each(chunks: Iterable[dict], chunk_bytes: int, rng: random.Random) -> list[str]:
    """`chunks` as `gfs fileinfo` shows them. Each loses one good replica; those with one only are left alone."""
    done = []
    for chunk in chunks:
        good = [replica for replica in chunk["replicas"] if replica["state"] == "good"]
        if len(good) > 1 and chunk["length"]:
            done.append(damage_one(Path(rng.choice(good)["path"]), chunk["length"], chunk_bytes, rng))
    return done
