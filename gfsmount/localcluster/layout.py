"""Where a local cluster keeps what, and `cluster.toml`, the file that describes it.

Reads and writes that description and the config files of the roles, each replaced as a whole. Starts nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gfscore.errors import Code, GfsError

LAYOUT_VERSION = 1
HOST = "127.0.0.1"
TRASH_SECONDS_DEFAULT = 86400  # a day


class ServerSpec(msgspec.Struct, forbid_unknown_fields=True):
    """One chunkserver: `name` is also its directory below the root."""

    name: str
    port: int
    control_port: int
    rack: str


class MountSpec(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    mountpoint: str


class ClusterSpec(msgspec.Struct, forbid_unknown_fields=True):
    """What `gfs up` was asked for the first time, and the ports it found. Sizes in bytes."""

    layout: int
    chunk_size: int
    lease_seconds: float
    replication: int
    racks: int
    master_port: int
    stream_port: int
    trash_seconds: int = TRASH_SECONDS_DEFAULT
    scrub_rate: int = 8 * 1024 * 1024  # bytes per second and chunkserver
    down_seconds: float = 30.0
    chunkservers: list[ServerSpec] = []
    mounts: list[MountSpec] = []

    @property
    def master_address(self) -> str:
        return f"{HOST}:{self.master_port}"


class Layout:
    """The paths below the root of one local cluster."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.spec_file = self.root / "cluster.toml"
        self.lock_file = self.root / "cluster.lock"

    def log_file(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def pid_file(self, name: str) -> Path:
        return self.root / "run" / f"{name}.pid"

    def config_file(self, name: str) -> Path:
        return self.root / "config" / f"{name}.toml"

    def data_directory(self, name: str) -> Path:
        return self.root / name

    def make_directories(self) -> None:
        for name in ("log", "run", "config"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def read_spec(self) -> ClusterSpec | None:
        """The cluster below this root, or None where there is none yet. GfsError(INVALID) for anything else."""
        try:
            raw = self.spec_file.read_bytes()
        except FileNotFoundError:
            self._refuse_foreign_directory()
            return None
        except NotADirectoryError as error:
            raise GfsError(Code.INVALID, f"{self.root} is not a directory") from error
        try:
            spec = msgspec.toml.decode(raw, type=ClusterSpec)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise GfsError(
                Code.INVALID,
                f"{self.spec_file} does not describe a cluster of this version ({error}): use another --root",
            ) from error
        if spec.layout != LAYOUT_VERSION:
            raise GfsError(
                Code.INVALID,
                f"{self.root} has layout {spec.layout}, this program knows {LAYOUT_VERSION}: use another --root",
            )
        return spec

    def _refuse_foreign_directory(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise GfsError(Code.INVALID, f"{self.root} is not a directory: use another --root")
        ours = {self.lock_file.name, "log", "run", "config"}  # of a first start that failed
        for entry in self.root.iterdir() if self.root.is_dir() else ():
            empty_directory = entry.is_dir() and not any(entry.iterdir())  # perhaps to be mounted on
            if entry.name not in ours and not empty_directory:
                raise GfsError(
                    Code.INVALID,
                    f"{self.root} is not empty and has no cluster.toml, so it is not a cluster of ours: "
                    "use another --root",
                )

    def write_spec(self, spec: ClusterSpec) -> None:
        replace_file(self.spec_file, "# A local gfs cluster, written by `gfs up`.\n" + _spec_toml(spec))

    def write_config(self, name: str, values: Mapping[str, str | int | float]) -> None:
        replace_file(self.config_file(name), "# Written by `gfs up` at each start.\n" + toml_lines(values))


def toml_lines(values: Mapping[str, str | int | float]) -> str:
    """`key = value` lines. A JSON string is a valid TOML basic string."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def _spec_toml(spec: ClusterSpec) -> str:
    fields = msgspec.to_builtins(spec)
    tables = {"chunkservers": fields.pop("chunkservers"), "mounts": fields.pop("mounts")}
    text = toml_lines(fields)
    for table, rows in tables.items():
        for row in rows:
            text += f"\n[[{table}]]\n" + toml_lines(row)
    return text


def replace_file(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)
