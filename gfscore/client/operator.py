"""What operators ask: the state of the cluster, of one file's replicas, and a check of their bytes."""

from __future__ import annotations

from typing import Any

from gfscore.client.session import MasterSession
from gfscore.env import Env
from gfscore.errors import Code, GfsError, code_from_wire
from gfscore.proto import gfs_pb2 as pb

_VERIFY_SECONDS = 120.0


class OperatorQueries:
    """Plain dictionaries in the shapes that the command line prints as JSON."""

    def __init__(self, session: MasterSession, env: Env) -> None:
        self._session = session
        self._env = env

    async def status(self) -> dict[str, Any]:
        reply = await self._session.call("Status", pb.Empty())
        return {
            "master": {
                "address": f"{reply.address.host}:{reply.address.control_port}",
                "cluster_id": reply.cluster_id,
                "files": reply.files,
                "directories": reply.directories,
                "chunks": reply.chunks,
                "clients": reply.clients,
                "uptime_seconds": round(reply.uptime_seconds, 1),
                "log_sequence_number": reply.log_sequence_number,
                "resident_bytes": reply.resident_bytes,
                "calls": dict(reply.calls),
            },
            "chunkservers": [
                {
                    "id": entry.server.id,
                    "address": f"{entry.server.address.host}:{entry.server.address.port}",
                    "rack": entry.server.rack,
                    "state": entry.state,
                    "chunks": entry.chunks,
                    "used_bytes": entry.used_bytes,
                    "total_bytes": entry.total_bytes,
                    "heard_seconds_ago": round(entry.heard_seconds_ago, 1),
                    "chunks_left": entry.chunks_left,
                }
                for entry in reply.chunkservers
            ],
            "chunks": {
                "total": reply.chunks,
                "healthy": reply.healthy,
                "under_replicated": reply.under_replicated,
                "over_replicated": reply.over_replicated,
                "lost": reply.lost,
            },
            "safe_mode": {"active": reply.safe_mode, "reason": reply.safe_mode_reason},
            "repairing": {
                "queued": reply.repair_queued,
                "running": reply.repair_running,
                "bytes_per_second": round(reply.repair_bytes_per_second),
                "seconds_left": None if reply.repair_seconds_left < 0 else round(reply.repair_seconds_left, 1),
            },
            "unheard": list(reply.unheard),
        }

    async def drain(self, server: str, *, cancel: bool = False) -> dict[str, Any]:
        """Have a chunkserver (id or HOST:PORT) emptied, or no longer. Raises NOT_FOUND."""
        reply = await self._session.call("Drain", pb.DrainRequest(server=server, cancel=cancel))
        return {"id": reply.server_id, "state": reply.state, "chunks_left": reply.chunks_left}

    async def forget_server(self, server: str) -> str:
        """A chunkserver that is down will never come back; its id. Raises NOT_FOUND, BUSY (it is up)."""
        reply = await self._session.call("ForgetServer", pb.ForgetServerRequest(server=server))
        return str(reply.server_id)

    async def file_info(self, inode: int, path: str = "") -> dict[str, Any]:
        """The chunks of a file and where each replica is; `path` is put into the answer as given."""
        reply = await self._session.call("FileInfo", pb.InodeRequest(inode=inode))
        return {
            "path": path,
            "length": reply.length,
            "replication": reply.replication,
            "chunks": [
                {
                    "index": chunk.index,
                    "handle": f"{chunk.handle:016x}",
                    "version": chunk.version,
                    "length": chunk.length,
                    "primary": chunk.primary,
                    "replicas": [
                        {
                            "chunkserver": replica.server.id,
                            "address": f"{replica.server.address.host}:{replica.server.address.port}",
                            "state": replica.state,
                            "path": replica.path,
                        }
                        for replica in chunk.replicas
                    ],
                }
                for chunk in reply.chunks
            ],
        }

    async def verify_file(self, inode: int) -> tuple[int, int, list[str]]:
        """Have every replica of every chunk of a file read and checked: (chunks, replicas, problems)."""
        reply = await self._session.call("FileInfo", pb.InodeRequest(inode=inode))
        replicas = 0
        problems: list[str] = []
        for chunk in reply.chunks:
            if not chunk.handle:
                continue
            lengths: dict[str, int] = {}
            for replica in chunk.replicas:
                replicas += 1
                name = f"chunk {chunk.index} ({chunk.handle:016x}) on {replica.server.id}"
                try:
                    item = await self._inspect(replica.server, chunk.handle)
                except GfsError as error:
                    problems.append(f"{name}: {error}")
                    continue
                if item.error:
                    problems.append(f"{name}: {item.message or code_from_wire(item.error).name.lower()}")
                elif item.version != chunk.version:
                    problems.append(f"{name}: stale, version {item.version} instead of {chunk.version}")
                else:
                    lengths[replica.server.id] = item.length
            if len(set(lengths.values())) > 1:
                problems.append(f"chunk {chunk.index} ({chunk.handle:016x}): replicas differ in length: {lengths}")
            if len(chunk.replicas) < reply.replication:
                problems.append(
                    f"chunk {chunk.index} ({chunk.handle:016x}): {len(chunk.replicas)} of {reply.replication} replicas"
                )
        return len(reply.chunks), replicas, problems

    async def _inspect(self, server: pb.Server, handle: int) -> pb.InspectReply.Item:
        channel = self._env.transport.control_channel(server.address.host, server.address.control_port, "Chunkserver")
        try:
            request = pb.InspectRequest(handles=[handle], verify=True)
            reply, _ = await channel.call("Inspect", request, timeout=_VERIFY_SECONDS)
        finally:
            await channel.aclose()
        if not reply.items:
            raise GfsError(Code.UNKNOWN_CHUNK, "the server did not answer for this chunk")
        item: pb.InspectReply.Item = reply.items[0]
        return item
