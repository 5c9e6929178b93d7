"""`gfs up`: start or repair a cluster on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from gfscore.errors import Code, GfsError
from gfsmount.cli.local import cluster
from gfsmount.cli.options import Size, root_option
from gfsmount.cli.usage import UsageProblem
from gfsmount.localcluster import UpOptions


@click.command("up")
@root_option
@click.option("--mount", "mounts", multiple=True, metavar="DIR", help="Mount it there too; remembered.")
@click.option("--chunkservers", type=int, help="How many (default 3); more can be added later.")
@click.option("--replication", type=int, help="Replicas of each chunk (default 3).")
@click.option("--chunk-size", type=Size(), help="Fixed when the cluster is made (default 64MiB).")
@click.option("--lease-seconds", type=float, help="How long leases and sessions last (default 60).")
@click.option("--trash-seconds", type=int, help="How long deleted files can be restored (default 86400); 0: not.")
@click.option("--down-seconds", type=float, help="A server unheard for so long is replaced by others (default 30).")
@click.option("--racks", type=int, help="Spread the chunkservers over so many racks (default 1).")
@click.option("--scrub-rate", type=Size(), help="Bytes per second each chunkserver verifies when idle (default 8MiB).")
def command(
    root: Path,
    mounts: tuple[str, ...],
    chunkservers: int | None,
    replication: int | None,
    chunk_size: int | None,
    lease_seconds: float | None,
    racks: int | None,
    trash_seconds: int | None,
    scrub_rate: int | None,
    down_seconds: float | None,
) -> None:
    """Start, or repair, a local cluster: a master, chunkservers and mounts as detached processes.

    Returns when it is usable. What runs is left alone, what is dead is started again with its state.
    """
    options = UpOptions(
        mounts=mounts, chunkservers=chunkservers, replication=replication, chunk_size=chunk_size,
        lease_seconds=lease_seconds, racks=racks, trash_seconds=trash_seconds, scrub_rate=scrub_rate,
        down_seconds=down_seconds,
    )  # fmt: skip
    try:
        spec = cluster(root).up(options)
    except GfsError as error:
        if error.code is Code.INVALID:
            raise UsageProblem(str(error)) from error
        raise
    where = "".join(f", mounted at {mount.mountpoint}" for mount in spec.mounts)
    click.echo(f"master {spec.master_address}, {len(spec.chunkservers)} chunkservers{where}")
