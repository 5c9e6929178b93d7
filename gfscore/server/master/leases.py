"""The leases this master has granted, with what it needs to answer them again; and who writes which file [0079].

Never persisted: a master that starts knows no lease, and a new grant fences an old one by its version. Book-keeping.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from gfscore.metadata.inodes import InodeRecord
from gfscore.metadata.leases import WriterTable
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.master.servers import Replicas, ServerState


class GrantedLease:
    """`primary`, in this session of it, is primary of the chunk at `version`."""

    __slots__ = (
        "avoided",
        "broken",
        "failed",
        "fresh",
        "given",
        "grant",
        "granted_at",
        "handle",
        "index",
        "inode",
        "primary",
        "repeated",
        "replicas",
        "version",
    )  # fmt: skip

    def __init__(
        self, inode: int, index: int, handle: int, version: int, replicas: Replicas, grant: pb.Grant, *, fresh: bool,
        granted_at: float, avoided: Collection[str] = (),
    ) -> None:  # fmt: skip
        self.inode = inode
        self.index = index
        self.handle = handle
        self.version = version
        self.replicas = replicas
        self.primary: ServerState = replicas[0]
        self.grant = grant
        self.fresh = fresh  # granted with a new handle: no replica existed
        self.given: set[int] = set()  # clients that have the grant in their hands
        self.repeated = False  # one of them has got it twice: what it did the first time, it may not remember
        self.granted_at = granted_at  # boottime of the last time it was given to somebody
        self.avoided = frozenset(avoided)  # servers that a client complained of when it was granted, yet members
        self.broken = False  # a replica failed: not to be answered again
        self.failed: set[str] = set()  # servers that missed a mutation under it, or could not be made equal


class LeaseBook:
    """At most one lease per chunk; `writers` holds who may use the grants of a file.

    `all_known` has the files of which `writers` has everybody: their length was agreed on when the first of them got
    its grant from this very master. Of any other file, somebody may hold a grant of before the start (rule 5).
    `left` has those that somebody wrote who disappeared: what he wrote nobody commits, until the length is settled.

    A lease that ended without a word of its primary leaves its chunk unclean: a mutation that was under way may be on
    some replicas only. So it stays until the replicas were made equal.
    """

    __slots__ = (
        "_by_handle", "_by_inode", "_to_come", "_unclean", "_unclean_of", "all_known", "left", "times_set", "writers",
    )  # fmt: skip

    def __init__(self) -> None:
        self._by_handle: dict[int, GrantedLease] = {}
        self._by_inode: dict[int, dict[int, None]] = {}
        self._to_come: Counter[int] = Counter()  # inode → grants on it that are being looked for
        self._unclean: dict[int, int] = {}  # handle → inode
        self._unclean_of: dict[int, set[int]] = {}
        self.writers = WriterTable()
        self.all_known: set[int] = set()
        self.left: set[int] = set()
        self.times_set: dict[int, int] = {}  # inode → when (wall clock, ns) somebody set its mtime; while it is pending

    def __len__(self) -> int:
        return len(self._by_handle)

    def add(self, lease: GrantedLease) -> None:
        self._by_handle[lease.handle] = lease
        self._by_inode.setdefault(lease.inode, {})[lease.handle] = None

    def find(self, handle: int) -> GrantedLease | None:
        """The lease on a chunk, dropped when the primary's session is over."""
        lease = self._by_handle.get(handle)
        if lease is not None and lease.primary.gone:
            self.drop(handle)
            return None
        return lease

    def of_inode(self, inode: int) -> list[GrantedLease]:
        """The live leases of a file."""
        found = [self.find(handle) for handle in list(self._by_inode.get(inode, ()))]
        return [lease for lease in found if lease is not None]

    def fresh(self) -> Iterator[GrantedLease]:
        """Those that were granted with a new handle."""
        return (lease for lease in self._by_handle.values() if lease.fresh)

    def drop(self, handle: int, *, clean: bool = False) -> None:
        """The lease, if there is one, is over. `clean`: its primary says that all replicas are equal."""
        lease = self._by_handle.pop(handle, None)
        if clean:
            self.settled(handle)
        elif lease is not None:
            self.leave(handle, lease.inode)
        if lease is not None:
            of_inode = self._by_inode[lease.inode]
            del of_inode[handle]
            if not of_inode:
                del self._by_inode[lease.inode]

    def drop_inode(self, inode: int) -> None:
        """The file is gone."""
        for handle in list(self._by_inode.get(inode, ())):
            self.drop(handle)
        self.writers.drop_inode(inode)
        self.all_known.discard(inode)
        self.left.discard(inode)
        self.times_set.pop(inode, None)

    def mtime_floor(self, record: InodeRecord) -> int:
        """A write counts for the file's mtime if it was later than this (wall clock, ns): nobody set a time since.

        What was set before this master started is not known; then the latest change of any attribute stands for it.
        """
        if record.inode in self.all_known and record.length_pending:
            return self.times_set.get(record.inode, 0)
        return record.ctime_ns

    def counted_mtime(self, record: InodeRecord, mtime_ns: int) -> int | None:
        """For `commit_length`, of the time that a replica tells (0: it does not know)."""
        if not mtime_ns:
            return None
        return mtime_ns if mtime_ns > self.mtime_floor(record) else 0

    @property
    def unclean(self) -> Mapping[int, int]:
        """By handle, the inode that the chunk belonged to."""
        return self._unclean

    def unclean_of(self, inode: int) -> Collection[int]:
        """Chunks of the file whose replicas may differ, as far as no live lease has to do with them."""
        return self._unclean_of.get(inode, ())

    def leave(self, handle: int, inode: int) -> None:
        """The replicas of a chunk may differ from now on."""
        self._unclean[handle] = inode
        self._unclean_of.setdefault(inode, set()).add(handle)

    def settled(self, handle: int) -> None:
        """The replicas of the chunk are equal, or it is gone."""
        inode = self._unclean.pop(handle, None)
        if inode is not None:
            of_inode = self._unclean_of[inode]
            of_inode.discard(handle)
            if not of_inode:
                del self._unclean_of[inode]

    def is_clean(self, inode: int) -> bool:
        """All replicas of the file's chunks are equal, or a primary sees to it."""
        leases = self.of_inode(inode)  # first: a lease that it finds to be over leaves its chunk unclean
        return not self.unclean_of(inode) and not any(lease.broken for lease in leases)

    def drop_client(self, client: int) -> list[int]:
        """The session is over. The inodes that nobody writes any more: their lengths have to be settled."""
        self.left.update(self.writers.inodes(client))
        return self.writers.drop_client(client)

    def knows_length(self, inode: int) -> bool:
        """What `writers` have acknowledged, and will commit, is all that the state's length may lack."""
        return inode in self.all_known and inode not in self.left

    def is_sole_writer(self, inode: int, client: int) -> bool:
        """Nobody else can change the file now, or has changed it and not said how long it is."""
        return self.knows_length(inode) and self.writers.is_sole(inode, client)

    @contextmanager
    def looking(self, inode: int) -> Iterator[None]:
        """A grant on the file is being looked for: another writer may be about to begin."""
        self._to_come[inode] += 1
        try:
            yield
        finally:
            self._to_come[inode] -= 1
            if not self._to_come[inode]:
                del self._to_come[inode]

    def is_looking(self, inode: int) -> bool:
        return inode in self._to_come

    def sweep(self, before: float) -> None:
        """Forget leases that nobody may use any more and that were given out before `before` (boottime), or are broken.

        The primary of a chunk that was never written does not know of its lease and cannot give it back.
        """
        for lease in list(self._by_handle.values()):
            abandoned = (lease.broken or lease.granted_at < before) and not self.writers.writers(lease.inode)
            if lease.primary.gone or abandoned:
                self.drop(lease.handle)
