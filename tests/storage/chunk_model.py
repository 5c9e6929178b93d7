"""A chunk as a bytearray: what the store must answer, and a script of mutations that both carry out."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from gfscore.env.memory_disk import MemoryDisk
from gfscore.ids import BLOCK_BYTES
from gfscore.storage.chunk_store import Chunk, ChunkStore

CHUNK_BYTES = 4 * BLOCK_BYTES


class Model:
    """One chunk: its bytes, its version, the latest append of each client."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.version = 1
        self.slots: dict[int, tuple[int, int, int]] = {}

    def copy(self) -> Model:
        twin = Model()
        twin.data[:] = self.data
        twin.version = self.version
        twin.slots = dict(self.slots)
        return twin

    def write(self, extents: list[tuple[int, bytes]]) -> None:
        for offset, data in extents:
            if offset > len(self.data):
                self.data.extend(bytes(offset - len(self.data)))
            self.data[offset : offset + len(data)] = data

    def cut(self, length: int) -> None:
        del self.data[length:]
        self.slots = {client: slot for client, slot in self.slots.items() if slot[1] + slot[2] <= length}


class Step:
    """One mutation: `run` on the store's chunk, `apply` on the model. `sync`: durable when it returned."""

    def __init__(
        self, name: str, run: Callable[[Chunk], object], apply: Callable[[Model], object], sync: bool = False
    ) -> None:
        self.name, self.run, self.apply, self.sync = name, run, apply, sync


def write(extents: list[tuple[int, bytes]], sync: bool = False) -> Step:
    name = f"write {[(offset, len(data)) for offset, data in extents]} sync={sync}"
    return Step(name, lambda chunk: chunk.write(extents, sync=sync), lambda model: model.write(extents), sync)


def append(client: int, sequence: int, data: bytes, sync: bool = False) -> Step:
    def apply(model: Model) -> None:
        model.slots[client] = (sequence, len(model.data), len(data))
        model.data.extend(data)

    return Step(
        f"append {len(data)} sync={sync}",
        lambda chunk: chunk.write([(chunk.length, data)], append=(client, sequence), sync=sync),
        apply,
        sync,
    )


def pad(byte: int, sync: bool = False) -> Step:
    return Step(
        f"pad {byte} sync={sync}",
        lambda chunk: chunk.pad(byte, sync),
        lambda model: model.data.extend(bytes([byte]) * (CHUNK_BYTES - len(model.data))),
        sync,
    )


def set_version(old: int, new: int, truncate: int | None = None) -> Step:
    def apply(model: Model) -> None:
        model.version = new
        if truncate is not None:
            model.cut(truncate)

    return Step(f"version {new} cut {truncate}", lambda chunk: chunk.set_version(old, new, truncate), apply, True)


def sync() -> Step:
    return Step("sync", lambda chunk: chunk.sync(), lambda model: None, True)


def script(seed: int = 1) -> list[Step]:
    """Every kind of mutation, at the places where one block, page or header state meets the next."""
    random = Random(seed)
    block = BLOCK_BYTES
    return [
        append(7, 1, random.randbytes(200)),
        append(8, 1, random.randbytes(5000)),
        write([(5200, random.randbytes(70_000))]),
        write([(100, random.randbytes(3000))]),
        sync(),
        write([(74_000, random.randbytes(9_000))]),
        write([(10, random.randbytes(10)), (65_000, random.randbytes(2000)), (82_000, random.randbytes(500))], True),
        append(7, 2, random.randbytes(300)),
        write([(block, random.randbytes(1000)), (82_000, random.randbytes(2000))]),
        set_version(1, 2),
        write([(0, random.randbytes(block)), (block + 77, random.randbytes(8192))]),
        write([(140_000, random.randbytes(100))]),
        write([(141_000, random.randbytes(100)), (130_900, random.randbytes(300))], True),
        set_version(2, 3, 100_000),
        append(9, 1, random.randbytes(700), True),
        write([(100_100, random.randbytes(50)), (99_000, random.randbytes(2000))]),
        write([(70_000, random.randbytes(200))], True),
        pad(10),
        write([(200_000, random.randbytes(4096)), (5, b"x")], True),
    ]


def open_store(disk: MemoryDisk, boot_id: str = "boot", **options: int) -> ChunkStore:
    store = ChunkStore(disk, CHUNK_BYTES, boot_id=boot_id, **options)
    store.open_all()
    return store


def check_between(chunk: Chunk, old: Model, new: Model, context: str) -> None:
    """The chunk is `old`, or `new`, or `new` in some of its blocks (rule 18)."""
    length = chunk.length
    assert length in (len(old.data), len(new.data)), f"{context}: length {length}"
    assert chunk.version in (old.version, new.version), context
    data = bytes(chunk.read(0, length))
    for start in range(0, length, BLOCK_BYTES):
        got = data[start : start + BLOCK_BYTES]
        end = start + len(got)
        assert got in (old.data[start:end], new.data[start:end]), f"{context}: block at {start} is a third thing"
    for client in set(old.slots) | set(new.slots):
        assert chunk.append_slot(client) in (old.slots.get(client), new.slots.get(client)), f"{context}: slot {client}"
    assert chunk.verify() == [] and not chunk.corrupt, context
