"""The account of pushed data that waits for its mutation: bounded in bytes, aged by time [0098].

Holds opaque items; `now` is passed in. Memory itself belongs to the caller, who gives it back when told so.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")
Key = tuple[int, int]  # (client id, push id)


class PushBuffer(Generic[T]):
    """At most `bytes_max` reserved; what waited longer than `age_seconds` may be dropped."""

    __slots__ = ("_waiting", "age_seconds", "bytes_max", "bytes_reserved")

    def __init__(self, bytes_max: int, age_seconds: float) -> None:
        self.bytes_max = bytes_max
        self.age_seconds = age_seconds
        self.bytes_reserved = 0
        self._waiting: OrderedDict[Key, tuple[T, int, float]] = OrderedDict()  # oldest first

    def __len__(self) -> int:
        return len(self._waiting)

    def reserve(self, size: int) -> bool:
        """Account for `size` bytes that are about to arrive; False when there is no room."""
        if self.bytes_reserved + size > self.bytes_max:
            return False
        self.bytes_reserved += size
        return True

    def release(self, size: int) -> None:
        """Bytes that were reserved are free again."""
        self.bytes_reserved -= size
        assert self.bytes_reserved >= 0, "released more than was reserved"

    def put(self, key: Key, item: T, size: int, now: float) -> T | None:
        """`item`, whose `size` reserved bytes wait from now on. Returns what it replaces, for the caller to free."""
        replaced = self._waiting.pop(key, None)
        self._waiting[key] = (item, size, now)
        return None if replaced is None else replaced[0]

    def peek(self, key: Key) -> T | None:
        waiting = self._waiting.get(key)
        return None if waiting is None else waiting[0]

    def take(self, key: Key) -> T | None:
        """Remove it; its bytes stay reserved until `release`. None when it aged out or never came."""
        waiting = self._waiting.pop(key, None)
        return None if waiting is None else waiting[0]

    def expired(self, now: float) -> list[T]:
        """Remove and return what is too old."""
        gone = []
        while self._waiting:
            key, (item, _, at) = next(iter(self._waiting.items()))
            if now - at < self.age_seconds:
                break
            del self._waiting[key]
            gone.append(item)
        return gone
