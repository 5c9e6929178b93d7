"""Where new replicas go [0064]-[0067]: servers with disk use below average, few recent creations, spread over racks.

Pure arithmetic over what the shell knows of its servers; chance comes in as an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

from gfscore.errors import Code, GfsError

RESERVE_BYTES_DEFAULT = 64 * 1024 * 1024  # a server with less free is full
_RESERVE_SHARE_MAX = 20  # at most so small a part of a disk is kept free: small disks are to be of use, too


@dataclass(slots=True)
class ServerLoad:
    """One live chunkserver, as placement sees it."""

    id: str
    rack: str
    total_bytes: int
    used_bytes: int
    recent_creations: int = 0  # replicas placed there a short while ago: they will be written soon [0066]
    host: str = ""  # of its address: two servers of one machine fail together


def reserve_of(total_bytes: int, reserve_bytes: int = RESERVE_BYTES_DEFAULT) -> int:
    """The bytes of a disk of this size that no new chunk may count on."""
    return min(reserve_bytes, total_bytes // _RESERVE_SHARE_MAX)


def has_room(server: ServerLoad, reserve_bytes: int = RESERVE_BYTES_DEFAULT) -> bool:
    """It may get another replica."""
    return server.total_bytes - server.used_bytes >= reserve_of(server.total_bytes, reserve_bytes) > 0


def _least_shared(candidates: Sequence[ServerLoad], racks: dict[str, int], hosts: dict[str, int]) -> int:
    """The position of the first candidate in the least used rack, and there on the least used host."""
    best, least = 0, (1 << 30, 0)
    for position, server in enumerate(candidates):
        shared = (racks.get(server.rack, 0), hosts.get(server.host, 0))
        if shared == (0, 0):
            return position
        if shared < least:
            best, least = position, shared
    return best


def choose_servers(
    servers: Sequence[ServerLoad],
    count: int,
    *,
    random: Random,
    avoid: Collection[str] = (),
    existing: Collection[str] = (),
    reserve_bytes: int = RESERVE_BYTES_DEFAULT,
) -> list[str]:
    """Ids of at most `count` servers for new replicas, the best first; fewer when there are no more.

    `existing` hold the chunk already: never chosen, and their racks count as used. `avoid` failed just now: chosen only
    when nobody else is left. One server is chosen once; a second rack is used whenever there is one. Raises NO_SPACE
    when those that could be chosen are full, NO_SERVERS when there are none.
    """
    racks: dict[str, int] = {}
    hosts: dict[str, int] = {}
    usable = []
    avoided = []
    utilisation = 0.0
    for server in servers:
        if server.id in existing:
            racks[server.rack] = racks.get(server.rack, 0) + 1
            hosts[server.host] = hosts.get(server.host, 0) + 1
        elif has_room(server, reserve_bytes):
            if server.id in avoid:
                avoided.append(server)
            else:
                usable.append(server)
                utilisation += server.used_bytes / server.total_bytes
    if not usable:
        usable = avoided
        utilisation = sum(server.used_bytes / server.total_bytes for server in usable)
    if not usable:
        if any(server.total_bytes > 0 and server.id not in existing for server in servers):
            raise GfsError(Code.NO_SPACE, "every chunkserver that is up is full: add one, or delete files")
        raise GfsError(Code.NO_SERVERS, "no chunkserver that is up can take a replica")
    # A little above average is not worth a preference: right after a start all are equal but for noise.
    average = utilisation / len(usable) + 0.01
    ranked = sorted(
        (server.used_bytes > average * server.total_bytes, server.recent_creations, random.random(), at)
        for at, server in enumerate(usable)
    )
    candidates = [usable[at] for _, _, _, at in ranked]
    chosen: list[str] = []
    while candidates and len(chosen) < count:
        position = _least_shared(candidates, racks, hosts)
        server = candidates.pop(position)
        chosen.append(server.id)
        racks[server.rack] = racks.get(server.rack, 0) + 1
        hosts[server.host] = hosts.get(server.host, 0) + 1
    return chosen
