"""rename, with RENAME_NOREPLACE and RENAME_EXCHANGE."""

from __future__ import annotations

import pyfuse3

from gfscore.errors import Code, GfsError
from gfsmount.context import HandlerContext

_KNOWN_FLAGS = pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE


class RenameHandlers(HandlerContext):
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> None:
        if flags & ~_KNOWN_FLAGS:
            raise GfsError(Code.INVALID, f"unknown flags of a rename: {flags:#x}")
        exchange = bool(flags & pyfuse3.RENAME_EXCHANGE)
        with self.changing(parent), self.changing(new_parent):
            await self.client.rename(
                self.root if parent == 1 else parent,
                name,
                self.root if new_parent == 1 else new_parent,
                new_name,
                no_replace=bool(flags & pyfuse3.RENAME_NOREPLACE),
                exchange=exchange,
            )
            names = self.inodes.names
            names.add(new_parent, new_name)
            if exchange:
                names.add(parent, name)
