"""lookup, forget, getattr, access: what the kernel asks most often."""

from __future__ import annotations

from collections.abc import Sequence

import pyfuse3

from gfscore.client import LengthUnknown
from gfscore.errors import Code, GfsError
from gfscore.ids import NAME_BYTES_MAX
from gfsmount.context import HandlerContext


class LookupHandlers(HandlerContext):
    def lookup_now(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes | None:
        """The answer if the client has it in memory, else None. Raises GfsError, as `lookup`."""
        # The kernel lets longer names through; asked of a cached listing they would merely not exist.
        if len(name) > NAME_BYTES_MAX:
            raise GfsError(Code.NAME_TOO_LONG)
        attr = self.client.lookup_cached(self.root if parent == 1 else parent, name)
        return None if attr is None else self.entry(parent, name, attr, self.notifier.generation)

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        generation = self.notifier.generation
        attr = await self.client.lookup(self.root if parent == 1 else parent, name, any_length=True)
        return self.entry(parent, name, attr, generation)

    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Not a coroutine: pyfuse3 awaits only what it gets, and there is nothing to wait for."""
        self.inodes.forget(inode_list)

    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        generation = self.notifier.generation
        real = self.root if inode == 1 else inode
        try:
            attr = await self.client.getattr(real)
        except LengthUnknown:
            if self.client.is_open(real):  # a length that is too small would be the end of what is read
                raise
            attr = await self.client.getattr(real, any_length=True)  # seen, it can at least be removed
        return self.attributes(attr, generation)

    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        """The kernel checks permissions itself (`default_permissions`)."""
        return True
