"""Control frames of the rustunnel agent protocol: JSON objects, told apart by `type` (wire spec section 2).

One frozen struct a frame. A field that may be absent has a default and is left out when unset, so that older peers
read the frame; a field that the original always writes is written, `null` included. In what is read, absent and
`null` are the same, and unknown fields are ignored. Fields marked "ours" are the additive ones between our own
agent and server (design.md, decision 2); a stock peer neither sends nor minds them.

What cannot be taken is told apart by exception: `NotJson`, `UnknownType`, `BadFrame` and, of these, `BadFields`.
Which of them ends a session, and when, is not decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec

from rustunnel_py.errors import ControlError
from rustunnel_py.wire import strict_json
from rustunnel_py.wire.misfit import Misfit, fit

if TYPE_CHECKING:
    from collections.abc import Callable

FROM_AGENT_MAX = 64 * 1024
"""Bytes of one control message of an agent; the longest honest one (a registration) has less than a thousand."""
FROM_SERVER_MAX = 1024 * 1024
"""Bytes of one control message of a server; a batch of `visits` is the longest."""

PROTOCOL_LEVEL = "0.7.0"
"""What `auth_ok.server_version` says: stock agents send groups and health reports from here on."""

RAW_DATA = "raw_data"
"""Feature: after the upgrade the data socket carries plain yamux bytes."""
STREAM_HEADS = "stream_heads"
"""Feature: a stream begins with what it is for (`stream_head.py`); no `new_connection`."""
MANY_STREAMS = "many_streams"
"""Feature: the agent takes `MANY_STREAMS_MAX` streams of one session; each costs it a descriptor."""
MANY_STREAMS_MAX = 2048

TunnelProtocol: TypeAlias = Literal["http", "https", "tcp", "udp", "p2p"]
U16: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
U32: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
U64: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # msgspec compares in 64 bits with sign
U64_MAX = 2**64 - 1


class NotJson(ControlError):
    """No JSON, or JSON that the strict reader refuses."""


class UnknownType(ControlError):
    """A well-formed frame of a type that this side does not know; ignored once authenticated.

    `name` is the peer's word: escape it before showing it.
    """

    def __init__(self, name: str) -> None:
        super().__init__("a control frame of an unknown type")
        self.name = name


class BadFrame(ControlError):
    """No frame at all, one of the other direction, or one with wrong fields.

    `type` is its type ("" where there is none), `field` the path of the wrong field as in `health_check.kind`,
    `reason` what it may be, `request_id` what an error answer has to carry, where the frame had one.
    """

    def __init__(self, type_name: str, field: str, reason: str, request_id: str | None = None) -> None:
        super().__init__(f"{type_name or 'frame'}: {field}: {reason}")
        self.type = type_name
        self.field = field
        self.reason = reason
        self.request_id = request_id


class BadFields(BadFrame):
    """A frame that this side could take, with a field that is missing or cannot be used."""


class _Frame(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", kw_only=True):
    """Optional fields are left out when unset."""


def _null() -> None:
    """The default of a field that is written as null: omit_defaults leaves out plain defaults only."""
    return


_Default = TypeVar("_Default")


def _written(default: Callable[[], _Default]) -> Any:
    """A field that may be absent in what is read and is always written."""
    return msgspec.field(default_factory=default)


# either way


class _Beat(_Frame, frozen=True, kw_only=True):
    """`timestamp`: milliseconds since the Unix epoch, 64 bits without sign; only ever echoed."""

    timestamp: Annotated[int, msgspec.Meta(ge=0)]

    def __post_init__(self) -> None:
        if self.timestamp > U64_MAX:  # said as msgspec says it, which has no such bound beyond 63 bits
            raise ValueError(f"Expected `int` <= {U64_MAX} - at `$.timestamp`")


class Ping(_Beat, frozen=True, kw_only=True, tag="ping"):
    """Are you there?"""


class Pong(_Beat, frozen=True, kw_only=True, tag="pong"):
    """The same timestamp as in the ping."""


# agent to server


class Auth(_Frame, frozen=True, kw_only=True, tag="auth"):
    """First frame of an agent. `features` is None for a stock agent."""

    token: str
    client_version: str
    features: tuple[str, ...] | None = None  # ours
    machine: str | None = None  # ours: a random id kept in the agent's state folder
    instance: str | None = None  # ours: random, one a process


class HealthCheck(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    kind: Literal["tcp", "http"]
    interval_secs: U64
    timeout_secs: U64
    max_failed: U32
    http_path: str | None = None
    http_expect_2xx: bool = _written(lambda: True)
    alert_webhook_url: str | None = None


class RegisterTunnel(_Frame, frozen=True, kw_only=True, tag="register_tunnel"):
    """`local_addr` is for display only. `port` is judged by whoever assigns ports, so any integer decodes."""

    request_id: str
    protocol: TunnelProtocol
    subdomain: str | None = _written(_null)
    local_addr: str
    p2p_secret_hash: str | None = None
    p2p_name: str | None = None
    group: str | None = None
    group_key_hash: str | None = None
    health_check: HealthCheck | None = None
    port: int | None = None  # ours: a wished TCP port
    take_over: bool = False  # ours: take the name from whoever holds it
    host_header: str | None = None  # ours: what the local service is to see as Host
    proxy_protocol: Literal[0, 1, 2] = 0  # ours: version of the PROXY header written first


class UnregisterTunnel(_Frame, frozen=True, kw_only=True, tag="unregister_tunnel"):
    tunnel_id: str


class TunnelHealthy(_Frame, frozen=True, kw_only=True, tag="tunnel_healthy"):
    tunnel_id: str


class TunnelUnhealthy(_Frame, frozen=True, kw_only=True, tag="tunnel_unhealthy"):
    tunnel_id: str
    reason: str


class P2pConnect(_Frame, frozen=True, kw_only=True, tag="p2p_connect"):
    request_id: str
    target_tunnel_name: str
    secret_hash: str


class P2pNatInfo(_Frame, frozen=True, kw_only=True, tag="p2p_nat_info"):
    tunnel_id: str
    nat_type: str
    mapped_addrs: tuple[str, ...]
    local_addrs: tuple[str, ...]


class P2pPunchResult(_Frame, frozen=True, kw_only=True, tag="p2p_punch_result"):
    conn_id: str
    success: bool
    direct_addr: str | None = _written(_null)


class P2pMetrics(_Frame, frozen=True, kw_only=True, tag="p2p_metrics"):
    tunnel_id: str
    bytes_sent: U64
    bytes_received: U64


class DataStreamOpen(_Frame, frozen=True, kw_only=True, tag="data_stream_open"):
    """Never needed; accepted and ignored."""

    conn_id: str


# server to agent


class AuthOk(_Frame, frozen=True, kw_only=True, tag="auth_ok"):
    """`session_id` opens the data socket, so it is a secret. `features` only to an agent that sent some."""

    session_id: str
    server_version: str
    features: tuple[str, ...] | None = None  # ours
    data_secret: str | None = None  # ours: a header of every data upgrade
    region: str | None = None  # ours
    https: bool | None = None  # ours: a publicly trusted certificate is in use


class AuthError(_Frame, frozen=True, kw_only=True, tag="auth_error"):
    message: str


class TunnelRegistered(_Frame, frozen=True, kw_only=True, tag="tunnel_registered"):
    request_id: str
    tunnel_id: str
    public_url: str
    assigned_port: U16 | None = _written(_null)
    p2p_tunnel_name: str | None = None


class TunnelError(_Frame, frozen=True, kw_only=True, tag="tunnel_error"):
    """A stock agent gives up for good on a message with "auth" or "Auth" in it, and otherwise tries again."""

    request_id: str
    message: str


class NewConnection(_Frame, frozen=True, kw_only=True, tag="new_connection"):
    conn_id: str
    client_addr: str
    protocol: TunnelProtocol
    tunnel_id: str | None = None  # ours: which of the session's tunnels


class P2pConnected(_Frame, frozen=True, kw_only=True, tag="p2p_connected"):
    request_id: str
    conn_id: str


class P2pError(_Frame, frozen=True, kw_only=True, tag="p2p_error"):
    request_id: str
    message: str


class P2pPunchInstructions(_Frame, frozen=True, kw_only=True, tag="p2p_punch_instructions"):
    conn_id: str
    peer_addrs: tuple[str, ...]
    strategy: Literal["direct_exchange", "port_prediction", "relay"]
    punch_timeout_ms: U64


class VisitLine(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One visit for the agent's screen; `ms` is how long it took."""

    method: str
    path: str
    status: int
    ms: float
    capture_id: str | None = None
    tunnel_id: str | None = None


class Visits(_Frame, frozen=True, kw_only=True, tag="visits"):
    """Ours, to agents that sent `features`; at most four batches a second."""

    visits: tuple[VisitLine, ...]


class GoingAway(_Frame, frozen=True, kw_only=True, tag="going_away"):
    """Ours, to agents that sent `features`: this server stops; come back soon."""

    reason: str | None = None


AgentFrame: TypeAlias = (
    Auth
    | RegisterTunnel
    | UnregisterTunnel
    | TunnelHealthy
    | TunnelUnhealthy
    | P2pConnect
    | P2pNatInfo
    | P2pPunchResult
    | P2pMetrics
    | DataStreamOpen
    | Ping
    | Pong
)
ServerFrame: TypeAlias = (
    AuthOk
    | AuthError
    | TunnelRegistered
    | TunnelError
    | NewConnection
    | P2pConnected
    | P2pError
    | P2pPunchInstructions
    | Visits
    | GoingAway
    | Ping
    | Pong
)

AGENT_FRAMES: dict[str, type[AgentFrame]] = {
    "auth": Auth,
    "register_tunnel": RegisterTunnel,
    "unregister_tunnel": UnregisterTunnel,
    "tunnel_healthy": TunnelHealthy,
    "tunnel_unhealthy": TunnelUnhealthy,
    "p2p_connect": P2pConnect,
    "p2p_nat_info": P2pNatInfo,
    "p2p_punch_result": P2pPunchResult,
    "p2p_metrics": P2pMetrics,
    "data_stream_open": DataStreamOpen,
    "ping": Ping,
    "pong": Pong,
}
SERVER_FRAMES: dict[str, type[ServerFrame]] = {
    "auth_ok": AuthOk,
    "auth_error": AuthError,
    "tunnel_registered": TunnelRegistered,
    "tunnel_error": TunnelError,
    "new_connection": NewConnection,
    "p2p_connected": P2pConnected,
    "p2p_error": P2pError,
    "p2p_punch_instructions": P2pPunchInstructions,
    "visits": Visits,
    "going_away": GoingAway,
    "ping": Ping,
    "pong": Pong,
}


def decode_from_agent(data: bytes | bytearray | memoryview | str) -> AgentFrame:
    """What an agent says. Raises NotJson, UnknownType, BadFrame."""
    return _decode(data, FROM_AGENT_MAX, AGENT_FRAMES, SERVER_FRAMES)


def decode_from_server(data: bytes | bytearray | memoryview | str) -> ServerFrame:
    """What a server says. Raises NotJson, UnknownType, BadFrame."""
    return _decode(data, FROM_SERVER_MAX, SERVER_FRAMES, AGENT_FRAMES)


def encode(frame: AgentFrame | ServerFrame) -> bytes:
    """One UTF-8 JSON object, as it goes into one binary WebSocket message."""
    return _ENCODER.encode(frame)


_ENCODER = msgspec.json.Encoder()

_T = TypeVar("_T", AgentFrame, ServerFrame)
_O = TypeVar("_O", AgentFrame, ServerFrame)


def _decode(
    data: bytes | bytearray | memoryview | str,
    max_bytes: int,
    frames: dict[str, type[_T]],
    foreign: dict[str, type[_O]],
) -> _T:
    try:
        value = strict_json.loads(data, max_bytes)
    except strict_json.JsonRefused as error:
        raise NotJson(str(error)) from error
    if not isinstance(value, dict):
        raise BadFrame("", "type", "not an object")
    name = value.get("type")
    if not isinstance(name, str):
        raise BadFrame("", "type", "no text")
    request_id = value.get("request_id")
    asked = request_id if isinstance(request_id, str) else None
    shape = frames.get(name)
    if shape is None:
        if name in foreign:
            raise BadFrame(name, "type", "a frame of the other direction", asked)
        raise UnknownType(name)
    try:
        return fit(_without_nulls(value), shape)
    except Misfit as misfit:
        raise BadFields(name, misfit.key, misfit.problem, asked) from misfit


def _without_nulls(members: dict[str, strict_json.JsonValue]) -> dict[str, strict_json.JsonValue]:
    """Absent and null mean the same, so one of the two is enough to judge."""
    return {
        key: _without_nulls(item) if isinstance(item, dict) else item
        for key, item in members.items()
        if item is not None
    }
