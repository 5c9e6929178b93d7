"""The longest file there can be: what goes further is refused, and harms nobody else."""

from __future__ import annotations

import pytest
import trio.testing
from memory_cluster import CHUNK_BYTES, memory_cluster

from gfscore.client import AttrChanges, Code, GfsError
from gfscore.client.paths import Paths

FILE_BYTES_MAX = CHUNK_BYTES << 32  # the index of a chunk has 32 bits


@pytest.mark.parametrize("offset", [FILE_BYTES_MAX - 1, FILE_BYTES_MAX, (1 << 63) - 2])
async def test_a_write_behind_the_longest_file_is_refused(autojump_clock: trio.testing.MockClock, offset: int) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        file = await Paths(client, 1, 1).open("/file", write=True, create=True)
        with pytest.raises(GfsError) as refused:
            await file.write(offset, b"xx")
        assert refused.value.code is Code.FILE_TOO_LARGE
        await file.write(0, b"fine")
        await file.close()
        assert (await client.getattr(file.inode)).size == 4
        assert await Paths(client).read("/file") == b"fine"


async def test_the_last_byte_of_the_longest_file(autojump_clock: trio.testing.MockClock) -> None:
    async with memory_cluster() as cluster, cluster.client() as client:
        file = await Paths(client, 1, 1).open("/file", write=True, create=True)
        await file.write(FILE_BYTES_MAX - 1, b"x")
        await file.flush()
        assert bytes(await file.read(FILE_BYTES_MAX - 2, 10)) == b"\0x"
        with pytest.raises(GfsError) as refused:
            await file.append(b"y")
        assert refused.value.code is Code.FILE_TOO_LARGE
        await client.setattr(file.inode, AttrChanges(size=0))
        assert await file.append(b"y") == 0
        await file.close()
