"""Replies: a head cut, judged in the light of its request, and written anew for the visitor (RFC 9112 §4, §6.3).

The local service is held to the same grammar as a visitor; whatever is wrong is a 502.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.fields import (
    CHUNKED,
    CHUNKED_LINE,
    FOLD,
    TCHAR,
    UNTIL_CLOSE,
    UPGRADE_LINES,
    VALUE,
    framing_of,
    list_items,
    read_fields,
)
from rustunnel_py.wire.forwarding import REPLY_FIELDS, Field, without_named
from rustunnel_py.wire.request import find_head_end

if TYPE_CHECKING:
    from rustunnel_py.wire.fields import Headers, HeadLimits
    from rustunnel_py.wire.request import RequestHead
    from rustunnel_py.wire.sink import Buffer

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2}) ([" + VALUE + rb"]*+)\r\n")
_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,; \t])timeout[ \t]*=[ \t]*\"?([0-9]{1,6})", re.IGNORECASE)
_SPACED_NAME = re.compile(rb"^([" + TCHAR + rb"]++)[ \t]++:", re.MULTILINE)
# With a space they are another field to one reader and framing to the next, so nobody may guess.
_NEVER_SPACED = frozenset({b"content-length", b"transfer-encoding", b"connection"})
_WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
_SWITCHING = (b"upgrade", b"connection", b"sec-websocket-accept")


class ReplyHead:
    """A reply's head, judged in the light of the request's method. Immutable after construction, but for `rendered`."""

    __slots__ = (
        "body",
        "content_length",
        "doubtful",
        "forward",
        "headers",
        "keep_alive",
        "keep_alive_timeout",
        "minor",
        "owns_connection",
        "reason",
        "rendered",
        "status",
    )

    body: int
    """0 for none (HEAD, 204, 304, 1xx), n, CHUNKED or UNTIL_CLOSE."""
    content_length: int | None
    """As said by the head, also for HEAD and 304."""
    doubtful: bool
    """Complete, but the stream must not be used again: a length where no body may be (H49)."""
    forward: bytes
    """The canonical lines to send on, without framing and hop-by-hop, each ended by CRLF."""
    headers: Headers
    """As they came."""
    keep_alive: bool
    """The stream may carry another request after this reply."""
    keep_alive_timeout: float | None
    """Seconds, from `Keep-Alive: timeout=`."""
    minor: int
    owns_connection: bool
    """`WWW-Authenticate: NTLM` or `Negotiate`: from now on the stream belongs to one visitor."""
    reason: bytes
    rendered: tuple[int, bytes] | None
    """The commonest rendering, by its framing; kept by `render_reply`, since the heads of a service repeat."""
    status: int

    def __repr__(self) -> str:
        return f"<ReplyHead {self.status} body={self.body} keep_alive={self.keep_alive}>"


def find_reply_head_end(data: bytearray | bytes, start: int, limits: HeadLimits) -> int:
    """`find_head_end` for a reply: every refusal is a 502, and what does not begin like HTTP/1 is refused at once."""
    if start < 7 and not data.startswith(b"HTTP/1."[: len(data)]):
        raise HttpError(502, "not-http", "The local service does not answer in HTTP/1.")
    try:
        return find_head_end(data, start, limits)
    except HttpError as error:
        # The request's words for an overlong first line do not fit a reply.
        known = error.status == 400 and error.code != "bad-method"
        raise HttpError(502, error.code if known else "head-too-large", "The head of the reply is malformed.") from None


def judge_reply(head: Buffer, method: bytes, limits: HeadLimits, *, upgrade: bool = False) -> ReplyHead:
    """Judge one complete reply head to a request of `method` (H49–H51, H60–H61).

    Raises HttpError(502). `upgrade`: the request asked for a WebSocket, so a 101 is allowed; whether it is the
    right one says `check_upgraded`.
    """
    try:
        return _judge_reply(bytes(head), method, limits, upgrade)
    except HttpError as error:
        raise HttpError(502, error.code, f"The reply of the local service is malformed: {error.detail}") from None


def _judge_reply(head: bytes, method: bytes, limits: HeadLimits, upgrade: bool) -> ReplyHead:
    if len(head) > limits.total:
        raise HttpError(502, "head-too-large", f"The head is larger than {limits.total} bytes.")
    match = _STATUS_LINE.match(head)
    if match is None:
        raise HttpError(502, "bad-status-line", "The status line is malformed.")
    digit, digits, reason = match.groups()
    reply = ReplyHead()
    reply.minor = minor = 1 if digit == b"1" else 0
    reply.status = status = int(digits)
    reply.reason = reason
    reply.keep_alive_timeout = None
    reply.owns_connection = False
    reply.rendered = None
    if status == 101 and not upgrade:
        raise HttpError(502, "unasked-upgrade", "A 101 that nobody asked for.")
    block = head[match.end() :]
    try:
        fields = read_fields(block, limits)
    except HttpError as error:
        fields = read_fields(_without_space_before_colons(block, error), limits)
    reply.headers = tuple(fields)
    forward: list[bytes] = []
    lengths: list[bytes] = []
    codings: list[bytes] = []
    connection: list[bytes] = []
    for name, value in fields:
        key = name.translate(FOLD)
        kind = REPLY_FIELDS.get(key)
        if kind is None:
            forward.append(b"%b: %b\r\n" % (name, value))
        elif key != name.lower():
            continue  # a twin of a name with a meaning
        elif kind is Field.LENGTH:
            lengths.append(value)
        elif kind is Field.CODING:
            codings.append(value)
        elif kind is Field.CONNECTION:
            connection += list_items(value)
        elif kind is Field.KEEP_ALIVE:
            timeout = _KEEP_ALIVE_TIMEOUT.search(value)
            reply.keep_alive_timeout = None if timeout is None else float(timeout[1])
        elif kind is Field.AUTHENTICATE:
            forward.append(b"%b: %b\r\n" % (name, value))
            reply.owns_connection |= any(item.split()[0] in (b"ntlm", b"negotiate") for item in list_items(value))
        elif kind is Field.UPGRADE and status == 426:
            forward.append(b"%b: %b\r\n" % (name, value))  # RFC 9110 §15.5.22: it says what to upgrade to
    if connection:
        named = set(connection) - {b"close", b"keep-alive", b"upgrade"}
        forward = without_named(forward, named) if named else forward
    reply.forward = b"".join(forward)
    if minor == 0 and codings:
        raise HttpError(502, "chunked-in-1.0", "Transfer-Encoding in an HTTP/1.0 reply.")
    framing = framing_of(lengths, codings)
    _settle_reply(reply, method, framing)
    persistent = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    reply.keep_alive = persistent and reply.body != UNTIL_CLOSE and not reply.doubtful
    return reply


def _without_space_before_colons(block: bytes, error: HttpError) -> bytes:
    """What RFC 9112 §5.1 demands of a proxy; raises `error`, which `block` was refused for, where that is no help.

    A framing field with such a space, whatever its spelling, stays malformed.
    """
    names = _SPACED_NAME.findall(block)
    if error.code != "bad-header-name" or not _NEVER_SPACED.isdisjoint(name.translate(FOLD) for name in names):
        raise error
    return _SPACED_NAME.sub(rb"\1:", block)


def _settle_reply(reply: ReplyHead, method: bytes, framing: int | None) -> None:
    """Body, length and doubt, by the rules of RFC 9112 §6.3."""
    status = reply.status
    reply.content_length = framing if framing != CHUNKED else None
    reply.doubtful = False
    if status < 200 or status == 204:
        reply.body = 0
        reply.doubtful = framing is not None
    elif status == 304:
        reply.body = 0
        reply.doubtful = bool(framing)
    elif method == b"HEAD":
        reply.body = 0
    else:
        reply.body = UNTIL_CLOSE if framing is None else framing


def reply_framing(head: ReplyHead, minor: int) -> int:
    """How to frame the body for a visitor of HTTP/1.`minor`; with UNTIL_CLOSE its connection ends with the body."""
    if head.body >= 0:
        return head.body
    return CHUNKED if minor else UNTIL_CLOSE


def render_reply(head: ReplyHead, *, body: int, minor: int, close: bool, extra: bytes = b"") -> bytes:
    """The canonical head for the visitor: `body` is the framing chosen for this visitor (a 1.0 client gets no chunks).

    A reply without a body (HEAD, 304) keeps the length that it says. Nothing is invented: no Date, no Server.
    UNTIL_CLOSE needs `close`. A 1xx has neither framing nor, but for 101, Connection.
    """
    is_common = minor == 1 and not close and not extra
    if is_common and head.rendered is not None and head.rendered[0] == body:
        return head.rendered[1]
    status = head.status
    if status < 200:
        tail = UPGRADE_LINES if status == 101 else b""
    else:
        tail = _reply_framing_lines(head, body, minor)
        if status == 426 and any(name.lower() == b"upgrade" for name, _ in head.headers):
            before = b"close, " if close else b"" if minor else b"keep-alive, "
            tail += b"Connection: %bupgrade\r\n" % before  # RFC 9110 §7.8
        elif close:
            tail += b"Connection: close\r\n"
        elif minor == 0:
            tail += b"Connection: keep-alive\r\n"
    rendered = b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (status, head.reason, head.forward, tail, extra)
    if is_common:
        head.rendered = body, rendered
    return rendered


def _reply_framing_lines(head: ReplyHead, body: int, minor: int) -> bytes:
    if body > 0:
        return b"Content-Length: %d\r\n" % body
    if body == UNTIL_CLOSE:
        return b""
    if body == CHUNKED:
        if minor == 0:
            raise ValueError("no chunks for HTTP/1.0")
        return CHUNKED_LINE
    if head.body:
        return b"Content-Length: 0\r\n"
    if head.content_length is None or head.status == 204:
        return b""
    return b"Content-Length: %d\r\n" % head.content_length


def check_upgraded(request: RequestHead, reply: ReplyHead) -> None:
    """Is this 101 the one that the request's WebSocket key asks for (RFC 6455 §4.1, H55)? Raises HttpError 502."""
    said = {name: [v for n, v in reply.headers if n.lower() == name] for name in _SWITCHING}
    upgrade = [item for value in said[b"upgrade"] for item in list_items(value)]
    options = [item for value in said[b"connection"] for item in list_items(value)]
    if upgrade != [b"websocket"] or b"upgrade" not in options:
        raise HttpError(502, "bad-upgrade", "The local service switches to something else than WebSocket.")
    if said[b"sec-websocket-accept"] != [websocket_accept(request.block.websocket_key)]:
        raise HttpError(502, "bad-accept", "The local service's Sec-WebSocket-Accept does not fit the key.")


def websocket_accept(key: bytes) -> bytes:
    """The Sec-WebSocket-Accept that answers `key` (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _WEBSOCKET_GUID).digest())
