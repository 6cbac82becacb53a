"""Two pipes joined: what one brings, the other sends; back-pressure, half-close and resets pass through.

Credit is given on a side when the other side has taken the bytes (rule 4), so a slow reader blocks its writer and
nothing is stored in here. A clean end of one direction becomes `send_eof` of the other pipe; when both have passed,
the pipes end by themselves. Anything unclean resets the other side, so that a cut never looks complete.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.errors import Expired, LinkLost
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.wire.sink import Pipe


@dataclass(frozen=True, slots=True)
class RelayEnd:
    """How a join ended. `error` is None where both directions ended cleanly, or `Relay.reset` ended it."""

    forth: int  # bytes from a to b
    back: int  # bytes from b to a
    error: LinkLost | None
    by_a: bool  # the error was a's


Tap: TypeAlias = "Callable[[memoryview, bool], None]"
"""`tap(data, forth)`: sees what passes; the view is valid during the call only."""


class _Side:
    """The sink of one pipe."""

    __slots__ = ("count", "ended", "forth", "other", "pipe", "relay", "unpaid")

    other: _Side

    def __init__(self, relay: Relay, pipe: Pipe, *, forth: bool) -> None:
        self.relay = relay
        self.pipe = pipe
        self.forth = forth
        self.count = 0
        self.unpaid = 0  # brought here, and the other pipe has no room yet
        self.ended = False

    def data(self, data: memoryview) -> None:
        size = len(data)
        self.count += size
        tap = self.relay.tap
        if tap is not None:
            tap(data, self.forth)
        if self.other.pipe.send(data) and not self.unpaid:
            self.pipe.credit(size)
        else:
            self.unpaid += size

    def room(self) -> None:
        other = self.other
        unpaid, other.unpaid = other.unpaid, 0
        if unpaid and not self.relay.over:
            other.pipe.credit(unpaid)

    def eof(self) -> None:
        self.ended = True
        self.other.pipe.send_eof()
        if self.other.ended:
            self.relay._end(None, by_a=self.forth)

    def lost(self, error: LinkLost) -> None:
        self.other.pipe.reset()
        self.relay._end(error, by_a=self.forth)

    def expired(self) -> None:
        self.pipe.reset()
        self.lost(Expired("a deadline passed"))


class Relay:
    """Two joined pipes; `forth` counts bytes from a to b, `back` from b to a."""

    __slots__ = ("_a", "_b", "_on_end", "over", "tap")

    def __init__(self, a: Pipe, b: Pipe, on_end: Callable[[RelayEnd], None] | None, tap: Tap | None) -> None:
        self.over = False
        self.tap = tap
        self._on_end = on_end
        self._a = _Side(self, a, forth=True)
        self._b = _Side(self, b, forth=False)
        self._a.other = self._b
        self._b.other = self._a
        a.sink = self._a
        b.sink = self._b

    def __repr__(self) -> str:
        return f"<relay {'over' if self.over else 'open'}: {self.forth} forth, {self.back} back>"

    @property
    def forth(self) -> int:
        return self._a.count

    @property
    def back(self) -> int:
        return self._b.count

    def reset(self) -> None:
        """End both sides at once; `on_end` is not called."""
        if not self.over:
            self.over = True
            self._on_end = None
            self._a.pipe.reset()
            self._b.pipe.reset()

    def _end(self, error: LinkLost | None, *, by_a: bool) -> None:
        if self.over:
            return
        self.over = True
        if error is not None:
            # The other side was reset and says nothing more; a pipe that is no connection may still hold us.
            self._a.pipe.sink = self._b.pipe.sink = SILENT
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(RelayEnd(self._a.count, self._b.count, error, by_a))


def join(a: Pipe, b: Pipe, *, on_end: Callable[[RelayEnd], None] | None = None, tap: Tap | None = None) -> Relay:
    """Tie `a` and `b` together; sets both sinks. `on_end` is called once, when it is over."""
    return Relay(a, b, on_end, tap)
