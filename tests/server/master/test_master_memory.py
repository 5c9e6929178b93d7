"""What the master remembers for long is bounded by what there is, not by what there was."""

from __future__ import annotations

import trio
import trio.testing

from gfscore.env.memory import memory_env
from gfscore.env.memory_disk import MemoryDisk
from gfscore.metadata.placement import ServerLoad
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.memory import MemoryNetwork
from gfscore.server.master import repair as repair_module
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.repair import Repair
from gfscore.server.master.servers import Servers, ServerState
from gfscore.server.master.state import open_state


async def test_sets_of_servers_that_no_chunk_is_on_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    env = memory_env(MemoryNetwork().transport("master"), disk=MemoryDisk(), seed=1)
    config = MasterConfig()
    state = open_state(config, env)
    servers = Servers(state, env, config)
    states = [
        ServerState(pb.Server(id=f"cs{n}"), n, n, 1, None, ServerLoad(f"cs{n}", "", 1, 0))  # type: ignore[arg-type]
        for n in range(40)
    ]
    for handle, (a, b, c) in enumerate((a, b, c) for a in states for b in states for c in states if a is not b):
        servers.set_replicas(handle, [a, b, c])
        servers.freed([handle])
    assert len(servers._sets) <= 10_001
    state.close()


async def test_finished_clones_are_forgotten_though_nobody_asks_for_the_status(
    autojump_clock: trio.testing.MockClock,
) -> None:
    env = memory_env(MemoryNetwork().transport("master"), disk=MemoryDisk(), seed=1)
    config = MasterConfig()
    state = open_state(config, env)
    repair = Repair(state, env, config, Servers(state, env, config), None, None, None)  # type: ignore[arg-type]
    for _ in range(1000):
        repair._count(1)
        await trio.sleep(1)
    assert len(repair._done) <= repair_module._RATE_SECONDS + 1
    state.close()
