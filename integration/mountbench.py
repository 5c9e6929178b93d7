"""Measures mounted file systems from outside, with system calls only.

    mountbench.py DIR [DIR ...] [--rounds N] [--only NAME,NAME] [--json FILE]

Several directories (our mount, another file system's, a local one) are measured in turn, workload by workload and round
by round, so that the ratios between them hold on a machine whose speed drifts. A cold cache needs root
(/proc/sys/vm/drop_caches). Every workload checks what it reads back: no figure is printed for data that was not there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

MIB = 1024 * 1024
PIECE = random.Random(7).randbytes(MIB)  # what every large file consists of
LARGE_MIB = 512
PAGE = 4096
SMALL_FILES = 1000
SOURCE_PACKAGES = ("json", "email", "asyncio", "unittest", "encodings")


class WrongData(Exception):
    """The file system gave back something else than was written."""


def check(right: bool, what: str) -> None:
    if not right:
        raise WrongData(f"wrong data: {what}")


class Stopwatch:
    """`with Stopwatch() as watch: …` then `watch.rate(amount)` per second."""

    def __enter__(self) -> Stopwatch:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self._seconds = time.perf_counter() - self._start

    def rate(self, amount: float) -> float:
        return amount / self._seconds


def cold_cache() -> None:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")
    except OSError:
        print("note: the caches are not cold, that needs root", file=sys.stderr)


def page(number: int) -> bytes:
    """4 KiB that tell which they are."""
    return number.to_bytes(4, "big") * (PAGE // 4)


def large_file(where: Path) -> Path:
    path = where / "seq"
    if not path.exists():
        seq_write(where)
    return path


def small_files(where: Path) -> Path:
    directory = where / "small"
    if not directory.is_dir():
        small_create(where)
    return directory


def read_large(path: Path) -> None:
    """Read and compare the whole large file."""
    file = os.open(path, os.O_RDONLY)
    try:
        length, same = 0, True
        while piece := os.read(file, MIB):
            same = same and piece == PIECE[: len(piece)]
            length += len(piece)
    finally:
        os.close(file)
    check(same and length == LARGE_MIB * MIB, f"large file of {length} bytes")


def write_pieces(path: Path, count: int) -> None:
    file = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        for _ in range(count):
            check(os.write(file, PIECE) == MIB, "short write")
        os.fsync(file)
    finally:
        os.close(file)


def together(function: Callable[..., None], arguments: Sequence[tuple[object, ...]]) -> None:
    """Run `function` in one process per argument tuple; all have to end well."""
    processes = [multiprocessing.Process(target=function, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    check(all(process.exitcode == 0 for process in processes), f"a process of {function.__name__} failed")


# ---------------------------------------------------------------- the workloads


def seq_write(where: Path) -> float:
    """MiB/s: one file of 512 MiB in 1 MiB writes, then fsync and close."""
    with Stopwatch() as watch:
        write_pieces(where / "seq", LARGE_MIB)
    return watch.rate(LARGE_MIB)


def seq_read_cold(where: Path) -> float:
    """MiB/s: that file read back in 1 MiB reads, cold cache."""
    path = large_file(where)
    cold_cache()
    with Stopwatch() as watch:
        read_large(path)
    return watch.rate(LARGE_MIB)


def seq_read_warm(where: Path) -> float:
    """MiB/s: read once more at once, whatever the caches hold."""
    path = large_file(where)
    read_large(path)
    with Stopwatch() as watch:
        read_large(path)
    return watch.rate(LARGE_MIB)


def rand_read_4k(where: Path) -> float:
    """op/s: 4 KiB preads at random offsets of that file, cold cache, one thread."""
    count, dice = 2000, random.Random(11)
    path = large_file(where)
    cold_cache()
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        with Stopwatch() as watch:
            for _ in range(count):
                offset = dice.randrange(LARGE_MIB * MIB // PAGE) * PAGE
                check(os.pread(file, PAGE, offset) == PIECE[offset % MIB : offset % MIB + PAGE], "random read")
    finally:
        os.close(file)
    return watch.rate(count)


def rand_write_4k(where: Path) -> float:
    """op/s: 4 KiB pwrites at random offsets of a 64 MiB file, one fsync at the end."""
    count, pages, dice = 2000, 64 * MIB // PAGE, random.Random(13)
    offsets = [dice.randrange(pages) for _ in range(count)]
    file = os.open(where / "rw", os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
    try:
        for _ in range(64):
            os.write(file, PIECE)
        os.fsync(file)
        with Stopwatch() as watch:
            for number, offset in enumerate(offsets):
                os.pwrite(file, page(number), offset * PAGE)
            os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        last = {offset: number for number, offset in enumerate(offsets)}
        check(all(os.pread(file, PAGE, at * PAGE) == page(number) for at, number in last.items()), "random write")
    finally:
        os.close(file)
    return watch.rate(count)


def fsync_write_4k(where: Path) -> float:
    """op/s: 4 KiB write + fsync, one after another."""
    count = 200
    file = os.open(where / "sync", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    try:
        with Stopwatch() as watch:
            for _ in range(count):
                os.write(file, PIECE[:PAGE])
                os.fsync(file)
    finally:
        os.close(file)
    return watch.rate(count)


def writers_4(where: Path) -> float:
    """MiB/s together: 4 processes write 96 MiB each to files of their own, fsync, close."""
    paths = [where / f"w{number}" for number in range(4)]
    with Stopwatch() as watch:
        together(write_pieces, [(path, 96) for path in paths])
    for path in paths:
        path.unlink()
    return watch.rate(4 * 96)


def readers_4(where: Path) -> float:
    """MiB/s together: 4 processes read the 512 MiB file at once, cold cache."""
    path = large_file(where)
    cold_cache()
    with Stopwatch() as watch:
        together(read_large, [(path,)] * 4)
    return watch.rate(4 * LARGE_MIB)


def small_create(where: Path) -> float:
    """files/s: create, write 4 KiB, close, in one directory."""
    directory = where / "small"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with Stopwatch() as watch:
        for number in range(SMALL_FILES):
            file = os.open(f"{directory}/f{number:05d}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            os.write(file, page(number))
            os.close(file)
    return watch.rate(SMALL_FILES)


def small_stat_cold(where: Path) -> float:
    """files/s: scandir + stat of every file (ls -l), cold cache."""
    directory = small_files(where)
    cold_cache()
    with Stopwatch() as watch:
        found = sum(entry.stat().st_size == PAGE for entry in os.scandir(directory))
    check(found == SMALL_FILES, f"{found} of {SMALL_FILES} entries")
    return watch.rate(SMALL_FILES)


def small_read_cold(where: Path) -> float:
    """files/s: open, read, close every file, cold cache."""
    directory = small_files(where)
    cold_cache()
    with Stopwatch() as watch:
        for number in range(SMALL_FILES):
            with open(f"{directory}/f{number:05d}", "rb", buffering=0) as file:
                check(file.read(2 * PAGE) == page(number), "small file")
    return watch.rate(SMALL_FILES)


def small_unlink(where: Path) -> float:
    """files/s: unlink every file."""
    directory = small_files(where)
    with Stopwatch() as watch:
        for number in range(SMALL_FILES):
            os.unlink(f"{directory}/f{number:05d}")
    directory.rmdir()
    return watch.rate(SMALL_FILES)


def mkdir_rmdir(where: Path) -> float:
    """op/s: mkdir and rmdir."""
    count = 500
    with Stopwatch() as watch:
        for number in range(count):
            os.mkdir(f"{where}/d{number}")
        for number in range(count):
            os.rmdir(f"{where}/d{number}")
    return watch.rate(2 * count)


def _tree_files(root: Path) -> list[Path]:
    return [
        path
        for package in SOURCE_PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.is_file() and not {"test", "__pycache__"} & set(path.relative_to(root).parts)
    ]


def _tree_digest(root: Path) -> tuple[str, int]:
    digest, files = hashlib.sha256(), _tree_files(root)
    for path in files:
        digest.update(os.fsencode(path.relative_to(root)) + b"\0" + path.read_bytes())
    return digest.hexdigest(), len(files)


def tree_copy(where: Path) -> float:
    """files/s: copy in a real source tree (the running Python's json, email, asyncio, unittest and encodings
    packages), then read it back cold and compare digests."""
    source, copy = Path(os.__file__).parent, where / "tree"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    expected, count = _tree_digest(source)
    with Stopwatch() as watch:
        for package in SOURCE_PACKAGES:
            ignored = shutil.ignore_patterns("test", "__pycache__")
            shutil.copytree(source / package, copy / package, ignore=ignored, copy_function=shutil.copyfile)
    cold_cache()
    check(_tree_digest(copy) == (expected, count), "tree digest")
    shutil.rmtree(copy)
    return watch.rate(count)


def _append_lines(path: Path, writer: int, count: int, size: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        for number in range(count):
            line = f"{writer}:{number}:".encode().ljust(size - 1, b".") + b"\n"
            check(os.write(file, line) == size, "short append")
    finally:
        os.close(file)


def append_shared(where: Path) -> float:
    """records/s: 4 processes append 200-byte lines to one file through O_APPEND; every line must be there, whole, once
    (NUL padding between chunks is allowed)."""
    writers, count, size = 4, 500, 200
    path = where / "log"
    path.write_bytes(b"")
    with Stopwatch() as watch:
        together(_append_lines, [(path, writer, count, size) for writer in range(writers)])
    lines = path.read_bytes().replace(b"\0", b"").split(b"\n")
    whole = sorted((int(line.split(b":")[0]), int(line.split(b":")[1])) for line in lines if len(line) == size - 1)
    expected = [(writer, number) for writer in range(writers) for number in range(count)]
    check(whole == expected and len(lines) == len(expected) + 1, f"{len(whole)} whole lines of {len(expected)}")
    path.unlink()
    return watch.rate(writers * count)


WORKLOADS = (
    seq_write, seq_read_cold, seq_read_warm, rand_read_4k, rand_write_4k, fsync_write_4k, writers_4, readers_4,
    small_create, small_stat_cold, small_read_cold, small_unlink, mkdir_rmdir, tree_copy, append_shared,
)  # fmt: skip

Figures = dict[str, dict[str, list[float]]]


def measure(directories: Sequence[Path], rounds: int, only: Sequence[str]) -> tuple[Figures, bool]:
    """Figures by workload and directory, and whether all went well; a workload that fails has fewer figures."""
    chosen = [workload for workload in WORKLOADS if not only or workload.__name__ in only]
    figures: Figures = {workload.__name__: {str(where): [] for where in directories} for workload in chosen}
    good = True
    for _ in range(rounds):
        for workload in chosen:
            for where in directories:
                try:
                    figures[workload.__name__][str(where)].append(workload(where))
                except (OSError, WrongData) as error:
                    good = False
                    print(f"{workload.__name__} on {where}: {error}", file=sys.stderr)
    for where in directories:
        for name in ("seq", "rw", "sync", "log"):
            (where / name).unlink(missing_ok=True)
        shutil.rmtree(where / "small", ignore_errors=True)
    return figures, good


def show(figures: Figures, directories: Sequence[Path], rounds: int) -> None:
    width = max(12, *(len(str(where)) + 2 for where in directories))
    heading = f"median of {rounds}".ljust(18) + "".join(str(where).rjust(width) for where in directories)
    print(heading + ("   first/other" if len(directories) > 1 else ""))
    for name, by_directory in figures.items():
        medians = [statistics.median(values) if values else math.nan for values in by_directory.values()]
        ratios = "".join(f" {medians[0] / other:5.2f}" for other in medians[1:])
        print(
            name.ljust(18) + "".join(f"{median:{width}.1f}" for median in medians) + ("  " + ratios if ratios else "")
        )
    print()
    for workload in WORKLOADS:
        if workload.__name__ in figures:
            print(f"{workload.__name__:18} {' '.join((workload.__doc__ or '').split())}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of workloads, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    options = parser.parse_args()
    only = [name for name in options.only.split(",") if name]
    unknown = set(only) - {workload.__name__ for workload in WORKLOADS}
    if unknown:
        parser.error(f"no workload {', '.join(sorted(unknown))}")
    figures, good = measure(options.directories, options.rounds, only)
    show(figures, options.directories, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
