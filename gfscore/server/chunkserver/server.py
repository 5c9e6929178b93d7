"""Puts a chunkserver together and runs it until it is cancelled or cannot go on."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gfscore.env.interfaces import Env
from gfscore.errors import Code, GfsError
from gfscore.rpc.transport import CallContext, Handler, Service
from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.control import Control
from gfscore.server.chunkserver.identity import lock_directory, start_incarnation
from gfscore.server.chunkserver.mutate import Mutations
from gfscore.server.chunkserver.node import Node
from gfscore.server.chunkserver.read import Reads
from gfscore.server.chunkserver.replicate import Replication
from gfscore.server.chunkserver.session import MasterSession

log = logging.getLogger(__name__)

_AGE_SECONDS = 5.0


async def run_chunkserver(
    config: ChunkserverConfig, env: Env, *, task_status: trio.TaskStatus[tuple[int, int]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled; starts with (data port, control port), perhaps before the master was found.

    Raises GfsError: BUSY for a port or a directory in use, WRONG_CLUSTER, WRONG_PROTOCOL, IO when the disk failed.
    """
    lock = await env.run_io(lock_directory, env.disk)
    node = None
    try:
        identity = await env.run_io(start_incarnation, env.disk, env.random)
        node = Node(config, env, identity)
        if identity.chunk_size:
            await node.open_store(identity.chunk_size)
        async with trio.open_nursery() as nursery:
            await _start(node, nursery, task_status)
        if node.fatal_error is not None:
            raise node.fatal_error
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None:
            raise
        raise _first_of(failures) from group
    finally:
        if node is not None:
            await _close(node)
        lock.close()


async def _start(node: Node, nursery: trio.Nursery, task_status: trio.TaskStatus[tuple[int, int]]) -> None:
    config, transport = node.config, node.env.transport
    node.on_stop(nursery.cancel_scope.cancel)
    replication, mutations = Replication(node), Mutations(node)
    port: int = await nursery.start(
        transport.serve_streams, config.host, config.port, {"ChunkData": _data(node, mutations)}
    )
    control_port: int = await nursery.start(
        transport.serve_control, config.host, config.control_port,
        {"Chunkserver": _control(node, mutations, replication)},
    )  # fmt: skip
    node.address.host, node.address.port = config.reachable_host, port
    node.address.control_port = control_port
    nursery.start_soon(MasterSession(node, nursery).run)
    nursery.start_soon(_age, node, replication)
    nursery.start_soon(node.scrub.run)
    log.info(
        "event=started server=%s host=%s port=%d control_port=%d rack=%s",
        node.server_id, config.reachable_host, port, control_port, config.rack,
    )  # fmt: skip
    task_status.started((port, control_port))


def _data(node: Node, mutations: Mutations) -> Service:
    reads = Reads(node)
    handlers: dict[str, Callable[[Any, CallContext], Awaitable[Any]]] = {
        "Push": node.pushes.push,
        "Write": mutations.write,
        "Append": mutations.append,
        "Apply": mutations.apply,
        "Read": reads.read,
        "Length": reads.length,
        "Blocks": reads.blocks,
    }
    return {name: _counted(node, name, handler) for name, handler in handlers.items()}


def _control(node: Node, mutations: Mutations, replication: Replication) -> Service:
    control = Control(node)
    handlers: dict[str, Callable[[Any, CallContext], Awaitable[Any]]] = {
        "Prepare": control.prepare,
        "Revoke": control.revoke,
        "Reconcile": mutations.reconcile,
        "Clone": control.clone,
        "Collect": control.collect,
        "Inspect": control.inspect,
        "Info": control.info,
        "Replicate": replication.replicate,
    }
    return {name: _counted(node, name, handler) for name, handler in handlers.items()}


def _counted(node: Node, name: str, handler: Handler) -> Handler:
    """Counts calls and lets none in before the store is open. No coroutine of its own: this is on every path."""
    calls = node.calls
    calls[name] = 0

    def call(request: Any, context: CallContext) -> Awaitable[Any]:
        if not node.ready:
            raise GfsError(Code.NOT_READY, "this chunkserver is starting")
        calls[name] += 1
        return handler(request, context)

    return call


async def _age(node: Node, replication: Replication) -> None:
    while True:
        await node.env.clock.sleep(_AGE_SECONDS)
        dropped = node.pushes.expire()
        if dropped:
            log.info("event=pushes_aged_out pieces=%d", dropped)
        await replication.expire()


async def _close(node: Node) -> None:
    with trio.CancelScope(shield=True):
        await node.peers.aclose()
        if node.ready:
            await node.io.run(node.store.close)


def _first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of several failures at once, the one to show: ours before others."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        ours = [error for error in found.exceptions if isinstance(error, GfsError)]
        found = ours[0] if ours else found.exceptions[0]
    return found
