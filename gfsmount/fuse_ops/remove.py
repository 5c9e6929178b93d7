"""unlink and rmdir. Files that are open stay usable: the client asks the master to keep them."""

from __future__ import annotations

import pyfuse3

from gfsmount.context import HandlerContext


class RemoveHandlers(HandlerContext):
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self.changing(parent):
            await self.client.unlink(self.root if parent == 1 else parent, name)

    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self.changing(parent):
            await self.client.rmdir(self.root if parent == 1 else parent, name)
