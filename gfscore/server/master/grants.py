"""Signed grants: the master's permission to mutate one chunk, good in anybody's hands (rule 13).

A grant is signed once and answered again as it is; deciding who gets one happens elsewhere.
"""

from __future__ import annotations

import hmac

from gfscore.metadata.policies import Policy
from gfscore.proto import gfs_pb2 as pb


class GrantSigner:
    """Signs with the cluster's secret."""

    __slots__ = ("_chunk_size", "_secret")

    def __init__(self, secret: bytes, chunk_size: int) -> None:
        self._secret = secret
        self._chunk_size = chunk_size

    def sign(
        self,
        handle: int,
        version: int,
        primary: str,
        primary_epoch: int,
        replicas: list[pb.Server],
        policy: Policy,
        *,
        fresh: bool,
        length_floor: int,
    ) -> pb.Grant:
        """`length_floor`: an append starts at or behind this offset of the chunk, bytes."""
        body = pb.GrantBody(
            handle=handle,
            version=version,
            primary=primary,
            primary_epoch=primary_epoch,
            replicas=replicas,
            fresh=fresh,
            length_floor=length_floor,
            chunk_size=self._chunk_size,
            pad_byte=policy.append_pad,
            sync=policy.append_sync,
        ).SerializeToString()
        return pb.Grant(body=body, signature=hmac.digest(self._secret, body, "sha256"))
