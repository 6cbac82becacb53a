"""What is not sent on, and what is said in its place (RFC 9110 §7.6, RFC 7239, reliability H18, H58, H59).

Four kinds of fields are taken out of every head: those of one hop (`Connection` and what it names, `Keep-Alive`, `TE`,
`Upgrade` …), framing (written anew), what tells of the visitor (ours replaces it, nothing is appended, a whole
`X-Forwarded-*` family included), and `Proxy` (CVE-2016-5385). `Via` is removed from requests and none is added, as
other reverse proxies do; a local service's own `Via` passes. `Max-Forwards` passes unread: TRACE is refused, and
for OPTIONS the local service is the origin. Trusting an outer proxy is the edge's business: it reads
`RequestBlock.headers`.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from rustunnel_py.wire.fields import FOLD, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rustunnel_py.wire.fields import Headers


class Field(enum.IntEnum):
    """How a field is treated; what is not in a table passes."""

    DROP = 0
    HOST = 1
    LENGTH = 2
    CODING = 3
    CONNECTION = 4
    EXPECT = 5
    UPGRADE = 6
    TE = 7
    WEBSOCKET_KEY = 8
    WEBSOCKET_VERSION = 9
    KEEP_ALIVE = 10
    AUTHENTICATE = 11


FORWARDED_FAMILY = b"x-forwarded-"

# Keys are folded names (wire.fields.FOLD).
REQUEST_FIELDS: dict[bytes, Field] = {
    b"host": Field.HOST,
    b"content-length": Field.LENGTH,
    b"transfer-encoding": Field.CODING,
    b"connection": Field.CONNECTION,
    b"expect": Field.EXPECT,
    b"upgrade": Field.UPGRADE,
    b"te": Field.TE,
    b"sec-websocket-key": Field.WEBSOCKET_KEY,
    b"sec-websocket-version": Field.WEBSOCKET_VERSION,
    b"keep-alive": Field.DROP,
    b"proxy-connection": Field.DROP,
    b"proxy": Field.DROP,
    b"http2-settings": Field.DROP,  # RFC 9113 §3.1: only with an h2c upgrade, which we do not do
    b"forwarded": Field.DROP,
    b"x-real-ip": Field.DROP,
    b"via": Field.DROP,
}

TREATED: dict[bytes, Field | None] = {}
"""What `request_field` said of a name as it came: the same few dozen come again and again."""
TREATED_MAX = 1024  # names
TREATED_BYTES = 64  # of a name; longer ones are nobody's habit

REPLY_FIELDS: dict[bytes, Field] = {
    b"content-length": Field.LENGTH,
    b"transfer-encoding": Field.CODING,
    b"connection": Field.CONNECTION,
    b"upgrade": Field.UPGRADE,
    b"keep-alive": Field.KEEP_ALIVE,
    b"www-authenticate": Field.AUTHENTICATE,
    b"te": Field.DROP,
    b"proxy-connection": Field.DROP,
}

# RFC 9110 §6.5.1: framing, routing, authentication, modifiers and control data may not come late; nor may our own.
_NO_TRAILERS = frozenset(
    b"authorization proxy-authorization proxy-authenticate www-authenticate authentication-info "
    b"proxy-authentication-info cookie set-cookie cache-control content-encoding content-range content-type "
    b"content-location age date expires "
    b"location retry-after vary warning pragma range max-forwards trailer realm origin referer "
    b"x-http-method-override x-original-url x-rewrite-url".split()
)
_NO_TRAILER_FAMILIES = (FORWARDED_FAMILY, b"if-", b"sec-", b"access-control-")


def without_named(lines: list[bytes], named: Iterable[bytes]) -> list[bytes]:
    """Header lines but those that `Connection` names. Framing and our own fields are never among the lines."""
    gone = frozenset(named)
    return [line for line in lines if line[: line.index(b":")].lower() not in gone]


def sendable_trailers(trailers: Headers) -> Headers:
    """The trailers that may be sent on (H18)."""
    return tuple(
        (name, value)
        for name, value in trailers
        if (key := name.translate(FOLD)) not in REQUEST_FIELDS
        and key not in REPLY_FIELDS
        and key not in _NO_TRAILERS
        and not key.startswith(_NO_TRAILER_FAMILIES)
    )


def request_field(name: bytes) -> Field | None:
    """How a request's field is treated; None: it passes. A twin of a name with a meaning (H07) is dropped."""
    key = name.translate(FOLD)
    kind = REQUEST_FIELDS.get(key)
    if kind is None:
        treated = Field.DROP if key.startswith(FORWARDED_FAMILY) else None
    else:
        treated = kind if key == name.lower() else Field.DROP
    if len(name) <= TREATED_BYTES:
        if len(TREATED) >= TREATED_MAX:
            TREATED.clear()
        TREATED[name] = treated
    return treated


def forwarded_lines(visitor_ip: str, scheme: str, host: bytes, port: int) -> bytes:
    """What the local service is told of the visitor, as header lines, each ended by CRLF (H59).

    X-Forwarded-For, -Proto, -Host, -Port, X-Real-IP and Forwarded (RFC 7239). `host` is the judged value of Host,
    `port` the edge's own.
    """
    ip = visitor_ip.encode("ascii")
    proto = scheme.encode("ascii")
    node = b'"[' + ip + b']"' if b":" in ip else ip
    name = host if TOKEN.fullmatch(host) is not None else b'"' + host + b'"'
    return (
        b"X-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Port: %d\r\n"
        b"X-Real-IP: %b\r\nForwarded: for=%b;host=%b;proto=%b\r\n"
    ) % (ip, proto, host, port, ip, node, name, proto)
