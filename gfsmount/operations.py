"""The one class that pyfuse3 calls: all families of handlers, each behind the same guard.

The guard turns a GfsError into its errno, and any other exception into a logged EIO: pyfuse3 lets only FUSEError pass,
anything else would end the mount. It also bounds the time of an operation, as a second line behind the client library,
which bounds every one of its own.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pyfuse3
import trio

from gfscore.errors import Code
from gfsmount.errnos import errno_of, gfs_error_in, is_ordinary
from gfsmount.fuse_ops.attributes import AttributeHandlers
from gfsmount.fuse_ops.create import CreateHandlers
from gfsmount.fuse_ops.directories import DirectoryHandlers
from gfsmount.fuse_ops.files import FileHandlers
from gfsmount.fuse_ops.links import LinkHandlers
from gfsmount.fuse_ops.lookup import LookupHandlers
from gfsmount.fuse_ops.remove import RemoveHandlers
from gfsmount.fuse_ops.rename import RenameHandlers
from gfsmount.fuse_ops.statfs import StatfsHandlers
from gfsmount.fuse_ops.xattrs import XattrHandlers
from gfsmount.mount_options import MountOptions
from gfsmount.special_attributes import SpecialAttributes

if TYPE_CHECKING:
    from gfscore.client import Client

log = logging.getLogger(__name__)

# The client gives up after `timeout`; this much later the driver gives up on the client.
GRACE_SECONDS = 5.0

# `setxattr` is one of these because of gfs.snapshot, whose value is a path.
_BY_NAME = ("mknod", "symlink", "link", "rename", "setxattr")
# An inode that is gone is answered ESTALE, on which the kernel looks its name up again.
_BY_INODE = (
    *("setattr", "access", "readlink", "statfs"),
    *("getxattr", "listxattr", "removexattr"),
    *("fsync", "fsyncdir"),
)
# Mostly answered from memory, where a cancel scope (13 us) would be a tenth of the whole: bounded by the client alone.
_HOT = ("getattr", "open", "read", "write", "flush", "release", "opendir", "readdir", "releasedir")
_HOT_BY_NAME = ("create", "mkdir", "rmdir", "unlink")


class Operations(  # type: ignore[misc]  # `forget` is no coroutine here, `read` may give a memoryview
    LookupHandlers,
    AttributeHandlers,
    CreateHandlers,
    RemoveHandlers,
    RenameHandlers,
    FileHandlers,
    DirectoryHandlers,
    LinkHandlers,
    XattrHandlers,
    StatfsHandlers,
    pyfuse3.Operations,
):
    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, client: Client, root: int, options: MountOptions) -> None:
        super().__init__(client, root, options)
        self.special = SpecialAttributes(self)


def _errno_for(error: Exception, operation: str, missing: int) -> int:
    known = gfs_error_in(error)
    if known is None:
        log.error("event=handler_failed operation=%s", operation, exc_info=error)
        return errno.EIO
    if not is_ordinary(known.code):
        log.warning("event=operation_failed operation=%s code=%s error=%r", operation, known.code.name, str(known))
    return missing if known.code is Code.NOT_FOUND else errno_of(known.code)


def _guarded(handler: Callable[..., Awaitable[Any]], missing: int) -> Callable[..., Awaitable[Any]]:
    operation = handler.__name__

    @functools.wraps(handler)
    async def guard(self: Operations, *arguments: Any) -> Any:
        try:
            with trio.move_on_after(self.timeout_seconds + GRACE_SECONDS):
                return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(_errno_for(error, operation, missing)) from None
        log.warning("event=operation_timed_out operation=%s", operation)
        raise pyfuse3.FUSEError(errno.ETIMEDOUT)

    return guard


def _guarded_hot(handler: Callable[..., Awaitable[Any]], missing: int) -> Callable[..., Awaitable[Any]]:
    operation = handler.__name__

    @functools.wraps(handler)
    async def guard(self: Operations, *arguments: Any) -> Any:
        try:
            return await handler(self, *arguments)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(_errno_for(error, operation, missing)) from None

    return guard


def _guarded_lookup(handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """What the client has in memory is answered without a cancel scope, and without a coroutine of its own."""
    guarded = _guarded(handler, errno.ENOENT)

    @functools.wraps(handler)
    async def guard(self: Operations, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> Any:
        try:
            entry = self.lookup_now(parent, name)
        except Exception as error:
            raise pyfuse3.FUSEError(_errno_for(error, "lookup", errno.ENOENT)) from None
        return entry if entry is not None else await guarded(self, parent, name, ctx)

    return guard


Operations.lookup = _guarded_lookup(Operations.lookup)  # type: ignore[method-assign,assignment]
for _name in _BY_NAME:
    setattr(Operations, _name, _guarded(getattr(Operations, _name), errno.ENOENT))
for _name in _BY_INODE:
    setattr(Operations, _name, _guarded(getattr(Operations, _name), errno.ESTALE))
for _name in _HOT_BY_NAME:
    setattr(Operations, _name, _guarded_hot(getattr(Operations, _name), errno.ENOENT))
for _name in _HOT:
    setattr(Operations, _name, _guarded_hot(getattr(Operations, _name), errno.ESTALE))
