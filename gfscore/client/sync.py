"""The client for programs without trio: a thin, blocking face, by path.

    with connect("127.0.0.1:9333") as gfs:
        gfs.makedirs("/logs")
        offset = gfs.append("/logs/today", b"one record")

One thread runs trio; any thread may call. Paths are absolute inside the file system; text is UTF-8.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import trio

from gfscore.client.client import Client, open_client
from gfscore.client.options import ClientOptions
from gfscore.client.paths import Paths
from gfscore.client.types import Attr, Entry

T = TypeVar("T")


class SyncClient:
    """See the module. Every method raises GfsError."""

    def __init__(self, client: Client, token: trio.lowlevel.TrioToken) -> None:
        self._paths = Paths(client)
        self._token = token

    def _run(self, call: Callable[..., Awaitable[T]], *args: object) -> T:
        return trio.from_thread.run(call, *args, trio_token=self._token)

    def stat(self, path: str) -> Attr:
        return self._run(self._paths.stat, path)

    def list(self, path: str) -> Sequence[Entry]:
        return self._run(self._paths.list, path)

    def makedirs(self, path: str, mode: int = 0o755) -> Attr:
        return self._run(self._paths.makedirs, path, mode)

    def read(self, path: str, offset: int = 0, size: int = -1) -> bytes:
        """`size` bytes from `offset`; to the end when it is negative."""
        return self._run(self._paths.read, path, offset, size)

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """On all replicas when this returns. The file is created if need be."""
        self._run(self._paths.write, path, data, offset)

    def append(self, path: str, record: bytes) -> int:
        """Atomic record append [0104]: the offset at which the record is. The file is created if need be."""
        return self._run(self._paths.append, path, record)

    def remove(self, path: str, recursive: bool = False) -> None:
        self._run(self._paths.remove, path, recursive)

    def rename(self, path: str, new_path: str) -> None:
        self._run(self._paths.rename, path, new_path)

    def snapshot(self, source: str, target: str) -> Attr:
        """An instant copy of a file or a tree [0113]."""
        return self._run(self._paths.snapshot, source, target)


@contextmanager
def connect(address: str, options: ClientOptions | None = None) -> Iterator[SyncClient]:
    """A connected client; leaving the context closes it. Raises GfsError(UNREACHABLE) when there is no master."""
    ready: list[SyncClient | BaseException] = []
    started = threading.Event()
    finish: list[Callable[[], None]] = []

    async def serve() -> None:
        async with open_client(address, options=options) as client:
            done = trio.Event()
            token = trio.lowlevel.current_trio_token()
            finish.append(lambda: token.run_sync_soon(done.set))
            ready.append(SyncClient(client, token))
            started.set()
            await done.wait()

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as error:
            ready.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="gfs-client", daemon=True)
    thread.start()
    started.wait()
    first = ready[0]
    if isinstance(first, BaseException):
        thread.join()
        raise first
    try:
        yield first
    finally:
        finish[0]()
        thread.join()
    if len(ready) > 1 and isinstance(ready[1], BaseException):
        raise ready[1]
