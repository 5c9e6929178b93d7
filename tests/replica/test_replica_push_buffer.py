"""The account of pushed data never exceeds its limit and forgets nothing."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gfscore.replica.push_buffer import PushBuffer

KEYS = st.tuples(st.integers(0, 2), st.integers(0, 3))


class PushBufferMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.buffer: PushBuffer[tuple[int, int]] = PushBuffer(100, 10.0)
        self.model: dict[tuple[int, int], tuple[tuple[int, int], float]] = {}
        self.now = 0.0
        self.count = 0

    @rule(key=KEYS, size=st.integers(1, 60))
    def push(self, key: tuple[int, int], size: int) -> None:
        room = sum(item[1] for item, _ in self.model.values()) + size <= 100
        assert self.buffer.reserve(size) is room
        if not room:
            return
        self.count += 1
        item = (self.count, size)
        replaced = self.buffer.put(key, item, size, self.now)
        assert replaced == (self.model[key][0] if key in self.model else None)
        if replaced is not None:
            self.buffer.release(replaced[1])
        self.model[key] = (item, self.now)

    @rule(key=KEYS)
    def take(self, key: tuple[int, int]) -> None:
        expected = self.model.pop(key, None)
        assert self.buffer.peek(key) == (expected and expected[0])
        taken = self.buffer.take(key)
        assert taken == (expected and expected[0])
        if taken is not None:
            self.buffer.release(taken[1])

    @rule(seconds=st.floats(0, 8))
    def age(self, seconds: float) -> None:
        self.now += seconds
        gone = self.buffer.expired(self.now)
        old = {key: entry for key, entry in self.model.items() if self.now - entry[1] >= 10.0}
        assert sorted(gone) == sorted(entry[0] for entry in old.values())
        for key in old:
            del self.model[key]
        for item in gone:
            self.buffer.release(item[1])

    @invariant()
    def accounts_agree(self) -> None:
        assert len(self.buffer) == len(self.model)
        assert self.buffer.bytes_reserved == sum(item[1] for item, _ in self.model.values()) <= 100


TestPushBuffer = PushBufferMachine.TestCase
