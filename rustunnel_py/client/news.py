"""What the agent tells its screen: one frozen struct per event, its tag is the name it has in the JSON lines.

Texts that came from the server are escaped and cut before they get here (`model/text.py`), so a screen may
write them as they are. Times are in seconds where a name ends so, else in milliseconds (`ms`).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Connecting(msgspec.Struct, frozen=True, tag="connecting", tag_field="event"):
    """A try to reach the server begins; `attempt` counts from 1 since the last session."""

    server: str
    attempt: int


class Connected(msgspec.Struct, frozen=True, tag="connected", tag_field="event"):
    """The token was accepted. `raw_data`: the data socket carries plain yamux."""

    server: str
    region: str | None
    raw_data: bool


class TunnelUp(msgspec.Struct, frozen=True, tag="tunnel", tag_field="event"):
    """A tunnel is registered. `also` is the address by the other scheme where it is known."""

    tunnel_id: str
    protocol: str
    public_url: str
    local: str
    also: str | None = None


class TunnelRefused(msgspec.Struct, frozen=True, tag="tunnel_refused", tag_field="event"):
    """The server does not give the tunnel just now; it is asked for again, or the agent ends."""

    local: str
    wish: str | None
    message: str


class Ready(msgspec.Struct, frozen=True, tag="ready", tag_field="event"):
    """Tunnels are registered and the data socket is open: requests are served from here on."""


class Latency(msgspec.Struct, frozen=True, tag="latency", tag_field="event"):
    """The round trip of the agent's own ping."""

    ms: float


class Visited(msgspec.Struct, frozen=True, tag="visit", tag_field="event"):
    """One HTTP request as the server saw it end; `capture` is its id in the inspector."""

    tunnel_id: str | None
    method: str
    path: str
    status: int
    ms: float
    capture: str | None


class Joined(msgspec.Struct, frozen=True, tag="connection", tag_field="event"):
    """A connection to a local service was opened for a visitor."""

    tunnel_id: str
    local: str
    visitor: str


class LocalTrouble(msgspec.Struct, frozen=True, tag="local_trouble", tag_field="event"):
    """A local service could not be reached; the visitor got an error."""

    local: str
    message: str


class DataLost(msgspec.Struct, frozen=True, tag="data_lost", tag_field="event"):
    """Only the data socket dropped; it is opened again while the tunnels stay."""

    why: str


class GoingAway(msgspec.Struct, frozen=True, tag="going_away", tag_field="event"):
    """The server is about to stop; the agent comes back as soon as it can."""


class Disconnected(msgspec.Struct, frozen=True, tag="disconnected", tag_field="event"):
    """The session is over, or a try failed, and why; the next try is so many seconds away."""

    why: str
    retry_seconds: float


class Note(msgspec.Struct, frozen=True, tag="note", tag_field="event"):
    """Something worth a line that changes nothing."""

    message: str


class Ended(msgspec.Struct, frozen=True, tag="ended", tag_field="event"):
    """The agent ends with this exit code; `why` is one sentence."""

    code: int
    why: str


News: TypeAlias = (
    Connecting
    | Connected
    | TunnelUp
    | TunnelRefused
    | Ready
    | Latency
    | Visited
    | Joined
    | LocalTrouble
    | DataLost
    | GoingAway
    | Disconnected
    | Note
    | Ended
)
