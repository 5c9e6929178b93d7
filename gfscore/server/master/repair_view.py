"""The chunkservers as the repair core sees them, and its judgement of chunks, remembered per set of servers.

A million chunks lie on a few hundred different sets, so most judgements are a look into a table.
"""

from __future__ import annotations

from collections.abc import Iterator

from gfscore.metadata.chunks import file_handles, find_chunk, unpack_chunk
from gfscore.metadata.inodes import FileType, load
from gfscore.metadata.keys import pack8, unpack8
from gfscore.metadata.repair import NOTHING, SALVAGE, Action, Need, Site, assess
from gfscore.metadata.tables import CHUNKS, ORPHANS, TRASH
from gfscore.server.master.scanning import slices
from gfscore.server.master.servers import Replicas, Servers, ServerState
from gfscore.server.master.state import MasterState


class RepairView:
    def __init__(self, state: MasterState, servers: Servers, moved_bytes: int) -> None:
        """`moved_bytes`: what is moved at the same time, at most."""
        self.sites: dict[str, Site] = {}
        self._state = state
        self._servers = servers
        self._moved_bytes = moved_bytes
        self._generation = -1
        self._needs: dict[tuple[Replicas, int, bool], Need] = {}
        self._takers: frozenset[str] = frozenset()  # servers that could take a replica
        self._racks = 0
        self._deleted: set[int] = set()

    def refresh(self) -> bool:
        """Look at the servers again. True when judgements of chunks that did not change may be other ones now."""
        servers = self._servers
        sites = {server.id: self._site(server) for server in servers.by_id.values()}
        if sites == self.sites and servers.generation == self._generation:
            return False
        self._needs.clear()
        weighty = {key: site._replace(use=0.0, step=0.0, sure=True) for key, site in sites.items()}
        known = {key: site._replace(use=0.0, step=0.0, sure=True) for key, site in self.sites.items()}
        changed = weighty != known or servers.generation != self._generation
        self.sites, self._generation = sites, servers.generation
        takers = [site for site in sites.values() if site.live and not site.draining]
        self._takers = frozenset(site.id for site in takers)
        self._racks = len({site.rack for site in takers})
        return changed

    def _site(self, server: ServerState) -> Site:
        servers = self._servers
        total = server.load.total_bytes
        return Site(
            server.id, server.message.rack,
            live=servers.counts(server),
            sure=servers.is_up(server),
            draining=server.id in servers.draining,
            use=server.load.used_bytes / total if total else 0.0,
            step=self._moved_bytes / total if total else 0.0,
        )  # fmt: skip

    async def note_deleted(self) -> None:
        """Learn which chunks belong to deleted files only, open ones or in the trash: they come last [0071]."""
        tables = self._state.tables
        deleted: set[int] = set()
        for table in (ORPHANS, TRASH):
            async for rows in slices(tables, table):
                for key, _ in rows:
                    deleted.update(self._chunks_only_of(unpack8(key)))
        self._deleted = deleted

    def _chunks_only_of(self, inode: int) -> Iterator[int]:
        tables = self._state.tables
        record = load(tables, inode)
        if record.type is FileType.FILE:
            for handle in file_handles(tables, record):
                chunk = find_chunk(tables, handle)
                if chunk is not None and chunk.references == 1:
                    yield handle

    def need(self, handle: int) -> Need:
        """What the chunk needs now. NOTHING also where nobody could help, and where there is nothing to copy yet."""
        known = self._servers.locations.get(handle, ())
        damaged = handle in self._servers.stale and bool(self._servers.damaged(handle))
        if not known and not damaged:
            return NOTHING
        raw = self._state.tables.get(CHUNKS, pack8(handle))
        if raw is None:
            return NOTHING
        chunk = unpack_chunk(raw)
        if not chunk.used:
            return NOTHING
        if damaged and not any(site.live for site in self.sites_of(handle)):
            return SALVAGE
        goal = chunk.goal
        key = (known, goal, handle in self._deleted)
        need = self._needs.get(key)
        if need is None:
            sites = self.sites_of(handle)
            need = assess(sites, goal, racks=self._racks, deleted=key[2])
            if need.action is Action.CLONE and self._takers <= {site.id for site in sites}:
                need = NOTHING  # whoever is down has to come back
            self._needs[key] = need
        return need

    def sites_of(self, handle: int) -> list[Site]:
        """Those with a good replica. A server that was forgotten is down for ever."""
        sites = self.sites
        return [sites.get(s.id) or Site(s.id, "", live=False, sure=False) for s in self._servers.replicas(handle)]
