"""What a master is told at its start. Checks values, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gfscore.errors import Code, GfsError
from gfscore.ids import CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from gfscore.metadata.policies import REPLICATION_MAX, TRASH_SECONDS_DEFAULT, TRASH_SECONDS_MAX

_HEARTBEATS_PER_SESSION = 10
_HEARTBEAT_SECONDS_MAX = 1.0
_PORT_MAX = 65535


@dataclass(frozen=True)
class MasterConfig:
    """Settings of a master. Raises GfsError(INVALID) for values that cannot be."""

    host: str = "127.0.0.1"  # listens here
    port: int = 7100  # gRPC: what everybody is told as the address of the cluster
    stream_port: int = 0  # framed streams of clients; 0: any free port, clients learn it from Hello
    advertise_host: str = ""  # what others connect to; empty: `host`
    directory: Path | None = None  # the state directory; None: the root of the environment's disk (twin)
    chunk_size: int = CHUNK_BYTES_DEFAULT  # bytes; fixed when the cluster is created
    lease_seconds: float = 60.0  # sessions of chunkservers and clients, and so all leases, last so long unheard [0080]
    replication: int = 3  # replicas of a chunk where no policy says otherwise
    trash_seconds: int = TRASH_SECONDS_DEFAULT  # how long deleted files can be restored where no policy says otherwise
    checkpoint_keys: int = 100_000  # a checkpoint after so many changed keys
    suspect_seconds: float = 5.0  # unheard for so long, a chunkserver gets no new chunks and is read from last
    down_seconds: float = 30.0  # and for so long, its replicas are made anew elsewhere [0069]
    safe_mode_seconds: float = 60.0  # after a start no clones before this, unless all known chunkservers are back
    safe_mode_share: float = 0.99  # nor before this share of the chunks has been found
    clones_max: int = 16  # clones at the same time in all [0072]; 0: repair is switched off, surplus stays too
    clones_per_server_max: int = 4  # at one server as source, and again as destination
    clone_bytes_per_second: int = 0  # of one clone; 0: no limit
    rebalance_percent: float = 5.0  # chunks move when a server's use of its disk is so far from the mean; 0: never
    rebalance_moves_max: int = 2  # so many at the same time [0074]
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if not CHUNK_BYTES_MIN <= self.chunk_size <= CHUNK_BYTES_MAX or self.chunk_size % CHUNK_BYTES_MIN:
            raise GfsError(
                Code.INVALID,
                f"chunk_size = {self.chunk_size} is not a multiple of {CHUNK_BYTES_MIN} "
                f"from {CHUNK_BYTES_MIN} to {CHUNK_BYTES_MAX}",
            )
        if not 1 <= self.replication <= REPLICATION_MAX:
            raise GfsError(Code.INVALID, f"replication = {self.replication} is not from 1 to {REPLICATION_MAX}")
        if not 0 <= self.trash_seconds <= TRASH_SECONDS_MAX:
            raise GfsError(
                Code.INVALID, f"trash_seconds = {self.trash_seconds} is not from 0 (no trash) to {TRASH_SECONDS_MAX}"
            )
        if not 1 <= self.lease_seconds <= 3600:
            raise GfsError(Code.INVALID, f"lease_seconds = {self.lease_seconds:g} is not from 1 to 3600")
        if self.checkpoint_keys < 1:
            raise GfsError(Code.INVALID, f"checkpoint_keys = {self.checkpoint_keys} is not at least 1")
        if not 0 < self.suspect_seconds <= self.down_seconds:
            raise GfsError(
                Code.INVALID,
                f"suspect_seconds = {self.suspect_seconds:g} is not above 0 and at most "
                f"down_seconds = {self.down_seconds:g}",
            )
        if self.clones_max < 0 or self.clones_per_server_max < 1:
            raise GfsError(Code.INVALID, "clones_max is at least 0, clones_per_server_max at least 1")
        if not 0 <= self.safe_mode_share <= 1:
            raise GfsError(Code.INVALID, f"safe_mode_share = {self.safe_mode_share:g} is not from 0 to 1")
        for name, port in (("port", self.port), ("stream_port", self.stream_port)):
            if not 0 <= port <= _PORT_MAX:
                raise GfsError(Code.INVALID, f"{name} = {port} is not from 0 to {_PORT_MAX}")

    @property
    def heartbeat_seconds(self) -> float:
        """How often chunkservers report."""
        return min(_HEARTBEAT_SECONDS_MAX, self.lease_seconds / _HEARTBEATS_PER_SESSION)

    @property
    def reachable_host(self) -> str:
        """The host name others are told."""
        return self.advertise_host or self.host
