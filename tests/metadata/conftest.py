"""Makes the helpers beside the tests importable, and a fresh file system for each test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from metadata_state import State

from gfscore.metadata.validate import validate


@pytest.fixture
def state() -> Iterator[State]:
    made = State()
    yield made
    validate(made.tables)
