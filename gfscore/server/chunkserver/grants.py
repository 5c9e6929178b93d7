"""Signed grants: the signature is checked once, afterwards a grant costs a dictionary look-up (rule 13).

Decides only whether the master wrote it; whether it holds now is for `gfscore.replica.grants`.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from gfscore.errors import Code, GfsError
from gfscore.ids import ChunkHandle, ChunkVersion, Epoch, ServerId
from gfscore.proto import gfs_pb2 as pb
from gfscore.replica.grants import ReplicaAddress, VerifiedGrant

_CACHED_MAX = 65536


class GrantVerifier:
    """Knows the cluster's secret once the server has registered."""

    __slots__ = ("_secret", "_verified")

    def __init__(self) -> None:
        self._secret = b""
        self._verified: dict[bytes, tuple[bytes, VerifiedGrant]] = {}

    def use_secret(self, secret: bytes) -> None:
        if secret != self._secret:
            self._secret = secret
            self._verified.clear()

    def verify(self, grant: pb.Grant) -> VerifiedGrant:
        """Raises GfsError: BAD_GRANT for a wrong signature, NOT_READY before the server has registered."""
        body = grant.body
        known = self._verified.get(grant.signature)
        if known is not None and known[0] == body:
            return known[1]
        if not self._secret:
            raise GfsError(Code.NOT_READY, "this chunkserver has not registered with its master yet")
        if not hmac.compare_digest(hmac.new(self._secret, body, sha256).digest(), grant.signature):
            raise GfsError(Code.BAD_GRANT, "the signature of the grant is wrong")
        verified = _parse(body)
        if len(self._verified) >= _CACHED_MAX:
            del self._verified[next(iter(self._verified))]
        self._verified[grant.signature] = (body, verified)
        return verified


def _parse(body: bytes) -> VerifiedGrant:
    message = pb.GrantBody.FromString(body)
    return VerifiedGrant(
        handle=ChunkHandle(message.handle),
        version=ChunkVersion(message.version),
        primary=ServerId(message.primary),
        primary_epoch=Epoch(message.primary_epoch),
        replicas=tuple(
            ReplicaAddress(ServerId(server.id), server.address.host, server.address.port) for server in message.replicas
        ),
        fresh=message.fresh,
        length_floor=message.length_floor,
        chunk_size=message.chunk_size,
        pad_byte=message.pad_byte,
        sync=message.sync,
    )
