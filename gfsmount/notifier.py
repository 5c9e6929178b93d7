"""Tells the kernel what others changed: attributes, names, cached pages. The one place that calls pyfuse3's
notifications, because only here is known which of them can block and on what.

An attribute notification takes no lock and is done at once. One for a name waits for the kernel's lock of the
directory, which is held while a change of ours in that directory is under way; one for pages waits for reads in flight.
Those run in threads that nobody waits for longer than a bound: two mounts that change one directory would else wait
for one another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pyfuse3
import trio

from gfsmount import kernel
from gfsmount.inodes import InodeTable

if TYPE_CHECKING:
    from gfscore.client import Invalidation

log = logging.getLogger(__name__)

WAIT_SECONDS = 0.25
WAIT_WHILE_CHANGING_SECONDS = 0.005
_THREADS_MAX = 64


class Notifier:
    """`generation` counts what arrived: an answer that was on its way meanwhile is given to the kernel without leave to
    keep it.
    """

    def __init__(self, inodes: InodeTable) -> None:
        self.generation = 0
        self.changing: dict[int, int] = {}  # directory -> changes of ours under way in it
        self._inodes = inodes
        self._limiter = trio.CapacityLimiter(_THREADS_MAX)

    @property
    def threads_busy(self) -> int:
        """Notifications that still wait for the kernel; the session may not be destroyed under them."""
        return self._limiter.borrowed_tokens

    async def invalidate(self, change: Invalidation) -> None:
        """Another client changed something. Inode 0: nothing is covered by the master any more, drop everything."""
        self.generation += 1
        if change.inode == 0:
            await self._invalidate_everything()
            return
        inodes = self._inodes
        inode = inodes.to_kernel(change.inode)
        if not inodes.is_known(inode):
            return
        if change.attr or change.names or change.data:
            self.attributes_changed(inode)
        jobs = [partial(_forget_name, inode, name) for name in change.names if (inode, name) in inodes.names]
        if jobs:
            limit = WAIT_WHILE_CHANGING_SECONDS if self.changing.get(inode) else WAIT_SECONDS
            await self._run(jobs, limit)
        if change.data:
            await self.drop_pages(inode)

    def attributes_changed(self, inode: int) -> None:
        """The kernel asks for the attributes of `inode` when it needs them next. Never blocks."""
        with suppress(OSError):  # ENOENT: it has forgotten the inode meanwhile
            pyfuse3.invalidate_inode(inode, attr_only=True)

    async def drop_pages(self, inode: int) -> None:
        """The kernel drops its pages of `inode`, if it may have any."""
        pages = self._inodes.pages
        if inode in pages:
            # Before the call: a read that is answered while it runs marks the inode again.
            pages.discard(inode)
            await self._run([partial(_forget_pages, inode)], WAIT_SECONDS)

    async def _invalidate_everything(self) -> None:
        inodes = self._inodes
        for inode in inodes.known():
            self.attributes_changed(inode)
        if not kernel.forget_names():
            log.warning("event=names_may_be_stale reason='kernel older than 6.16' until='entry_timeout has passed'")
        pages, inodes.pages = inodes.pages, set()
        await self._run([partial(_forget_pages, inode) for inode in pages], WAIT_SECONDS)

    async def _run(self, jobs: Sequence[Callable[[], None]], limit_seconds: float) -> None:
        if not jobs:
            return
        with trio.move_on_after(limit_seconds):
            await trio.to_thread.run_sync(self._run_all, jobs, abandon_on_cancel=True, limiter=self._limiter)
            return
        log.debug("event=notification_left_behind jobs=%d", len(jobs))

    def _run_all(self, jobs: Sequence[Callable[[], None]]) -> None:
        for job in jobs:
            job()


def _forget_name(parent: int, name: bytes) -> None:
    with suppress(OSError):  # ENOENT: the kernel does not have it
        pyfuse3.invalidate_entry(parent, name)


def _forget_pages(inode: int) -> None:
    with suppress(OSError):
        pyfuse3.invalidate_inode(inode)
