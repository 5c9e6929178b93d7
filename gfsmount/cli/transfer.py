"""Moves file data between local files, standard streams and the cluster, for cat, put, get and cp."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import BinaryIO

import trio

from gfscore.client import Attr, FileType, OpenFile
from gfscore.client.paths import split
from gfscore.errors import Code, GfsError
from gfsmount.cli.cluster_client import Session, about
from gfsmount.cli.output import Meter
from gfsmount.cli.targets import Target

_READ_BYTES = 4 * 1024 * 1024  # the client library reads its pieces side by side
_WRITE_BYTES = 1024 * 1024

Sink = Callable[[bytes | memoryview], Awaitable[None]]


async def read_file(file: OpenFile, sink: Sink, progress: Meter) -> None:
    """All of the file, the next part being fetched while the last one is taken by `sink`."""
    offset = 0
    data = await file.read(0, _READ_BYTES)
    while data:
        offset += len(data)
        following: list[bytes | memoryview] = []

        async def fetch(start: int, into: list[bytes | memoryview]) -> None:
            into.append(await file.read(start, _READ_BYTES))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, offset, following)
            await sink(data)
        progress.advance(len(data))
        data = following[0]


def into_stream(stream: BinaryIO) -> Sink:
    async def sink(data: bytes | memoryview) -> None:
        await trio.to_thread.run_sync(stream.write, data)

    return sink


async def read_input(read: Callable[[int], bytes], size: int) -> bytes:
    """`read(size)` in a thread that is left alone when the user interrupts: a terminal may never answer."""
    return await trio.to_thread.run_sync(read, size, abandon_on_cancel=True)


async def put_stream(file: OpenFile, stream: BinaryIO, progress: Meter) -> None:
    """All that `stream` still has. The file's handle stays open."""
    offset = 0
    while data := await read_input(stream.read, _WRITE_BYTES):
        await file.write(offset, data)
        offset += len(data)
        progress.advance(len(data))


async def open_new(session: Session, target: Target, mode: int = 0o644) -> OpenFile:
    """The file at `target`, empty, created if need be."""
    there = await session.stat_or_none(target)
    if there is not None:
        return await session.client.open(there.inode, write=True, truncate=True)
    parent, name = split(target.path)
    with about(target):
        directory = await session.paths.stat(parent)
    _, file = await session.client.create_file(directory.inode, name, mode, os.getuid(), os.getgid(), exclusive=False)
    return file


async def put(session: Session, local: Path, target: Target, recursive: bool, progress: Meter) -> None:
    """Copy a local file, or with `recursive` a directory or a symbolic link, to `target`."""
    status = local.lstat() if recursive else local.stat()
    if stat.S_ISDIR(status.st_mode):
        if not recursive:
            raise GfsError(Code.IS_DIRECTORY, f"{local} is a directory: add -r to copy it")
        await _make_directory(session, target, stat.S_IMODE(status.st_mode))
        for entry in sorted(local.iterdir()):
            await put(session, entry, target.below(entry.name), True, progress)
    elif stat.S_ISLNK(status.st_mode):
        await _make_symlink(session, target, os.readlink(os.fsencode(local)))
    elif stat.S_ISREG(status.st_mode):
        with local.open("rb") as stream:
            progress.add_total(status.st_size)
            file = await open_new(session, target, stat.S_IMODE(status.st_mode))
            try:
                await put_stream(file, stream, progress)
            finally:
                await file.close()
    else:
        raise GfsError(Code.NOT_SUPPORTED, f"{local} is neither a file nor a directory nor a symbolic link")


async def get(session: Session, source: Target, attr: Attr, local: Path, recursive: bool, progress: Meter) -> None:
    """Copy `source` to the local path, directories only with `recursive`."""
    if attr.type == FileType.DIRECTORY:
        _refuse_unless(recursive, source)
        local.mkdir(exist_ok=True)
        for entry in await session.paths.list_inode(attr.inode):
            name = os.fsdecode(entry.name)
            await get(session, source.below(name), entry.attr, local / name, True, progress)
    elif attr.type == FileType.SYMLINK:
        local.unlink(missing_ok=True)
        local.symlink_to(os.fsdecode(await session.client.readlink(attr.inode)))
    elif attr.type == FileType.FILE:
        progress.add_total(attr.size)
        with local.open("wb", buffering=0) as stream:
            await _read_inode(session, attr, into_stream(stream), progress)
        local.chmod(attr.mode & 0o777)
    else:
        raise GfsError(Code.NOT_SUPPORTED, f"{source.typed} is neither a file nor a directory nor a symbolic link")


async def copy(session: Session, source: Target, attr: Attr, target: Target, recursive: bool, progress: Meter) -> None:
    """Copy inside the cluster, byte by byte."""
    if attr.type == FileType.DIRECTORY:
        _refuse_unless(recursive, source)
        # Listed before the copy is made: a directory copied into itself must not find its own copy.
        entries = await session.paths.list_inode(attr.inode)
        await _make_directory(session, target, attr.mode)
        for entry in entries:
            name = os.fsdecode(entry.name)
            await copy(session, source.below(name), entry.attr, target.below(name), True, progress)
    elif attr.type == FileType.SYMLINK:
        await _make_symlink(session, target, await session.client.readlink(attr.inode))
    elif attr.type == FileType.FILE:
        await _copy_file(session, source, attr, target, progress)
    else:
        raise GfsError(Code.NOT_SUPPORTED, f"{source.typed} is neither a file nor a directory nor a symbolic link")


async def _copy_file(session: Session, source: Target, attr: Attr, target: Target, progress: Meter) -> None:
    there = await session.stat_or_none(target)
    if there is not None and there.inode == attr.inode:
        raise GfsError(Code.INVALID, f"{source.typed} and {target.typed} are the same file")
    progress.add_total(attr.size)
    file = await open_new(session, target, attr.mode)
    try:
        offset = 0

        async def sink(data: bytes | memoryview) -> None:
            nonlocal offset
            view = memoryview(data)
            for start in range(0, len(view), _WRITE_BYTES):
                await file.write(offset, view[start : start + _WRITE_BYTES])
                offset += len(view[start : start + _WRITE_BYTES])

        await _read_inode(session, attr, sink, progress)
    finally:
        await file.close()


async def _read_inode(session: Session, attr: Attr, sink: Sink, progress: Meter) -> None:
    file = await session.client.open(attr.inode)
    try:
        await read_file(file, sink, progress)
    finally:
        await file.close()


async def _make_directory(session: Session, target: Target, mode: int) -> None:
    """One that is there already is used."""
    try:
        await session.paths.mkdir(target.path, mode)
    except GfsError as error:
        if error.code is not Code.EXISTS:
            raise


async def _make_symlink(session: Session, target: Target, points_to: bytes) -> None:
    parent, name = split(target.path)
    directory = await session.paths.stat(parent)
    await session.client.create(
        directory.inode, name, FileType.SYMLINK, 0o777, os.getuid(), os.getgid(), target=points_to
    )


def _refuse_unless(recursive: bool, source: Target) -> None:
    if not recursive:
        raise GfsError(Code.IS_DIRECTORY, f"{source.typed} is a directory: add -r to copy it")
