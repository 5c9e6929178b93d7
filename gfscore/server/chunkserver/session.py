"""The session with the master: registration, heartbeats, reports. Reconnects for ever; ends the process only when the
master says that this server does not belong to it.
"""

from __future__ import annotations

import logging
from itertools import islice

import trio

from gfscore.errors import Code, GfsError
from gfscore.ids import PROTOCOL_VERSION, Epoch
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.lease import LeaseState
from gfscore.server.chunkserver.identity import join_cluster
from gfscore.server.chunkserver.node import Node

log = logging.getLogger(__name__)

_CALL_SECONDS = 5.0
_BACKOFF_SECONDS_MIN = 0.1
_BACKOFF_SECONDS_MAX = 2.0
_CORRUPT_SLICE = 100
_ROLLING_SLICE = 200  # chunks per heartbeat that are reported again though nothing is known to have changed
_FATAL = frozenset({Code.WRONG_CLUSTER, Code.WRONG_PROTOCOL, Code.BUSY})


class MasterSession:
    """Runs the session of one node."""

    def __init__(self, node: Node, nursery: trio.Nursery) -> None:
        self._node = node
        self._nursery = nursery
        self._channel = node.env.transport.control_channel(*node.config.master_address, "Master")
        self._heartbeat_seconds = 1.0
        self._slice = 1000
        self._first: list[int] | None = None  # handles of the first report that are still to be sent
        self._rolling: list[int] = []
        self._released: dict[int, pb.ChunkReport] = {}
        self._lost = False

    async def run(self) -> None:
        """Until cancelled, or until the master refuses this server for good."""
        backoff = _BACKOFF_SECONDS_MIN
        registered = False
        try:
            while True:
                try:
                    if registered:
                        await self._wait_for_beat()
                        await self._beat()
                    else:
                        await self._register()
                        registered = True
                    backoff = _BACKOFF_SECONDS_MIN
                    self._found()
                except GfsError as error:
                    if error.code in _FATAL:
                        self._node.fail(error)
                        return
                    if error.code is Code.UNKNOWN_SESSION:
                        self._end_session()
                        registered = False
                    self._not_found(error)
                    await self._node.env.clock.sleep(backoff)
                    backoff = min(backoff * 2, _BACKOFF_SECONDS_MAX)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._channel.aclose()

    # ------------------------------------------------------------ registration

    async def _register(self) -> None:
        node = self._node
        total, _ = node.env.disk.space()
        request = pb.RegisterRequest(
            protocol=PROTOCOL_VERSION,
            cluster_id=node.identity.cluster_id,
            server_id=node.server_id,
            incarnation=node.identity.incarnation,
            address=node.address,
            rack=node.config.rack,
            total_bytes=total,
            used_bytes=node.store.used_bytes if node.ready else 0,
        )
        sent_at = node.env.clock.boottime()
        reply, _ = await self._channel.call("Register", request, timeout=_CALL_SECONDS)
        node.identity = await node.env.run_io(
            join_cluster, node.env.disk, node.identity, reply.cluster_id, reply.chunk_size
        )
        node.grants.use_secret(reply.secret)
        await node.open_store(reply.chunk_size)
        node.replicas.end_leases()
        node.replicas.new_session(reply.epoch)
        node.session.registered(Epoch(reply.epoch), reply.session_seconds, sent_at)
        node.failures.clear()
        self._released.clear()
        self._heartbeat_seconds = reply.heartbeat_seconds or 1.0
        self._slice = reply.report_slice or 1000
        self._first = list(node.replicas.index)
        node.beat_soon()
        log.info(
            "event=registered server=%s epoch=%d incarnation=%d chunks=%d",
            node.server_id, reply.epoch, node.identity.incarnation, len(self._first),
        )  # fmt: skip

    def _end_session(self) -> None:
        self._node.session.ended()
        if self._node.ready:
            self._node.replicas.end_leases()

    # ------------------------------------------------------------ heartbeats

    async def _wait_for_beat(self) -> None:
        node = self._node
        with trio.move_on_after(self._heartbeat_seconds):
            await node.beat_wanted.wait()
        node.beat_wanted = trio.Event()

    async def _beat(self) -> None:
        """One heartbeat, as soon as wanted; more at once while the first report lasts."""
        node, table = self._node, self._node.replicas
        table.beat += 1
        beat = table.beat
        total, free = node.env.disk.space()
        request = pb.HeartbeatRequest(
            server_id=node.server_id,
            epoch=node.session.epoch,
            total_bytes=total,
            free_bytes=free,
            used_bytes=node.store.used_bytes,
            chunk_count=len(table.index),
            scrub_percent=node.scrub.percent,
            scrub_finished_ns=node.scrubbed.finished_ns,
            scrub_bad=table.bad_found,
        )
        first = self._first
        reported = self._choose(request)
        table.changed.difference_update(reported)
        self._collect_released()
        request.released.extend(self._released.values())
        failures = dict(node.failures)
        for (_, server_id), report in failures.items():
            request.failed.append(report)
            request.failed_servers.append(server_id)
        sent_at = node.env.clock.boottime()
        try:
            reply, _ = await self._channel.call("Heartbeat", request, timeout=_CALL_SECONDS)
        except GfsError:
            table.changed.update(handle for handle in reported if handle in table.index or handle in table.missing)
            raise
        table.missing.difference_update([r.handle for r in request.report if not r.version and not r.corrupt])
        node.session.heard(Epoch(request.epoch), sent_at)
        for handle in [released.handle for released in request.released]:
            self._released.pop(handle, None)
        for key, report in failures.items():
            if node.failures.get(key) is report:
                del node.failures[key]
        if first is not None:
            del first[: len(reported)]
            if not first:
                self._first = None
            node.beat_soon()
        if reply.collect:
            # From here on: the next heartbeat must not name again what the master has just taken off its list.
            table.collecting.update(reply.collect)
            self._nursery.start_soon(self._collect, list(reply.collect), beat)

    def _choose(self, request: pb.HeartbeatRequest) -> list[int]:
        """Which chunks this heartbeat reports: all of them first, later what changed and a slice of the rest."""
        table = self._node.replicas
        if self._first is not None:
            chosen = self._first[: self._slice]
            request.first_report = True
            request.power_lost = self._node.store.power_was_lost
            request.last_of_first = len(chosen) == len(self._first)
        else:
            # Damaged ones again and again: the master hears nothing of a chunk that it is busy with.
            chosen = list(table.changed.union(islice(table.corrupt, _CORRUPT_SLICE)))[: self._slice]
            if len(chosen) < self._slice:
                if not self._rolling:
                    self._rolling = list(table.index)
                count = min(_ROLLING_SLICE, self._slice - len(chosen))
                chosen += self._rolling[-count:]
                del self._rolling[-count:]
        for handle in chosen:
            report = table.report(handle)
            if report is not None and handle not in table.collecting:
                request.report.append(report)
        return chosen

    def _collect_released(self) -> None:
        """Leases that were idle for a session's time are given back [0093]."""
        node = self._node
        now = node.env.clock.boottime()
        for replica, primary in node.replicas.primaries():
            lease = primary.lease
            if lease.state is LeaseState.SERVING and lease.release_if_idle(now, node.session.seconds):
                report = node.replicas.report(replica.handle)
                if report is not None and not report.corrupt:
                    report.mtime_ns = replica.mtime_ns
                    self._released[replica.handle] = report

    async def _collect(self, handles: list[int], beat: int) -> None:
        for handle in handles:
            try:
                await self._node.replicas.collect(handle, unless_changed_since=beat)
            except GfsError as error:
                log.warning("event=collect_failed chunk=%016x error=%r", handle, str(error))
            self._node.replicas.collecting.discard(handle)
        log.info("event=collected chunks=%d", len(handles))

    # ------------------------------------------------------------ the log

    def _not_found(self, error: GfsError) -> None:
        if not self._lost:
            log.warning("event=master_lost master=%s error=%r", self._node.config.master, str(error))
            self._lost = True

    def _found(self) -> None:
        if self._lost:
            log.info("event=master_found master=%s", self._node.config.master)
            self._lost = False
