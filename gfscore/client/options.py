"""The settings of a client, with the units in their names."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class ClientOptions:
    """`timeout_seconds` bounds every operation: after it the caller gets TIMED_OUT, or the last error."""

    name: str = "client"
    caching: bool = True
    timeout_seconds: float = 60.0
    attempt_seconds: float = 10.0  # one try of one call
    pieces_in_flight: int = 8  # per file, of 1 MiB
    dirty_bytes_max: int = 32 * MIB  # gathered and in flight, all files together
    commit_delay_seconds: float = 1.0  # lengths of closed files go to the master in batches
    commit_batch: int = 256
    cached_inodes_max: int = 100_000
    locate_ahead_chunks: int = 8
    locate_ahead_files: int = 100
    rack: str = ""
