"""Runs one mount from start to end: connects the client, mounts, serves the kernel, and takes everything down in order
on SIGTERM, SIGINT or an unmount from outside. Prints nothing; says that it is ready through a callback.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import stat
from collections.abc import Callable

import pyfuse3
import trio

from gfscore.client import Client, ClientOptions, FileType, open_client
from gfscore.env import Env
from gfscore.errors import Code, GfsError
from gfsmount import kernel, turns
from gfsmount.mount_options import MountConfig, MountOptions, fuse_options
from gfsmount.operations import Operations

__all__ = ["MountConfig", "MountOptions", "run_mount", "serve_mount"]

log = logging.getLogger(__name__)

# Workers that wait for a request each keep a buffer of 1 MiB; a burst may start more, up to the maximum.
_WORKERS_IDLE = 4
_WORKERS_MAX = 250
_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0

Ready = Callable[[], None]


async def run_mount(config: MountConfig, env: Env, *, ready: Ready | None = None) -> None:
    """Mount `config.subdir` of the cluster and serve it until it is unmounted or a signal asks to stop.

    `ready` is called once programs can use the mount. Raises GfsError: UNREACHABLE, NOT_FOUND or NOT_DIRECTORY for the
    directory, INVALID for a mountpoint that cannot be used.
    """
    check_mountpoint(config.mountpoint)
    options = ClientOptions(
        name=f"mount:{os.uname().nodename}:{os.getpid()}:{config.mountpoint}",
        timeout_seconds=config.options.timeout_seconds,
    )
    async with open_client(config.master, env=env, options=options) as client:
        root = await _directory(client, config)
        await serve_mount(client, root, config, ready=ready)


async def _directory(client: Client, config: MountConfig) -> int:
    """The inode of what is to be mounted. Raises GfsError: NOT_FOUND, NOT_DIRECTORY."""
    try:
        root = await client.resolve(os.fsencode(config.subdir))
    except GfsError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        message = f"{config.subdir} does not exist in the file system: gfs mkdir gfs://{config.source}"
        raise GfsError(Code.NOT_FOUND, message) from error
    if root.type != FileType.DIRECTORY:
        raise GfsError(Code.NOT_DIRECTORY, f"{config.subdir} in the file system is not a directory")
    return root.inode


async def serve_mount(client: Client, root: int, config: MountConfig, *, ready: Ready | None = None) -> None:
    """As `run_mount`, on a connected client. One mount per process: pyfuse3 keeps its session in globals."""
    operations = Operations(client, root, config.options)
    turns.install()
    options = fuse_options(config)
    try:
        pyfuse3.init(operations, config.mountpoint, options)
    except RuntimeError as error:
        raise GfsError(Code.INVALID, _mount_failure(config, options)) from error
    mounted = kernel.find_mount(config.mountpoint)
    client.on_invalidate = operations.notifier.invalidate
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, operations, config.mountpoint, nursery.cancel_scope)
            nursery.start_soon(_say_ready, config, mounted, ready)
            nursery.start_soon(operations.append_files.keep_tidy)
            nursery.start_soon(_rotate_names, operations, config.options.entry_timeout_seconds)
            await pyfuse3.main(_WORKERS_IDLE, _WORKERS_MAX)
            nursery.cancel_scope.cancel()
    finally:
        client.on_invalidate = None
        with trio.CancelScope(shield=True):
            await close_files(operations)
            await _take_down(operations, config.mountpoint, mounted)


def check_mountpoint(path: str) -> None:
    """Raises GfsError with the remedy where nothing can be mounted at `path`."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise GfsError(Code.NOT_FOUND, f"the mountpoint {path} does not exist: mkdir -p {path}") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise GfsError(
                Code.BUSY, f"a dead mount is at {path}: fusermount3 -uz {path}, or as root umount -fl {path}"
            ) from None
        raise GfsError(Code.INVALID, f"the mountpoint {path} cannot be used: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise GfsError(Code.NOT_DIRECTORY, f"the mountpoint {path} is not a directory")


def _mount_failure(config: MountConfig, options: set[str]) -> str:
    if not os.path.exists("/dev/fuse"):
        return f"cannot mount at {config.mountpoint}: there is no /dev/fuse (modprobe fuse)"
    if "allow_other" in options and os.geteuid() != 0:
        return f"cannot mount at {config.mountpoint}: allow_other needs user_allow_other in /etc/fuse.conf"
    return f"cannot mount at {config.mountpoint}: see the lines above; is fuse3 installed and the directory yours?"


async def _say_ready(config: MountConfig, mounted: kernel.Mounted | None, ready: Ready | None) -> None:
    """The limits can be set once the kernel's first request has been answered."""
    with trio.move_on_after(_READY_SECONDS):
        await trio.to_thread.run_sync(os.stat, config.mountpoint, abandon_on_cancel=True)
    if mounted is not None:
        options = config.options
        kernel.tune(mounted, read_ahead_kib=options.read_ahead_kib, max_background=options.max_background)
    log.info("event=mounted mountpoint=%s source=%s", config.mountpoint, config.source)
    if ready is not None:
        ready()


async def _rotate_names(operations: Operations, seconds: float) -> None:
    while True:
        await trio.sleep(max(seconds, 60.0))
        operations.inodes.names.rotate()


async def _stop_on_signal(operations: Operations, mountpoint: str, scope: trio.CancelScope) -> None:
    """Unmount as a person would; where programs keep the mount busy, flush for them and hide it."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("event=stopping signal=%s", signal.Signals(number).name)
            break
        # The receiver stays: another signal must not kill a process that is flushing.
        if not await trio.to_thread.run_sync(kernel.unmount, mountpoint):
            log.warning("event=unmount_busy mountpoint=%s", mountpoint)
            await flush_files(operations)
            await trio.to_thread.run_sync(lambda: kernel.unmount(mountpoint, lazy=True))
            pyfuse3.terminate()
        await trio.sleep(_STOP_SECONDS)
        scope.cancel()


async def flush_files(operations: Operations) -> None:
    """What programs wrote and did not close reaches the replicas, within a bound."""
    await _for_each_file(operations, "flush")


async def close_files(operations: Operations) -> None:
    await _for_each_file(operations, "close")
    with trio.move_on_after(_STOP_SECONDS):
        await operations.append_files.close_idle(0.0)


async def _for_each_file(operations: Operations, method: str) -> None:
    async def one(number: int, call: Callable[[], object]) -> None:
        try:
            await call()  # type: ignore[misc]
        except (GfsError, OSError) as error:
            log.error("event=%s_failed inode=%d error=%r", method, number, str(error))

    with trio.move_on_after(_STOP_SECONDS):
        async with trio.open_nursery() as nursery:
            for handle in operations.files.values():
                nursery.start_soon(one, handle.inode, getattr(handle.file, method))


async def _take_down(operations: Operations, mountpoint: str, mounted: kernel.Mounted | None) -> None:
    """Leave no mount behind, and destroy the session only when no thread uses it."""
    if mounted is not None and kernel.find_mount(mountpoint) == mounted:
        await trio.to_thread.run_sync(lambda: kernel.unmount(mountpoint, lazy=True))
    with trio.move_on_after(1.0):
        while operations.notifier.threads_busy:
            await trio.sleep(0.01)
    if operations.notifier.threads_busy and (mounted is None or not kernel.abort(mounted.minor)):
        return  # the process ends soon, and the session with it
    with contextlib.suppress(OSError, RuntimeError):
        pyfuse3.close(unmount=True)
    log.info("event=unmounted mountpoint=%s", mountpoint)
