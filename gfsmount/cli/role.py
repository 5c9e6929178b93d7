"""What the long-running roles have in common: log lines, an orderly end at SIGTERM, and saying when they serve."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from gfsmount.cli.usage import UsageProblem

_OPEN_FILES = 65536
_GARBAGE_OBJECTS = 50_000

Serve = Callable[..., Awaitable[Any]]


def configure_logging(level: str) -> None:
    """Log lines `time level=… logger=… event=…` on stderr. Raises UsageProblem for a level that there is not."""
    if level.upper() not in logging.getLevelNamesMapping():
        raise UsageProblem(f"no log level {level!r}: there are DEBUG, INFO, WARNING and ERROR")
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        stream=sys.stderr,
        level=level.upper(),
        format="%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def allow_many_files() -> None:
    """A chunkserver keeps a file open per busy chunk: take what the hard limit gives."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def collect_garbage_rarely() -> None:
    """These processes make many short-lived objects and hardly a cycle: looking for one after every 700 objects costs
    more than all that is ever found."""
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, 20, 50)


def announce(ready_fd: int | None, address: str) -> None:
    """Tell whoever started this process that it serves: the descriptor it gave, and systemd (Type=notify)."""
    if ready_fd is not None:
        with contextlib.suppress(OSError):  # who waited may have given up
            os.write(ready_fd, f"ready {address}\n".encode())
            os.close(ready_fd)
    notify = os.environ.pop("NOTIFY_SOCKET", "")
    if notify:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(b"READY=1", "\0" + notify[1:] if notify.startswith("@") else notify)


async def serve_until_signal(serve: Serve, ready_fd: int | None, describe: Callable[[Any], str]) -> None:
    """Run `serve(task_status=…)` until it ends or SIGTERM or SIGINT comes; `describe` names what it started with."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            started = await nursery.start(serve)
            address = describe(started)
            logging.getLogger("gfs").info("event=serving address=%s pid=%d", address, os.getpid())
            announce(ready_fd, address)
            async for number in signals:
                logging.getLogger("gfs").info("event=stopping signal=%s", signal.Signals(number).name)
                break
            nursery.cancel_scope.cancel()


def data_directory(config_file: Path, directory: Path | str | None) -> Path:
    """Where the role keeps its state; made if need be. UsageProblem when the config names none."""
    if not directory:
        raise UsageProblem(f"{config_file}: key 'directory' is missing: where this process keeps its state")
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    return path
