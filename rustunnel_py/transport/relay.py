"""Two pipes joined: what one brings, the other sends; back-pressure, half-close and resets pass through.

Credit is given on a side when the other side has taken the bytes (rule 4), so a slow reader blocks its writer and
nothing is stored in here. A clean end of one direction becomes `send_eof` of the other pipe; when both have passed,
the pipes end by themselves. Anything unclean resets the other side, so that a cut never looks complete.

Where one direction has ended, the other must not stay open for nothing: a visitor that never closes would keep its
place with an agent long after the local service hung up. It is looked at now and then, by the connection's `due`. What
counts is that something moves: bytes of the open direction, or what the connection's peer still reads of the ended one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from rustunnel_py.errors import Expired, LinkLost
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.sink import Pipe

# One direction has ended, and so long nothing moves in the other: the reference implementation of yamux gives a
# half-closed stream as long, and `wire.yamux.Limits` too.
HALF_CLOSED_SECONDS = 300.0
# Between two looks at that; what moves slowly moves once in this time.
LOOK_SECONDS = 30.0


class Clock(Protocol):
    @property
    def now(self) -> float: ...


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
    __deletable__ = ("other",)  # for mypyc

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
        if unpaid:
            other.pipe.credit(unpaid)

    def eof(self) -> None:
        self.ended = True
        self.other.pipe.send_eof()
        if self.other.ended:
            self.relay._end(None, by_a=self.forth)
        else:
            self.relay._half_closed()

    def lost(self, error: LinkLost) -> None:
        self.other.pipe.reset()
        self.relay._end(error, by_a=self.forth)

    def expired(self) -> None:
        if self.ended or self.other.ended:
            self.relay._look()
        else:
            self._expire("a deadline passed")

    def _expire(self, why: str) -> None:
        self.pipe.reset()
        self.lost(Expired(why))


class Relay:
    """Two joined pipes; `forth` counts bytes from a to b, `back` from b to a."""

    __slots__ = ("_back", "_clock", "_connection", "_forth", "_moved", "_moved_at", "_on_end", "_sides", "tap")

    def __init__(
        self, clock: Clock, a: Connection, b: Pipe, on_end: Callable[[RelayEnd], None] | None, tap: Tap | None
    ) -> None:
        self.tap = tap
        self._clock = clock
        self._connection = a
        self._on_end = on_end
        self._moved = 0  # bytes that had moved at the last look at a half-closed relay
        self._moved_at = 0.0
        self._forth = self._back = 0  # once it is over
        forth = _Side(self, a, forth=True)
        back = _Side(self, b, forth=False)
        forth.other = back
        back.other = forth
        self._sides: tuple[_Side, _Side] | None = (forth, back)
        a.sink = forth
        b.sink = back

    def __repr__(self) -> str:
        return f"<relay {'over' if self.over else 'open'}: {self.forth} forth, {self.back} back>"

    @property
    def over(self) -> bool:
        return self._sides is None

    @property
    def forth(self) -> int:
        return self._forth if self._sides is None else self._sides[0].count

    @property
    def back(self) -> int:
        return self._back if self._sides is None else self._sides[1].count

    def reset(self) -> None:
        """End both sides at once; `on_end` is not called."""
        if self._sides is not None:
            self._on_end = None
            for side in self._sides:
                side.pipe.reset()
            self._part(*self._sides)

    def _half_closed(self) -> None:
        """One side has ended its direction; the other one is watched from now on."""
        self._moved_at = now = self._clock.now
        self._connection.due = now + LOOK_SECONDS

    def _look(self) -> None:
        sides = self._sides
        if sides is None:
            return
        forth, back = sides
        now = self._clock.now
        moved = forth.count + back.count + self._connection.delivered
        if moved != self._moved:
            self._moved = moved
            self._moved_at = now
        elif now - self._moved_at >= HALF_CLOSED_SECONDS:
            silent = back if forth.ended else forth
            silent._expire(f"half closed, and nothing moved any more for {HALF_CLOSED_SECONDS:g} s")
            return
        self._connection.due = min(now + LOOK_SECONDS, self._moved_at + HALF_CLOSED_SECONDS)

    def _part(self, forth: _Side, back: _Side) -> None:
        """Nothing is heard of the pipes any more: they flush what they have, or were reset.

        The sides, which know each other and this, are let go; left so, only the collector would free all of it.
        """
        self._forth, self._back = forth.count, back.count
        self._sides = None
        for side in (forth, back):
            side.pipe.sink = SILENT
            del side.other

    def _end(self, error: LinkLost | None, *, by_a: bool) -> None:
        if self._sides is None:
            return
        self._part(*self._sides)
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end(RelayEnd(self._forth, self._back, error, by_a))


def join(
    clock: Clock,
    a: Connection,
    b: Pipe,
    *,
    on_end: Callable[[RelayEnd], None] | None = None,
    tap: Tap | None = None,
) -> Relay:
    """Tie `a` and `b` together; sets both sinks, and from the first end on `a.due`. `on_end` is called once, when it
    is over. `clock` is the pump that `a` is on.
    """
    return Relay(clock, a, b, on_end, tap)
