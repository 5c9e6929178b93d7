"""The methods of the wire contract by number and by name, read off the generated descriptors."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf import message_factory

from gfscore.errors import Code, GfsError
from gfscore.proto import gfs_pb2

SERVICES = ("Master", "ClientCallback", "Chunkserver", "ChunkData")  # append only: the position is on the wire
_METHODS_PER_SERVICE = 256


class Method(NamedTuple):
    service: str
    name: str
    number: int
    request: Any  # message class
    reply: Any


def _load() -> list[Method]:
    methods = []
    for position, service in enumerate(SERVICES):
        descriptor = gfs_pb2.DESCRIPTOR.services_by_name[service]
        for index, method in enumerate(descriptor.methods):
            methods.append(
                Method(
                    service,
                    method.name,
                    position * _METHODS_PER_SERVICE + index,
                    message_factory.GetMessageClass(method.input_type),
                    message_factory.GetMessageClass(method.output_type),
                )
            )
    return methods


BY_NUMBER: dict[int, Method] = {m.number: m for m in _load()}
BY_NAME: dict[tuple[str, str], Method] = {(m.service, m.name): m for m in BY_NUMBER.values()}


def method_named(service: str, name: str) -> Method:
    """Raises GfsError(BAD_MESSAGE) for a name the contract does not have."""
    try:
        return BY_NAME[service, name]
    except KeyError:
        raise GfsError(Code.BAD_MESSAGE, f"no method {service}.{name}") from None
