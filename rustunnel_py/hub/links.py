"""Which link serves a tunnel now: pick one, or wait for the one that comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from rustunnel_py.hub.link import Link
    from rustunnel_py.model.visit import Visit


class Links:
    """The links of one tunnel: none (held, or not yet there), one, or several that take turns.

    `away_since` is trio's time at which the last one left, None while one serves.
    """

    __slots__ = ("_changed", "_serving", "_turn", "away_since")

    def __init__(self, now: float) -> None:
        self._serving: list[Link] = []
        self._turn = 0
        self._changed = trio.Event()
        self.away_since: float | None = now

    def __len__(self) -> int:
        return len(self._serving)

    def pick(self, visit: Visit) -> Link | None:
        """The link for this visit, or None while nobody serves the tunnel."""
        serving = self._serving
        if len(serving) == 1:
            return serving[0]
        if not serving:
            return None
        self._turn = (self._turn + 1) % len(serving)
        return serving[self._turn]

    def add(self, link: Link) -> None:
        self._serving.append(link)
        self.away_since = None
        self._changed.set()
        self._changed = trio.Event()

    def remove(self, link: Link, now: float) -> None:
        if link in self._serving:
            self._serving.remove(link)
            if not self._serving:
                self.away_since = now

    def close(self) -> None:
        """The tunnel is gone: whoever waits looks again and finds that."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait until a link came or the tunnel ended; `pick` again afterwards. The caller sets the deadline."""
        await self._changed.wait()
