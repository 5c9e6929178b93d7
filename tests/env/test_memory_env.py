"""Both environments run the same code: clocks go on, blocking calls run, wall clocks may be off."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from gfscore.env.interfaces import Env
from gfscore.env.memory import memory_env
from gfscore.env.real import real_env
from gfscore.rpc.memory import MemoryNetwork


async def _use(env: Env) -> bytes:
    before = env.clock.boottime()
    await env.clock.sleep(0.01)
    assert env.clock.boottime() >= before + 0.009
    file = await env.run_io(lambda: env.disk.open("f", create=True))
    await env.run_io(file.pwrite, b"data", 0)
    assert await env.run_io(file.size) == 4
    return await env.run_io(file.pread, 4, 0)


async def test_memory_environment(autojump_clock: trio.testing.MockClock) -> None:
    env = memory_env(MemoryNetwork().transport("one"), seed=7)
    assert await _use(env) == b"data"
    twin = memory_env(MemoryNetwork().transport("two"), seed=7)
    assert env.random.random() == twin.random.random()


async def test_wall_clock_of_a_node_can_be_wrong(autojump_clock: trio.testing.MockClock) -> None:
    env = memory_env(MemoryNetwork().transport("one"))
    before = env.clock.wall_ns()
    env.clock.wall_offset_ns = -5_000_000_000  # type: ignore[attr-defined]
    await env.clock.sleep(1)
    assert env.clock.wall_ns() - before == -4_000_000_000


async def test_real_environment(tmp_path: Path) -> None:
    assert await _use(real_env(tmp_path, transport=MemoryNetwork().transport("x"))) == b"data"
