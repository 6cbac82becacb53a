"""A connection without a socket: a test feeds it, looks at what was written, and decides when there is room.

It keeps the rules of `wire/sink.py` as the real ones do: input is delivered from a buffer that is poisoned after the
call, not beyond the read-ahead that is uncredited; `send` returns False beyond the high-water mark; nothing is
heard after an end; `room` and `lost` come only from the test, which plays the pump.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from rustunnel_py.errors import LinkLost, Reset
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.wire.sink import SILENT, Buffer, Crashable, Sink

if TYPE_CHECKING:
    from collections.abc import Callable

POISON = b"\xee"


class FedPump:
    """As much of a pump as machines ask for. `crashes` is what a healthy test leaves at 0."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.crashes = 0
        self.errors: list[Exception] = []
        self._later: list[tuple[Crashable, Callable[[], None]]] = []

    def later(self, by: Crashable, function: Callable[[], None]) -> None:
        self._later.append((by, function))

    def call(self, by: Crashable, function: Callable[[], None]) -> None:
        try:
            self.now = max(self.now, trio.current_time())
        except RuntimeError:
            pass
        self._guarded(by, function)

    def crash(self, by: object, error: Exception) -> None:
        self.crashes += 1
        self.errors.append(error)
        crashed = getattr(by, "crashed", None)
        if crashed is not None:
            crashed(error)

    def run(self) -> None:
        """Everything that was put off, and what that puts off."""
        while self._later:
            by, function = self._later.pop(0)
            self._guarded(by, function)

    def _guarded(self, by: Crashable, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception as error:
            self.crash(by, error)


class FedConnection:
    """`output` is what the peer has not read yet; `written` everything; `end` how this side ended it ("" not yet)."""

    def __init__(
        self,
        *,
        peer: Peer | None = None,
        local: Peer | None = None,
        high_water: float = math.inf,
        low_water: int = 0,
        read_ahead: int = 256 * 1024,
    ) -> None:
        self.sink: Sink = SILENT
        self.due = math.inf
        self.peer = peer or Peer("203.0.113.7", 50000)
        self.local = local or Peer("198.51.100.1", 80)
        self.high_water = high_water
        self.low_water = low_water
        self.read_ahead = read_ahead
        self.output = bytearray()
        self.written = bytearray()
        self.unread = bytearray()  # what the peer sent and nobody read yet
        self.uncredited = 0
        self.end = ""
        self.eof_sent = False
        self.is_lost = False
        self._eof_to_come = False
        self._wants_room = False

    def __repr__(self) -> str:
        return f"<FedConnection {self.end or 'open'} {len(self.output)} unread by the peer>"

    # what machines call

    def send(self, data: Buffer) -> bool:
        if self.end or self.is_lost or self.eof_sent:
            return True
        self.output += data
        self.written += data
        if len(self.output) > self.high_water:
            self._wants_room = True
            return False
        return True

    @property
    def delivered(self) -> int:
        return len(self.written) - len(self.output)

    def push(self, data: Buffer) -> bool:
        return self.send(data)

    def send_eof(self) -> None:
        self.eof_sent = True

    def credit(self, size: int) -> None:
        assert size >= 0
        self.uncredited -= size
        assert self.uncredited >= 0, "more credit than input"

    def close(self) -> None:
        self._end_by("close")

    def close_lingering(self) -> None:
        self._end_by("linger")

    def cut(self) -> None:
        self._end_by("cut")

    def abort(self) -> None:
        self._end_by("abort")

    def reset(self) -> None:
        self.abort()

    def _end_by(self, how: str) -> None:
        if not self.end and not self.is_lost:
            self.end = how
            self.sink = SILENT

    # what tests call

    @property
    def is_over(self) -> bool:
        return bool(self.end) or self.is_lost

    def feed(self, data: bytes, *, step: int = 64 * 1024) -> None:
        """The peer sends; delivered as far as credit goes, in segments of `step` bytes."""
        self.unread += data
        self.deliver(step=step)

    def deliver(self, *, step: int = 64 * 1024) -> None:
        """Read on, as the pump does after credit."""
        while self.unread and not self.is_over and self.uncredited < self.read_ahead:
            segment = bytearray(self.unread[:step])
            del self.unread[:step]
            self.uncredited += len(segment)
            view = memoryview(segment)
            self.sink.data(view)
            segment[:] = POISON * len(segment)
            view.release()
        if self._eof_to_come and not self.unread and not self.is_over:
            self._eof_to_come = False
            self.sink.eof()

    def feed_eof(self) -> None:
        """The peer's FIN, behind what it sent."""
        self._eof_to_come = True
        self.deliver()

    def take(self, size: int | None = None) -> bytes:
        """The peer reads; `room` follows where the output falls to the low-water mark."""
        taken = bytes(self.output if size is None else self.output[:size])
        del self.output[: len(taken)]
        if self._wants_room and len(self.output) <= self.low_water and not self.is_over:
            self._wants_room = False
            self.sink.room()
        return taken

    def lose(self, error: LinkLost | None = None) -> None:
        """The peer resets it."""
        if not self.is_over:
            sink, self.sink = self.sink, SILENT
            self.is_lost = True
            sink.lost(error or Reset("reset by the peer"))

    def expire(self, pump: FedPump) -> None:
        """Move the clock to `due` and sweep; nothing where there is no deadline."""
        if self.due == math.inf or self.is_over:
            return
        pump.now = max(pump.now, self.due)
        self.due = math.inf
        self.sink.expired()
