"""One process that appends records to a file on a mount and writes down what was acknowledged.

    append_worker.py MOUNTED_FILE RECORDS SEED NAME REPORT

Half of the records go through the `gfs.append` attribute, half through `O_APPEND`, chosen at random, of 1 byte to
60 KiB. Each line of REPORT is "offset length sha256-prefix", written only after the append was acknowledged. A record
that fails is retried as a new record, as a program would.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys

ATTEMPTS = 20


def make_record(name: str, number: int, rng: random.Random) -> bytes:
    """Mostly small, sometimes up to 60 KiB; the text says whose it is, so that any two records differ."""
    head = f"<{name}:{number}:".encode()
    size = max(int(60 * 1024 * rng.random() ** 8), 1)
    if size <= len(head):
        return bytes([rng.randrange(1, 256)]) * size if size < 3 else head
    return head + rng.randbytes(size - len(head)).replace(b"\0", b"\1")


def append_once(path: str, descriptor: int, record: bytes, rng: random.Random) -> int:
    if rng.random() < 0.5:
        os.setxattr(path, "gfs.append", record)
    else:
        written = os.write(descriptor, record)
        if written != len(record):
            raise OSError(f"short append: {written} of {len(record)}")
    return int(os.getxattr(path, "gfs.append.offset"))


def main() -> int:
    path, count, seed, name, report = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    rng = random.Random(seed)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    failures = 0
    with open(report, "w", encoding="ascii") as acknowledged:
        for number in range(count):
            record = make_record(name, number, rng)
            for attempt in range(ATTEMPTS):
                try:
                    offset = append_once(path, descriptor, record, rng)
                    break
                except OSError as error:
                    failures += 1
                    print(f"{name}: record {number} attempt {attempt}: {error}", file=sys.stderr)
            else:
                return 1
            acknowledged.write(f"{offset} {len(record)} {hashlib.sha256(record).hexdigest()[:24]}\n")
    os.close(descriptor)
    print(f"{name} failures {failures}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
