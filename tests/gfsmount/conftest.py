"""Handlers on an in-memory client, without a mount."""

from __future__ import annotations

import pytest
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
