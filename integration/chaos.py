"""Random SIGKILL and SIGSTOP on every role of a cluster under a mixed load; nothing acknowledged may be lost.

    chaos.py [--events 1000] [--seed N] [--root DIRECTORY]

The seed decides the events and their pauses; what they meet is up to the machine. At the end all is resumed, and
`chaos_check` holds what the workers wrote down against both mounts and every replica. On failure the events are
printed with the command that repeats them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from chaos_check import Findings, all_files, check_journals, check_replicas, chunks_of, lost_chunks, read_journal
from harness import wait_until
from roles import RoleCluster, role_cluster

WORKER = Path(__file__).with_name("chaos_worker.py")
LEASE_SECONDS = 5
CHUNKSERVERS = 4
REPLICATION = 3
DOWN_MAX = REPLICATION - 1  # chunkservers dead or stopped at the same time
LOADS_PER_LOG = 6  # so many groups of workers, one after the other, append to the same file
MOUNT_AGAIN_SECONDS = 0.5
END_SECONDS = 180.0
HEALTHY_SECONDS = 90.0
PROBLEMS_SHOWN = 20


class ChaosFailed(AssertionError):
    """What was acknowledged is not there, or something does not work any more."""


@dataclass
class _Worker:
    kind: str
    target: str
    journal: Path
    process: subprocess.Popen
    mount: str


class Chaos:
    """One run. `events` faults, drawn from `seed`."""

    def __init__(self, cluster: RoleCluster, events: int, seed: int, directory: Path) -> None:
        self.cluster = cluster
        self.history: list[str] = []
        self._events = events
        self._rng = random.Random(seed)
        self._directory = directory
        self._stop_file = directory / "stop"
        self._workers: dict[str, _Worker] = {}
        self._groups = 0
        self._started = time.monotonic()
        self._due: list[tuple[float, str, Callable[[], None]]] = []  # when, which role, how it comes back
        self._loadless: set[str] = set(cluster.mounts)
        directory.mkdir()

    # ------------------------------------------------------------ the run

    def run(self) -> Findings:
        for number in range(self._events):
            self._settle(self._rng.uniform(0.05, 0.6))
            self._event(number)
        self._resume_all()
        return self._check()

    def _note(self, text: str) -> None:
        self.history.append(f"{time.monotonic() - self._started:8.2f} s  {text}")

    def _settle(self, seconds: float) -> None:
        """Let time pass; what is due comes back, mounts that are back get their load."""
        until = time.monotonic() + seconds
        while True:
            now = time.monotonic()
            for entry in [entry for entry in self._due if entry[0] <= now]:
                self._due.remove(entry)
                entry[2]()
            self._look_after()
            if now >= until:
                return
            time.sleep(0.02)

    def _look_after(self) -> None:
        waiting = {name for _, name, _ in self._due}
        for name in self.cluster.names:
            if name in waiting or self.cluster.running(name):
                continue
            if name not in self._loadless:
                raise ChaosFailed(f"{name} ended by itself, see {self.cluster.log_file(name)}")
            # A mount that finds no master at its start says so and ends: whoever started it does it again.
            self._due.append((time.monotonic() + MOUNT_AGAIN_SECONDS, name, partial(self._start, name)))
        for name in sorted(self._loadless):
            if name not in waiting and self.cluster.ready(name):
                self._loadless.discard(name)
                self._start_load(name)
        for name, worker in self._workers.items():
            if worker.process.poll() not in (None, 0, -signal.SIGKILL):  # with its mount, it may have been killed
                raise ChaosFailed(f"worker {name} failed: {self._words(name)}")

    def _words(self, worker: str) -> str:
        return (self._directory / f"{worker}.err").read_text()[-2000:]

    def _start_load(self, mount: str) -> None:
        group = self._groups
        self._groups += 1
        other = next((name for name in self.cluster.mounts if name != mount), mount)
        for kind in ("append", "append", "files", "blocks"):
            name = f"{kind}-{group}-{len(self._workers)}"
            target = f"log{group // LOADS_PER_LOG}" if kind == "append" else name
            journal = self._directory / f"{name}.journal"
            command = [sys.executable, WORKER, kind, self.cluster.path(mount), self.cluster.path(other), name, target]
            with open(self._directory / f"{name}.err", "wb") as err:
                process = subprocess.Popen(
                    [*map(str, command), str(journal), str(self._stop_file)], stdout=err, stderr=err
                )
            self._workers[name] = _Worker(kind, target, journal, process, mount)

    # ------------------------------------------------------------ events

    def _event(self, number: int) -> None:
        rng = self._rng
        disturbed = {name for _, name, _ in self._due}
        down = {name for name in self.cluster.servers if name in disturbed or not self.cluster.ready(name)}
        choices = ["master", *self.cluster.servers * 2, *self.cluster.mounts]
        name = rng.choice(choices)
        kill = rng.random() < (0.2 if name in self.cluster.mounts else 0.5)
        long_stop = rng.random() < 0.1
        seconds = rng.uniform(0, 1.5) if kill else rng.uniform(0.05, 1.5)
        if long_stop and not kill:
            seconds = rng.uniform(1.1, 1.6) * self.cluster.lease_seconds
        too_many = name in self.cluster.servers and name not in down and len(down) >= DOWN_MAX
        while name in disturbed or too_many:  # never more than the goal allows: wait for somebody to come back
            self._settle(0.1)
            disturbed = {one for _, one, _ in self._due}
            down = {one for one in self.cluster.servers if one in disturbed or not self.cluster.ready(one)}
            too_many = name in self.cluster.servers and name not in down and len(down) >= DOWN_MAX
        if kill:
            self._kill(name, seconds)
        else:
            self._stop(name, seconds)
        what = "SIGKILL" if kill else "SIGSTOP"
        self._note(f"event {number}: {what} {name}, back after {seconds:.2f} s; {len(down)} servers were away")

    def _kill(self, name: str, seconds: float) -> None:
        self.cluster.send(name, signal.SIGKILL)
        if name in self.cluster.mounts:
            self._loadless.add(name)
        self._due.append((time.monotonic() + seconds, name, partial(self._start, name)))

    def _start(self, name: str, limit: float | None = None) -> None:
        """`limit`: until when the programs that die with a mount have to be gone (monotonic)."""
        left = [worker for worker in self._workers.values() if worker.mount == name and worker.process.poll() is None]
        if left:  # this machine's programs died with it
            for worker in left:
                worker.process.kill()
            now = time.monotonic()
            limit = limit or now + END_SECONDS
            if now > limit:
                raise ChaosFailed(f"programs of {name} do not end: their last lines are {self._last_lines(left[0])}")
            # One that waits for the other mount cannot end before that goes on, if it is stopped.
            self._due.append((now + 0.1, name, partial(self._start, name, limit)))
            return
        self.cluster.start(name)
        self._note(f"{name} is started again")

    def _stop(self, name: str, seconds: float) -> None:
        self.cluster.send(name, signal.SIGSTOP)
        self._due.append((time.monotonic() + seconds, name, partial(self._continue, name)))

    def _continue(self, name: str) -> None:
        self.cluster.send(name, signal.SIGCONT)
        self._note(f"{name} goes on")

    def _resume_all(self) -> None:
        self._due = [(0.0, name, back) for _, name, back in sorted(self._due, key=lambda entry: entry[0])]
        while self._due:
            self._settle(0.1)
        self._note("all are resumed")

    # ------------------------------------------------------------ the end

    def _check(self) -> Findings:
        self._wait_all_serve()
        self._finish_load()
        mounts = [self.cluster.path(name) for name in self.cluster.mounts]
        for mount in mounts:  # lengths that nobody committed are settled when somebody looks
            for path in all_files(mount):
                path.stat()
        self._wait_healthy()
        journals = {
            name: (worker.kind, worker.target, read_journal(worker.journal)) for name, worker in self._workers.items()
        }
        found = check_journals(journals, mounts)
        self._wait_no_lease(mounts[0])
        check_replicas(mounts[0], self.cluster.chunk_bytes, found)
        self._fsck(found)
        if found.problems:
            shown = "\n".join(found.problems[:PROBLEMS_SHOWN])
            raise ChaosFailed(f"{len(found.problems)} problems ({found}):\n{shown}")
        return found

    def _wait_all_serve(self) -> None:
        limit = time.monotonic() + END_SECONDS
        while not all(self.cluster.ready(name) for name in self.cluster.names):
            silent = [name for name in self.cluster.names if not self.cluster.ready(name)]
            if time.monotonic() > limit:
                raise ChaosFailed(f"{', '.join(silent)} do not serve {END_SECONDS:g} s after the last event")
            self._settle(0.1)

    def _finish_load(self) -> None:
        self._stop_file.touch()
        limit = time.monotonic() + END_SECONDS
        for name, worker in self._workers.items():
            try:
                worker.process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise ChaosFailed(f"worker {name} hangs: the last lines are {self._last_lines(worker)}") from None
            if worker.process.returncode not in (0, -signal.SIGKILL):
                raise ChaosFailed(f"worker {name} failed: {self._words(name)}")

    @staticmethod
    def _last_lines(worker: _Worker) -> list[str]:
        return worker.journal.read_text().splitlines()[-3:] if worker.journal.exists() else []

    def _wait_healthy(self) -> None:
        """All servers up and no chunk lost; where the cluster repairs itself, also none with too few replicas."""
        state: dict = {}

        def healthy() -> bool:
            nonlocal state
            state = self.cluster.status() or state
            chunks = state.get("chunks", {})
            up = sum(server["state"] == "up" for server in state.get("chunkservers", []))
            repaired = "repairing" not in state or not chunks["under_replicated"]
            return up == CHUNKSERVERS and not chunks["lost"] and repaired

        try:
            wait_until(healthy, "the cluster to be healthy", HEALTHY_SECONDS)
        except AssertionError as error:
            lost = "\n".join(lost_chunks(self.cluster.path(self.cluster.mounts[0])))
            raise ChaosFailed(f"{error}: {json.dumps(state)}\n{lost}") from None
        self._note(f"healthy: {state['chunks']}")

    def _wait_no_lease(self, mount: Path) -> None:
        """Leases of files that nobody writes end by themselves."""

        def ended() -> bool:
            return not any(chunk["primary"] for path in all_files(mount) for chunk in chunks_of(path))

        wait_until(ended, "all leases to end", self.cluster.lease_seconds * 4 + 30)

    def _fsck(self, found: Findings) -> None:
        repairs = "repairing" in self.cluster.status()
        done = self.cluster.gfs("fsck", "/", "--json", check=False, seconds=600)
        if not done.stdout.strip().startswith("{"):
            found.problems.append(f"gfs fsck said nothing: {done.stderr[-500:]}")
            return
        for problem in json.loads(done.stdout)["problems"]:
            text = json.dumps(problem)
            fewer = any(word in text for word in ("under_replicated", " replicas", "stale", "missing", "not here"))
            if repairs or not fewer or "differ" in text:
                found.problems.append(f"gfs fsck: {text}")

    def end(self) -> None:
        """No worker is left, whatever happened."""
        for worker in self._workers.values():
            if worker.process.poll() is None:
                worker.process.kill()
        for worker in self._workers.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(5)


def run_chaos(root: Path, events: int, seed: int) -> Findings:
    """Raises ChaosFailed with the problems, the events and the command that repeats it."""
    with role_cluster(
        root, chunkservers=CHUNKSERVERS, replication=REPLICATION, lease_seconds=LEASE_SECONDS, mounts=2
    ) as cluster:
        chaos = Chaos(cluster, events, seed, root / "load")
        try:
            return chaos.run()
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            history = "\n".join(chaos.history)
            raise ChaosFailed(
                f"{error}\n--- the events\n{history}\n--- again:  make chaos EVENTS={events} SEED={seed}"
            ) from error
        finally:
            for name in cluster.names:
                if cluster.running(name) and cluster.stopped(name):
                    cluster.send(name, signal.SIGCONT)
            cluster.down()  # first: a worker may hang on a mount
            chaos.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--root", type=Path, default=None, help="kept afterwards; default: a temporary one")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    root = options.root or Path(tempfile.mkdtemp(prefix="gfs-chaos-"))
    print(f"chaos: {options.events} events, seed {seed}, in {root}", flush=True)
    os.makedirs(root, exist_ok=True)
    started = time.monotonic()
    try:
        found = run_chaos(root, options.events, seed)
    except ChaosFailed as error:
        print(f"FAILED after {time.monotonic() - started:.0f} s: {error}", file=sys.stderr)
        return 1
    print(f"nothing is lost after {time.monotonic() - started:.0f} s: {found}")
    if options.root is None:
        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
