"""The chunkserver process: chunks on the local disk, served to clients and to one another under the master's leases."""

from gfscore.server.chunkserver.config import ChunkserverConfig
from gfscore.server.chunkserver.server import run_chunkserver

__all__ = ["ChunkserverConfig", "run_chunkserver"]
