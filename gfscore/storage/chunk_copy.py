"""A replica that arrives from another server: a temporary file until it is complete, then a chunk like any other.

It is written through a `Chunk` that the store does not list, so nobody can read it, and a restart removes it: what was
copied while the chunk changed must never be taken for a replica (rule 10). Blocking code for worker threads.
"""

from __future__ import annotations

import contextlib

from gfscore.storage.chunk_file import Chunk
from gfscore.storage.chunk_state import OpenChunk, create_file, disk_error
from gfscore.storage.chunk_store import CLONE_SUFFIX, ChunkStore


class IncomingCopy:
    """`chunk` takes the bytes. Raises GfsError (NO_SPACE, IO) and StoreFailed, as everything of the store."""

    __slots__ = ("_counted", "_path", "_store", "chunk", "handle")

    def __init__(self, store: ChunkStore, handle: int, version: int) -> None:
        self.handle = handle
        self._store = store
        self._path = path = store.path_of(handle) + CLONE_SUFFIX
        self._counted = 0
        store.check_usable()
        try:
            store.need_directory(handle)
            if store.disk.exists(path):
                store.disk.unlink(path)
            file, state = create_file(store.disk, path, handle, version, store.chunk_size)
        except OSError as error:
            raise disk_error(error, handle) from error
        self.chunk = Chunk(store, handle, name_durable=True)
        self.chunk.adopt(OpenChunk(file, state, lambda: store.disk.open(path, direct=True)))

    def finish(self, version: int) -> Chunk:
        """All of it durable at `version`, then a chunk of the store, in the place of an older replica if there is one.

        Either replica is there after a crash, whole.
        """
        self.chunk.set_version(self.chunk.version, version)
        return self._store.put_in_place(self.handle, self._path)

    def drop(self) -> None:
        """Give up. A file that cannot be removed now is removed by the next start."""
        live = self.chunk.live_if_open()
        if live is not None:
            self._store.count_bytes(-live.state.committed[0])
        self.chunk.adopt(None)
        with contextlib.suppress(OSError):
            self._store.disk.unlink(self._path)
