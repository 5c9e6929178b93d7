"""One mutation of one chunk, and how it is carried out on the local replica. Runs in threads too: no async here."""

from __future__ import annotations

from collections.abc import Sequence

from gfscore.checksum import crc32c
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.server.chunkserver.pushes import Pushed
from gfscore.storage.chunk_store import Chunk

INLINE_BYTES_MAX = BLOCK_BYTES  # rides with the control message
PAD_COST = 1 << 20

WRITE = pb.ApplyRequest.WRITE
APPEND = pb.ApplyRequest.APPEND
PAD = pb.ApplyRequest.PAD
SYNC = pb.ApplyRequest.SYNC
COPY = pb.ApplyRequest.COPY


class Mutation:
    """`extents` are (offset in the chunk, length) and lie in `data` one after the other.

    `data` is None where a push that should be here is not: found out when its turn comes, because a duplicate has
    consumed it.
    """

    __slots__ = (
        "checksum", "checksums", "client_id", "data", "extents", "kind", "push_id", "pushed", "sequence", "sync",
    )  # fmt: skip

    def __init__(self, kind: pb.ApplyRequest.Kind.ValueType, *, sync: bool = False) -> None:
        self.kind = kind
        self.sync = sync
        self.extents: list[tuple[int, int]] = []
        self.data: memoryview | None = None
        self.checksum = 0  # CRC32C of inline data
        self.checksums: Sequence[int] | None = None  # of the 64 KiB blocks of pushed data
        self.client_id = 0
        self.sequence = 0
        self.push_id = 0
        self.pushed: Pushed | None = None

    def use_inline(self, data: memoryview, checksum: int) -> None:
        """The bytes came with the message. Raises GfsError(CHECKSUM_MISMATCH)."""
        if crc32c(data) != checksum:
            raise GfsError(Code.CHECKSUM_MISMATCH, "the data of a mutation was damaged on its way")
        self.data = data
        self.checksum = checksum

    def use_push(self, push_id: int, pushed: Pushed | None) -> None:
        """The bytes were pushed before."""
        self.push_id = push_id
        self.pushed = pushed
        if pushed is not None:
            self.data = pushed.view
            self.checksums = pushed.checksums

    def release(self) -> None:
        """Give pushed bytes back; the mutation is over."""
        pushed, self.pushed = self.pushed, None
        if pushed is not None:
            self.data = None
            pushed.release()

    @property
    def cost(self) -> int:
        """How much work it is, in bytes to write: each extent may touch a block of its own."""
        if self.kind == PAD:
            return PAD_COST
        size = len(self.data) if self.data is not None else 0
        return size + (len(self.extents) - 1) * BLOCK_BYTES if self.extents else size

    def apply(self, chunk: Chunk, pad_byte: int) -> None:
        """Carry it out. Blocking. Raises GfsError, and then the replica is as it was."""
        if self.kind == PAD:
            chunk.pad(pad_byte)
            return
        if self.kind == SYNC:
            chunk.sync()
            return
        data = self.data
        if data is None:
            raise GfsError(Code.UNKNOWN_PUSH, f"push {self.push_id} is not here: it aged out or never came")
        append = (self.client_id, self.sequence) if self.kind == APPEND else None
        extents = self.extents
        if len(extents) == 1:
            offset = extents[0][0]
            checksums = self.checksums if offset % BLOCK_BYTES == 0 else None
            chunk.write([(offset, data)], checksums, append, self.sync)
            return
        parts = []
        position = 0
        for offset, length in extents:
            parts.append((offset, data[position : position + length]))
            position += length
        chunk.write(parts, None, append, self.sync)


def describe(mutations: Sequence[Mutation], grant: pb.Grant, serial: int) -> tuple[pb.ApplyRequest, list[memoryview]]:
    """The message that tells a secondary to do the same, and its payload."""
    request = pb.ApplyRequest(grant=grant, serial=serial)
    payload = []
    target = request
    for number, mutation in enumerate(mutations):
        if number:
            target = request.more.add()
        target.kind = mutation.kind
        target.client_id = mutation.client_id
        target.sequence = mutation.sequence
        target.push_id = mutation.push_id
        target.sync = mutation.sync
        for offset, length in mutation.extents:
            target.extents.add(offset=offset, length=length)
        if mutation.data is not None and not mutation.push_id:
            target.checksum = mutation.checksum
            payload.append(mutation.data)
    return request, payload


def parse(request: pb.ApplyRequest, payload: memoryview, chunk_size: int) -> list[Mutation]:
    """The mutations of a message from a primary, pushed data apart. Raises GfsError(INVALID) for a wrong form."""
    mutations = []
    position = 0
    for message in (request, *request.more):
        mutation = Mutation(message.kind, sync=message.sync)
        mutation.client_id, mutation.sequence = message.client_id, message.sequence
        mutation.extents = [(extent.offset, extent.length) for extent in message.extents]
        mutation.push_id = message.push_id
        size = sum(length for _, length in mutation.extents)
        if any(not length or offset + length > chunk_size for offset, length in mutation.extents):
            raise GfsError(Code.INVALID, "an extent is empty or leaves the chunk")
        if message.kind in (WRITE, APPEND):
            if not size or (message.kind == APPEND and len(mutation.extents) != 1):
                raise GfsError(Code.INVALID, "a mutation without proper extents")
            if not message.push_id:
                mutation.use_inline(payload[position : position + size], message.checksum)
                position += size
        elif size or message.kind not in (PAD, SYNC):
            raise GfsError(Code.INVALID, "a mutation of a kind that is not known here")
        mutations.append(mutation)
    if position != len(payload):
        raise GfsError(Code.INVALID, f"{len(payload)} bytes of payload for extents of {position}")
    return mutations
