"""What operators ask: the state of the cluster, and of one file's replicas."""

from __future__ import annotations

from typing import Any

from gfscore.client.session import MasterSession
from gfscore.proto import gfs_pb2 as pb


def _address(address: pb.Address) -> str:
    """Empty for a server of which the master knows no more than its name."""
    return f"{address.host}:{address.port}" if address.port else ""


class OperatorQueries:
    """Plain dictionaries in the shapes that the command line prints as JSON."""

    def __init__(self, session: MasterSession) -> None:
        self._session = session

    async def status(self) -> dict[str, Any]:
        reply = await self._session.call("Status", pb.Empty())
        return {
            "master": {
                "address": f"{reply.address.host}:{reply.address.control_port}",
                "cluster_id": reply.cluster_id,
                "files": reply.files,
                "directories": reply.directories,
                "trash_files": reply.trash_files,
                "trash_bytes": reply.trash_bytes,
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
                    "address": _address(entry.server.address),
                    "rack": entry.server.rack,
                    "state": entry.state,
                    "chunks": entry.chunks,
                    "used_bytes": entry.used_bytes,
                    "total_bytes": entry.total_bytes,
                    "heard_seconds_ago": round(entry.heard_seconds_ago, 1),
                    "scrub": {
                        "percent": round(entry.scrub_percent, 1),
                        "finished": entry.scrub_finished_ns // 1_000_000_000,  # seconds since the epoch, 0: never
                        "bad": entry.scrub_bad,
                    },
                    "chunks_left": entry.chunks_left,
                }
                for entry in reply.chunkservers
            ],
            "chunks": {
                "total": reply.healthy + reply.under_replicated + reply.over_replicated + reply.lost,
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
        request = pb.FileInfoRequest(inode=inode)
        length = 0
        chunks: list[dict[str, Any]] = []
        while True:
            reply = await self._session.call("FileInfo", request)
            length = max(length, reply.length)
            chunks += map(_chunk, reply.chunks)
            request.first = reply.next
            if not reply.next:
                return {"path": path, "length": length, "replication": reply.replication, "chunks": chunks}


def _chunk(chunk: pb.FileInfoReply.Chunk) -> dict[str, Any]:
    return {
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
