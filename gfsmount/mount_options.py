"""What a mount is told: the source `HOST:PORT[/SUB]` and the `-o` options, checked here. Imports nothing of FUSE, so
that the command line can use it on a host without libfuse.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gfscore.errors import Code, GfsError

# Words that mount(8), fstab and systemd put among the options and that say nothing to us.
_IGNORED = frozenset({"defaults", "rw", "auto", "noauto", "user", "nouser", "users", "nofail", "_netdev", "async"})
# Passed on to the kernel as they are.
_KERNEL_FLAGS = frozenset(
    {"ro", "dev", "nodev", "suid", "nosuid", "exec", "noexec", "sync", "dirsync", "atime", "noatime"}
)
_SIZE = re.compile(r"(\d+)\s*(k|kib|m|mib)?", re.IGNORECASE)


@dataclass(frozen=True)
class MountOptions:
    """Defaults fit a laptop. `allow_other` None: yes for root, no for others (who need /etc/fuse.conf for it)."""

    read_only: bool = False
    allow_other: bool | None = None
    read_ahead_kib: int = 4096
    max_background: int = 128
    timeout_seconds: float = 60.0
    entry_timeout_seconds: float = 3600.0
    attr_timeout_seconds: float = 3600.0
    kernel_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class MountConfig:
    """One mount: the directory `subdir` (absolute, inside the file system) of the cluster at `master` (HOST:PORT)."""

    master: str
    mountpoint: str
    subdir: str = "/"
    options: MountOptions = field(default_factory=MountOptions)

    @property
    def source(self) -> str:
        """The source as `/proc/self/mountinfo` shows it."""
        return self.master if self.subdir == "/" else self.master + self.subdir


def parse_source(source: str) -> tuple[str, str]:
    """`HOST:PORT[/SUB]` → (`HOST:PORT`, absolute directory). Raises GfsError(INVALID)."""
    address, slash, path = source.partition("/")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise GfsError(Code.INVALID, f"{source!r} is not HOST:PORT[/DIRECTORY], for example 127.0.0.1:7700/projects")
    parts = [part for part in path.split("/") if part]
    if ".." in parts or "." in parts:
        raise GfsError(Code.INVALID, f"{source!r}: the directory may not contain '.' or '..'")
    return address, "/" + "/".join(parts) if slash else "/"


def parse_options(texts: Iterable[str]) -> MountOptions:
    """Options as given with `-o`, each text a comma-separated list; later ones win. Raises GfsError(INVALID)."""
    values: dict[str, bool | int | float] = {}
    flags: list[str] = []
    for option in (word.strip() for text in texts for word in text.split(",")):
        name, equals, value = option.partition("=")
        if not option or name in _IGNORED or name.startswith("x-") or name == "comment":
            continue
        if name in _KERNEL_FLAGS and not equals:
            flags.append(name)
        elif name in _FLAG_OPTIONS and not equals:
            key, meaning = _FLAG_OPTIONS[name]
            values[key] = meaning
        elif name in _VALUE_OPTIONS and equals:
            key, parse = _VALUE_OPTIONS[name]
            values[key] = parse(name, value)
        else:
            known = sorted([*_FLAG_OPTIONS, *(f"{key}=" for key in _VALUE_OPTIONS), *_KERNEL_FLAGS])
            raise GfsError(Code.INVALID, f"unknown mount option {option!r}; known are {', '.join(known)}")
    return MountOptions(read_only="ro" in flags, kernel_flags=tuple(flags), **values)  # type: ignore[arg-type]


def fuse_options(config: MountConfig) -> set[str]:
    """The options for libfuse. Permissions are always checked by the kernel, with attributes that we give it."""
    options = config.options
    result = {f"fsname={_escaped(config.source)}", "subtype=gfs", "default_permissions", *options.kernel_flags}
    if options.allow_other or (options.allow_other is None and os.geteuid() == 0):
        result.add("allow_other")
    return result


def _escaped(text: str) -> str:
    """For libfuse, which takes a comma for the end of an option and understands octal escapes; ASCII only."""
    plain = set(range(0x20, 0x7F)) - set(b",\\")
    return "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(text))


def _parse_kib(name: str, value: str) -> int:
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise GfsError(Code.INVALID, f"mount option {name}={value}: want KiB, or a size such as 4MiB")
    number, unit = int(match[1]), (match[2] or "k").lower()
    kib = number * 1024 if unit.startswith("m") else number
    if not 0 <= kib <= 1024 * 1024:
        raise GfsError(Code.INVALID, f"mount option {name}={value}: at most 1024MiB")
    return kib


def _parse_count(name: str, value: str) -> int:
    if not value.isdigit() or not 1 <= int(value) <= 65535:
        raise GfsError(Code.INVALID, f"mount option {name}={value}: want a number from 1 to 65535")
    return int(value)


def _parse_seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise GfsError(Code.INVALID, f"mount option {name}={value}: want seconds, 0 or more")
    return seconds


def _parse_timeout(name: str, value: str) -> float:
    seconds = _parse_seconds(name, value)
    if seconds < 1:
        raise GfsError(Code.INVALID, f"mount option {name}={value}: want at least 1 second")
    return seconds


_FLAG_OPTIONS: dict[str, tuple[str, bool]] = {
    "allow_other": ("allow_other", True),
    "no_allow_other": ("allow_other", False),
}
_VALUE_OPTIONS = {
    "read_ahead": ("read_ahead_kib", _parse_kib),
    "max_background": ("max_background", _parse_count),
    "timeout": ("timeout_seconds", _parse_timeout),
    "entry_timeout": ("entry_timeout_seconds", _parse_seconds),
    "attr_timeout": ("attr_timeout_seconds", _parse_seconds),
}
