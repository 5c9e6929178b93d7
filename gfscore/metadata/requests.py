"""Idempotency: the outcome of each change by (client id, request id), until the client says that it has the answer.

Part of the logged state, so that a retry after a restart or a failover is recognised too (rule 21). Bounded by
the client's session: what it has the answer for is forgotten in small batches, and everything with the session.
"""

from __future__ import annotations

from struct import Struct

from gfscore.errors import Code, GfsError
from gfscore.metadata.keys import after_prefix, pack8, request_key, unpack8
from gfscore.metadata.tables import REQUESTS, Tables
from gfscore.metadata.transaction import Transaction

FORGET_BATCH = 16  # ids forgotten at once: a range per change would cost more than what it frees
OUTCOME_INTEGERS_MAX = 15

_OUTCOMES = [Struct(f">{count}q") for count in range(OUTCOME_INTEGERS_MAX + 1)]


def _lowest(t: Tables, client_id: int) -> int:
    """Below this, all of the client's requests are forgotten. Kept under the client id alone."""
    raw = t.get(REQUESTS, pack8(client_id))
    return 0 if raw is None else unpack8(raw)


def outcome(t: Tables, client_id: int, request_id: int) -> tuple[int, ...] | None:
    """What came of the request, None if it was never done.

    Raises BAD_MESSAGE for one whose answer the client has confirmed and that is forgotten: a late duplicate from the
    network, which must not be carried out a second time.
    """
    raw = t.get(REQUESTS, request_key(client_id, request_id))
    if raw is not None:
        return _OUTCOMES[len(raw) >> 3].unpack(raw)
    if request_id < _lowest(t, client_id):
        raise GfsError(Code.BAD_MESSAGE, f"request {request_id} of client {client_id} was answered long ago")
    return None


def remember(tx: Transaction, client_id: int, request_id: int, done_below: int, outcome: tuple[int, ...]) -> None:
    """Record what came of a request (at most 15 signed integers); forget the client's requests below `done_below`."""
    lowest = _lowest(tx, client_id)
    if done_below - lowest >= FORGET_BATCH:
        for key, _ in list(tx.range(REQUESTS, request_key(client_id, lowest), request_key(client_id, done_below))):
            tx.delete(REQUESTS, key)
        tx.put(REQUESTS, pack8(client_id), pack8(done_below))
    tx.put(REQUESTS, request_key(client_id, request_id), _OUTCOMES[len(outcome)].pack(*outcome))


def forget_client(tx: Transaction, client_id: int) -> None:
    """The client's session is over."""
    for key, _ in list(tx.range(REQUESTS, pack8(client_id), after_prefix(client_id))):
        tx.delete(REQUESTS, key)


def clients(t: Tables) -> list[int]:
    """Every client of which something is remembered: after a restart, those whose sessions have to be waited for."""
    found: list[int] = []
    start = b""
    while (row := next(t.range(REQUESTS, start, None), None)) is not None:
        found.append(unpack8(row[0][:8]))
        start = after_prefix(found[-1])
    return found
