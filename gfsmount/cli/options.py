"""Option types and options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of "64MiB", "64M", "1024"; units are powers of 1024. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64MiB")
    return int(match[1]) * _UNITS[match[2].lower()]


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_size(value)
        except ValueError as error:
            self.fail(str(error), parameter, context)


def root_option(function: F) -> F:
    return click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=True),
        default=Path("var"),
        show_default="./var",
        help="Directory of the local cluster.",
    )(function)


def master_option(function: F) -> F:
    return click.option(
        "--master", metavar="HOST:PORT", envvar="GFS_MASTER", help="The master to ask (or GFS_MASTER)."
    )(function)


def json_option(function: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def ready_option(function: F) -> F:
    return click.option("--ready-fd", type=int, hidden=True, help="Write a line to this descriptor when serving.")(
        function
    )
