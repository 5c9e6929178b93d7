"""What chunks need and in which order, for sets of servers nobody thought of."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gfscore.metadata.repair import (
    DRAINING,
    LEVELS,
    MISPLACED,
    NOTHING,
    SURPLUS,
    WAITING,
    Action,
    Site,
    assess,
    improves,
    move_to,
    surplus,
    unbalanced,
)  # fmt: skip
from gfscore.metadata.repair_queue import Limits, RepairQueue, Slots

sites = st.lists(
    st.builds(
        Site, id=st.sampled_from("abcdefgh"), rack=st.sampled_from("xyz"), live=st.booleans(), sure=st.booleans(),
        draining=st.booleans(), use=st.sampled_from([0.0, 0.2, 0.5, 0.9]),
    ),
    unique_by=lambda site: site.id, max_size=7,
)  # fmt: skip
goals = st.integers(1, 5)


@given(sites, goals, st.integers(1, 3), st.booleans())
def test_a_drop_leaves_the_goal_and_two_racks(found: list[Site], goal: int, racks: int, deleted: bool) -> None:
    need = assess(found, goal, racks=racks, deleted=deleted)
    live = [site for site in found if site.live]
    if need.action is not Action.DROP:
        return
    left = [site for site in live if site.id != need.victim]
    staying = [site for site in left if not site.draining]
    assert len(left) == len(live) - 1 >= goal >= 1
    assert sum(site.sure for site in staying) >= goal
    before = {site.rack for site in live if not site.draining}
    if goal > 1 and len(before) > 1:
        assert len({site.rack for site in staying}) > 1
    if any(site.draining for site in live):
        assert next(site for site in live if site.id == need.victim).draining


@given(sites, goals, st.integers(1, 3), st.booleans())
def test_what_is_needed_follows_from_the_counts(found: list[Site], goal: int, racks: int, deleted: bool) -> None:
    need = assess(found, goal, racks=racks, deleted=deleted)
    live = [site for site in found if site.live]
    staying = [site for site in live if not site.draining]
    if not live:
        assert need == NOTHING
    elif len(staying) < goal:
        assert need.action is Action.CLONE
        assert (need.level == DRAINING) == (len(live) >= goal)
    elif need.action is Action.CLONE:
        assert need.level == MISPLACED and goal > 1 and racks > 1 and len({site.rack for site in staying}) == 1
    elif len(live) > goal:
        assert need.action is Action.DROP or (need.action is Action.NOTHING and not all(s.sure for s in staying))
    else:
        assert need.action is Action.NOTHING
    assert set(need.gone) == {site.id for site in found if not site.live and len(live) >= goal}


def level(live: int, goal: int, deleted: bool = False) -> int:
    return assess([Site(str(n), f"r{n}") for n in range(live)], goal, racks=3, deleted=deleted).level


def test_furthest_from_the_goal_first_and_the_deleted_last() -> None:
    assert WAITING < level(1, 4) < level(1, 3) < level(2, 3) < level(1, 3, True) < level(2, 3, True) < DRAINING
    assert DRAINING < MISPLACED < SURPLUS < LEVELS
    assert level(1, 16) > WAITING


@given(sites, goals)
def test_repeated_drops_and_clones_end_at_the_goal(found: list[Site], goal: int) -> None:
    """As long as there are servers, and no step undoes another."""
    found = [site._replace(sure=True) for site in found]
    others = [Site(f"new{n}", f"rack{n}") for n in range(12)]
    if not any(site.live for site in found):
        return
    for _ in range(30):
        need = assess(found, goal, racks=12)
        if need.action is Action.CLONE:
            found = [*found, others.pop(0)]
        elif need.action is Action.DROP:
            found = [site for site in found if site.id != need.victim]
        else:
            break
    live = [site for site in found if site.live]
    assert need.action is Action.NOTHING and len(live) == goal and not any(site.draining for site in live)
    assert goal == 1 or len({site.rack for site in live}) > 1


def test_the_last_replica_and_the_second_rack_are_no_surplus() -> None:
    assert surplus([Site("a", "x")]) == ""
    pair = [Site("a", "x", use=0.1), Site("b", "x", use=0.2), Site("c", "y", use=0.9)]
    assert surplus(pair) == "b"
    assert assess(pair, 2, racks=2) == (Action.DROP, SURPLUS, "b", ())


def test_a_misplaced_chunk_waits_for_another_rack() -> None:
    here = [Site("a", "x"), Site("b", "x")]
    assert assess(here, 2, racks=1) == NOTHING
    assert assess(here, 2, racks=2).level == MISPLACED
    assert improves(here, Site("c", "y")) and not improves(here, Site("c", "x"))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0.01, 0.5))
def test_rebalancing_goes_from_above_the_mean_to_below(uses: list[float], threshold: float) -> None:
    servers = [Site(str(n), "x", use=use) for n, use in enumerate(uses)]
    full, empty = unbalanced(servers, threshold)
    mean = sum(uses) / len(uses)
    assert all(site.use > mean for site in full) and all(site.use < mean for site in empty)
    if all(abs(use - mean) <= threshold for use in uses):
        assert not full and not empty
    if any(abs(use - mean) > threshold + 1e-9 for use in uses):
        assert full and empty


def test_a_move_keeps_two_racks() -> None:
    here = [Site("a", "x"), Site("b", "x"), Site("c", "y")]
    there = [Site("d", "x"), Site("e", "z")]
    assert move_to(here, "a", there) == there[0] and move_to(here, "c", there) == there[1]
    assert move_to(here, "c", there[:1]) is None
    assert move_to(here, "a", here) is None


def test_no_move_takes_a_server_from_one_side_to_the_other() -> None:
    small = [Site("a", "x", use=0.2, step=0.1), Site("b", "x", use=0.1, step=0.1), Site("c", "x", use=0.1, step=0.1)]
    assert unbalanced(small, 0.05) == ([], [])
    assert unbalanced([small[0]._replace(use=0.3), *small[1:]], 0.05)[0]


@given(st.lists(st.tuples(st.sampled_from(["put", "remove", "defer", "wanted", "take"]), st.integers(0, 5),
                          st.integers(1, LEVELS - 1))))  # fmt: skip
def test_the_queue_against_a_model(steps: list[tuple[str, int, int]]) -> None:
    queue = RepairQueue()
    model: dict[int, int] = {}  # handle → level, of those that may be taken
    later: dict[int, int] = {}
    waiting: set[int] = set()
    for now, (what, handle, at) in enumerate(steps):
        if what == "put":
            queue.put(handle, at)
            if handle in later and at >= later[handle]:
                later[handle] = at
            else:
                later.pop(handle, None)
                model[handle] = WAITING if handle in waiting and at < SURPLUS else at
        elif what == "remove":
            queue.remove(handle)
            for known in (model, later):
                known.pop(handle, None)
            waiting.discard(handle)
        elif what == "defer":
            queue.defer(handle, at, now + 3.0)
            model.pop(handle, None)
            later[handle] = at
        elif what == "wanted":
            queue.wanted(handle)
            known_level = model.get(handle, later.get(handle, SURPLUS))
            if WAITING < known_level < SURPLUS:
                later.pop(handle, None)
                model[handle] = WAITING
                waiting.add(handle)
        else:
            taken = queue.take(lambda _handle, _level: True, range(LEVELS))
            assert (taken is None) == (not model)
            if taken is not None:
                assert taken[1] == min(model.values()) == model.pop(taken[0])
                waiting.discard(taken[0])
        assert len(queue) == len(model) + len(later)
        for known_handle in range(6):
            assert queue.level_of(known_handle) == model.get(known_handle, later.get(known_handle))
        assert queue.clones == sum(known != SURPLUS for known in [*model.values(), *later.values()])


def test_what_failed_comes_back_in_time_and_a_client_can_make_it_sooner() -> None:
    queue = RepairQueue()
    queue.defer(1, 3, 10.0)
    queue.defer(2, 4, 20.0)
    assert queue.take(lambda *_: True, range(LEVELS)) is None and queue.next_time() == 10.0
    queue.revive(10.0)
    assert queue.take(lambda *_: True, range(LEVELS)) == (1, 3)
    queue.wanted(2)
    assert queue.take(lambda *_: True, range(LEVELS)) == (2, WAITING)
    queue.revive(30.0)
    assert not len(queue)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcd"), st.sampled_from("abcd"))), st.integers(1, 5),
       st.integers(1, 2))  # fmt: skip
def test_no_more_clones_than_the_limits_allow(steps: list[tuple[bool, str, str]], clones: int, per_server: int) -> None:
    slots = Slots(Limits(clones, per_server))
    running: list[tuple[str, str]] = []
    for begin, source, destination in steps:
        if begin:
            if slots.free and slots.source([source]) and slots.takes(destination):
                slots.begin(source, destination)
                running.append((source, destination))
        elif running:
            slots.end(*running.pop())
        assert slots.running == len(running) <= clones
        for server in "abcd":
            assert sum(pair[0] == server for pair in running) == slots.sources[server] <= per_server
            assert sum(pair[1] == server for pair in running) == slots.destinations[server] <= per_server
