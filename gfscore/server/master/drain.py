"""What an operator says about one chunkserver: empty it, or do not wait for it any more [0073], rule 23."""

from __future__ import annotations

import logging

from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.transport import CallContext
from gfscore.server.master.servers import Servers

log = logging.getLogger(__name__)


class Drain:
    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def drain(self, request: pb.DrainRequest, context: CallContext) -> pb.DrainReply:
        """Handler of `Drain`: no new chunks go there, its replicas go elsewhere; or no longer. Raises NOT_FOUND."""
        servers = self._servers
        server_id = servers.named(request.server)
        if (server_id in servers.draining) == request.cancel:
            log.info("event=drain server=%s cancel=%s", server_id, request.cancel)
            servers.set_draining(server_id, not request.cancel)
        server = servers.by_id.get(server_id)
        if server is None:
            return pb.DrainReply(server_id=server_id, state="down")
        return pb.DrainReply(server_id=server_id, state=servers.state_of(server), chunks_left=server.chunk_count)

    def forget_server(self, request: pb.ForgetServerRequest, context: CallContext) -> pb.ForgetServerReply:
        """Handler of `ForgetServer`. Raises NOT_FOUND, BUSY (it is up)."""
        server_id = self._servers.named(request.server)
        self._servers.forget(server_id)
        log.warning("event=chunkserver_forgotten server=%s", server_id)
        return pb.ForgetServerReply(server_id=server_id)
