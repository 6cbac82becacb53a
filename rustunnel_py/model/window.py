"""Fixed windows: so many calls a minute and source, counted from the source's first one; a bounded map of them.

Time comes in: seconds on any clock that does not run backwards.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

SOURCES_MAX = 65_536  # remembered at a time, some 10 MiB; who is pushed out starts a new window


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left after one call. `reset_seconds`: until the window ends."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float


class Windows:
    """One window a source."""

    __slots__ = ("_began", "_limit", "_most", "_seconds")

    def __init__(self, limit: int, seconds: float, most: int = SOURCES_MAX) -> None:
        self._limit = limit
        self._seconds = seconds
        self._most = most
        self._began: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._began)

    def take(self, source: str, now: float) -> Allowance:
        """Count one call of this source; refused calls count for nothing."""
        began, count = self._began.pop(source, (now, 0))
        if now - began >= self._seconds:
            began, count = now, 0
        allowed = count < self._limit
        if allowed:
            count += 1
        if len(self._began) >= self._most:
            self._began.popitem(last=False)
        self._began[source] = began, count
        return Allowance(allowed, self._limit, self._limit - count, began + self._seconds - now)
