"""A fresh file system for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from metadata_state import State

from gfscore.metadata.validate import validate


@pytest.fixture
def state() -> Iterator[State]:
    made = State()
    yield made
    validate(made.tables)
