"""The master process put together: recover, serve, look after sessions, stop in order."""

from __future__ import annotations

import logging
from typing import Any

import trio

from gfscore.env import Env
from gfscore.errors import GfsError
from gfscore.metadata.policies import Policy
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext, Handler
from gfscore.server.master.admin import Admin
from gfscore.server.master.attributes import Attributes
from gfscore.server.master.background import put_off_when_full
from gfscore.server.master.calls import Calls
from gfscore.server.master.chunk_calls import ChunkCalls
from gfscore.server.master.clients import Clients
from gfscore.server.master.cloning import Cloning
from gfscore.server.master.config import MasterConfig
from gfscore.server.master.data import Data
from gfscore.server.master.drain import Drain
from gfscore.server.master.equalizing import Equalizing
from gfscore.server.master.fencing import Fencing
from gfscore.server.master.grants import GrantSigner
from gfscore.server.master.leases import LeaseBook
from gfscore.server.master.leasing import Leasing
from gfscore.server.master.lengths import Lengths
from gfscore.server.master.locking import Locks
from gfscore.server.master.namespace import Namespace
from gfscore.server.master.removing import Removing
from gfscore.server.master.repair import Repair
from gfscore.server.master.reports import Reports
from gfscore.server.master.safe_mode import SafeMode
from gfscore.server.master.servers import Servers
from gfscore.server.master.sessions import Sessions
from gfscore.server.master.settling import Settling
from gfscore.server.master.snapshots import Snapshots
from gfscore.server.master.state import MasterState, open_state, secret_of
from gfscore.server.master.trash import Trash

log = logging.getLogger(__name__)

_SWEEP_SESSIONS = 2  # leases that nobody may use are forgotten after so many session times
_STOP_SECONDS = 1.0


class Master:
    """The parts of a master over one state. `nursery` runs what goes on in the background."""

    def __init__(self, config: MasterConfig, env: Env, state: MasterState, nursery: trio.Nursery) -> None:
        defaults = Policy(replication=config.replication, trash_seconds=config.trash_seconds)
        chunk_size = config.chunk_size
        self._config = config
        self._env = env
        self._state = state
        locks = Locks()
        self._sessions = sessions = Sessions(state, env, config.lease_seconds, nursery)
        self._servers = servers = Servers(state, env, config)
        self._leases = leases = LeaseBook()
        self._calls = calls = Calls(state, locks, sessions)
        chunk_calls = ChunkCalls(servers)
        fencing = Fencing(state, servers, leases, chunk_calls)
        self._reports = Reports(state, servers, leases, env, chunk_size)
        signer = GrantSigner(secret_of(state), chunk_size)
        equalizing = Equalizing(state, servers, leases, fencing, chunk_calls, signer, defaults)
        self._lengths = Lengths(
            state, env, calls, locks, sessions, servers, leases, fencing, equalizing, chunk_calls, chunk_size,
            config.lease_seconds,
        )  # fmt: skip
        self._settling = Settling(
            state, env, servers, leases, self._lengths, equalizing, config.lease_seconds, config.heartbeat_seconds
        )
        self._leasing = Leasing(state, env, locks, sessions, servers, leases, fencing, signer, defaults, chunk_size)
        self._data = Data(state, calls, locks, sessions, servers, leases, self._lengths)
        self._namespace = Namespace(state, env, calls, sessions, servers, leases, self._leasing, self._data)
        self._removing = Removing(state, env, calls, locks, sessions, servers, leases, defaults)
        self._trash = Trash(state, env, calls, locks, sessions, servers, self._removing)
        self._attributes = Attributes(
            state, env, calls, locks, sessions, servers, leases, fencing, self._lengths, self._data, defaults,
            chunk_size,
        )  # fmt: skip
        self._snapshots = Snapshots(state, env, calls, locks, sessions, self._lengths, self._data)
        cloning = Cloning(state, config, servers, sessions, leases, self._lengths, fencing, chunk_calls)
        safe_mode = SafeMode(state, env, config, servers)
        self._repair = Repair(state, env, config, servers, cloning, safe_mode, nursery)
        self._drain = Drain(servers)
        self._admin = Admin(
            state, env, calls, sessions, servers, leases, chunk_calls, self._repair, defaults, chunk_size,
            config.down_seconds,
        )  # fmt: skip
        greeting = pb.HelloReply(
            cluster_id=state.cluster_id,
            chunk_size=chunk_size,
            session_seconds=config.lease_seconds,
            master_epoch=state.applied + 1,
        )
        self._clients = Clients(state, sessions, leases, self._lengths, self._removing, greeting, nursery)

    def service(self) -> dict[str, Handler]:
        """The handlers of the proto service `Master`, the same for gRPC and framed streams."""
        names, attributes = self._namespace, self._attributes
        return self._calls.service(
            {
                "Hello": self._clients.hello,
                "Ping": self._clients.ping,
                "Lookup": names.lookup,
                "GetAttr": names.get_attr,
                "List": names.list,
                "Create": names.create,
                "SetAttr": attributes.set_attr,
                "Unlink": self._removing.unlink,
                "Rename": self._removing.rename,
                "Link": names.link,
                "Readlink": names.read_link,
                "Release": self._removing.release,
                "GetXattr": attributes.get_xattr,
                "SetXattr": attributes.set_xattr,
                "ListXattr": attributes.list_xattr,
                "RemoveXattr": attributes.remove_xattr,
                "Statfs": self._admin.statfs,
                "Locate": self._data.locate,
                "Lease": self._leasing.lease,
                "Commit": self._lengths.commit,
                "Snapshot": self._snapshots.snapshot,
                "Policy": attributes.policy,
                "FileInfo": self._admin.file_info,
                "Status": self._admin.status,
                "Register": self._register,
                "Heartbeat": self._heartbeat,
                "TrashList": self._trash.list,
                "TrashRestore": self._trash.restore,
                "TrashEmpty": self._trash.empty,
                "Drain": self._drain.drain,
                "ForgetServer": self._drain.forget_server,
            }
        )

    async def _register(self, request: pb.RegisterRequest, context: CallContext) -> pb.RegisterReply:
        return await self._servers.register(request)

    def _heartbeat(self, request: pb.HeartbeatRequest, context: CallContext) -> Any:
        return self._reports.heartbeat(request)

    def listening(self, control_port: int, stream_port: int) -> None:
        """What others are told as this master's address."""
        address = pb.Address(host=self._config.reachable_host, port=stream_port, control_port=control_port)
        self._clients.greeting.address.CopyFrom(address)
        self._admin.address = address

    async def repair(self) -> None:
        """Until cancelled: keep every chunk at its goal."""
        await self._repair.run()

    async def settle(self) -> None:
        """Until cancelled: settle what nobody asks for."""
        await self._settling.run()

    async def look_after_sessions(self) -> None:
        """Until cancelled: end what was not heard of for too long, and tidy up behind it."""
        clock = self._env.clock
        sweep_at = clock.boottime() + self._config.lease_seconds
        while True:
            await clock.sleep(self._config.heartbeat_seconds)
            self._servers.lapse()
            self._sessions.expire()
            self._removing.drop_orphans()
            self._reports.collect_stale()
            if clock.boottime() >= sweep_at:
                sweep_at += self._config.lease_seconds
                self._leases.sweep(clock.boottime() - _SWEEP_SESSIONS * self._config.lease_seconds)

    async def look_after_trash(self) -> None:
        """Until cancelled: reclaim deleted files whose time is over."""
        while True:
            await self._env.clock.sleep(self._config.heartbeat_seconds)
            with put_off_when_full():
                await self._trash.sweep()

    async def aclose(self) -> None:
        await self._servers.aclose()


async def run_master(
    config: MasterConfig, env: Env, *, task_status: trio.TaskStatus[tuple[int, int]] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a master until cancelled; starts with (control port, stream port).

    Raises GfsError: INVALID (another chunk size), BUSY (a port or the directory in use), IO (a damaged log, or one that
    cannot be written any more).
    """
    state = await env.run_io(open_state, config, env)
    try:
        await _serve(config, env, state, task_status)
    except BaseExceptionGroup as group:
        raise _first_gfs_error(group) or group from None
    finally:
        state.close()
        log.info("event=master_stopped lsn=%d", state.applied)


async def _serve(
    config: MasterConfig, env: Env, state: MasterState, task_status: trio.TaskStatus[tuple[int, int]]
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.run, nursery)
        await state.flushed()
        master = Master(config, env, state, nursery)
        services = {"Master": master.service()}
        try:
            stream_port = await nursery.start(env.transport.serve_streams, config.host, config.stream_port, services)
            port = await nursery.start(env.transport.serve_control, config.host, config.port, services)
            master.listening(port, stream_port)
            log.info(
                "event=master_serving address=%s:%d stream_port=%d cluster=%s lsn=%d",
                config.reachable_host, port, stream_port, state.cluster_id, state.applied,
            )  # fmt: skip
            task_status.started((port, stream_port))
            nursery.start_soon(master.look_after_trash)
            nursery.start_soon(master.repair)
            nursery.start_soon(master.settle)
            await master.look_after_sessions()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _STOP_SECONDS):
                await master.aclose()


def _first_gfs_error(group: BaseExceptionGroup[BaseException]) -> BaseException | None:
    """The one error that says what happened, out of a nursery's group."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            error = _first_gfs_error(error)  # type: ignore[assignment]
        if isinstance(error, GfsError):
            return error
    return None
