"""Data that was pushed and waits for its mutation: received into aligned buffers, passed on while it arrives.

[0098]-[00100]. Answers a push only when every server behind has it.
"""

from __future__ import annotations

from gfscore.checksum import block_checksums
from gfscore.env.interfaces import Clock
from gfscore.errors import Code, GfsError
from gfscore.ids import BLOCK_BYTES
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.push_buffer import PushBuffer
from gfscore.rpc.transport import CallContext, PayloadReader
from gfscore.server.chunkserver.peers import Peers, StreamingCall
from gfscore.storage.buffers import BufferPool, PooledBuffer

PUSH_BYTES_MAX = 16 * 1024 * 1024  # the largest record: a quarter of a chunk, as far as a frame goes
PUSH_AGE_SECONDS = 60.0
_ROOM_WAIT_SECONDS = 5.0
_ROOM_POLL_SECONDS = 0.02
_CHAIN_SECONDS = 20.0


class Pushed:
    """One pushed piece in a pooled buffer, verified; `checksums` are of its 64 KiB blocks."""

    __slots__ = ("_buffer", "_pushes", "checksums", "size", "view")

    def __init__(self, pushes: Pushes, buffer: PooledBuffer, checksums: list[int]) -> None:
        self._pushes = pushes
        self._buffer = buffer
        self.view = buffer.view
        self.size = len(buffer.view)
        self.checksums = checksums

    def release(self) -> None:
        """The bytes are written, or given up. Call it once."""
        self.view = memoryview(b"")
        self._buffer.release()
        self._pushes.account.release(self.size)


class Pushes:
    """The push buffer of one server."""

    def __init__(self, clock: Clock, peers: Peers, pool: BufferPool, bytes_max: int) -> None:
        self.account: PushBuffer[Pushed] = PushBuffer(bytes_max, PUSH_AGE_SECONDS)
        self._clock = clock
        self._peers = peers
        self._pool = pool

    async def push(self, request: pb.PushRequest, context: CallContext) -> pb.Empty:
        """Handler of `Push`.

        Raises GfsError: BAD_MESSAGE for a wrong form, CHECKSUM_MISMATCH, NOT_READY when the buffer stays full,
        REPLICA_FAILED when a server behind did not take it.
        """
        payload = context.payload
        size = payload.size
        checksums = list(request.checksums)
        if not 0 < size <= PUSH_BYTES_MAX or len(checksums) != -(-size // BLOCK_BYTES):
            raise GfsError(Code.BAD_MESSAGE, f"a push of {size} bytes with {len(checksums)} checksums")
        await self._make_room(size)
        buffer = None
        kept = False
        try:
            buffer = self._pool.acquire(size)
            if request.chain:
                await self._receive_and_forward(request, payload, buffer.view)
            else:
                await _receive(payload, buffer.view, None)
            if list(block_checksums(buffer.view)) != checksums:
                raise GfsError(Code.CHECKSUM_MISMATCH, "pushed data was damaged on its way")
            replaced = self.account.put(
                (request.client_id, request.push_id), Pushed(self, buffer, checksums), size, self._clock.boottime()
            )
            kept = True
            if replaced is not None:
                replaced.release()
        finally:
            if not kept:
                self.account.release(size)
                if buffer is not None:
                    buffer.release()
        return pb.Empty()

    def take(self, client_id: int, push_id: int) -> Pushed | None:
        """Remove it; the caller releases it. None when it aged out or never came."""
        return self.account.take((client_id, push_id))

    def peek(self, client_id: int, push_id: int) -> Pushed:
        """Raises GfsError(UNKNOWN_PUSH) when it aged out or never came."""
        pushed = self.account.peek((client_id, push_id))
        if pushed is None:
            raise GfsError(Code.UNKNOWN_PUSH, f"push {push_id} is not here: it aged out or never came")
        return pushed

    def expire(self) -> int:
        """Drop what waited too long; the number of pieces."""
        gone = self.account.expired(self._clock.boottime())
        for pushed in gone:
            pushed.release()
        return len(gone)

    async def _make_room(self, size: int) -> None:
        deadline = None
        while not self.account.reserve(size):
            now = self._clock.boottime()
            deadline = now + _ROOM_WAIT_SECONDS if deadline is None else deadline
            self.expire()
            if now >= deadline:
                raise GfsError(Code.NOT_READY, "the push buffer is full")
            # The sender is held up meanwhile: the connection is not read on.
            await self._clock.sleep(_ROOM_POLL_SECONDS)

    async def _receive_and_forward(self, request: pb.PushRequest, payload: PayloadReader, view: memoryview) -> None:
        following = request.chain[0]
        behind = pb.PushRequest(
            client_id=request.client_id,
            push_id=request.push_id,
            chain=request.chain[1:],
            checksums=request.checksums,
        )
        try:
            async with (
                self._peers.push((following.host, following.port)) as channel,
                channel.call_streaming("Push", behind, len(view), _CHAIN_SECONDS) as call,
            ):
                await _receive(payload, view, call)
                await call.result()
        except GfsError as error:
            if error.code in (Code.UNREACHABLE, Code.SHUTTING_DOWN):
                raise GfsError(
                    Code.REPLICA_FAILED, f"{following.host}:{following.port} did not take the push: {error}"
                ) from error
            raise


async def _receive(payload: PayloadReader, view: memoryview, call: StreamingCall | None) -> None:
    """Fill `view`; what arrives is sent on at once."""
    position = 0
    while position < len(view):
        count = await payload.read_into(view[position:])
        if not count:
            raise GfsError(Code.BAD_MESSAGE, "the payload ended early")
        if call is not None:
            await call.send(view[position : position + count])
        position += count
