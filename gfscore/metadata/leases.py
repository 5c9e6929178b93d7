"""Who may mutate what just now: chunk leases [0079]-[0081] and the clients that write a file. Never persisted.

Tables only: whether a session is alive, and when a lease may be granted, is decided by the shell, which has the clock.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """The server `primary`, in its session `epoch`, is primary of the chunk at `version` with these replicas."""

    handle: int
    version: int
    primary: str
    epoch: int
    replicas: tuple[str, ...]  # the primary included


class LeaseTable:
    """At most one lease per chunk."""

    __slots__ = ("_by_handle", "_by_server")

    def __init__(self) -> None:
        self._by_handle: dict[int, Lease] = {}
        self._by_server: dict[str, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._by_handle)

    def grant(self, lease: Lease) -> None:
        """Record a lease; it takes the place of an earlier one on the chunk, which must have a lower version or be the
        same grant again."""
        old = self._by_handle.get(lease.handle)
        if old is not None:
            assert old.version < lease.version or old == lease, f"two leases of version {lease.version}"
            self.drop(lease.handle)
        self._by_handle[lease.handle] = lease
        self._by_server.setdefault(lease.primary, {})[lease.handle] = None

    def find(self, handle: int) -> Lease | None:
        return self._by_handle.get(handle)

    def drop(self, handle: int) -> Lease | None:
        """The lease is over; what it was."""
        lease = self._by_handle.pop(handle, None)
        if lease is not None:
            of_server = self._by_server[lease.primary]
            del of_server[handle]
            if not of_server:
                del self._by_server[lease.primary]
        return lease

    def drop_server(self, server: str, epoch: int) -> list[Lease]:
        """A session of `server` is over: drop its leases of this epoch and of earlier ones."""
        ended = [lease for lease in self.by_server(server) if lease.epoch <= epoch]
        for lease in ended:
            self.drop(lease.handle)
        return ended

    def by_server(self, server: str) -> list[Lease]:
        """All leases whose primary is `server`."""
        return [self._by_handle[handle] for handle in self._by_server.get(server, ())]


class WriterTable:
    """Which client sessions have a write lease on an inode that they have not released."""

    __slots__ = ("_by_client", "_by_inode")

    def __init__(self) -> None:
        self._by_inode: dict[int, dict[int, tuple[int, int]]] = {}  # inode → client → first, latest request
        self._by_client: dict[int, set[int]] = {}

    def add(self, inode: int, client: int, request: int = 0) -> int | None:
        """`client` writes `inode`; it asked for that with its `request`, numbered by the client. The client that was
        the only writer until now and no longer is, if any."""
        writers = self._by_inode.setdefault(inode, {})
        former = next(iter(writers)) if len(writers) == 1 and client not in writers else None
        first, latest = writers.get(client, (request, request))
        writers[client] = first, max(request, latest)
        self._by_client.setdefault(client, set()).add(inode)
        return former

    def since(self, inode: int, client: int) -> int:
        """The request with which `client` became a writer of `inode`; 0 when it is none."""
        return self._by_inode.get(inode, {}).get(client, (0, 0))[0]

    def release(self, inode: int, client: int, request: int) -> bool:
        """As `remove`, asked for with `request`: one that was sent before the client asked for its latest lease, and
        arrives after that, releases nothing."""
        _, latest = self._by_inode.get(inode, {}).get(client, (0, 0))
        if latest > request:
            return False
        return self.remove(inode, client)

    def is_last(self, inode: int, client: int, request: int) -> bool:
        """Whether `release` would return True."""
        writers = self._by_inode.get(inode, {})
        _, latest = writers.get(client, (0, 0))
        return latest <= request and not writers.keys() - {client}

    def remove(self, inode: int, client: int) -> bool:
        """`client` does not write `inode` any more. True when nobody does."""
        of_client = self._by_client.get(client)
        if of_client is not None:
            of_client.discard(inode)
            if not of_client:
                del self._by_client[client]
        writers = self._by_inode.get(inode)
        if writers is None:
            return True
        writers.pop(client, None)
        if writers:
            return False
        del self._by_inode[inode]
        return True

    def writers(self, inode: int) -> Collection[int]:
        return self._by_inode.get(inode, {}).keys()

    def sole_writer(self, inode: int) -> int | None:
        """The only client that writes it; None for nobody or several."""
        writers = self._by_inode.get(inode)
        return next(iter(writers)) if writers is not None and len(writers) == 1 else None

    def is_sole(self, inode: int, client: int) -> bool:
        writers = self._by_inode.get(inode)
        return writers is not None and len(writers) == 1 and client in writers

    def inodes(self, client: int) -> Collection[int]:
        """What `client` writes."""
        return self._by_client.get(client, frozenset())

    def drop_client(self, client: int) -> list[int]:
        """The session is over. The inodes that nobody writes any more: their lengths have to be resolved."""
        return [inode for inode in list(self._by_client.get(client, ())) if self.remove(inode, client)]

    def drop_inode(self, inode: int) -> None:
        """The inode is gone."""
        for client in list(self._by_inode.get(inode, ())):
            self.remove(inode, client)
