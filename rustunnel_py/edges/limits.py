"""The bounds of a public listener, and who is counted against them. 0 is off where it says so."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustunnel_py.model.bucket import source_of
from rustunnel_py.wire.http1 import HeadLimits


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What protects the server; limits of a tunnel are policies (`hub/policies`).

    Seconds are on the pump's clock. A pipelined request waits unread in its connection's receive window
    (`transport.tcp.READ_AHEAD`): reading stops there, one request is under way at a time.
    """

    connections: int = 20_000  # 0 off; with TLS some 60 KiB each when idle
    connections_per_source: int = 5_000  # 0 off; one address (or /64) cannot take the whole edge, a load test fits
    requests_per_second_per_source: float = 0.0  # 0 off: offices and carriers put thousands behind one address
    handshakes_per_second_per_source: float = 0.0  # 0 off; TLS: one costs about a millisecond of the processor
    body_max_bytes: int = 0  # 0 off
    heads: HeadLimits = field(default_factory=HeadLimits)
    header_seconds: float = 10.0  # from the first byte (or the connection) to the whole head; TLS handshake included
    idle_seconds: float = 75.0  # between two requests, as nginx
    body_bytes_per_second: int = 1024  # measured over body_window_seconds while the local service takes it
    body_window_seconds: float = 10.0
    send_seconds: float = 30.0  # a full output buffer must have drained to its low mark
    answer_seconds: float = 300.0  # from the whole request to the reply's head; long polls stay far below
    half_closed_seconds: float = 30.0  # a visitor that ended its side must be sent something: it may have left
    interims: int = 16  # 1xx replies passed on per request


class Census:
    """Counts the connections of one listener, in all and per source. An entry lives as long as it counts something."""

    __slots__ = ("_by_source", "_limits", "now", "refused")

    def __init__(self, limits: EdgeLimits) -> None:
        self._limits = limits
        self._by_source: dict[str, int] = {}
        self.now = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<Census {self.now} from {len(self._by_source)} sources>"

    def enter(self, ip: str) -> str | None:
        """Count one more: the key to `leave` with, or None where the limit is reached."""
        limits = self._limits
        if limits.connections and self.now >= limits.connections:
            self.refused += 1
            return None
        source = source_of(ip)
        here = self._by_source.get(source, 0)
        if limits.connections_per_source and here >= limits.connections_per_source:
            self.refused += 1
            return None
        self._by_source[source] = here + 1
        self.now += 1
        return source

    def leave(self, source: str) -> None:
        self.now -= 1
        here = self._by_source[source] - 1
        if here:
            self._by_source[source] = here
        else:
            del self._by_source[source]
