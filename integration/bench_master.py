"""What the master's metadata costs: bytes per name, inode and chunk on disk, rates, and the time to come back.

`python integration/bench_master.py --files 1000000` builds a state through the same decisions, log and checkpoints
as a live master, prints a table, and then, where the `gfs` command is there, starts a real master on that state and
measures how long it takes until it answers. Figures are of this machine at this moment; only ratios carry over.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from gfscore.env.real import ThreadRunner
from gfscore.env.real_disk import RealDisk
from gfscore.ids import ROOT_INODE
from gfscore.metadata import chunks, create, lengths, lookup
from gfscore.metadata.inodes import FileType, load
from gfscore.metadata.transaction import Transaction, bootstrap
from gfscore.proto import gfs_pb2 as pb
from gfscore.rpc.real import RealTransport
from gfscore.storage.batch_codec import encode_batch
from gfscore.storage.checkpointer import Checkpointer
from gfscore.storage.lmdb_tables import LmdbTables
from gfscore.storage.recovery import Recovered, recover

DIRECTORY_FILES = 1000
GROUP_RECORDS = 500  # records per flush while building
STATE = "state"  # where a master keeps it below its directory
NOW_NS = 1_700_000_000_000_000_000


class Builder:
    """Makes directories and files as a master would, without the network."""

    def __init__(self, recovered: Recovered, disk: RealDisk) -> None:
        self.recovered = recovered
        self.tables = recovered.tables
        self.checkpointer = Checkpointer(recovered, disk, ThreadRunner())
        self.pending: list[bytes] = []
        self.applied = recovered.next_lsn - 1

    def commit(self, tx: Transaction) -> None:
        batch = tx.batch
        self.tables.apply(batch)
        self.pending.append(encode_batch(batch))
        self.applied += 1

    async def flushed(self, lsn: int) -> None:
        if self.pending:
            self.recovered.log.append_batch(self.pending)
            self.pending = []

    async def breathe(self) -> None:
        if len(self.pending) >= GROUP_RECORDS:
            await self.flushed(self.applied)
        if self.checkpointer.due:
            await self.checkpointer.run(lambda: self.applied, self.flushed)

    def directory(self, name: bytes) -> int:
        tx = Transaction(self.tables)
        record = create.create(
            tx, parent=ROOT_INODE, name=name, type=FileType.DIRECTORY, mode=0o755, uid=1000, gid=1000, now_ns=NOW_NS
        )
        self.commit(tx)
        return record.inode

    def file(self, parent: int, name: bytes, number: int) -> int:
        now_ns = NOW_NS + number * 1_000_003
        tx = Transaction(self.tables)
        record = create.create(
            tx, parent=parent, name=name, type=FileType.FILE, mode=0o644, uid=1000, gid=1000, now_ns=now_ns
        )
        chunks.add_fresh_chunk(tx, record.inode, 0, 3)
        self.commit(tx)
        tx = Transaction(self.tables)
        lengths.commit_length(
            tx, record.inode, 4096 + number % 100_000, mtime_ns=now_ns + 500, release=True, now_ns=now_ns + 900
        )
        self.commit(tx)
        return record.inode


async def build(builder: Builder, files: int) -> float:
    """Build until there are `files` files; seconds."""
    start = time.perf_counter()
    parent = 0
    for number in range(files):
        if number % DIRECTORY_FILES == 0:
            parent = builder.directory(f"directory-{number // DIRECTORY_FILES:06d}".encode())
            await trio.lowlevel.checkpoint()
        builder.file(parent, f"file-{number:08d}.dat".encode(), number)
        await builder.breathe()
        if number % 20_000 == 0 and sys.stderr.isatty():
            print(f"\r{number}/{files} files", end="", file=sys.stderr)
    await builder.flushed(builder.applied)
    await builder.checkpointer.run(lambda: builder.applied, builder.flushed)
    return time.perf_counter() - start


def rate(action: Callable[[int], object], count: int) -> float:
    """Calls per second."""
    start = time.perf_counter()
    for number in range(count):
        action(number)
    return count / (time.perf_counter() - start)


def sizes(base: LmdbTables, files: int) -> dict[str, float]:
    """Bytes per name, inode and chunk, from the pages of each table."""
    stat = base.statistics()

    def each(table: str) -> float:
        return stat[table].bytes / max(1, stat[table].entries)

    return {
        "bytes per name (entries)": each("entries"),
        "bytes per inode (inodes)": each("inodes"),
        "bytes per mapping value (mapping)": each("mapping"),
        "bytes per chunk record (chunks)": each("chunks"),
        "bytes per chunk, record and mapping": (stat["chunks"].bytes + stat["mapping"].bytes)
        / max(1, stat["chunks"].entries),
        "bytes of the checkpoint per file": Path(base.path).stat().st_size / max(1, files),
    }


def rates(builder: Builder, files: int) -> dict[str, float]:
    """Operations per second on the state in this process, decisions and apply, no flush."""
    tables = builder.tables
    directories = max(1, files // DIRECTORY_FILES)
    parents = [lookup.lookup(tables, ROOT_INODE, f"directory-{number:06d}".encode()) for number in range(directories)]

    def look_up(number: int) -> None:
        which = number * 7919 % files
        inode = lookup.lookup(tables, parents[which // DIRECTORY_FILES], f"file-{which:08d}.dat".encode())
        load(tables, inode)

    def list_one(number: int) -> None:
        for _, inode in lookup.list_page(tables, parents[number % directories], b"", DIRECTORY_FILES)[0]:
            load(tables, inode)

    count = min(files, 20_000)
    return {
        "look-up and attributes, per s": rate(look_up, count),
        "entries listed with attributes, per s": rate(list_one, 50) * min(files, DIRECTORY_FILES),
        "create with chunk and length, per s": rate(
            lambda number: builder.file(parents[number % directories], f"new-{number:08d}".encode(), number), count
        ),
    }


def restart_in_process(root: Path) -> dict[str, float]:
    """Recovery alone."""
    start = time.perf_counter()
    recovered = recover(RealDisk(root), STATE, new_cluster_id="never")
    load(recovered.tables, ROOT_INODE)
    result = {"recovery in process, s": time.perf_counter() - start, "records replayed": float(recovered.replayed)}
    recovered.close()
    return result


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def master_process(root: Path, gfs: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A real master on `root`, ended however the block ends; the process and its port."""
    port = free_port()
    config = root / "master.toml"
    config.write_text(f'port = {port}\nhost = "127.0.0.1"\ndirectory = "{root}"\n')
    with open(root / "master.out", "ab") as out:
        process = subprocess.Popen([gfs, "master", "--config", str(config)], stdout=out, stderr=out)
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def create_cluster(root: Path, gfs: str) -> None:
    """Let a real master make the state, so that one will accept it later."""
    with master_process(root, gfs) as (process, port):
        trio.run(_first_answer, process, port)


def restart_process(root: Path, gfs: str) -> dict[str, float]:
    """Start a real master on the state in `root`; seconds until the first answer, and its resident memory."""
    start = time.perf_counter()
    with master_process(root, gfs) as (process, port):
        answered = trio.run(_first_answer, process, port) - start
        memory = resident_mib(process.pid)
    return {"master process, start to first answer, s": answered, "its resident memory, MiB": memory}


async def _first_answer(process: subprocess.Popen[bytes], port: int) -> float:
    """The time (perf_counter) at which the master first answered."""
    with trio.fail_after(60):
        while True:  # by hand: a gRPC channel that was refused once waits a second before it tries again
            if process.poll() is not None:
                raise SystemExit(f"the master ended with status {process.returncode}; see master.out in its directory")
            try:
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
                break
            except OSError:
                await trio.sleep(0.01)
        channel = RealTransport().control_channel("127.0.0.1", port, "Master")
        await channel.call("GetAttr", pb.InodeRequest(inode=ROOT_INODE), timeout=60.0)
    answered = time.perf_counter()
    await channel.aclose()
    return answered


async def measure(root: Path, files: int) -> dict[str, Any]:
    disk = RealDisk(root)
    recovered = recover(disk, STATE, new_cluster_id="benchmark")
    builder = Builder(recovered, disk)
    if recovered.fresh:
        tx = Transaction(builder.tables)
        bootstrap(tx, NOW_NS, "benchmark")
        builder.commit(tx)
    result: dict[str, Any] = {"files": files}
    seconds = await build(builder, files)
    result["build with log and checkpoints, files per s"] = files / seconds
    base = builder.tables.base
    assert isinstance(base, LmdbTables)
    result.update(sizes(base, files))
    result.update(rates(builder, files))
    await builder.flushed(builder.applied)  # what `rates` made is the tail that the restart has to replay
    recovered.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--root", type=Path, help="where to build the state (default: a temporary directory)")
    parser.add_argument("--gfs", default=str(Path(sys.executable).with_name("gfs")), help="the gfs command")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root = (options.root or Path(tempfile.mkdtemp(prefix="bench-master-"))).absolute()
    root.mkdir(parents=True, exist_ok=True)
    if (root / STATE).exists():
        parser.error(f"{root} has a state already; give a new directory")
    try:
        has_gfs = shutil.which(options.gfs) is not None
        if has_gfs:
            create_cluster(root, options.gfs)
        result = trio.run(measure, root, options.files)
        result.update(restart_in_process(root))
        if has_gfs:
            result.update(restart_process(root, options.gfs))
    finally:
        if options.root is None:
            shutil.rmtree(root, ignore_errors=True)
    if options.json:
        print(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        print(f"{name:<48} {value:>14,.1f}" if isinstance(value, float) else f"{name:<48} {value:>14,}")


if __name__ == "__main__":
    main()
