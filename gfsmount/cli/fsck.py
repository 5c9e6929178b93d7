"""`gfs fsck`: have every replica of every chunk read and verified."""

from __future__ import annotations

from typing import Any

import click

from gfsmount.cli.options import json_option, master_option

_FILES_AT_ONCE = 4


@click.command("fsck")
@click.argument("path", required=False)
@json_option
@master_option
def command(path: str | None, as_json: bool, master: str | None) -> int:
    """Read and verify every replica of every chunk of PATH (default: all). Exit status 1 if something is wrong."""
    import trio

    from gfscore.client import Attr, FileType
    from gfscore.errors import GfsError
    from gfsmount.cli.cluster_client import Session, on_cluster
    from gfsmount.cli.output import Meter, meter, print_json, shown
    from gfsmount.cli.targets import Target, default_address, target

    where = target(path, master) if path is not None else Target(default_address(master), "/", "/")
    found: dict[str, Any] = {"files": 0, "chunks": 0, "replicas": 0, "problems": []}

    async def check(session: Session, name: bytes, attr: Attr, progress: Meter) -> None:
        try:
            chunks, replicas, problems = await session.client.operator.verify_file(attr.inode)
        except GfsError as error:
            chunks, replicas, problems = 0, 0, [str(error)]
        found["files"] += 1
        found["chunks"] += chunks
        found["replicas"] += replicas
        full = f"{where.path.rstrip('/')}/{shown(name)}" if name else where.path
        found["problems"] += [{"path": full, "problem": problem} for problem in problems]
        progress.advance(1)

    async def work(session: Session) -> None:
        with meter("verifying", sizes=False) as progress:
            limit = trio.Semaphore(_FILES_AT_ONCE)
            seen: set[int] = set()

            async def bounded(name: bytes, attr: Attr) -> None:
                try:
                    await check(session, name, attr, progress)
                finally:
                    limit.release()

            async with trio.open_nursery() as nursery:
                async for name, attr in session.paths.walk(where.path):
                    if attr.type == FileType.FILE and attr.inode not in seen:
                        seen.add(attr.inode)
                        progress.add_total(1)
                        # Taken here, not in the task: at most so many tasks exist, however many files there are.
                        await limit.acquire()
                        nursery.start_soon(bounded, name, attr)

    on_cluster(where.address, work)
    if as_json:
        print_json(found)
    else:
        for problem in found["problems"]:
            click.echo(f"{problem['path']}: {problem['problem']}")
        click.echo(
            f"{found['files']} files, {found['chunks']} chunks, {found['replicas']} replicas verified, "
            f"{len(found['problems'])} problems"
        )
    return int(bool(found["problems"]))
