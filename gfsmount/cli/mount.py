"""`gfs mount`: a mount, in the foreground. The only command that loads pyfuse3, and only when it runs."""

from __future__ import annotations

from pathlib import Path

import click

from gfscore.errors import GfsError
from gfsmount.cli.options import ready_option
from gfsmount.cli.usage import UsageProblem


@click.command("mount")
@click.argument("source", metavar="HOST:PORT[/SUB]")
@click.argument("mountpoint", type=click.Path())
@click.option("-o", "options", multiple=True, metavar="OPTION[,OPTION…]", help="Mount options; see the README.")
@click.option("--log-level", default="INFO", show_default=True)
@ready_option
def command(source: str, mountpoint: str, options: tuple[str, ...], log_level: str, ready_fd: int | None) -> None:
    """Mount the cluster, or its directory SUB, at MOUNTPOINT until it is unmounted or SIGTERM comes."""
    import os

    import trio

    from gfsmount.cli import role
    from gfsmount.mount_options import MountConfig, parse_options, parse_source

    try:
        master, subdir = parse_source(source)
        config = MountConfig(master, os.path.abspath(mountpoint), subdir, parse_options(options))
    except GfsError as error:
        raise UsageProblem(str(error)) from error
    role.configure_logging(log_level)
    role.allow_many_files()
    role.collect_garbage_rarely()
    try:
        from gfsmount.mount import run_mount
    except ImportError as error:
        raise click.ClickException(f"pyfuse3 cannot be loaded ({error}): install libfuse 3, then pyfuse3") from error
    from gfscore.env.real import real_env

    async def serve() -> None:
        await run_mount(config, real_env(Path("/")), ready=lambda: role.announce(ready_fd, config.mountpoint))

    trio.run(serve)
