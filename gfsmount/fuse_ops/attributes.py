"""setattr: mode, owner, times, and the size."""

from __future__ import annotations

import stat

import pyfuse3

from gfscore.client import AttrChanges
from gfsmount.context import HandlerContext
from gfsmount.privileges import mode_after_change

_TIME_MIN, _TIME_MAX = -(1 << 63), (1 << 63) - 1  # nanoseconds since 1970: from 1677 to 2262


class AttributeHandlers(HandlerContext):
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self.changes += 1
        real = self.root if inode == 1 else inode
        changes = AttrChanges()
        if fields.update_mode:
            changes.mode = attr.st_mode & 0o7777
        if fields.update_uid:
            changes.uid = attr.st_uid
        if fields.update_gid:
            changes.gid = attr.st_gid
        if fields.update_atime:
            changes.atime_ns = _nearest_time(attr.st_atime_ns)
        if fields.update_mtime:
            changes.mtime_ns = _nearest_time(attr.st_mtime_ns)
        if fields.update_size:
            changes.size = attr.st_size
            if ctx.uid and changes.mode is None:
                changes.mode = mode_after_change(await self.client.getattr(real))
        generation = self.notifier.generation
        try:
            return self.attributes(await self.client.setattr(real, changes), generation)
        finally:
            if changes.mode is not None and changes.mode & (stat.S_ISUID | stat.S_ISGID):
                self._look_for_privileges(inode)  # behind it: who looked before has not seen them

    def _look_for_privileges(self, inode: int) -> None:
        """Before the next change by somebody other than root."""
        for handle in self.files.values():
            handle.strip_privileges |= handle.inode == inode and handle.writable and not handle.by_root
        self.append_files.mode_changed(inode)


def _nearest_time(nanoseconds: int) -> int:
    """The time that can be kept: like the kernel's own file systems, this one takes any and keeps what is nearest."""
    return min(max(nanoseconds, _TIME_MIN), _TIME_MAX)
