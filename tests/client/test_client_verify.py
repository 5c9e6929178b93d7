"""How `gfs fsck` judges what master and chunkservers say about one chunk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from gfscore.client.verify import Verifier
from gfscore.errors import Code
from gfscore.proto import gfs_pb2 as pb

CHUNK_BYTES = 1 << 20


class Scripted(Verifier):
    """Answers come from the test. Each replica is (state, error, version, length, digest)."""

    def __init__(self, replicas: list[tuple[str, int, int, int, int]], **fields: Any) -> None:
        session: Any = SimpleNamespace(hello=SimpleNamespace(chunk_size=CHUNK_BYTES))
        env: Any = None
        super().__init__(session, env, lambda more, done: None)
        fields = {"handle": 7, "version": 3, "goal": 3, "references": 1, "used": True, **fields}
        self.info = pb.FileInfoReply(length=100, chunks=[pb.FileInfoReply.Chunk(**fields)])
        self.items = {}
        for number, (state, error, version, length, digest) in enumerate(replicas):
            server = pb.Server(id=f"s{number}")
            self.info.chunks[0].replicas.add(server=server, state=state)
            self.items[server.id] = pb.InspectReply.Item(error=error, version=version, length=length, digest=digest)

    async def _file_info(self, inode: int, first: int = 0, count: int = 0) -> pb.FileInfoReply | None:
        return self.info

    async def _inspect(self, server: pb.Server, handle: int, length: int) -> pb.InspectReply.Item:
        return self.items[server.id]

    async def kinds(self) -> list[tuple[str, str]]:
        await self.check("/f", 2)
        return [(problem.server, problem.kind) for problem in self.problems]


GOOD = ("good", 0, 3, 100, 9)
BAD = ("corrupt", int(Code.CHECKSUM_MISMATCH), 3, 100, 0)
UNREADABLE = ("good", int(Code.IO), 0, 0, 0)
GONE = ("missing", int(Code.UNKNOWN_CHUNK), 0, 0, 0)
OLD = ("stale", 0, 2, 100, 9)
SILENT = ("unreachable", 0, 0, 0, 0)
BUSY = ("good", int(Code.NOT_READY), 0, 0, 0)


@pytest.mark.parametrize(
    ("replicas", "fields", "expected"),
    [
        ([GOOD, GOOD, GOOD], {}, []),
        ([GOOD, BAD, GOOD], {}, [("s1", "corrupt")]),
        ([GOOD, UNREADABLE, GOOD], {}, [("s1", "corrupt")]),
        ([GOOD, GONE, GOOD], {}, [("s1", "missing")]),
        ([GOOD, OLD, GOOD], {}, [("s1", "stale")]),
        ([GOOD, SILENT, BUSY], {}, [("s1", "unreachable"), ("s2", "unreachable")]),
        ([GOOD, GOOD], {}, [("", "under_replicated")]),
        ([GOOD, BAD], {}, [("", "under_replicated"), ("s1", "corrupt")]),
        ([GOOD, GOOD, GOOD, GOOD], {}, [("", "over_replicated")]),
        ([GOOD, GOOD, GOOD, OLD], {}, [("s3", "stale")]),
        ([BAD, BAD, GONE], {}, [("", "lost"), ("s0", "corrupt"), ("s1", "corrupt"), ("s2", "missing")]),
        ([BAD, BAD, SILENT], {}, [("s0", "corrupt"), ("s1", "corrupt"), ("s2", "unreachable")]),
        ([], {}, [("", "lost")]),
        ([GOOD, ("good", 0, 3, 90, 9), GOOD], {}, [("", "unequal")]),
        ([GOOD, ("good", 0, 3, 100, 8), GOOD], {}, [("", "unequal")]),
        ([GOOD, ("good", 0, 3, 100, 8), GOOD], {"primary": "s0"}, []),  # a mutation may be under way
        ([GONE, GONE, GONE], {"used": False}, []),  # granted, and never written
        ([GONE], {"goal": 1}, [("", "lost"), ("s0", "missing")]),
    ],
)
async def test_kinds_of_problems(replicas: list[Any], fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert await Scripted(replicas, **fields).kinds() == expected


async def test_a_shared_chunk_is_not_made_equal_by_a_lease_that_would_copy_it() -> None:
    differing = [GOOD, ("good", 0, 3, 90, 9)]
    alone, shared = Scripted(differing, goal=2), Scripted(differing, goal=2, references=2)
    assert await alone.kinds() == await shared.kinds() == [("", "unequal")]
    assert alone.unequal() == [(2, 0)] and shared.unequal() == []
