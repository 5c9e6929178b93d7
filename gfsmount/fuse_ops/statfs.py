"""statfs: what `df` shows."""

from __future__ import annotations

import pyfuse3

from gfscore.ids import NAME_BYTES_MAX
from gfsmount.context import HandlerContext

_UNIT = 4096
_INODES = 1 << 40  # there is no limit; programs want to see free ones


class StatfsHandlers(HandlerContext):
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        total_bytes, free_bytes, files = await self.client.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = _UNIT
        data.f_frsize = _UNIT
        data.f_blocks = total_bytes // _UNIT
        data.f_bfree = data.f_bavail = free_bytes // _UNIT
        data.f_files = files + _INODES
        data.f_ffree = data.f_favail = _INODES
        data.f_namemax = NAME_BYTES_MAX
        return data
