"""Makes the helpers of this folder importable, and gives handlers on an in-memory client without a mount."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_client import FakeClient

from gfscore.ids import ROOT_INODE
from gfsmount.mount_options import MountOptions
from gfsmount.operations import Operations


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def operations(client: FakeClient) -> Operations:
    return Operations(client, ROOT_INODE, MountOptions())  # type: ignore[arg-type]
