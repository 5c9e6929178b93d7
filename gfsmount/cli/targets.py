"""From what the user typed to a master's address and a path inside the file system.

Looks at the kernel's list of mounts, never into a mount.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gfscore.errors import Code, GfsError
from gfsmount.cli.usage import UsageProblem
from gfsmount.localcluster.layout import Layout
from gfsmount.localcluster.mounts import mount_of
from gfsmount.mount_options import parse_source

SCHEME = "gfs://"
_DEFAULT_ROOT = Path("var")


@dataclass(frozen=True)
class Target:
    """`path` is absolute inside the file system of the master at `address`; `typed` is what the user wrote."""

    address: str
    path: str
    typed: str

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    def below(self, name: str) -> Target:
        return Target(self.address, f"{self.path.rstrip('/')}/{name}", f"{self.typed.rstrip('/')}/{name}")


def target(typed: str, master: str | None) -> Target:
    """Raises UsageProblem for a path that is on no mount of ours."""
    if not typed:
        raise UsageProblem("a path is empty: give one below a mount, or gfs://HOST:PORT/path")
    if typed.startswith(SCHEME):
        address, slash, path = typed.removeprefix(SCHEME).partition("/")
        return Target(_checked(address) if address else default_address(master), slash + path or "/", typed)
    absolute = _absolute(typed)
    entry = mount_of(absolute)
    if entry is not None:
        address, sub = parse_source(entry.source)
        rest = absolute[len(entry.mountpoint.rstrip("/")) :]
        return Target(_checked(master) if master else address, sub.rstrip("/") + rest or "/", typed)
    if master and typed.startswith("/"):
        return Target(_checked(master), typed, typed)
    raise UsageProblem(f"{typed} is not on a gfs mount: give a path below one, or gfs://HOST:PORT/path")


def _absolute(path: str) -> str:
    """Links on the way are the local system's; the last part may be a link inside the file system, which is ours."""
    directory, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(directory), name)


def targets(typed: Sequence[str], master: str | None) -> list[Target]:
    """All on one cluster, or UsageProblem."""
    found = [target(text, master) for text in typed]
    for other in found[1:]:
        if other.address != found[0].address:
            raise UsageProblem(f"{found[0].typed} and {other.typed} are on different clusters: use get and put")
    return found


def start_target(typed: str | None, master: str | None) -> Target:
    """What a command works on that may be called without a path: where the user is, else the root."""
    if typed is not None:
        return target(typed, master)
    if mount_of(os.getcwd()) is not None:
        return target(".", master)
    return Target(default_address(master), "/", "/")


def default_address(master: str | None) -> str:
    """--master or GFS_MASTER, else the mount the user is in, else the cluster of ./var; else UsageProblem."""
    if master:
        return _checked(master)
    entry = mount_of(os.getcwd())
    if entry is not None:
        return parse_source(entry.source)[0]
    spec = Layout(_DEFAULT_ROOT).read_spec() if _DEFAULT_ROOT.is_dir() else None
    if spec is None:
        raise UsageProblem(
            "which cluster? give --master HOST:PORT, set GFS_MASTER, or start one here: gfs up --root var"
        )
    return spec.master_address


def _checked(address: str) -> str:
    try:
        return parse_source(address)[0]
    except GfsError as error:
        assert error.code is Code.INVALID
        raise UsageProblem(f"{address!r} is not a master's address: give HOST:PORT") from error
