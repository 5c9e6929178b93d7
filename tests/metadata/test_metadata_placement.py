from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gfscore.errors import Code, GfsError
from gfscore.metadata.placement import ServerLoad, choose_servers

GIB = 1 << 30


def server(name: str, rack: str = "r", used: int = 0, total: int = 100, recent: int = 0, host: str = "") -> ServerLoad:
    return ServerLoad(name, rack, total * GIB, used * GIB, recent, host or name)


@given(
    st.lists(
        st.builds(server, st.sampled_from("abcdefgh"), st.sampled_from("123"), st.integers(0, 100), st.just(100),
                  st.integers(0, 3), st.sampled_from("xyz")),
        unique_by=lambda made: made.id, max_size=8,
    ),
    st.integers(1, 5),
    st.sets(st.sampled_from("abcdefgh"), max_size=3),
    st.sets(st.sampled_from("abcdefgh"), max_size=3),
    st.integers(0, 9),
)  # fmt: skip
def test_rules_hold_for_any_cluster(
    servers: list[ServerLoad], count: int, avoid: set[str], existing: set[str], seed: int
) -> None:
    room = {made.id for made in servers if made.used_bytes < made.total_bytes} - existing
    candidates = room - avoid or room
    if not candidates:
        with pytest.raises(GfsError) as caught:
            choose_servers(servers, count, random=Random(seed), avoid=avoid, existing=existing)
        full = any(made.id not in existing for made in servers)
        assert caught.value.code is (Code.NO_SPACE if full else Code.NO_SERVERS)
        return
    chosen = choose_servers(servers, count, random=Random(seed), avoid=avoid, existing=existing)
    assert len(chosen) == len(set(chosen)) == min(count, len(candidates)) and set(chosen) <= candidates
    racks = {made.id: made.rack for made in servers}
    had = {racks[name] for name in existing if name in racks}
    possible = {racks[name] for name in candidates} | had
    used = {racks[name] for name in chosen} | had
    assert len(used) >= min(len(possible), len(chosen)), "a rack without a replica was left out"
    assert chosen == choose_servers(servers, count, random=Random(seed), avoid=avoid, existing=existing)


def test_fuller_servers_come_last() -> None:
    servers = [server("full", used=80), server("half", used=50), server("low", used=10)]
    picks = Counter(choose_servers(servers, 1, random=Random(seed))[0] for seed in range(30))
    assert "full" not in picks and "half" not in picks


def test_recent_creations_spread_the_load() -> None:
    servers = [server(name) for name in "abcdef"]
    random = Random(1)
    for _ in range(40):
        for name in choose_servers(servers, 3, random=random):
            next(made for made in servers if made.id == name).recent_creations += 1
    counts = [made.recent_creations for made in servers]
    assert max(counts) - min(counts) <= 1


def test_two_servers_of_one_machine_are_the_last_choice() -> None:
    servers = [server("a", host="m"), server("b", host="m"), server("c", host="n", recent=50)]
    for seed in range(10):
        assert "c" in choose_servers(servers, 2, random=Random(seed))


def test_small_disks_are_filled_but_for_a_small_part() -> None:
    def small(free_bytes: int) -> list[ServerLoad]:
        return [ServerLoad("a", "r", 20_000_000, 20_000_000 - free_bytes)]

    assert choose_servers(small(1_000_000), 1, random=Random(1)) == ["a"]
    with pytest.raises(GfsError) as caught:
        choose_servers(small(999_999), 1, random=Random(1))
    assert caught.value.code is Code.NO_SPACE
