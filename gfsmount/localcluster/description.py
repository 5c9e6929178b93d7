"""Turns what `gfs up` was asked into the description of the cluster: a new one, or the one that is there, checked.

Finds ports for what is new; starts and writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from gfscore.errors import Code, GfsError
from gfscore.ids import CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, CHUNK_BYTES_MIN
from gfsmount.localcluster.layout import (
    HOST,
    LAYOUT_VERSION,
    TRASH_SECONDS_DEFAULT,
    ClusterSpec,
    MountSpec,
    ServerSpec,
)
from gfsmount.localcluster.ports import free_ports

_CHUNKSERVERS_MAX = 64
_REPLICATION_MAX = 16
_TRASH_SECONDS_MAX = (1 << 40) - 1


@dataclass(frozen=True)
class UpOptions:
    """What the caller asked for; None is "the default, or what the cluster has". Sizes in bytes."""

    mounts: tuple[str, ...] = ()
    chunkservers: int | None = None
    replication: int | None = None
    chunk_size: int | None = None
    lease_seconds: float | None = None
    racks: int | None = None
    trash_seconds: int | None = None
    scrub_rate: int | None = None
    down_seconds: float | None = None


def describe(known: ClusterSpec | None, options: UpOptions) -> ClusterSpec:
    """The description to run. Raises GfsError(INVALID) for values out of range or at odds with the cluster."""
    _check_ranges(options)
    ports = free_ports(HOST)
    if known is None:
        spec = ClusterSpec(
            layout=LAYOUT_VERSION,
            chunk_size=options.chunk_size or CHUNK_BYTES_DEFAULT,
            lease_seconds=options.lease_seconds or 60.0,
            replication=options.replication or 3,
            racks=options.racks or 1,
            master_port=next(ports),
            stream_port=next(ports),
            trash_seconds=TRASH_SECONDS_DEFAULT if options.trash_seconds is None else options.trash_seconds,
            down_seconds=options.down_seconds or 30.0,
        )
    else:
        spec = known
        _check_unchanged(spec, options)
    if options.scrub_rate is not None:
        spec.scrub_rate = options.scrub_rate
    _add_chunkservers(spec, options.chunkservers if options.chunkservers is not None else (0 if known else 3), ports)
    for mountpoint in options.mounts:
        _add_mount(spec, os.path.abspath(mountpoint))
    return spec


def _check_ranges(options: UpOptions) -> None:
    size = options.chunk_size
    if size is not None and not (CHUNK_BYTES_MIN <= size <= CHUNK_BYTES_MAX and size % CHUNK_BYTES_MIN == 0):
        raise GfsError(Code.INVALID, "--chunk-size must be 1MiB to 1GiB and a multiple of 1MiB")
    for value, name, least, most in (
        (options.chunkservers, "--chunkservers", 1, _CHUNKSERVERS_MAX),
        (options.replication, "--replication", 1, _REPLICATION_MAX),
        (options.racks, "--racks", 1, _CHUNKSERVERS_MAX),
        (options.lease_seconds, "--lease-seconds", 1, 3600),
        (options.trash_seconds, "--trash-seconds", 0, _TRASH_SECONDS_MAX),
        (options.scrub_rate, "--scrub-rate", 0, 1 << 40),
        (options.down_seconds, "--down-seconds", 1, 86400),
    ):
        if value is not None and not least <= value <= most:
            raise GfsError(Code.INVALID, f"{name} must be {least} to {most}")


def _check_unchanged(spec: ClusterSpec, options: UpOptions) -> None:
    for asked, there, name in (
        (options.chunk_size, spec.chunk_size, "--chunk-size"),
        (options.replication, spec.replication, "--replication"),
        (options.lease_seconds, spec.lease_seconds, "--lease-seconds"),
        (options.racks, spec.racks, "--racks"),
        (options.trash_seconds, spec.trash_seconds, "--trash-seconds"),
        (options.down_seconds, spec.down_seconds, "--down-seconds"),
    ):
        if asked is not None and asked != there:
            raise GfsError(
                Code.INVALID,
                f"this cluster was made with {name} {_text(name, there)}, not {_text(name, asked)}: "
                "leave it out, or use another --root",
            )


def _text(name: str, value: float) -> str:
    return f"{value / CHUNK_BYTES_MIN:g}MiB" if name == "--chunk-size" else f"{value:g}"


def _add_chunkservers(spec: ClusterSpec, count: int, ports: Iterator[int]) -> None:
    have = len(spec.chunkservers)
    if count and count < have:
        raise GfsError(
            Code.INVALID,
            f"this cluster has {have} chunkservers, not {count}: more can be added, none taken away like this",
        )
    for number in range(have, count):
        spec.chunkservers.append(
            ServerSpec(f"cs{number + 1}", next(ports), next(ports), f"rack{number % spec.racks + 1}")
        )


def _add_mount(spec: ClusterSpec, mountpoint: str) -> None:
    if all(mount.mountpoint != mountpoint for mount in spec.mounts):
        name = "mount" if not spec.mounts else f"mount{len(spec.mounts) + 1}"
        spec.mounts.append(MountSpec(name, mountpoint))
