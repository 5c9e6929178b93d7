"""Roles cut off from one another by network namespaces and nftables, also in one direction only.

Each role has a namespace of its own on a bridge; what a cut means is a rule in the namespace that no longer hears.
The client lives in a namespace too. Nothing of it touches the network of the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_check import Findings, check_journals, check_replicas, chunks_of, read_journal
from harness import run, wait_until
from roles import Place, RoleCluster, missing_tools, role_cluster, run_quietly

WORKER = Path(__file__).with_name("chaos_worker.py")
LEASE_SECONDS = 2
AGAIN_SECONDS = 60.0  # until everything works again after the cut is healed; an application's timeout is 30


def missing() -> str:
    """Why this machine cannot run these tests; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = missing_tools("ip", "nft", "nsenter")
    if absent:
        return absent
    name = f"gfs-probe-{os.getpid()}"
    if not run_quietly(["ip", "netns", "add", name]):
        return "this machine does not allow network namespaces"
    try:
        if not run_quietly(["nsenter", f"--net=/run/netns/{name}", "nft", "add", "table", "inet", "gfs"]):
            return "this kernel has no nftables"
        if not run_quietly(["ip", "link", "add", "gfs-probe-v", "type", "veth", "peer", "name", "gfs-probe-w"]):
            return "this kernel has no veth"
        run_quietly(["ip", "link", "del", "gfs-probe-v"])
    finally:
        run_quietly(["ip", "netns", "del", name])
    return ""


class Network:
    """One namespace per role, joined by a bridge in a namespace of its own."""

    def __init__(self, roles: list[str]) -> None:
        self._tag = f"gfs{os.getpid() % 100000}{random.SystemRandom().randrange(100)}"
        self._bridge = f"{self._tag}-br"
        self._addresses = {role: f"10.77.0.{number}" for number, role in enumerate(roles, 1)}

    def place(self, role: str) -> Place:
        return Place(self._addresses[role], ("nsenter", f"--net=/run/netns/{self._name(role)}"))

    def _name(self, role: str) -> str:
        return f"{self._tag}-{role}"

    def _inside(self, role: str, *command: str) -> None:
        run("nsenter", f"--net=/run/netns/{self._name(role)}", *command, seconds=20)

    def up(self) -> None:
        run("ip", "netns", "add", self._bridge)
        in_bridge = ("nsenter", f"--net=/run/netns/{self._bridge}")
        run(*in_bridge, "ip", "link", "add", "br0", "type", "bridge")
        run(*in_bridge, "ip", "link", "set", "br0", "up")
        for role, address in self._addresses.items():
            name = self._name(role)
            run("ip", "netns", "add", name)
            run(
                "ip", "link", "add", "eth0", "netns", name, "type", "veth",
                "peer", "name", f"to-{role}", "netns", self._bridge,
            )  # fmt: skip
            run(*in_bridge, "ip", "link", "set", f"to-{role}", "master", "br0", "up")
            self._inside(role, "ip", "link", "set", "lo", "up")
            self._inside(role, "ip", "addr", "add", f"{address}/24", "dev", "eth0")
            self._inside(role, "ip", "link", "set", "eth0", "up")
            self._inside(role, "nft", "add", "table", "inet", "gfs")
            self._inside(role, "nft", "add", "chain", "inet", "gfs", "in", "{ type filter hook input priority 0; }")

    def deafen(self, role: str, to: str) -> None:
        """From now on `role` hears nothing of `to`; what it sends still arrives."""
        self._inside(role, "nft", "add", "rule", "inet", "gfs", "in", "ip", "saddr", self._addresses[to], "drop")

    def cut(self, one: str, other: str) -> None:
        self.deafen(one, other)
        self.deafen(other, one)

    def heal(self) -> None:
        for role in self._addresses:
            self._inside(role, "nft", "flush", "chain", "inet", "gfs", "in")

    def down(self) -> None:
        for role in self._addresses:
            run_quietly(["ip", "netns", "del", self._name(role)])
        run_quietly(["ip", "netns", "del", self._bridge])


class Load:
    """Two programs that append and one that makes and renames files, on the mount."""

    def __init__(self, cluster: RoleCluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._stop = directory / "stop"
        self._workers: dict[str, tuple[str, str, Path, subprocess.Popen]] = {}
        directory.mkdir()

    def start(self) -> None:
        mount = self._cluster.path("mnt1")
        for number, kind in enumerate(("append", "append", "files")):
            name = f"{kind}-0-{number}"
            target = "log" if kind == "append" else name
            journal = self._directory / f"{name}.journal"
            arguments = [sys.executable, WORKER, kind, mount, mount, name, target, journal, self._stop]
            process = subprocess.Popen(list(map(str, arguments)))
            self._workers[name] = (kind, target, journal, process)

    def acknowledged(self) -> int:
        """Answers so far."""
        lines = [line for _, _, journal, _ in self._workers.values() for line in read_journal(journal)]
        return sum(line[0] in ("record", "ok") for line in lines)

    def wait_for_more(self, count: int, what: str) -> None:
        before = self.acknowledged()
        wait_until(lambda: self.acknowledged() >= before + count, f"{count} more answers {what}", AGAIN_SECONDS)

    def finish(self) -> Findings:
        self._stop.touch()
        for _, _, _, process in self._workers.values():
            process.wait(AGAIN_SECONDS)
        journals = {
            name: (kind, target, read_journal(journal)) for name, (kind, target, journal, _) in self._workers.items()
        }
        return check_journals(journals, [self._cluster.path("mnt1")])

    def end(self) -> None:
        for _, _, _, process in self._workers.values():
            process.kill()


@contextlib.contextmanager
def divided_cluster(root: Path) -> Iterator[tuple[RoleCluster, Network]]:
    network = Network(["master", "cs1", "cs2", "cs3", "cs4", "client"])
    try:
        network.up()
        places = {role: network.place(role) for role in ("master", "cs1", "cs2", "cs3", "cs4", "client")}
        places["mnt1"] = places["client"]
        root.mkdir()
        with role_cluster(root, chunkservers=4, lease_seconds=LEASE_SECONDS, places=places) as cluster:
            yield cluster, network
    finally:
        network.down()


def primary_and_secondary(cluster: RoleCluster) -> tuple[str, str]:
    """Names of the primary of the log's last chunk and of one of its secondaries."""
    names = {(cluster.path(name) / "identity").read_text(): name for name in cluster.servers}

    def of(server_id: str) -> str:
        return next(name for text, name in names.items() if server_id in text)

    def leased() -> tuple[str, str] | None:
        chunk = chunks_of(cluster.path("mnt1") / "log")[-1]
        others = [one["chunkserver"] for one in chunk["replicas"] if one["chunkserver"] != chunk["primary"]]
        return (of(chunk["primary"]), of(others[0])) if chunk["primary"] and others else None

    found = wait_until(leased, "a lease on the log", AGAIN_SECONDS)
    assert isinstance(found, tuple)
    return found


def cut(network: Network, case: str, primary: str, secondary: str, servers: list[str]) -> None:
    match case:
        case "primary from master":
            network.cut(primary, "master")
        case "primary deaf to master":
            network.deafen(primary, "master")
        case "master deaf to primary":
            network.deafen("master", primary)
        case "client from primary":
            network.cut("client", primary)
        case "client deaf to primary":
            network.deafen("client", primary)
        case "client from secondary":
            network.cut("client", secondary)
        case "secondary from primary":
            network.cut(secondary, primary)
        case "primary deaf to secondary":
            network.deafen(primary, secondary)
        case "master from all":
            for other in (*servers, "client"):
                network.cut("master", other)


CASES = [
    "primary from master",
    "primary deaf to master",
    "master deaf to primary",
    "client from primary",
    "client deaf to primary",
    "client from secondary",
    "secondary from primary",
    "primary deaf to secondary",
    "master from all",
]
STOPS_ALL = {"master from all"}  # in these the load may stand still until the cut is healed


@pytest.mark.parametrize("case", CASES)
def test_a_partition_loses_nothing_and_heals(tmp_path: Path, case: str) -> None:
    reason = missing()
    if reason:
        pytest.skip(reason)
    with divided_cluster(tmp_path / "var") as (cluster, network):
        load = Load(cluster, tmp_path / "load")
        try:
            load.start()
            load.wait_for_more(30, "before the cut")
            primary, secondary = primary_and_secondary(cluster)
            cut(network, case, primary, secondary, cluster.servers)
            print(f"{case}: primary {primary}, secondary {secondary}")
            if case not in STOPS_ALL:
                load.wait_for_more(10, "during the cut")
            else:
                wait_until(lambda: not cluster.status(), "the master to be out of reach", AGAIN_SECONDS)
            network.heal()
            wait_until(lambda: cluster.servers_up() == len(cluster.servers), "all servers to be up", AGAIN_SECONDS)
            load.wait_for_more(20, "after the cut")
            found = load.finish()
        finally:
            cluster.send("mnt1", signal.SIGCONT)
            load.end()
        mount = cluster.path("mnt1")
        log = mount / "log"
        wait_until(
            lambda: not any(chunk["primary"] for chunk in chunks_of(log)), "the leases to end", LEASE_SECONDS * 4 + 30
        )
        check_replicas(mount, cluster.chunk_bytes, found)
        print(found)
        assert found.problems == []
        assert found.counts["records"] > 0 and found.counts["replicas"] > 0
