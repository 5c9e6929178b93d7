"""The face of `gfs`: exit status, one line per error, help, config files, addresses, mount(8)'s calling convention."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gfscore.errors import Code, GfsError
from gfsmount import kernel
from gfsmount.cli import main, mount_helper, targets
from gfsmount.cli.config_file import read_config
from gfsmount.cli.options import parse_size
from gfsmount.cli.output import human_size, print_table
from gfsmount.cli.usage import UsageProblem


def gfs(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gfsmount.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([name, "--help"]) == 0
    assert f"Usage: gfs {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["no-such-command"], "no-such-command"),
        (["ls", "--no-such-option"], "--no-such-option"),
        (["up", "--chunk-size", "12 parsecs"], "12 parsecs"),
        (["up", "--chunk-size", "100KiB"], "1MiB to 1GiB"),
        (["up", "--chunkservers", "0"], "--chunkservers"),
        (["ls", "/etc"], "/etc is not on a gfs mount"),
        (["mv", "gfs://a:1/x", "gfs://b:2/y"], "different clusters"),
        (["trash", "restore", "gfs://a:1/x", "--to", "gfs://b:2/y"], "different clusters"),
        (["status", "--master", "nonsense"], "nonsense"),
        (["mount", "nonsense", "/mnt"], "nonsense"),
        (["mount", "a:1", "/mnt", "--log-level", "loud"], "no log level 'loud'"),
        (["set", "gfs://a:1/x", "replication"], "NAME=VALUE"),
    ],
)
def test_wrong_usage_is_status_2_and_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(arguments) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and says in output.err


def test_an_unreachable_master_is_status_1_and_one_line() -> None:
    done = gfs("status", "--master", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "127.0.0.1:1" in done.stderr and "gfs up" in done.stderr


def test_no_cluster_here_says_how_to_make_one(tmp_path: Path) -> None:
    for command in ("ps", "down"):
        done = gfs(command, "--root", "nowhere", cwd=tmp_path)
        assert done.returncode == 1 and "gfs up --root" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "nowhere").exists()


def test_errors_of_trio_tasks_are_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    inner = GfsError(Code.NO_SPACE, "the disks are full: add a chunkserver")
    assert main._explain(ExceptionGroup("x", [ExceptionGroup("y", [inner])])) == 1
    assert capsys.readouterr().err == "gfs: the disks are full: add a chunkserver\n"


def test_a_mistake_of_ours_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        main._explain(ZeroDivisionError())


def test_help_loads_no_slow_library() -> None:
    code = "import sys; from gfsmount.cli import main; main.run(['--help']); print([m for m in %r if m in sys.modules])"
    slow = ["grpc", "trio", "rich", "google.protobuf", "pyfuse3", "lmdb"]
    done = subprocess.run([sys.executable, "-c", code % slow], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@dataclass(frozen=True)
class Config:
    master: str
    port: int = 7
    buffer_bytes: int = 1
    ratio: float = 0.5
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.port == 13:
            raise GfsError(Code.INVALID, "port = 13 is unlucky")


def test_a_config_file_is_read_with_sizes_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('master = "a:1"\nport = 8\nbuffer_bytes = "64MiB"\nratio = 2\ndirectory = "/data"\n')
    assert read_config(file, Config) == Config("a:1", 8, 64 << 20, 2.0, Path("/data"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('master = "a:1"\nprot = 8', "unknown key 'prot'; known keys are master, port"),
        ("port = 8", "key 'master' is missing"),
        ('master = "a:1"\nport = "x"', "'port'"),
        ('master = "a:1"\nbuffer_bytes = "many"', "'buffer_bytes'"),
        ('master = "a:1"\nport = 13', "unlucky"),
        ("master = ", "not TOML"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_mistake_in_a_config_file_names_file_and_key(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageProblem) as caught:
        read_config(file, Config)
    assert str(file) in str(caught.value) and says in str(caught.value)


def test_the_example_configs_are_right() -> None:
    from gfscore.server.chunkserver.config import ChunkserverConfig
    from gfscore.server.master.config import MasterConfig

    examples = Path(__file__).parents[2] / "systemd"
    assert read_config(examples / "gfs-master.toml", MasterConfig).chunk_size == 64 << 20
    assert read_config(examples / "gfs-chunkserver.toml", ChunkserverConfig).rack == "default"


@pytest.mark.parametrize(
    ("text", "size"), [("64MiB", 64 << 20), ("64M", 64 << 20), ("1 GiB", 1 << 30), ("5", 5), ("3kb", 3072)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1.5M", "64X"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_people_read_sizes_and_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert [human_size(size) for size in (0, 1023, 1536, 64 << 20)] == ["0 B", "1023 B", "1.5 KiB", "64.0 MiB"]
    print_table(("NAME", "SIZE"), [("a", 5), ("long", 1234)])
    assert capsys.readouterr().out == "NAME  SIZE\na        5\nlong  1234\n"


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    table = [
        kernel.Mounted("/", 8, 1, "ext4", "/dev/sda"),
        kernel.Mounted("/mnt/gfs", 0, 50, "fuse.gfs", "127.0.0.1:7100"),
        kernel.Mounted("/mnt/sub", 0, 51, "fuse.gfs", "10.0.0.1:7100/a/b"),
        kernel.Mounted("/mnt/gfs/local", 0, 52, "tmpfs", "tmpfs"),
    ]
    monkeypatch.setattr(kernel, "mounts", lambda: table)


@pytest.mark.parametrize(
    ("typed", "master", "address", "path"),
    [
        ("/mnt/gfs/x/y", None, "127.0.0.1:7100", "/x/y"),
        ("/mnt/gfs", None, "127.0.0.1:7100", "/"),
        ("/mnt/gfs/../gfs/./x", None, "127.0.0.1:7100", "/x"),
        ("/mnt/sub/c", None, "10.0.0.1:7100", "/a/b/c"),
        ("/mnt/sub", None, "10.0.0.1:7100", "/a/b"),
        ("/mnt/sub/c", "h:1", "h:1", "/a/b/c"),
        ("/etc/x", "h:1", "h:1", "/etc/x"),
        ("gfs://h:2/x y", None, "h:2", "/x y"),
        ("gfs://h:2", None, "h:2", "/"),
        ("gfs:///x", "h:3", "h:3", "/x"),
    ],
)
@pytest.mark.usefixtures("mounted")
def test_where_a_path_leads(typed: str, master: str | None, address: str, path: str) -> None:
    found = targets.target(typed, master)
    assert (found.address, found.path) == (address, path)


@pytest.mark.usefixtures("mounted")
def test_what_is_above_a_link_is_what_the_kernel_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/b")
    table = [kernel.Mounted(str(tmp_path), 0, 53, "fuse.gfs", "h:1")]
    monkeypatch.setattr(kernel, "mounts", lambda: table)
    monkeypatch.chdir(tmp_path)
    for typed, path in [
        ("link/..", "/a"),
        ("link/../x", "/a/x"),
        ("link/.", "/a/b"),
        ("link", "/link"),
        ("link/", "/link"),
        ("a/..", "/"),
        (".", "/"),
    ]:
        assert targets.target(typed, None).path == path, typed


@pytest.mark.parametrize("typed", ["", ".", "..", "./", "/mnt/gfs/a/.", "/mnt/gfs/a/..", "gfs://h:1/a/../"])
@pytest.mark.usefixtures("mounted")
def test_rm_wants_the_name_of_what_it_removes(
    typed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else `gfs rm -r "$UNSET"` would empty the directory that one is in."""
    monkeypatch.setattr(kernel, "mounts", lambda: [kernel.Mounted("/", 0, 53, "fuse.gfs", "127.0.0.1:1")])
    monkeypatch.chdir(tmp_path)
    assert main.run(["rm", "-rf", typed]) == 2
    assert "127.0.0.1:1" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed", ["", "/mnt/gfs/local/x", "/mnt/gfsx", "x", "gfs://h/x", "gfs://:1/x", "gfs://h:99999/x"]
)
@pytest.mark.usefixtures("mounted")
def test_a_path_that_leads_nowhere_is_wrong_usage(typed: str) -> None:
    with pytest.raises(UsageProblem):
        targets.target(typed, None)


def test_mount_gfs_takes_what_mount_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str, str]] = []
    monkeypatch.setattr(mount_helper, "_start", lambda *arguments: seen.append(arguments) or 0)
    assert mount_helper.run(["h:1/sub", "/mnt", "-sn", "-v", "-t", "gfs", "-o", "rw,_netdev", "-o", "ro"]) == 0
    assert seen == [("h:1/sub", "/mnt", "rw,_netdev,ro")]
    assert mount_helper.run(["h:1", "/mnt", "-f"]) == 0 and len(seen) == 1
    assert mount_helper.run(["only-one"]) == 1


def test_mount_gfs_tells_why_a_mount_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mount_helper, "_LOG_FILE", tmp_path / "mount.log")
    assert mount_helper.run(["nonsense", str(tmp_path)]) == 32
    assert "nonsense" in capfd.readouterr().err


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    from gfsmount.cli.output import print_json

    print_json({"name": "grün", "n": 1})
    assert json.loads(capsys.readouterr().out) == {"name": "grün", "n": 1}
