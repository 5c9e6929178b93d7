"""`gfs rm`: remove files and directories."""

from __future__ import annotations

import click

from gfsmount.cli.options import master_option


@click.command("rm")
@click.argument("paths", nargs=-1, required=True, metavar="PATH…")
@click.option("-r", "-R", "--recursive", is_flag=True, help="Directories too, with all that is below.")
@click.option("-f", "--force", is_flag=True, help="One that is not there is fine.")
@master_option
def command(paths: tuple[str, ...], recursive: bool, force: bool, master: str | None) -> None:
    """Remove files, and with -r directories."""
    from gfscore.client import FileType
    from gfscore.errors import Code, GfsError
    from gfsmount.cli.cluster_client import Session, about, on_cluster
    from gfsmount.cli.targets import targets
    from gfsmount.cli.usage import UsageProblem

    for path in paths:
        if path.rstrip("/").rpartition("/")[2] in (".", ".."):
            raise UsageProblem(f"{path} is another name of a directory: remove it by its own")
    unwanted = targets(paths, master)

    async def work(session: Session) -> None:
        for where in unwanted:
            try:
                attr = await session.find(where, follow=False)
                if attr.type == FileType.DIRECTORY and not recursive:
                    raise GfsError(
                        Code.IS_DIRECTORY, f"{where.typed} is a directory: add -r to remove it and all below"
                    )
                with about(where):
                    await session.paths.remove(where.path, recursive)
            except GfsError as error:
                # That is the path itself: `remove` does not mind what is gone below it.
                if not (force and error.code in (Code.NOT_FOUND, Code.STALE_INODE)):
                    raise

    on_cluster(unwanted[0].address, work)
