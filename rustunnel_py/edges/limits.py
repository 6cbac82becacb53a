"""The bounds of the public listeners, and who is counted against them. 0 is off where it says so."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.model.bucket import Buckets, source_of
from rustunnel_py.wire.http1 import HeadLimits

if TYPE_CHECKING:
    from rustunnel_py.config import LimitsConfig, TunnelsConfig

_UNBOUNDED = 2**63


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """What protects the server; limits of a tunnel are policies (`hub/policies`).

    Seconds are on the pump's clock; inf is never. A pipelined request waits unread in its connection's receive window
    (`transport.tcp.READ_AHEAD`): reading stops there, one request is under way at a time.
    """

    connections: int = 20_000  # 0 off; with TLS some 60 KiB each when idle
    connections_per_source: int = 5_000  # 0 off; one address (or /64) cannot take the whole edge, a load test fits
    requests_per_second_per_source: float = 0.0  # 0 off: offices and carriers put thousands behind one address
    handshakes_per_second_per_source: float = 0.0  # 0 off; TLS: one costs about a millisecond of the processor
    body_max_bytes: int = 0  # 0 off
    heads: HeadLimits = field(default_factory=HeadLimits)
    handshake_seconds: float = 10.0  # of TLS
    header_seconds: float = 10.0  # from the connection's begin (TLS: the handshake's end), or the first byte
    idle_seconds: float = 75.0  # between two requests, as nginx
    bytes_per_second: int = 1024  # 0 off; a request's body while the local service takes it, a reply's once it waits
    body_window_seconds: float = 10.0  # so long a body's rate is measured
    send_window_seconds: float = 10.0  # so long a reader's: who stops reading is gone within two of them
    answer_seconds: float = 300.0  # from the whole request to the reply's head; long polls stay far below
    reply_idle_seconds: float = 300.0  # between two parts of a reply: nobody waits longer for one than for the first
    half_closed_seconds: float = 30.0  # a visitor that ended its side must be sent something: it may have left
    interims: int = 16  # 1xx replies passed on per request

    @classmethod
    def from_config(cls, limits: LimitsConfig) -> EdgeLimits:
        return cls(
            connections=limits.max_connections,
            connections_per_source=limits.max_connections_per_ip,
            requests_per_second_per_source=limits.ip_rate_limit_rps,
            handshakes_per_second_per_source=limits.ip_handshakes_per_second,
            body_max_bytes=limits.request_body_max_bytes,
            heads=HeadLimits(
                target=limits.target_max_bytes,
                line=limits.header_max_bytes,
                total=limits.head_max_bytes,
                count=limits.header_max_count,
            ),
            handshake_seconds=limits.handshake_seconds or math.inf,
            header_seconds=limits.header_seconds or math.inf,
            idle_seconds=limits.idle_seconds or math.inf,
            bytes_per_second=limits.min_bytes_per_second,
            answer_seconds=limits.answer_seconds or math.inf,
            reply_idle_seconds=limits.reply_idle_seconds or math.inf,
            half_closed_seconds=limits.half_closed_seconds or math.inf,
        )


@dataclass(frozen=True, slots=True)
class ParkingLimits:
    """`wait_seconds` 0: nobody waits for a link. The numbers bound the memory: each holds at most one read-ahead."""

    wait_seconds: float = 10.0
    per_tunnel: int = 256
    in_all: int = 2048

    @classmethod
    def from_config(cls, tunnels: TunnelsConfig) -> ParkingLimits:
        return cls(tunnels.wait_seconds, tunnels.wait_max_per_tunnel or _UNBOUNDED, tunnels.wait_max or _UNBOUNDED)


class Census:
    """Who is there, on all edges that share it: connections in all and per source, rates per source, who is parked.

    An entry of a source or a tunnel lives as long as it counts something. `refusals` counts by code what the edges
    answered themselves, or ended.
    """

    __slots__ = (
        "_by_source",
        "_parked_by_tunnel",
        "handshakes",
        "limits",
        "now",
        "parked",
        "parking",
        "rates",
        "refusals",
    )

    def __init__(self, limits: EdgeLimits | None = None, parking: ParkingLimits | None = None) -> None:
        self.limits = limits or EdgeLimits()
        self.parking = parking or ParkingLimits()
        self._by_source: dict[str, int] = {}
        self._parked_by_tunnel: dict[str, int] = {}
        self.now = 0
        self.parked = 0
        self.refusals: dict[str, int] = {}
        requests = self.limits.requests_per_second_per_source
        self.rates = Buckets(requests) if requests else None
        handshakes = self.limits.handshakes_per_second_per_source
        self.handshakes = Buckets(handshakes) if handshakes else None

    def __repr__(self) -> str:
        return f"<Census {self.now} from {len(self._by_source)} sources, {self.parked} parked>"

    @property
    def sources(self) -> int:
        return len(self._by_source)

    def count(self, code: str) -> None:
        """One more refusal."""
        self.refusals[code] = self.refusals.get(code, 0) + 1

    def enter(self, ip: str, *, many: bool = False) -> str | None:
        """Count one more connection: the key to `leave` with, or None where a limit is reached.

        `many`: behind that address are many visitors, so that its own limit does not hold.
        """
        limits = self.limits
        if limits.connections and self.now >= limits.connections:
            self.count("too-many-connections")
            return None
        source = source_of(ip)
        here = self._by_source.get(source, 0)
        if limits.connections_per_source and here >= limits.connections_per_source and not many:
            self.count("too-many-connections-of-address")
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

    def may_shake_hands(self, source: str, now: float) -> bool:
        """Whether this source may begin one more TLS handshake."""
        if self.handshakes is not None and self.handshakes.take(source, now):
            self.count("too-many-handshakes")
            return False
        return True

    def park(self, tunnel_id: str) -> bool:
        """Count one more who waits; False where too many do."""
        here = self._parked_by_tunnel.get(tunnel_id, 0)
        if here >= self.parking.per_tunnel or self.parked >= self.parking.in_all:
            return False
        self.parked += 1
        self._parked_by_tunnel[tunnel_id] = here + 1
        return True

    def unpark(self, tunnel_id: str) -> None:
        self.parked -= 1
        here = self._parked_by_tunnel[tunnel_id] - 1
        if here:
            self._parked_by_tunnel[tunnel_id] = here
        else:
            del self._parked_by_tunnel[tunnel_id]
