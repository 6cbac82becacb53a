"""How long to wait between two tries.

Growing by half each time keeps an agent within two seconds of a server that was away for five; the jitter spreads
the agents of one server that all lost it at the same moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_SECONDS = 0.3
GROWTH = 1.5
LONGEST_SECONDS = 15.0
SOON_SECONDS = 1.0  # a server that said it goes away is most often back at once


class Backoff:
    """`dice()` gives a number from 0 to below 1."""

    def __init__(self, dice: Callable[[], float]) -> None:
        self._dice = dice
        self._next = FIRST_SECONDS

    def reset(self) -> None:
        self._next = FIRST_SECONDS

    def pause(self) -> float:
        """Seconds until the next try: between half of the present pause and all of it."""
        seconds = self._next * (0.5 + self._dice() / 2)
        self._next = min(self._next * GROWTH, LONGEST_SECONDS)
        return seconds

    def soon(self) -> float:
        self.reset()
        return self._dice() * SOON_SECONDS
