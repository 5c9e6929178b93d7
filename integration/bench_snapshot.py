"""How long a snapshot of a directory with many files takes on a mount, and what space it takes.

    bench_snapshot.py DIRECTORY_ON_A_MOUNT [FILES]

Makes the files, then takes five snapshots through the `gfs.snapshot` attribute: the first one while all files are still
under lease. Prints seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

GFS = Path(sys.executable).parent / "gfs"


def path_inside(path: Path) -> bytes:
    """The absolute path inside the file system."""
    where = path
    while not where.is_mount():
        where = where.parent
    return b"/" + os.fsencode(path.relative_to(where))


def chunks(directory: Path) -> int:
    shown = subprocess.run([GFS, "status", "--json"], cwd=directory, capture_output=True, text=True, timeout=60)
    return int(json.loads(shown.stdout)["chunks"]["total"])


def main() -> None:
    base = Path(sys.argv[1]).resolve() / "bench_snapshot"
    files = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    source = base / "source"
    source.mkdir(parents=True)
    try:
        started = time.perf_counter()
        for number in range(files):
            (source / f"f{number}").write_bytes(b"%d" % number)
        print(f"{files} files made: {files / (time.perf_counter() - started):.0f} files/s")
        before = chunks(base)
        for number in range(5):
            started = time.perf_counter()
            os.setxattr(source, "gfs.snapshot", path_inside(base / f"copy{number}"))
            print(f"snapshot {number + 1}: {time.perf_counter() - started:.3f} s")
        print(f"chunks: {before} before, {chunks(base)} after")
        assert (base / "copy4" / f"f{files - 1}").read_bytes() == b"%d" % (files - 1)
    finally:
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
