"""What a chunkserver is told at its start. No logic beyond checking values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gfscore.errors import Code, GfsError


@dataclass(frozen=True)
class ChunkserverConfig:
    """Settings of one chunkserver. Ports may be 0: any free one. Raises GfsError(INVALID) for values that cannot be."""

    master: str  # HOST:PORT of the master's control port
    host: str = "127.0.0.1"  # listens here
    port: int = 0  # framed data streams
    control_port: int = 0  # gRPC
    advertise_host: str = ""  # what others connect to; empty: `host`
    directory: Path | None = None  # the data directory: the root of the `Env`'s disk
    rack: str = "default"
    push_buffer_bytes: int = 64 * 1024 * 1024
    scrub_bytes_per_second: int = 8 * 1024 * 1024  # how fast idle time verifies what is stored; 0: never
    scrub_pause_seconds: float = 3600.0  # from the end of one pass over everything to the next
    log_level: str = "INFO"

    def __post_init__(self) -> None:
        if self.scrub_bytes_per_second < 0:
            raise GfsError(Code.INVALID, f"scrub_bytes_per_second = {self.scrub_bytes_per_second} is less than 0")
        if not self.scrub_pause_seconds > 0:
            raise GfsError(Code.INVALID, f"scrub_pause_seconds = {self.scrub_pause_seconds:g} is not more than 0")

    @property
    def master_address(self) -> tuple[str, int]:
        """Raises GfsError(INVALID) unless `master` is HOST:PORT."""
        host, separator, port = self.master.rpartition(":")
        if not (separator and host and port.isdigit() and 0 < int(port) < 65536):
            raise GfsError(Code.INVALID, f"master = {self.master!r} is not HOST:PORT")
        return host.strip("[]"), int(port)

    @property
    def reachable_host(self) -> str:
        """The host name others are told."""
        return self.advertise_host or self.host
