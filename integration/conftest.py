"""Gives tests a running local cluster that is always taken down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Cluster, local_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A master, three chunkservers and a mount, with 1 MiB chunks so that their borders are met often."""
    with local_cluster(tmp_path_factory.mktemp("cluster") / "var", chunk_size="1MiB") as running:
        yield running


@pytest.fixture
def mount_path(cluster: Cluster) -> Path:
    return cluster.mount


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests this machine could not run, and why: a run without them is not a run with them."""
    reasons = Counter(str(report.longrepr[-1]) for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")
