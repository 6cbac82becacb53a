"""The byte pipe under a mux: what it writes to, the positions in both directions, the deadline of silence.

A mux is the sink of its trunk. Today's trunks end with their socket; one that outlives it would keep what the peer has
not acknowledged, wait for the next socket and send the rest again, by the positions `sent` and `received`, and nothing
above it would change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from rustunnel_py.errors import Crash, Expired, LinkLost
from rustunnel_py.wire.sink import SILENT, Pipe, Sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.sink import Buffer

# On raw bytes: a yamux ping so often, so many seconds to hear anything at all after it.
PING_SECONDS = 10.0
ANSWER_SECONDS = 5.0
# A sweep is up to a second late: this keeps the interval from growing to the next one.
_SLACK = 0.5


class Trunk(Pipe, Protocol):
    """What carries a mux."""

    sent: int  # bytes taken by `send`
    received: int  # bytes given to the sink

    def keep_alive(self, ping: Callable[[int], None]) -> None:
        """Watch for silence from now on. `ping(value)` makes the mux ask for an answer, where the trunk has no way of
        its own. Silence is `lost(Expired)`.
        """

    def close(self) -> None:
        """Flush, then end; nothing is heard."""

    def abort(self) -> None:
        """At once; unsent output is dropped, nothing is heard."""


class SocketTrunk:
    """A mux's bytes as they are on one connection.

    `bytes_read` is what was read of the connection behind its head and not yet credited; the mux gets it first. Set
    `sink` before the callback that makes this returns. Credit of the head itself is its reader's to give.
    """

    __slots__ = (
        "_asked_at",
        "_early",
        "_heard",
        "_off",
        "_over",
        "_ping",
        "_pinged_at",
        "_value",
        "connection",
        "pump",
        "received",
        "sent",
        "sink",
    )

    ping_seconds = PING_SECONDS
    answer_seconds = ANSWER_SECONDS

    def __init__(self, pump: Pump, connection: Connection, bytes_read: Buffer = b"") -> None:
        self.pump = pump
        self.connection = connection
        self.sink: Sink = SILENT
        self.sent = 0
        self.received = 0
        self._over = False
        self._early = bytes(bytes_read)
        self._heard = False
        self._ping: Callable[[int], None] | None = None
        self._pinged_at = pump.now
        self._asked_at: float | None = None  # the ping that nothing was heard after yet
        self._value = 0
        self._off: Callable[[], None] | None = None
        connection.sink = self
        if self._early:
            pump.later(self, self._deliver_early)

    def __repr__(self) -> str:
        state = "over" if self._over else "open"
        return f"<{type(self).__name__} {self.connection.peer} {state}: {self.sent} sent, {self.received} received>"

    # the mux's side

    def send(self, data: Buffer) -> bool:
        self.sent += len(data)
        return self.connection.send(data)

    def send_eof(self) -> None:
        self.connection.send_eof()

    def credit(self, size: int) -> None:
        self.connection.credit(size)

    def close(self) -> None:
        if not self._over:
            self._end()
            self.connection.close()

    def reset(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self._over:
            self._end()
            self.connection.abort()

    def _end(self) -> None:
        self._over = True
        self.sink = SILENT
        self._ping = None
        if self._off is not None:
            self._off()
            self._off = None

    # the connection's side

    def _deliver_early(self) -> None:
        early, self._early = self._early, b""
        if early and not self._over:
            self._arrived(memoryview(early))

    def data(self, data: memoryview) -> None:
        self._heard = True
        if self._early:
            self._deliver_early()
        self.received += len(data)
        self.sink.data(data)

    def _arrived(self, data: memoryview) -> None:
        self.received += len(data)
        self.sink.data(data)

    def eof(self) -> None:
        self._deliver_early()
        self.sink.eof()

    def room(self) -> None:
        self.sink.room()

    def lost(self, error: LinkLost) -> None:
        if not self._over:
            self._deliver_early()
            sink = self.sink
            self._end()
            sink.lost(error)

    def expired(self) -> None:
        self.connection.abort()
        self.lost(Expired("a deadline passed"))

    def crashed(self, error: Exception) -> None:
        self.connection.abort()
        crash = Crash(f"{type(error).__name__} in a callback")
        crash.__cause__ = error
        self.lost(crash)

    # silence

    def keep_alive(self, ping: Callable[[int], None]) -> None:
        if self._over or self._off is not None:
            return
        self._ping = ping
        self._pinged_at = self.pump.now
        self._off = self.pump.on_sweep(self.sweep)

    def sweep(self, now: float) -> None:
        if self._asked_at is not None:
            if self._heard:
                self._asked_at = None
            elif now - self._asked_at >= self.answer_seconds:
                self.connection.abort()
                self.lost(Expired(f"nothing heard for {self.answer_seconds:.0f} s after a ping"))
                return
        if self._asked_at is None and now - self._pinged_at >= self.ping_seconds - _SLACK:
            self._heard = False
            self._pinged_at = self._asked_at = now
            self._value += 1
            self._send_ping(self._value)

    def _send_ping(self, value: int) -> None:
        if self._ping is not None:
            self._ping(value)
