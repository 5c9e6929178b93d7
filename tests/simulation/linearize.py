"""Whether the operations on one name can be put into an order that explains every answer (linearizability).

A search over the orders that real time allows, after Wing and Gong, with what was tried before remembered. An
operation of unknown outcome may take its place anywhere after it began, or never.
"""

from __future__ import annotations

from history import NameOperation, Outcome

ABSENT = 0
SOMETHING = -1


def step(state: int, operation: NameOperation) -> int | None:
    """The state after `operation`, None where it cannot have happened. A state is what the name stands for."""
    kind, value = operation.kind, operation.value
    if kind == "read":
        if value == SOMETHING:
            return state if state != ABSENT else None
        if state == SOMETHING and value != ABSENT:
            return value
        return state if state == value else None
    if kind == "make":
        return value if state == ABSENT else None
    if kind == "drop":
        return ABSENT if state != ABSENT else None
    assert kind == "put", kind
    return SOMETHING


def explainable(operations: list[NameOperation]) -> bool:
    """True when some order explains them all. The name is absent at first."""
    relevant = sorted((o for o in operations if o.outcome is not Outcome.REFUSED), key=lambda o: o.began)
    must = sum(1 << n for n, o in enumerate(relevant) if o.outcome is Outcome.DONE)
    tried: set[tuple[int, int]] = set()
    todo = [(0, ABSENT)]
    while todo:
        done, state = todo.pop()
        if done & must == must:
            return True
        if (done, state) in tried:
            continue
        tried.add((done, state))
        left = [(n, o) for n, o in enumerate(relevant) if not done >> n & 1]
        first_end = min(o.ended for _, o in left)
        for n, operation in left:
            if operation.began > first_end:
                break
            after = step(state, operation)
            if after is not None:
                todo.append((done | 1 << n, after))
    return False
