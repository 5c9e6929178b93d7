"""Holds what workers under chaos wrote down against the file system and against every replica on disk.

Knows nothing of servers: journals and a mount go in, a list of problems comes out. An operation whose outcome the
worker did not learn may have happened or not, and nothing third.

    append: ["record", file, offset, length, digest, head]       acknowledged
    files:  ["directory", name], then an operation and ["ok"]; without it, or with ["unknown", errno], in doubt
            ["create", name, content] · ["rewrite", name, before, content] · ["replace", name, before, content]
            ["rename", name, content, over, content there before] · ["unlink", name, content]
    blocks: ["made", file], ["ok"]; ["write", generation, first block, blocks]; ["synced"]
    all:    ["wrong", text]      an answer that can never be right      ["unread", errno]      a read that failed
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from append_check import Acknowledged, check_records, replica_bytes
from chaos_worker import BLOCK_BYTES, BLOCKS, block_of, content_of

_HEAD = re.compile(rb"<[a-z0-9-]+:\d+:")


@dataclass
class Findings:
    """`problems`: what must not be. `counts`: how much was looked at, so that a check of nothing shows."""

    problems: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(self.counts.items()))


def read_journal(path: Path) -> list[list]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check_journals(journals: dict[str, tuple[str, str, list[list]]], mounts: Iterable[Path]) -> Findings:
    """`journals`: worker → (kind, what it worked on, its lines). Everything is looked at through each mount."""
    found = Findings()
    for worker, (kind, _, lines) in journals.items():
        for line in lines:
            if line[0] == "wrong":
                found.problems.append(f"{worker}: {line[1]}")
            elif line[0] in ("unknown", "unread"):
                found.counts[f"{kind} {line[0]}"] += 1
    for mount in mounts:
        _check_logs(mount, journals, found)
        for worker, (kind, target, lines) in journals.items():
            try:
                if kind == "files" and ["directory", target] in lines:
                    _check_directory(mount / target, worker, lines, found)
                elif kind == "blocks":
                    _check_blocks(mount / target, worker, lines, found)
            except OSError as error:
                found.problems.append(f"{worker}: LOST or unreadable: {error}")
    return found


# ---------------------------------------------------------------- records


def _check_logs(mount: Path, journals: dict[str, tuple[str, str, list[list]]], found: Findings) -> None:
    records = defaultdict(list)
    heads = defaultdict(list)
    for _, _, lines in journals.values():
        for line in lines:
            if line[0] == "record":
                _, target, offset, length, digest, head = line
                records[target].append(Acknowledged(offset, length, digest))
                heads[target].append(head.encode())
    for target, acknowledged in records.items():
        try:
            data = (mount / target).read_bytes()
            check_records(data, acknowledged, extra=True)
        except (OSError, AssertionError) as error:
            found.problems.append(f"RECORDS lost in {mount / target}: {error}")
            continue
        seen = Counter(_HEAD.findall(data))
        for head in heads[target]:
            if seen[head] != 1:
                found.problems.append(f"{mount / target}: the acknowledged record {head!r} is there {seen[head]} times")
        found.counts["records"] += len(acknowledged)


# ---------------------------------------------------------------- names


def _operations(lines: list[list]) -> Iterable[tuple[list, bool]]:
    """Each operation and whether it was acknowledged."""
    current: list | None = None
    for line in lines:
        if line[0] in ("create", "rewrite", "replace", "rename", "unlink"):
            if current is not None:
                yield current, False
            current = line
        elif current is not None and line[0] in ("ok", "unknown"):
            yield current, line[0] == "ok"
            current = None
    if current is not None:
        yield current, False


def _touched(operation: list) -> list[str]:
    names = [operation[1]]
    if operation[0] == "rename":
        names.append(operation[3])
    elif operation[0] == "replace":
        names.append(f"{operation[1]}.new")
    return names


def _check_directory(directory: Path, worker: str, lines: list[list], found: Findings) -> None:
    certain: dict[str, int | None] = {}
    doubtful: list[list] = []
    for operation, acknowledged in _operations(lines):
        what, name, *more = operation
        for touched in _touched(operation):
            certain.pop(touched, None)
        if not acknowledged:
            doubtful.append(operation)
        elif what == "rename":
            certain.update({name: None, more[1]: more[0]})
        elif what == "unlink":
            certain[name] = None
        else:
            certain.update(dict.fromkeys(_touched(operation)[1:]))
            certain[name] = more[-1]
    there = set(os.listdir(directory))
    data = {name: (directory / name).read_bytes() for name in there}
    for name, content in certain.items():
        found.counts["names"] += 1
        if content is None and name in there:
            found.problems.append(f"{directory / name} is there, its removal was acknowledged")
        elif content is not None and name not in there:
            found.problems.append(f"NAME lost: {directory / name}")
        elif content is not None and data[name] != content_of(worker, content):
            found.problems.append(f"BYTES lost: {directory / name} is not its content {content}: {data[name][:60]!r}…")
    for operation in doubtful:
        found.counts["names in doubt"] += 1
        if not _possible(operation, worker, data):
            seen = {name: data[name][:40] if name in data else None for name in _touched(operation)}
            found.problems.append(f"{directory}: neither before nor after {operation}: {seen}")
    for name in there - set(certain) - {name for operation in doubtful for name in _touched(operation)}:
        found.problems.append(f"{directory / name} was never made")


def _possible(operation: list, worker: str, data: dict[str, bytes]) -> bool:
    """Whether an operation in doubt has left one of the states that it may."""
    what, name, *more = operation

    def content(number: int | None) -> bytes | None:
        return None if number is None else content_of(worker, number)

    if what == "create":
        return name not in data or _mixture(data[name], [content_of(worker, more[0])])
    if what == "rewrite":
        return name in data and _mixture(data[name], [content_of(worker, number) for number in more])
    if what == "replace":
        new = f"{name}.new"
        return data.get(name) in (content(more[0]), content(more[1])) and (
            new not in data or _mixture(data[new], [content_of(worker, more[1])])
        )
    if what == "rename":
        moved, over, before = more
        return (data.get(name), data.get(over)) in (
            (content(moved), content(before)),
            (None, content(moved)),
        )
    return data.get(name) in (None, content(more[0]))


def _mixture(data: bytes, sources: list[bytes]) -> bool:
    """Whether each byte is what one of `sources` has there, or a zero that nobody has written yet."""
    size = max(map(len, sources))
    if len(data) > size:
        return False
    if any(data == source[: len(data)] for source in sources):
        return True
    padded = [source.ljust(size, b"\0") for source in sources]
    return all(not byte or any(byte == source[at] for source in padded) for at, byte in enumerate(data))


# ---------------------------------------------------------------- blocks


def _check_blocks(path: Path, worker: str, lines: list[list], found: Findings) -> None:
    made = any(one[0] == "made" and two == ["ok"] for one, two in pairwise(lines))
    if not made:
        return
    possible: list[set[int]] = [{0} for _ in range(BLOCKS)]
    unsynced: dict[int, int] = {}
    for line in lines:
        if line[0] == "write":
            _, generation, first, count = line
            for index in range(first, first + count):
                possible[index].add(generation)
                unsynced[index] = generation
        elif line[0] == "synced":
            for index, generation in unsynced.items():
                possible[index] = {generation}
            unsynced.clear()
        elif line[0] == "unknown":
            unsynced.clear()  # none of them was promised
    data = path.read_bytes()
    if len(data) != BLOCKS * BLOCK_BYTES:
        found.problems.append(f"BYTES lost: {path} has {len(data)} bytes instead of {BLOCKS * BLOCK_BYTES}")
    for index, generations in enumerate(possible):
        found.counts["blocks"] += 1
        block = data[index * BLOCK_BYTES : (index + 1) * BLOCK_BYTES]
        if not any(block == block_of(worker, index, generation) for generation in generations):
            found.problems.append(
                f"BYTES lost: block {index} of {path} is {block[:40]!r}…, not one of {sorted(generations)}"
            )


# ---------------------------------------------------------------- replicas


def all_files(mount: Path) -> list[Path]:
    return [Path(where) / name for where, _, names in os.walk(mount) for name in names]


def chunks_of(path: Path) -> list[dict]:
    chunks: list[dict] = json.loads(os.getxattr(path, "gfs.fileinfo"))["chunks"]
    return chunks


def lost_chunks(mount: Path) -> list[str]:
    """Which chunks have no good replica, for a message."""
    found = []
    for path in all_files(mount):
        for chunk in chunks_of(path):
            if int(chunk["handle"], 16) and not any(replica["state"] == "good" for replica in chunk["replicas"]):
                found.append(f"no good replica: {path} ({path.stat().st_size} bytes): {chunk}")
    return found


def check_replicas(mount: Path, chunk_bytes: int, found: Findings) -> None:
    """All good replicas of each chunk are equal byte for byte. Leases must have ended."""
    for path in all_files(mount):
        for chunk in chunks_of(path):
            if not int(chunk["handle"], 16):
                continue  # a hole
            good = [replica for replica in chunk["replicas"] if replica["state"] == "good"]
            where = f"{path} chunk {chunk['index']} ({chunk['handle']}, version {chunk['version']})"
            if not good:
                found.problems.append(f"{where}: no good replica: {chunk['replicas']}")
                continue
            found.counts["chunks"] += 1
            found.counts["replicas"] += len(good)
            copies = {one["chunkserver"]: replica_bytes(one["path"], chunk["length"], chunk_bytes) for one in good}
            if len(set(copies.values())) > 1:
                sizes = {server: len(copy) for server, copy in copies.items()}
                found.problems.append(f"{where}: replicas differ: {sizes}, length {chunk['length']}")
