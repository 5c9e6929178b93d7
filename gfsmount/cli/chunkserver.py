"""`gfs chunkserver`: the real process, in the foreground."""

from __future__ import annotations

from pathlib import Path

import click

from gfsmount.cli.options import ready_option


@click.command("chunkserver")
@click.option(
    "--config", "path", type=click.Path(path_type=Path), required=True, help="TOML file; see gfs-chunkserver.toml."
)
@ready_option
def command(path: Path, ready_fd: int | None) -> None:
    """Run a chunkserver until SIGTERM. Logs to stderr."""
    from functools import partial

    import trio

    from gfscore.env.real import real_env
    from gfscore.server.chunkserver.config import ChunkserverConfig
    from gfscore.server.chunkserver.server import run_chunkserver
    from gfsmount.cli import role
    from gfsmount.cli.config_file import read_config

    config = read_config(path, ChunkserverConfig)
    role.configure_logging(config.log_level)
    role.allow_many_files()
    role.collect_garbage_rarely()
    directory = role.data_directory(path, config.directory)
    serve = partial(run_chunkserver, config, real_env(directory))
    trio.run(role.serve_until_signal, serve, ready_fd, lambda _: f"{config.host}:{config.port}")
