"""readlink."""

from __future__ import annotations

import pyfuse3

from gfsmount.context import HandlerContext


class LinkHandlers(HandlerContext):
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self.client.readlink(inode)
