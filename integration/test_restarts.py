"""`kill -9` of the master under load, and of everything: nothing that was acknowledged is lost."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.synchronize import Event
from pathlib import Path

from harness import local_cluster, take_down, wait_until


def _work(mount: Path, who: int, notes: Path, stop: Event) -> None:
    """Makes files and renames every third; a line of `notes` is a name that was acknowledged, and the data."""
    directory = mount / f"w{who}"
    directory.mkdir()
    number = 0
    with notes.open("w", buffering=1) as acknowledged:
        while not stop.is_set():
            name, data = f"w{who}/f{number}", os.urandom(100 + number)
            (mount / name).write_bytes(data)
            if number % 3 == 2:
                os.rename(mount / name, mount / f"{name}.moved")
                name += ".moved"
            print(name, data.hex(), file=acknowledged)
            number += 1


def test_the_master_is_killed_under_load_and_every_acknowledged_name_is_there(tmp_path: Path) -> None:
    """The load has processes of its own: a process that holds a file open cannot start another one, such as the one
    that restarts the master, without waiting for the file's data."""
    notes = [tmp_path / f"notes{who}" for who in range(3)]
    context = multiprocessing.get_context("spawn")
    stop = context.Event()

    def acknowledged() -> list[tuple[str, bytes]]:
        lines = [line.split() for file in notes if file.exists() for line in file.read_text().splitlines(keepends=True)
                 if line.endswith("\n")]  # fmt: skip
        return [(name, bytes.fromhex(data)) for name, data in lines]

    with local_cluster(tmp_path / "var") as cluster:
        workers = [
            context.Process(target=_work, args=(cluster.mount, who, file, stop), daemon=True)
            for who, file in enumerate(notes)
        ]
        try:
            for worker in workers:
                worker.start()

            def gone_on(seen: int) -> bool:
                assert all(worker.is_alive() for worker in workers)
                return len(acknowledged()) >= seen + 20

            for _ in range(4):
                seen = len(acknowledged())
                wait_until(lambda seen=seen: gone_on(seen), "20 more files", 120)  # type: ignore[misc]
                cluster.kill("master")
                cluster.gfs("restart", "--root", cluster.root, "master")
            stop.set()
            for worker in workers:
                worker.join(timeout=120)
                assert worker.exitcode == 0
        finally:
            for worker in workers:
                worker.kill()
        cluster.kill_all()
        take_down(cluster.mount)
        cluster.up()
        names = acknowledged()
        assert len(names) > 60
        for name, data in names:
            assert (cluster.mount / name).read_bytes() == data, name
        leftover = sum(len(files) for _, _, files in os.walk(cluster.mount))
        assert leftover - len(names) <= 3  # each worker may have been in the middle of one file


def test_files_unlinked_while_open_stay_usable_across_a_restart_of_the_master(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "var") as cluster:
        with open(cluster.mount / "file", "w+b", buffering=0) as file:
            file.write(b"contents")
            os.unlink(cluster.mount / "file")
            cluster.gfs("restart", "--root", cluster.root, "master")
            file.write(b" and more")
            file.seek(0)
            assert file.read() == b"contents and more"
        assert os.listdir(cluster.mount) == []
