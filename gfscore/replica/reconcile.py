"""What a new primary copies to a secondary so that both are byte-equal before the first mutation (rule 9).

Works on lengths and block checksums alone: 4 KiB of them for a chunk of 64 MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from gfscore.checksum import Buffer
from gfscore.ids import BLOCK_BYTES, PIECE_BYTES

_ENTRY_BYTES = 4  # CRC32C of one block, little endian

# Whether a replica has everything that was acknowledged, the less the better: it lived through all of it; it was
# restarted, or missed a mutation; the power failed. The one with the least doubt makes the others equal to itself.
NO_DOUBT, RESTARTED, POWER_LOST = 0, 1, 2


@dataclass(frozen=True, slots=True)
class BlockState:
    """A replica as its checksums tell: length in bytes, CRC32C of the last partial block, of all complete ones, and
    the append table, opaque."""

    length: int
    tail_checksum: int
    table: Buffer
    clients: bytes


class CopyStep(NamedTuple):
    """Copy `size` bytes at `offset`; the secondary is `length_after` bytes long then."""

    offset: int
    size: int
    length_after: int


def plan_copy(primary: BlockState, secondary: BlockState) -> list[CopyStep]:
    """The steps, ascending, of at most one piece each; empty when the replicas are equal.

    A shorter secondary grows step by step, so that no byte is written twice; a longer one is cut by the first step.
    """
    ranges = _merge(_differing_blocks(primary, secondary), primary.length)
    if not ranges and (primary.length != secondary.length or primary.clients != secondary.clients):
        ranges = [(primary.length, 0)]
    grows = secondary.length < primary.length
    return [
        CopyStep(offset, size, max(secondary.length, offset + size) if grows else primary.length)
        for offset, size in ranges
    ]


def with_checksums(state: BlockState, known: Mapping[int, int]) -> BlockState:
    """`state` with other checksums for some of its blocks, which were damaged there and are `known` from elsewhere."""
    tail_checksum, table = state.tail_checksum, bytearray(state.table)
    for block, checksum in known.items():
        if block < state.length // BLOCK_BYTES:
            table[block * _ENTRY_BYTES : (block + 1) * _ENTRY_BYTES] = checksum.to_bytes(_ENTRY_BYTES, "little")
        else:
            tail_checksum = checksum
    return BlockState(state.length, tail_checksum, table, state.clients)


def _differing_blocks(primary: BlockState, secondary: BlockState) -> list[int]:
    complete, tail = divmod(primary.length, BLOCK_BYTES)
    their_complete = secondary.length // BLOCK_BYTES
    mine, theirs = memoryview(primary.table), memoryview(secondary.table)
    shared = min(complete, their_complete)
    if mine[: shared * _ENTRY_BYTES] == theirs[: shared * _ENTRY_BYTES]:
        differing = list(range(shared, complete))
    else:
        differing = [
            block
            for block in range(complete)
            if block >= shared
            or mine[block * _ENTRY_BYTES : (block + 1) * _ENTRY_BYTES]
            != theirs[block * _ENTRY_BYTES : (block + 1) * _ENTRY_BYTES]
        ]
    if tail and (primary.length != secondary.length or primary.tail_checksum != secondary.tail_checksum):
        differing.append(complete)
    return differing


def _merge(blocks: list[int], length: int) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for block in blocks:
        offset = block * BLOCK_BYTES
        size = min(BLOCK_BYTES, length - offset)
        if ranges and ranges[-1][0] + ranges[-1][1] == offset and ranges[-1][1] + size <= PIECE_BYTES:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + size)
        else:
            ranges.append((offset, size))
    return ranges
