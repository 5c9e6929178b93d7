"""The entry point of `gfs`: finds the command, turns every failure into one line on stderr and an exit status.

Imports nothing that is slow to load: a command's module is imported when that command runs.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from gfscore.errors import GfsError
from gfsmount.cli.usage import UsageProblem

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

# name → (module, what `gfs --help` says)
COMMANDS = {
    "master": ("master", "Run a master in the foreground."),
    "chunkserver": ("chunkserver", "Run a chunkserver in the foreground."),
    "mount": ("mount", "Mount a cluster, in the foreground."),
    "up": ("up", "Start or repair a cluster on this machine."),
    "down": ("down", "Unmount and stop it; data stays."),
    "ps": ("ps", "List its processes."),
    "stop": ("stop", "Stop one of its processes."),
    "restart": ("restart", "Restart one of its processes."),
    "status": ("status", "Show the state of a cluster."),
    "drain": ("drain", "Empty a chunkserver, so that it can be switched off."),
    "forget-server": ("forget_server", "Stop waiting for a chunkserver that will never come back."),
    "fsck": ("fsck", "Read and verify every replica of every chunk."),
    "fileinfo": ("fileinfo", "Show the chunks of a file and their replicas."),
    "mount-info": ("mount_info", "Show what a mount has asked its master."),
    "ls": ("ls", "List a directory."),
    "stat": ("stat", "Show the attributes of a file."),
    "tree": ("tree", "Show a directory and all below it."),
    "du": ("du", "Add up the sizes below a directory."),
    "cat": ("cat", "Write files to standard output."),
    "put": ("put", "Copy local files in."),
    "get": ("get", "Copy files out."),
    "cp": ("cp", "Copy inside the file system; --reflink copies at once."),
    "mv": ("mv", "Rename or move."),
    "rm": ("rm", "Remove files and directories."),
    "mkdir": ("mkdir", "Make directories."),
    "append": ("append", "Append records atomically; prints their offsets."),
    "snapshot": ("snapshot", "Copy a file or a tree at once, sharing its chunks."),
    "trash": ("trash", "List, restore or reclaim deleted files."),
    "set": ("set", "Set policies of a file or directory."),
    "get-policy": ("get_policy", "Show the policies of a file or directory."),
}


class CommandGroup(click.Group):
    """Knows all commands, and loads the one that is asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = importlib.import_module(f"gfsmount.cli.{COMMANDS[name][0]}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])


@click.group(cls=CommandGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="gfsmount", prog_name="gfs")
@click.option("--master", metavar="HOST:PORT", help="The cluster to talk to.")
def cli(master: str | None) -> None:
    """The Google File System, mountable.

    A PATH is a path below a mount, or gfs://HOST:PORT/path. The cluster is the one named by --master or
    GFS_MASTER, else that of the mount the path lies on, else the local cluster of ./var.
    """
    if master:
        os.environ["GFS_MASTER"] = master


def main() -> NoReturn:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run `gfs ARGUMENTS`; the exit status. 0 good, 1 failed or not healthy, 2 wrong usage."""
    try:
        status = cli.main(arguments, prog_name="gfs", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BaseException as error:
        return _explain(error)


def _explain(error: BaseException) -> int:
    """Say what went wrong in one line, and choose the exit status; what is our own mistake keeps its traceback."""
    if isinstance(error, BaseExceptionGroup):
        # trio groups what its tasks raise; the first that is not a mere consequence says it best.
        return _explain(error.exceptions[0])
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        _say(error.format_message(), prefix="")
        return WRONG_USAGE
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "gfs"
        _say(f"{error.format_message()} (see: {path} --help)")
        return WRONG_USAGE
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        _say("interrupted")
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has gone; say nothing at exit either
        return FAILED
    if isinstance(error, GfsError):
        _say(str(error))
        return WRONG_USAGE if isinstance(error, UsageProblem) else FAILED
    if isinstance(error, OSError):
        _say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return FAILED
    if isinstance(error, click.ClickException):
        _say(error.format_message())
        return FAILED
    raise error


def _say(message: str, prefix: str = "gfs: ") -> None:
    click.echo(prefix + (" ".join(message.split()) if prefix else message), err=True)
