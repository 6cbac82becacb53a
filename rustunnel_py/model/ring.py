"""The newest captures of each tunnel, bounded in number a ring and in bytes over all of them.

Past the byte bound the ring that holds the most gives up its oldest, again and again, so that no tunnel pushes out the
captures of one that holds less. That is done for a sixteenth of the bound at a time, since it looks at every ring.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

FREED_AT_ONCE = 16  # a sixteenth of the bound


class Kept(Protocol):
    """What a ring holds. `size` in bytes does not change while it is in there."""

    size: int
    stored: bool


T = TypeVar("T", bound=Kept)


class Budget:
    """Bytes over all rings."""

    __slots__ = ("limit", "rings", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.rings: dict[Ring[Kept], None] = {}  # in the order they were made

    def shrink(self) -> None:
        """Make the largest rings shorter until a sixteenth of the bound is free."""
        target = self.limit - self.limit // FREED_AT_ONCE
        largest = [(-ring.bytes, index, ring) for index, ring in enumerate(self.rings)]
        heapq.heapify(largest)
        while self.used > target and largest:
            _, index, ring = largest[0]
            ring.drop_oldest()
            if ring:
                heapq.heapreplace(largest, (-ring.bytes, index, ring))
            else:
                heapq.heappop(largest)


class Ring(Generic[T]):
    """`overwritten` counts what left before it was stored. Oldest first."""

    __slots__ = ("_items", "budget", "bytes", "limit", "overwritten")

    def __init__(self, limit: int, budget: Budget) -> None:
        self.limit = limit
        self.budget = budget
        self.bytes = 0
        self.overwritten = 0
        self._items: deque[T] = deque()
        budget.rings[self] = None  # type: ignore[index]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __reversed__(self) -> Iterator[T]:
        return reversed(self._items)

    @property
    def newest(self) -> T:
        """Raises IndexError where it is empty."""
        return self._items[-1]

    def append(self, item: T) -> None:
        """The hot path's part: one in, perhaps one out."""
        items = self._items
        size = item.size
        if len(items) >= self.limit:
            old = items.popleft()
            size -= old.size
            if not old.stored:
                self.overwritten += 1
        items.append(item)
        self.bytes += size
        budget = self.budget
        budget.used += size
        if budget.used > budget.limit:
            budget.shrink()

    def drop_oldest(self) -> None:
        old = self._items.popleft()
        self._let_go(old)
        if not old.stored:
            self.overwritten += 1

    def remove(self, item: T) -> None:
        """Take one out that is in there; it does not count as overwritten."""
        self._items.remove(item)
        self._let_go(item)

    def close(self) -> None:
        """Empty it and give its bytes back; what was not stored counts as overwritten."""
        while self._items:
            self.drop_oldest()
        self.budget.rings.pop(self, None)  # type: ignore[arg-type]

    def _let_go(self, item: T) -> None:
        self.bytes -= item.size
        self.budget.used -= item.size
