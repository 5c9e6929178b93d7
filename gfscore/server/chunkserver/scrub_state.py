"""What the scrub remembers across a restart: where it was, and which replicas are known to be damaged.

A small file of `name=value` lines, replaced as a whole. It is a hint and nothing more: without it the scrub begins anew
and finds the damage again, so it is not synced, and one that makes no sense is ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gfscore.env.interfaces import Disk

_FILE = "scrub"
_NEW_FILE = "scrub.new"
_FILE_BYTES_MAX = 4 * 1024 * 1024
_CORRUPT_MAX = 100_000  # handles kept


@dataclass
class ScrubState:
    """`position`: the last handle that was verified in the pass under way. `finished_ns`: when the last complete pass
    ended, ns since the epoch, 0 for never."""

    position: int = 0
    finished_ns: int = 0
    corrupt: set[int] = field(default_factory=set)


def load(disk: Disk) -> ScrubState:
    """What was saved last, or a fresh state. Blocking."""
    try:
        if not disk.exists(_FILE):
            return ScrubState()
        file = disk.open(_FILE)
        try:
            text = file.pread(_FILE_BYTES_MAX, 0).decode("ascii")
        finally:
            file.close()
        values = dict(line.split("=", 1) for line in text.splitlines())
        return ScrubState(
            int(values["position"], 16),
            int(values["finished_ns"]),
            {int(handle, 16) for handle in values["corrupt"].split(",") if handle},
        )
    except (OSError, ValueError, KeyError):
        return ScrubState()


def save(disk: Disk, state: ScrubState) -> None:
    """Blocking. Raises OSError."""
    corrupt = ",".join(f"{handle:016x}" for handle in sorted(state.corrupt)[:_CORRUPT_MAX])
    text = f"position={state.position:016x}\nfinished_ns={state.finished_ns}\ncorrupt={corrupt}\n"
    file = disk.open(_NEW_FILE, create=True)
    try:
        file.truncate(0)
        file.pwrite(text.encode(), 0)
    finally:
        file.close()
    disk.rename(_NEW_FILE, _FILE)
