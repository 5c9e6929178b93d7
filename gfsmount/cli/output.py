"""What commands print: JSON, tables, sizes, and a progress bar where somebody watches."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as needed; figures to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    numeric = [all(row[i].replace(".", "").isdigit() for row in cells) and bool(cells) for i in range(len(headings))]
    for row in [list(headings), *cells]:
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )
        click.echo(line.rstrip())


def human_size(size: int) -> str:
    """Three significant figures at most: 1.5 MiB."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def shown(name: bytes | str) -> str:
    """A name, or a path as it was typed, as text for people and JSON; bytes that are no UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class Meter:
    """Counts what is done; draws a bar only when it was given one."""

    def __init__(self, progress: Progress | None = None, task: Any = None) -> None:
        self._progress = progress
        self._task = task

    def add_total(self, amount: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, total=(self._progress.tasks[self._task].total or 0) + amount)

    def advance(self, amount: int) -> None:
        if self._progress is not None:
            self._progress.update(self._task, advance=amount)


@contextmanager
def meter(label: str, *, sizes: bool = True, shown_when: bool = True) -> Iterator[Meter]:
    """A progress bar on stderr while the block runs, if that is a terminal. `sizes`: the amounts are bytes."""
    if not (shown_when and sys.stderr.isatty()):
        yield Meter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount: list[ProgressColumn] = [DownloadColumn(), TransferSpeedColumn()] if sizes else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Meter(progress, progress.add_task(label, total=0))
