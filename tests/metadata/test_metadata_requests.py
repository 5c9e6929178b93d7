from __future__ import annotations

import pytest
from metadata_state import State

from gfscore.errors import Code, GfsError
from gfscore.metadata.requests import FORGET_BATCH, clients, forget_client, outcome, remember
from gfscore.metadata.tables import REQUESTS


def note(state: State, client: int, request: int, done_below: int, result: tuple[int, ...]) -> None:
    state.run(remember, client, request, done_below, result, timed=False)


def test_outcomes_are_remembered_by_client(state: State) -> None:
    note(state, 7, 1, 0, (5, -1, 1 << 62))
    note(state, 7, 2, 0, ())
    note(state, 8, 1, 0, (9,))
    assert outcome(state.tables, 7, 1) == (5, -1, 1 << 62)
    assert outcome(state.tables, 7, 2) == () and outcome(state.tables, 8, 1) == (9,)
    assert outcome(state.tables, 7, 3) is None and outcome(state.tables, 9, 1) is None
    assert clients(state.tables) == [7, 8]
    state.run(forget_client, 7, timed=False)
    assert outcome(state.tables, 7, 1) is None and outcome(state.tables, 8, 1) == (9,)


def test_the_table_stays_small_and_open_requests_stay(state: State) -> None:
    note(state, 7, 3, 0, (33,))  # an answer that the client waits for all the time
    for request in range(4, 200):
        note(state, 7, request, 3, (request,))
    assert outcome(state.tables, 7, 3) == (33,) and outcome(state.tables, 7, 4) == (4,)
    for request in range(200, 400):
        note(state, 7, request, request, (request,))
        assert outcome(state.tables, 7, request) == (request,)
    assert len(list(state.tables.range(REQUESTS, b"", None))) <= FORGET_BATCH + 2


def test_only_what_lies_below_the_mark_is_forgotten(state: State) -> None:
    for request in range(1, 100):
        note(state, 7, request, request - 1, (request,))
        assert request == 1 or outcome(state.tables, 7, request - 1) == (request - 1,)


def test_a_late_duplicate_of_a_forgotten_request_is_not_done_again(state: State) -> None:
    for request in range(1, 50):
        note(state, 7, request, request, (request,))
    with pytest.raises(GfsError) as caught:
        outcome(state.tables, 7, 2)
    assert caught.value.code is Code.BAD_MESSAGE
