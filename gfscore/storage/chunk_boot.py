"""Which boot of the machine it is: tells a restart after a kill (the page cache survived) from one after a power loss.

The store keeps the boot it was last in good order under in `chunks/boot`; it is rewritten once every chunk was settled.
"""

from __future__ import annotations

from gfscore.env.interfaces import Disk

_PATH = "chunks/boot"


def same_boot(disk: Disk, boot_id: str) -> bool:
    """True when the store was in good order under this very boot. An empty id never is."""
    if not boot_id or not disk.exists(_PATH):
        return False
    file = disk.open(_PATH)
    try:
        return file.pread(256, 0).rstrip(b"\0\n") == boot_id.encode()
    finally:
        file.close()


def remember_boot(disk: Disk, boot_id: str) -> None:
    """Durably. Raises OSError."""
    file = disk.open(_PATH, create=True)
    try:
        file.truncate(0)
        file.pwrite(boot_id.encode(), 0)
        file.fdatasync()
    finally:
        file.close()
    disk.sync_directory("chunks")
