"""`kill -9` of the master under load, and of everything: nothing that was acknowledged is lost."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from harness import local_cluster, take_down


def test_the_master_is_killed_under_load_and_every_acknowledged_name_is_there(tmp_path: Path) -> None:
    with local_cluster(tmp_path / "var") as cluster:
        acknowledged: list[tuple[str, bytes]] = []
        stop = threading.Event()

        def work(who: int) -> None:
            directory = cluster.mount / f"w{who}"
            directory.mkdir()
            number = 0
            while not stop.is_set():
                name, data = f"w{who}/f{number}", os.urandom(100 + number)
                (cluster.mount / name).write_bytes(data)
                if number % 3 == 2:
                    os.rename(cluster.mount / name, cluster.mount / f"{name}.moved")
                    name += ".moved"
                acknowledged.append((name, data))
                number += 1

        workers = [threading.Thread(target=work, args=(who,)) for who in range(3)]
        for worker in workers:
            worker.start()
        for _ in range(4):
            seen = len(acknowledged)
            while len(acknowledged) < seen + 20:
                assert all(worker.is_alive() for worker in workers)
                stop.wait(0.02)
            cluster.kill("master")
            cluster.gfs("restart", "--root", cluster.root, "master")
        stop.set()
        for worker in workers:
            worker.join(timeout=120)
            assert not worker.is_alive()
        cluster.kill_all()
        take_down(cluster.mount)
        cluster.up()
        assert len(acknowledged) > 60
        for name, data in acknowledged:
            assert (cluster.mount / name).read_bytes() == data, name
        leftover = sum(len(names) for _, _, names in os.walk(cluster.mount))
        assert leftover - len(acknowledged) <= 3  # each worker may have been in the middle of one file


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
