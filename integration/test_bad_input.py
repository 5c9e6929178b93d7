"""Wrong input everywhere: a clear one-line error or errno, the exit status of the contract, and the servers alive."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import GFS, Cluster, local_cluster, run


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with local_cluster(tmp_path_factory.mktemp("bad") / "var", chunk_size="1MiB") as running:
        yield running


def errno_of(call: object, *arguments: object) -> int:
    try:
        call(*arguments)  # type: ignore[operator]
    except OSError as error:
        return error.errno or 0
    return 0


def refused(status: int, *arguments: object, word: str) -> None:
    """One line on stderr that says `word`, no traceback, the exit status of the contract."""
    done = run(GFS, *arguments, check=False)
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert word in done.stderr.lower(), done.stderr
    lines = [line for line in done.stderr.splitlines() if "level=" not in line]  # roles log beside it
    assert len(lines) == 1, done.stderr


def test_records_of_wrong_size(cluster: Cluster) -> None:
    path = cluster.mount / "log"
    path.touch()
    assert errno_of(os.setxattr, path, "gfs.append", b"") == errno.EINVAL
    assert errno_of(os.setxattr, path, "gfs.append", bytes(70_000)) in (errno.E2BIG, errno.ENOSPC)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    too_large = bytes(cluster.chunk_bytes // 4 + 1)
    assert errno_of(os.write, descriptor, too_large) in (errno.EMSGSIZE, errno.EFBIG)
    os.write(descriptor, b"fine")
    os.close(descriptor)
    assert path.read_bytes() == b"fine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gfs.replication", b"many"),
        ("gfs.replication", b"0"),
        ("gfs.replication", b"99"),
        ("gfs.trash_seconds", b"-1"),
        ("gfs.append_pad", b"long"),
        ("gfs.append_sync", b"perhaps"),
        ("gfs.snapshot", b"relative"),
        ("gfs.snapshot", b""),
    ],
)
def test_attribute_values_of_a_wrong_form(cluster: Cluster, name: str, value: bytes) -> None:
    (cluster.mount / "policies").mkdir(exist_ok=True)
    assert errno_of(os.setxattr, cluster.mount / "policies", name, value) == errno.EINVAL


def test_unknown_special_attributes(cluster: Cluster) -> None:
    assert errno_of(os.setxattr, cluster.mount, "gfs.nonsense", b"1") in (errno.EINVAL, errno.EOPNOTSUPP)
    assert errno_of(os.getxattr, cluster.mount, "gfs.nonsense") == errno.ENODATA


def test_long_names_and_missing_paths(cluster: Cluster) -> None:
    assert errno_of(os.mkdir, cluster.mount / ("n" * 256)) == errno.ENAMETOOLONG
    os.mkdir(cluster.mount / ("n" * 255))
    assert errno_of(os.stat, cluster.mount / "nothing/here") == errno.ENOENT
    (cluster.mount / "plain").touch()
    assert errno_of(os.stat, cluster.mount / "plain/below") == errno.ENOTDIR


def test_the_command_line(cluster: Cluster, tmp_path: Path) -> None:
    master = cluster.master_address()
    (tmp_path / "outside").touch()
    refused(1, "--master", master, "stat", f"gfs://{master}/nothing", word="no such file")
    refused(2, "fileinfo", tmp_path / "outside", word="mount")
    refused(1, "set", cluster.mount, "replication=lots", word="replication")
    refused(1, "set", cluster.mount, "colour=blue", word="colour")
    refused(1, "ls", "gfs://127.0.0.1:1/", word="127.0.0.1:1")
    refused(2, "ls", "gfs://nonsense", word="host:port")
    refused(2, "no-such-command", word="no-such-command")
    refused(2, "up", "--root", tmp_path / "x", "--chunk-size", "17 bananas", word="chunk-size")
    refused(2, "up", "--root", tmp_path / "x", "--chunk-size", "100KiB", word="chunk")


def test_a_wrong_chunk_size_for_an_existing_cluster(cluster: Cluster) -> None:
    refused(2, "up", "--root", cluster.root, "--mount", cluster.mount, "--chunk-size", "2MiB", word="chunk-size 1mib")


def test_an_unreadable_config_key(tmp_path: Path) -> None:
    for role in ("master", "chunkserver"):
        config = tmp_path / f"{role}.toml"
        config.write_text('colour = "blue"\n')
        refused(2, role, "--config", config, word="colour")
    refused(1, "master", "--config", tmp_path / "missing.toml", word="missing.toml")


def test_a_port_in_use_and_a_directory_in_use(cluster: Cluster, tmp_path: Path) -> None:
    config = next((cluster.root).rglob("master*.toml")).read_text()
    taken = tmp_path / "same.toml"
    taken.write_text(config)
    refused(1, "master", "--config", taken, word="another")
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    lines = [line for line in config.splitlines() if not line.startswith(("port", "directory", "stream"))]
    other = tmp_path / "other.toml"
    other.write_text("\n".join([*lines, f"port = {port}", f'directory = "{tmp_path / "state"}"']) + "\n")
    refused(1, "master", "--config", other, word=str(port))
    listening.close()


def test_a_chunkserver_of_another_cluster_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    with local_cluster(tmp_path / "second", chunk_size="1MiB", chunkservers=1, replication=1) as second:
        name = second.chunkservers()[0]["name"]
        second.gfs("stop", "--root", second.root, name)
        config = next(path for path in second.root.rglob("*.toml") if path.stem == name)
        text = config.read_text().replace(second.master_address(), cluster.master_address())
        moved = tmp_path / "moved.toml"
        moved.write_text(text)
        refused(1, "chunkserver", "--config", moved, word="cluster")


def ports(cluster: Cluster) -> list[int]:
    """Every port that a process of the cluster listens on."""
    sockets = set()
    for process in cluster.processes():
        for descriptor in Path(f"/proc/{process['pid']}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:  # 0A: listening
                found.add(int(fields[1].rpartition(":")[2], 16))
    return sorted(found)


def test_malformed_frames_and_oversized_messages_at_every_port(cluster: Cluster) -> None:
    (cluster.mount / "before").write_bytes(b"kept")
    listening = ports(cluster)
    assert len(listening) >= 8
    frame = struct.Struct("<2sBBHHIII")
    garbage = [
        b"\0" * 100,
        b"GET / HTTP/1.0\r\n\r\n",
        os.urandom(5000),
        frame.pack(b"GF", 0, 0, 0, 0, 1, 0xFFFFFFFF, 0),
        frame.pack(b"GF", 0, 0, 770, 0, 1, 5, 0xFFFFFFFF) + b"xxxxx",
        frame.pack(b"GF", 0, 0, 65535, 0, 1, 0, 0),
        frame.pack(b"GF", 1, 0, 1, 0, 99, 3, 0) + b"\xff\xff\xff",
        frame.pack(b"GF", 0, 0, 768, 0, 1, 4, 100),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 2000,
    ]
    for port in listening:
        for message in garbage:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(message)
                connection.settimeout(0.2)
                try:
                    while connection.recv(4096):
                        pass
                except OSError:
                    pass
    assert all(process["state"] in ("running", "up") for process in cluster.processes())
    assert (cluster.mount / "before").read_bytes() == b"kept"
    (cluster.mount / "after").write_bytes(b"alive")
    assert cluster.status()["chunks"]["lost"] == 0


def test_an_unreachable_master_is_an_error_not_a_hang(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    refused(1, "mount", "127.0.0.1:1", tmp_path / "mnt", word="127.0.0.1:1")
    refused(1, "--master", "127.0.0.1:1", "status", word="127.0.0.1:1")


def test_a_mount_of_a_directory_that_is_not_there(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    source = f"{cluster.master_address()}/nothing"
    refused(
        1,
        "mount",
        source,
        tmp_path / "mnt",
        word=f"/nothing does not exist in the file system: gfs mkdir gfs://{source}",
    )
