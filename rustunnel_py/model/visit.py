"""What a link is asked to carry, and what it says it can carry."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from rustunnel_py.model.tunnel import Peer  # noqa: TC001  (dataclass field types are public)


class VisitKind(enum.Enum):
    """`new_connection` carries the value as its `protocol`; both HTTP edges say `http`."""

    HTTP = "http"
    TCP = "tcp"
    UDP = "udp"


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """How a tunnel's local service wants to be spoken to; set when the tunnel is registered.

    `host_header`: None keeps the visitor's Host, else the bytes to send in its place.
    `proxy_protocol`: 0 off, 1 or 2: the version of the PROXY header written first on each stream.
    """

    host_header: bytes | None = None
    proxy_protocol: int = 0


@dataclass(slots=True)
class Visit:
    """One public request or connection.

    `id` is 32 lower-case hex digits, shared by page, log and capture. `forwarded` is the block of header
    lines that tell the local service about the visitor (each ended by CRLF; empty for TCP), made once
    per connection and Host. `connection` is the same object for all visits of one visitor connection: links
    use it as a key where a stream belongs to one visitor.
    """

    id: str
    tunnel_id: str
    kind: VisitKind
    visitor: Peer
    edge: Peer
    scheme: str = "http"
    forwarded: bytes = b""
    target: LocalTarget = field(default_factory=LocalTarget)
    connection: object = None
    arrived: float = 0.0


@dataclass(frozen=True, slots=True)
class Carries:
    """What a kind of agent can do; asked before anything is sent. `body_max` None: no bound."""

    agent: str
    upgrades: bool = True
    tcp: bool = True
    udp: bool = False
    targets: bool = True
    half_close: bool = True
    body_max: int | None = None
