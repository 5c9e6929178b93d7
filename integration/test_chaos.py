"""A short run of the chaos that `make chaos` makes for longer, and the proof that its checks can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chaos import run_chaos
from chaos_check import check_journals
from chaos_worker import BLOCK_BYTES, BLOCKS, block_of, content_of, record_of

EVENTS = 25
SEED = 7


def test_nothing_acknowledged_is_lost_when_every_role_is_killed_and_stopped(tmp_path: Path) -> None:
    found = run_chaos(tmp_path / "var", EVENTS, SEED)
    print(found)
    assert found.counts["records"] > 50 and found.counts["names"] > 20 and found.counts["chunks"] > 0


# ---------------------------------------------------------------- the checks can fail


def log_of(records: int) -> tuple[bytes, list[list]]:
    import hashlib
    import random

    data, lines = b"", []
    for number in range(records):
        head, record = record_of("append-0-0", number, random.Random(number))
        digest = hashlib.sha256(record).hexdigest()[:24]
        lines.append(["record", "log0", len(data), len(record), digest, head.decode()])
        data += record
    return data, lines


def problems(mount: Path, kind: str, target: str, lines: list[list]) -> list[str]:
    lines = json.loads(json.dumps(lines))
    return check_journals({f"{kind}-0-0": (kind, target, lines)}, [mount]).problems


@pytest.mark.parametrize("damage", ["nothing", "cut", "zeroed", "moved", "doubled", "gone"])
def test_a_lost_record_is_found(tmp_path: Path, damage: str) -> None:
    data, lines = log_of(10)
    third = slice(lines[3][2], lines[3][2] + lines[3][3])
    damaged = {
        "nothing": data,
        "cut": data[:-1],
        "zeroed": data[: third.start] + bytes(lines[3][3]) + data[third.stop :],
        "moved": b"\0" + data,
        "doubled": data + data[third],
        "gone": None,
    }[damage]
    if damaged is not None:
        (tmp_path / "log0").write_bytes(damaged)
    assert bool(problems(tmp_path, "append", "log0", lines)) is (damage != "nothing")


NAMES = [
    ["directory", "files-0-0"],
    ["create", "a", 1], ["ok"],
    ["create", "b", 2], ["ok"],
    ["replace", "a", 1, 3], ["ok"],
    ["rename", "b", 2, "c", None], ["ok"],
    ["create", "d", 4], ["ok"],
    ["unlink", "d", 4], ["ok"],
    ["create", "e", 5], ["ok"],
    ["rename", "e", 5, "f", None],
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ({}, False),
        ({"e": None, "f": 5}, False),  # the outcome of the last rename was not learnt
        ({"a": None}, True),
        ({"a": 1}, True),
        ({"b": 2}, True),
        ({"c": None}, True),
        ({"d": 4}, True),
        ({"e": None}, True),
        ({"f": 5}, True),
        ({"never": 6}, True),
    ],
)
def test_a_lost_name_is_found(tmp_path: Path, damage: dict[str, int | None], found: bool) -> None:
    directory = tmp_path / "files-0-0"
    directory.mkdir()
    for name, content in ({"a": 3, "c": 2, "e": 5} | damage).items():
        if content is not None:
            (directory / name).write_bytes(content_of("files-0-0", content))
    assert bool(problems(tmp_path, "files", "files-0-0", NAMES)) is found


@pytest.mark.parametrize(("generation", "found"), [(1, True), (2, False), (3, False), (4, True)])
def test_a_lost_block_is_found(tmp_path: Path, generation: int, found: bool) -> None:
    lines: list[list] = [["made", "blocks-0-0"], ["ok"], ["write", 1, 7, 1], ["write", 2, 7, 1], ["synced"]]
    lines += [["write", 3, 7, 1], ["mount gone"]]
    blocks = [block_of("blocks-0-0", index, 0) for index in range(BLOCKS)]
    blocks[7] = block_of("blocks-0-0", 7, generation)
    (tmp_path / "blocks-0-0").write_bytes(b"".join(blocks))
    assert len(b"".join(blocks)) == BLOCKS * BLOCK_BYTES
    assert bool(problems(tmp_path, "blocks", "blocks-0-0", lines)) is found


def test_a_wrong_answer_is_a_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, "files", "files-0-0", [["wrong", "a file was not there"]])
