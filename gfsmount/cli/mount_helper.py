"""`mount.gfs`: what mount(8) runs for `mount -t gfs HOST:PORT[/SUB] DIR` and for lines of /etc/fstab.

Starts `gfs mount` detached and returns when the mount is usable, with a mount(8) exit status.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_USAGE, _FAILED = 1, 32  # of mount(8)
_LOG_FILE = Path("/var/log/gfs-mount.log")


def main() -> NoReturn:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """`SOURCE DIR [-sfnv] [-N …] [-t …] [-o OPTIONS]`, the calling convention of mount(8)."""
    positional: list[str] = []
    options: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("-o", "-t", "-N"):
            value = next(words, "")
            if word == "-o":
                options.append(value)
        elif word == "-f":
            return 0  # a dry run
        elif not (word.startswith("-") and set(word[1:]) <= set("snv")):
            positional.append(word)
    if len(positional) != 2:
        sys.stderr.write("mount.gfs: usage: mount.gfs HOST:PORT[/SUB] DIR [-o OPTIONS]\n")
        return _USAGE
    return _start(positional[0], positional[1], ",".join(filter(None, options)))


def _start(source: str, mountpoint: str, options: str) -> int:
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", "gfsmount.cli", "mount", source, mountpoint, "--ready-fd", str(write_end)]
    if options:
        command += ["-o", options]
    writable = os.access(_LOG_FILE if _LOG_FILE.exists() else _LOG_FILE.parent, os.W_OK)
    with (_LOG_FILE if writable else Path(os.devnull)).open("ab") as log:
        start = log.tell()
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[write_end],
            cwd="/",
        )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as ready:
        if ready.readline():
            return 0
    sys.stderr.write(f"mount.gfs: {_last_line(start)}\n")
    return _FAILED


def _last_line(start: int) -> str:
    try:
        with _LOG_FILE.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else f"cannot mount: run gfs mount in the foreground to see why (log: {_LOG_FILE})"


if __name__ == "__main__":
    main()
