"""`gfs trash`: deleted files, listed by the path they had, restored, or reclaimed before their time is over."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from gfscore.ids import TRASH_INODE
from gfsmount.cli.options import json_option, master_option

if TYPE_CHECKING:
    from gfscore.client.trash import DeletedFile
    from gfsmount.cli.cluster_client import Session

_DIRECTORY = b"/.trash"
_ENTRY = re.compile(r"\d{8}T\d{6}Z\.[0-9a-f]+\.[^/]+$")
_SECONDS_MAX = 253_402_214_400.0  # the year 9999: something that is kept for ever


@click.group("trash")
def command() -> None:
    """Deleted files: they can be restored until their time in the trash is over (the policy trash_seconds).

    They are also found below the directory .trash of the mount, which its listing does not show.
    """


@command.command("ls")
@click.argument("path", required=False, metavar="[PATH_OR_ENTRY]")
@json_option
@master_option
def ls(path: str | None, as_json: bool, master: str | None) -> None:
    """List deleted files that were at or below PATH (default: all), or one entry by its name."""
    from gfsmount.cli.cluster_client import on_cluster
    from gfsmount.cli.output import print_json, print_table

    place = _place(path, master)

    async def work(session: Session) -> list[dict[str, Any]]:
        if place.entry:
            return [await _row(session, await session.client.trash.find(place.entry))]
        return [await _row(session, file) for file in await session.client.trash.list(place.path)]

    rows = on_cluster(place.address, work)
    if as_json:
        print_json(rows)
    elif rows:
        print_table(
            ("DELETED", "EXPIRES", "SIZE", "NAME", "PATH"),
            [(_when(row["deleted"]), _when(row["expires"]), row["size"], row["name"], row["path"]) for row in rows],
        )


@command.command("restore")
@click.argument("paths", nargs=-1, required=True, metavar="PATH_OR_ENTRY…")
@click.option("--to", metavar="DST", help="Restore there: a directory, or the new path of a single file.")
@master_option
def restore(paths: tuple[str, ...], to: str | None, master: str | None) -> int:
    """Restore deleted files to the paths they had; directories that are gone are made, nothing is overwritten.

    PATH is where a file was (of several the one deleted last is taken), or a directory, for all that was deleted below
    it. An entry is a name as `gfs trash ls` shows it. Exit status 1 if something could not be restored.
    """
    from gfscore.errors import GfsError
    from gfsmount.cli.cluster_client import on_cluster
    from gfsmount.cli.output import shown
    from gfsmount.cli.usage import UsageProblem

    places = [_place(path, master) for path in paths]
    goal = None if to is None else _place(to, master)
    if len({place.address for place in (*places, *([goal] if goal else []))}) > 1:
        raise UsageProblem("the paths are on different clusters")

    async def work(session: Session) -> int:
        failed = 0
        into = goal is not None and (len(places) > 1 or await _is_directory(session, goal))
        for place in places:
            for file in await _deleted(session, place):
                path = file.path if goal is None else _new_path(goal, into, place, file)
                try:
                    new_path = b"" if goal is None else path
                    await session.client.trash.restore(file.entry, new_path, uid=os.getuid(), gid=os.getgid())
                except GfsError as error:
                    failed += 1
                    click.echo(f"gfs: {shown(path)}: {error}", err=True)
                else:
                    click.echo(shown(path))
        return int(failed > 0)

    return on_cluster(places[0].address, work)


@command.command("empty")
@click.argument("path", required=False, metavar="[PATH_OR_ENTRY]")
@click.option("--older-than", type=click.IntRange(min=0), default=0, metavar="SECONDS", help="Deleted so long ago.")
@master_option
def empty(path: str | None, older_than: int, master: str | None) -> None:
    """Reclaim deleted files that were at or below PATH (default: all) now. They cannot be restored any more.

    An entry, a name as `gfs trash ls` shows it, is reclaimed alone.
    """
    from gfsmount.cli.cluster_client import on_cluster
    from gfsmount.cli.usage import UsageProblem

    place = _place(path, master)
    if place.entry and older_than:
        raise UsageProblem("--older-than chooses among deleted files: it does not go with one entry")

    async def work(session: Session) -> int:
        if place.entry:
            await session.client.trash.find(place.entry)  # or NOT_FOUND, which says where to look
            await session.client.unlink(TRASH_INODE, place.entry)
            return 1
        return await session.client.trash.empty(place.path, older_than_seconds=older_than)

    files = on_cluster(place.address, work)
    click.echo(f"reclaimed {files} deleted file{'' if files == 1 else 's'}")


# ------------------------------------------------------------ what the user named


@dataclass(frozen=True)
class _Place:
    """A path inside the file system, without a slash at its end and empty for all of it; or an entry of the trash.

    The path of an entry is the one in the trash directory: never the empty one, which stands for everything.
    """

    address: str
    path: bytes
    entry: bytes = b""


def _place(typed: str | None, master: str | None) -> _Place:
    from gfsmount.cli.targets import default_address, target

    if typed is None:
        return _Place(default_address(master), b"")
    if _ENTRY.match(typed):
        entry = os.fsencode(typed)
        return _Place(default_address(master), _DIRECTORY + b"/" + entry, entry)
    where = target(typed, master)
    path = os.fsencode(where.path).rstrip(b"/")
    if path.startswith(_DIRECTORY + b"/"):
        return _Place(where.address, path, path.removeprefix(_DIRECTORY + b"/"))
    return _Place(where.address, path)


async def _deleted(session: Session, place: _Place) -> list[DeletedFile]:
    """What `place` stands for. Raises NOT_FOUND."""
    from gfscore.client.trash import latest_of_each
    from gfscore.errors import Code, GfsError
    from gfsmount.cli.output import shown

    if place.entry:
        return [await session.client.trash.find(place.entry)]
    files = latest_of_each(await session.client.trash.list(place.path))
    exact = [file for file in files if file.path == place.path]
    if not files:
        where = shown(place.path) or "/"
        raise GfsError(Code.NOT_FOUND, f"nothing in the trash was at or below {where}: see gfs trash ls")
    return exact or files


async def _is_directory(session: Session, goal: _Place) -> bool:
    from gfscore.client import FileType
    from gfscore.errors import Code, GfsError

    try:
        return (await session.paths.stat(goal.path or b"/")).type == FileType.DIRECTORY
    except GfsError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        return False


def _new_path(goal: _Place, into: bool, place: _Place, file: DeletedFile) -> bytes:
    """Where `file` goes: to `goal`, or into it; what was below a directory keeps its place below it."""
    if not place.entry and file.path != place.path:
        return goal.path + b"/" + file.path.removeprefix(place.path).lstrip(b"/")
    return goal.path + b"/" + file.path.rpartition(b"/")[2] if into else goal.path


async def _row(session: Session, file: DeletedFile) -> dict[str, Any]:
    from gfsmount.cli.output import shown

    size = file.attr.size
    if file.attr.length_pending:  # the list knows a lower bound only
        size = (await session.client.getattr(file.attr.inode)).size
    return {
        "name": shown(file.entry),
        "path": shown(file.path),
        "inode": file.attr.inode,
        "size": size,
        "deleted": file.deleted_ns / 1e9,
        "expires": file.expires_ns / 1e9,
    }


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(min(seconds, _SECONDS_MAX)).isoformat(" ", "seconds")
