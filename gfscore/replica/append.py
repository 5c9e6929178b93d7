"""Where a record append goes: the offset, the padding, and the recognition of a retry [0104]-[0111].

Pure arithmetic on the state the primary plans with; rules 14 to 17.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from gfscore.errors import Code, GfsError
from gfscore.ids import APPEND_FRACTION


class AppendSlot(NamedTuple):
    """The latest append of one client to this chunk, kept with the replica as durably as the data."""

    sequence: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class AppendAt:
    """Write the record here, on every replica [0107]."""

    offset: int


@dataclass(frozen=True, slots=True)
class Pad:
    """It does not fit: fill the chunk from its end and send the client to the next one [0106]."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A retry of what was appended before: answer this offset again."""

    offset: int


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Over a quarter of a chunk [0106]."""

    bytes_max: int


Decision = AppendAt | Pad | Duplicate | TooLarge
PAD = Pad()


def decide_append(
    length: int, floor: int, chunk_size: int, record_length: int, slot: AppendSlot | None, sequence: int
) -> Decision:
    """What to do with a record of `record_length` bytes; all sizes in bytes.

    `length` is where the chunk ends with everything planned before, `floor` the offset below which no record may start,
    `slot` the latest append of the same client here. The retry is recognised before anything else: the chunk may have
    been padded since. Raises GfsError(INVALID) for an empty record, for a sequence older than the slot's, and for a
    retry of another length.
    """
    if record_length > chunk_size // APPEND_FRACTION:
        return TooLarge(chunk_size // APPEND_FRACTION)
    if record_length < 1:
        raise GfsError(Code.INVALID, "a record has at least 1 byte")
    if slot is not None and sequence <= slot.sequence:
        if sequence < slot.sequence:
            raise GfsError(Code.INVALID, f"append {sequence} is older than {slot.sequence}, the latest of this client")
        if slot.length != record_length:
            raise GfsError(
                Code.INVALID, f"append {sequence} was {slot.length} bytes before and is {record_length} bytes now"
            )
        return Duplicate(slot.offset)
    offset = max(length, floor)
    if offset + record_length > chunk_size:
        return PAD
    return AppendAt(offset)
