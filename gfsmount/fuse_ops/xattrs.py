"""Extended attributes: `user.*` and `trusted.*` are stored, `gfs.*` are the special operations, the kernel's own probes
are answered here without a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyfuse3

from gfscore.errors import Code, GfsError
from gfsmount.context import HandlerContext
from gfsmount.special_attributes import SpecialAttributes

_STORED = (b"user.", b"trusted.")


class XattrHandlers(HandlerContext):
    special: SpecialAttributes

    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if name.startswith(_STORED):
            return await self.client.getxattr(self.root if inode == 1 else inode, name)
        if name.startswith(b"gfs."):
            return await self.special.get(inode, name, ctx.pid)
        if name.startswith(b"security."):  # asked by the kernel before every buffered write
            raise GfsError(Code.NO_ATTRIBUTE)
        raise GfsError(Code.NOT_SUPPORTED)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        if name.startswith(_STORED):
            await self.client.setxattr(self.root if inode == 1 else inode, name, value)
        elif name.startswith(b"gfs."):
            self.changes += 1
            await self.special.set(inode, name, value, ctx)
        else:
            raise GfsError(Code.NOT_SUPPORTED)

    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        names = await self.client.listxattr(self.root if inode == 1 else inode)
        # What others than root may not read they are not told of, as with the kernel's own file systems.
        return [name for name in names if not name.startswith(b"trusted.")] if ctx.uid else names

    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if name.startswith(_STORED):
            await self.client.removexattr(self.root if inode == 1 else inode, name)
        elif name.startswith(b"gfs."):
            raise GfsError(Code.NOT_PERMITTED, f"{name.decode('ascii', 'replace')} cannot be removed")
        elif name.startswith(b"security."):
            raise GfsError(Code.NO_ATTRIBUTE)
        else:
            raise GfsError(Code.NOT_SUPPORTED)
