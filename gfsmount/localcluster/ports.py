"""Free TCP ports on the loopback interface, for servers that keep theirs across restarts.

They are taken from below the kernel's ephemeral range, so that no outgoing connection can sit on one while its
server is down.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

from gfscore.errors import Code, GfsError

_LOWEST, _HIGHEST = 15000, 32000


def _range() -> range:
    try:
        ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        ephemeral = _HIGHEST
    highest = min(_HIGHEST, ephemeral)
    return range(_LOWEST, highest) if highest > _LOWEST + 1000 else range(1024, 65536)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_ports(host: str) -> Iterator[int]:
    """Different free ports, one after another. Raises GfsError(BUSY) when there are no more."""
    candidates = list(_range())
    random.shuffle(candidates)
    for port in candidates:
        if is_free(host, port):
            yield port
    raise GfsError(Code.BUSY, f"no free TCP port on {host}")
