"""A process that mounts the in-memory file system: `serve_fake.py MOUNTPOINT READY_FILE OPTIONS`."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import trio
from fake_client import FakeClient

from gfscore.client import Invalidation
from gfscore.ids import ROOT_INODE
from gfsmount.mount import serve_mount
from gfsmount.mount_options import MountConfig, parse_options


class Elsewhere(FakeClient):
    """Setting `user.elsewhere` does what another client would do: changes the file's content, or with
    `remove DIRECTORY-INODE NAME` removes a name in a directory other than the file's own, whose lock the kernel holds.
    """

    async def setxattr(self, inode: int, name: bytes, value: bytes) -> None:
        if name != b"user.elsewhere":
            await super().setxattr(inode, name, value)
            return
        assert self.on_invalidate is not None
        if value.startswith(b"remove "):
            _, directory, target = value.split(b" ")
            await self.unlink(int(directory), target)
            await self.on_invalidate(Invalidation(int(directory), [target], True, False))
        else:
            self.data[inode][:] = value
            self.touch(inode)
            await self.on_invalidate(Invalidation(inode, [], True, True))


async def main(mountpoint: str, ready_file: str, options: str) -> None:
    config = MountConfig("127.0.0.1:1", mountpoint, options=parse_options([options]))
    await serve_mount(Elsewhere(), ROOT_INODE, config, ready=Path(ready_file).touch)  # type: ignore[arg-type]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    trio.run(main, *sys.argv[1:])
