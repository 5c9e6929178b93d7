"""`gfs master`: the real process, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.cli.options import ready_option


@click.command("master")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="TOML file; see gfs-master.toml."
)
@ready_option
def command(path: Path, ready_fd: int | None) -> None:
    """Run a master until SIGTERM. Logs to stderr."""
    from functools import partial

    import trio

    from gfscore.env.real import real_env
    from gfscore.server.master.config import MasterConfig
    from gfscore.server.master.server import run_master
    from gfsmount.cli import role
    from gfsmount.cli.config_file import read_config

    config = read_config(path, MasterConfig)
    role.configure_logging(config.log_level)
    role.allow_many_files()
    role.collect_garbage_rarely()
    directory = role.data_directory(path, config.directory)
    serve = partial(run_master, config, real_env(directory))
    trio.run(role.serve_until_signal, serve, ready_fd, lambda _: f"{config.host}:{config.port}")
