"""What all visitors of one edge share: its limits, where it looks things up, and what it counts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from rustunnel_py.edges.limits import Census, EdgeLimits
from rustunnel_py.wire.http1 import BlockMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.edges.access_log import AccessLog
    from rustunnel_py.edges.parked import Parking
    from rustunnel_py.edges.proxied import TrustedProxies
    from rustunnel_py.errors import Hop
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead

IDS_AT_ONCE = 256  # visit ids made with one call for random bytes


class Tap(Protocol):
    """Watches one exchange. Views are valid during the call only; nothing here waits or raises."""

    def begun(self) -> None:
        """A link has the request."""

    def sent(self, data: memoryview) -> None:
        """Payload of the request."""

    def request_trailers(self, trailers: Headers) -> None: ...

    def head(self, head: ReplyHead) -> None: ...

    def data(self, data: memoryview) -> None:
        """Payload of the reply."""

    def reply_trailers(self, trailers: Headers) -> None: ...

    def upgraded(self, head: ReplyHead) -> None:
        """A 101; what passes then comes by `relayed`."""

    def relayed(self, data: memoryview, forth: bool) -> None: ...

    def failed(self, hop: Hop | None, code: str) -> None:
        """Why there is no reply, or no complete one. Without a hop: for the visitor's own sake."""

    def answered(self, lines: bytes, body: bytes) -> None:
        """The edge answers by itself. Header lines are each ended by CRLF."""

    def over(self, status: int, milliseconds: float) -> None: ...


class VisitIds:
    """Ids of 32 hex digits from the system's random bytes, many at a time."""

    __slots__ = ("_at", "_digits")

    def __init__(self) -> None:
        self._digits = ""
        self._at = 0

    def next(self) -> str:
        at = self._at
        if at == len(self._digits):
            self._digits = os.urandom(16 * IDS_AT_ONCE).hex()
            at = 0
        self._at = end = at + 32
        return self._digits[at:end]


class Shared:
    """What all visitors of one edge share. `parking` is None until the edge runs."""

    __slots__ = (
        "access",
        "always_https",
        "blocks",
        "census",
        "draining",
        "find_host",
        "ids",
        "is_choosy",
        "limits",
        "parking",
        "pump",
        "rates",
        "redirect_port",
        "registry",
        "reply_look_seconds",
        "scheme",
        "take_control",
        "trusted",
        "watch",
    )

    def __init__(
        self,
        pump: Pump,
        registry: Registry,
        limits: EdgeLimits,
        scheme: str,
        *,
        census: Census | None = None,
        take_control: Callable[[Connection, RequestHead, bytes], bool] | None = None,
        watch: Callable[[Tunnel, Visit, RequestHead], Tap | None] | None = None,
        redirect_port: int | None = None,
        trusted: TrustedProxies | None = None,
        access: AccessLog | None = None,
        always_https: bool = False,
    ) -> None:
        self.pump = pump
        self.registry = registry
        self.find_host = registry.find_host
        self.limits = limits
        self.reply_look_seconds = min(limits.answer_seconds, limits.reply_idle_seconds)  # after a whole request
        self.scheme = scheme
        self.census = census = census or Census(limits)
        self.rates = census.rates
        self.redirect_port = redirect_port
        self.trusted = trusted
        self.access = access
        self.always_https = always_https
        self.is_choosy = census.rates is not None or redirect_port is not None  # even a plain GET is looked at twice
        self.take_control = take_control
        self.watch = watch
        self.parking: Parking | None = None
        self.ids = VisitIds()
        self.blocks = BlockMemory()
        self.draining = False

    def is_bare(self, host: str) -> bool:
        """The server's own name, which is nobody's tunnel."""
        return host == self.registry.places.domain or host == "localhost"
