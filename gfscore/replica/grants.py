"""The fence: what a grant says, and whether it holds here and now (rules 3, 4, 12, 13).

The signature was checked before; here are the epoch, the session and the version.
"""

from __future__ import annotations

from dataclasses import dataclass

from gfscore.errors import Code, GfsError
from gfscore.ids import ChunkHandle, ChunkVersion, Epoch, ServerId


@dataclass(frozen=True, slots=True)
class ReplicaAddress:
    """A chunkserver as a grant names it; `port` is the one of its data stream."""

    server_id: ServerId
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class VerifiedGrant:
    """A grant whose signature holds. Sizes in bytes."""

    handle: ChunkHandle
    version: ChunkVersion
    primary: ServerId
    primary_epoch: Epoch
    replicas: tuple[ReplicaAddress, ...]
    fresh: bool
    length_floor: int
    chunk_size: int
    pad_byte: int
    sync: bool

    def names(self, server_id: str) -> bool:
        """Whether `server_id` is one of the replicas."""
        return any(replica.server_id == server_id for replica in self.replicas)


class Session:
    """A chunkserver's session with the master, as the chunkserver may count on it.

    Counted from the moment the last answered heartbeat was *sent* (rule 4): the master counts from its answer, so the
    session ends here first. Times are seconds of a clock that goes on while the machine sleeps.
    """

    __slots__ = ("epoch", "seconds", "valid_until")

    def __init__(self) -> None:
        self.epoch = Epoch(0)
        self.seconds = 0.0
        self.valid_until = float("-inf")

    def registered(self, epoch: Epoch, seconds: float, sent_at: float) -> None:
        """The registration sent at `sent_at` was answered: a new session."""
        self.epoch = epoch
        self.seconds = seconds
        self.valid_until = sent_at + seconds

    def heard(self, epoch: Epoch, sent_at: float) -> None:
        """The heartbeat sent at `sent_at` under `epoch` was answered."""
        if epoch == self.epoch:
            self.valid_until = max(self.valid_until, sent_at + self.seconds)

    def ended(self) -> None:
        """The master does not know this session any more."""
        self.valid_until = float("-inf")

    def valid(self, now: float) -> bool:
        return now < self.valid_until


def check_primary(grant: VerifiedGrant, server_id: str, session: Session, now: float) -> None:
    """Raises GfsError unless this server may act as the primary under `grant` at `now`.

    NOT_PRIMARY: it names another one. BAD_GRANT: it hangs on another session, or the session has lapsed.
    """
    if grant.primary != server_id:
        raise GfsError(Code.NOT_PRIMARY, f"the primary of chunk {grant.handle} is {grant.primary}")
    if grant.primary_epoch != session.epoch:
        raise GfsError(Code.BAD_GRANT, f"the lease on chunk {grant.handle} ended with an earlier session")
    if now >= session.valid_until:
        raise GfsError(Code.BAD_GRANT, "this server has lost touch with the master: its leases have lapsed")


def check_version(grant: VerifiedGrant, version: int) -> None:
    """Raises GfsError(STALE_VERSION) unless the replica's version, now, is the grant's."""
    if grant.version != version:
        raise GfsError(
            Code.STALE_VERSION, f"chunk {grant.handle} has version {version} here, the grant is for {grant.version}"
        )
