"""Captures as they come, for those who look on. A viewer who is slow loses the oldest, and is told how many."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from rustunnel_py.hub.recording import Recording
    from rustunnel_py.model.access import Caller

WAITING_MAX = 256  # captures that wait for one viewer; a page shows fewer
VIEWERS_MAX = 200  # on the whole server
VIEWERS_OF_ONE_MAX = 20  # of one user


class Viewer:
    """One who looks on at a tunnel. Captured on the hot path (`captured`), read by a task (`next`)."""

    def __init__(self, caller: Caller, tunnel_id: str) -> None:
        self.caller = caller
        self.tunnel_id = tunnel_id
        self.missed = 0  # since it was last asked
        self.is_over = False
        self._waiting: deque[Recording] = deque()
        self._news = trio.Event()

    def captured(self, recording: Recording) -> None:
        if len(self._waiting) >= WAITING_MAX:
            self._waiting.popleft()
            self.missed += 1
        self._waiting.append(recording)
        self._news.set()

    def end(self) -> None:
        """Nothing comes any more; `next` gives what waits, then None."""
        self.is_over = True
        self._news.set()

    def take_missed(self) -> int:
        """How many were lost since the last call."""
        missed, self.missed = self.missed, 0
        return missed

    async def next(self) -> Recording | None:
        """The next one, None at the end. Cancel it to send a sign of life in between."""
        while not self._waiting:
            if self.is_over:
                return None
            self._news = trio.Event()
            await self._news.wait()
        return self._waiting.popleft()
