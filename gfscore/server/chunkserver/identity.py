"""Who this server is: the small file in its data directory, and the lock that keeps a second process out (rule 22).

The file holds `name=value` lines; it is replaced as a whole and durable before anything relies on it. Only a full disk
has it written over: it has the size of a disk's sector for that.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from random import Random

from gfscore.env.interfaces import Disk, DiskFile
from gfscore.errors import Code, GfsError

_FILE = "identity"
_NEW_FILE = "identity.new"
_LOCK_FILE = "lock"
_CHUNKS = "chunks"
_FILE_BYTES = 512
_FILE_BYTES_MAX = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """`incarnation` counts the starts; `cluster_id` is empty and `chunk_size` 0 before the server ever joined."""

    server_id: str
    cluster_id: str
    incarnation: int
    chunk_size: int


def start_incarnation(disk: Disk, random: Random) -> Identity:
    """The identity of this start: read, or made on a new directory, with the next incarnation, durable. Blocking.

    Raises GfsError(IO) when the file does not make sense, or is missing beside chunks.
    """
    if disk.exists(_FILE):
        found = _read(disk)
        identity = replace(found, incarnation=found.incarnation + 1)
    else:
        if disk.exists(_CHUNKS) and any(disk.listdir(f"{_CHUNKS}/{name}") for name in _directories(disk)):
            raise GfsError(
                Code.IO,
                f"{disk.real_path('')} has chunks, but the file {_FILE!r}, which says whose they are, is missing; "
                "restore it, or use an empty directory: then the chunks are copied here from other chunkservers",
            )
        identity = Identity(f"cs-{random.getrandbits(64):016x}", "", 1, 0)
    _write(disk, identity)
    return identity


def join_cluster(disk: Disk, identity: Identity, cluster_id: str, chunk_size: int) -> Identity:
    """`identity` as a member of the cluster, durable. Blocking.

    Raises GfsError(WRONG_CLUSTER) when the directory belongs to another one, or was made with another chunk size.
    """
    if identity.cluster_id == cluster_id and identity.chunk_size == chunk_size:
        return identity
    if identity.cluster_id and identity.cluster_id != cluster_id:
        raise GfsError(
            Code.WRONG_CLUSTER,
            f"this data directory belongs to cluster {identity.cluster_id}, the master is of {cluster_id}; "
            "use the right master, or an empty directory",
        )
    if identity.chunk_size and identity.chunk_size != chunk_size:
        raise GfsError(
            Code.WRONG_CLUSTER,
            f"this data directory has chunks of {identity.chunk_size} bytes, the cluster of {chunk_size}",
        )
    joined = replace(identity, cluster_id=cluster_id, chunk_size=chunk_size)
    _write(disk, joined)
    return joined


def lock_directory(disk: Disk) -> DiskFile:
    """The lock, held until it is closed. Blocking. Raises GfsError(BUSY) when another process has it."""
    try:
        disk.mkdir("")
        return disk.lock(_LOCK_FILE)
    except BlockingIOError:
        raise GfsError(
            Code.BUSY, f"{disk.real_path('')} is in use by another chunkserver; stop it, or use another directory"
        ) from None
    except OSError as error:
        raise GfsError(Code.IO, f"cannot use the data directory {disk.real_path('')}: {error.strerror}") from error


def _directories(disk: Disk) -> list[str]:
    return [name for name in disk.listdir(_CHUNKS) if len(name) == 2]


def _read(disk: Disk) -> Identity:
    file = disk.open(_FILE)
    try:
        text = file.pread(_FILE_BYTES_MAX, 0).decode("utf-8", "replace")
    finally:
        file.close()
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    try:
        return Identity(
            values["server_id"], values["cluster_id"], int(values["incarnation"]), int(values["chunk_size"])
        )
    except (KeyError, ValueError):
        raise GfsError(
            Code.IO, f"{disk.real_path(_FILE)} is damaged; restore it, or remove the directory to start as a new server"
        ) from None


def _write(disk: Disk, identity: Identity) -> None:
    text = (
        (
            f"server_id={identity.server_id}\ncluster_id={identity.cluster_id}\n"
            f"incarnation={identity.incarnation}\nchunk_size={identity.chunk_size}\n"
        )
        .encode()
        .ljust(_FILE_BYTES, b"\n")
    )
    try:
        _write_durably(disk, _NEW_FILE, text)
    except OSError as error:
        if error.errno != errno.ENOSPC or not disk.exists(_FILE):
            raise
        # What is on a full disk is to be read all the same.
        if disk.exists(_NEW_FILE):
            disk.unlink(_NEW_FILE)
        _write_durably(disk, _FILE, text)
        return
    disk.rename(_NEW_FILE, _FILE)
    disk.sync_directory("")


def _write_durably(disk: Disk, path: str, text: bytes) -> None:
    file = disk.open(path, create=True)
    try:
        file.pwrite(text, 0)
        file.truncate(len(text))
        file.fdatasync()
    finally:
        file.close()
