"""Reads the TOML config file of a role into its dataclass. A mistake becomes one line: file, key, remedy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from gfscore.errors import GfsError
from gfsmount.cli.options import parse_size
from gfsmount.cli.usage import UsageProblem

C = TypeVar("C")


def read_config(path: Path, kind: type[C]) -> C:
    """The config in `path`. Sizes may be written "64MiB". Raises UsageProblem, OSError."""
    try:
        values = msgspec.toml.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageProblem(f"{path}: not TOML: {error}") from error
    assert dataclasses.is_dataclass(kind)
    hints = get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind) if field.init]
    for key in values:
        if key not in known:
            raise UsageProblem(f"{path}: unknown key {key!r}; known keys are {', '.join(known)}")
    required = [f.name for f in dataclasses.fields(kind) if f.init and _has_no_default(f) and f.name not in values]
    if required:
        raise UsageProblem(f"{path}: key {required[0]!r} is missing")
    converted = {key: _convert(path, key, value, hints[key]) for key, value in values.items()}
    try:
        return kind(**converted)
    except (GfsError, ValueError) as error:
        raise UsageProblem(f"{path}: {error}") from error


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(path: Path, key: str, value: Any, hint: Any) -> Any:
    try:
        if hint is int and isinstance(value, str) and key.endswith(("_bytes", "_size", "_bytes_per_second")):
            return parse_size(value)
        if isinstance(value, str) and hint in (Path, Path | None):
            return Path(value)
        return msgspec.convert(value, hint)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageProblem(f"{path}: key {key!r}: {error}") from error
