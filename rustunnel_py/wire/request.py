"""Requests: a head cut out of the input, judged, and written anew (RFC 9112 §2, §3, RFC 9110 §7).

A request is a start line and a header block. Everything that the block says is worked out once, in a `RequestBlock`; a
connection remembers its last one, and as long as the next block has the same bytes only the start line is judged.
Nothing in a head depends on both but what `_judge_together` checks.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.fields import (
    CHUNKED,
    CHUNKED_LINE,
    TCHAR,
    TOKEN,
    UPGRADE_LINES,
    VALUES,
    HeadLimits,
    find_illegal,
    framing_of,
    list_items,
    parse_host,
    read_fields,
)
from rustunnel_py.wire.forwarding import TREATED, Field, request_field, without_named

if TYPE_CHECKING:
    from collections.abc import Collection

    from rustunnel_py.wire.fields import Headers
    from rustunnel_py.wire.sink import Buffer

# The longest registered method has 17 letters; beyond this it is an attack on buffers.
METHOD_MAX = 64
# RFC 9112 §2.2: a CRLF after a body is an old habit, more than a few is a flood (H66).
LEADING_EMPTY_LINES = 4
# Of header blocks twice so many, of one to three KiB with what was made of them; longer ones come from few.
REMEMBERED = 2048
REMEMBERED_BYTES = 1024
VARIED_LINES = 2  # a cookie and a referrer; with more of them judging all costs the same

_REQUEST_LINE = re.compile(rb"([" + TCHAR + rb"]{1,64}+) (/[!\"$-~]*+) HTTP/1\.([01])\r\n")
_TARGET = re.compile(rb"[!\"$-~]++")
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?]*)(.*)")
# For header lines that were within the bounds once.
_JUDGED = HeadLimits(target=2**31, line=2**31, total=2**31, count=2**31)

_WEBSOCKET_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")

_DROP = Field.DROP
_LF = 10
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})  # RFC 9110 §9.2.2
# A gateway is no open relay (H36), and TRACE shows a browser its own cookies (H37).
_REFUSED_METHODS = frozenset({b"CONNECT", b"TRACE"})


class RequestBlock:
    """A judged header block of a request: everything that depends on the header lines alone, computed once.

    Immutable after construction. `RequestBlock(raw, limits)` raises HttpError for what is wrong in `raw` by itself.
    """

    __slots__ = (
        "body",
        "connection_close",
        "connection_keep_alive",
        "content_length_given",
        "delicate",
        "expect_continue",
        "forward",
        "framing",
        "headers",
        "host",
        "host_line",
        "port",
        "raw",
        "start",
        "te_trailers",
        "upgrade_websocket",
        "websocket_key",
        "websocket_refusal",
    )

    body: int
    """Its length, or CHUNKED."""
    connection_close: bool
    connection_keep_alive: bool
    content_length_given: bool
    delicate: bool
    """Something here must be judged together with the start line."""
    expect_continue: bool
    """`Expect: 100-continue` was there; whether it counts says `RequestHead.expects_continue`."""
    forward: bytes
    """The canonical lines to send on, each ended by CRLF: no Host, framing, hop-by-hop, forwarding fields, Expect."""
    framing: bytes
    """The framing lines for `body`."""
    headers: Headers
    """As they came."""
    host: str
    """Lower case, no port, no final dot; never empty in a judged RequestHead."""
    host_line: bytes
    """The value of Host as it came, for sending on."""
    port: int | None
    """The port in Host."""
    raw: bytes
    """What it was judged from: header lines and the empty line."""
    start: bytes
    """What follows a target: the version, the visitor's Host and `forward`."""
    te_trailers: bool
    """`TE: trailers` was there. It is hop-by-hop: who can carry trailers back may send its own by `extra`."""
    upgrade_websocket: bool
    """A well-formed WebSocket upgrade by its headers (RFC 6455 §4.2.1)."""
    websocket_key: bytes
    websocket_refusal: HttpError | None
    """A WebSocket was asked for, but not in form (H53): what `judge_request` raises, 426 for another version."""

    def __init__(
        self,
        raw: bytes,
        limits: HeadLimits,
        known: RequestBlock | None = None,
        headers: Headers = (),
        forward_lines: bytes = b"",
    ) -> None:
        """`known`: what else there is to know is the same as of this one (see `varied`), and nothing is judged."""
        if known is not None:
            self._take_over(raw, known, headers, forward_lines)
            return
        fields = read_fields(raw, limits)
        forward: list[bytes] = []
        special: list[tuple[Field, bytes]] = []
        treated = TREATED
        for name, value in fields:
            kind = treated[name] if name in treated else request_field(name)
            if kind is None:
                forward.append(b"%b: %b\r\n" % (name, value))
            elif kind is not _DROP:
                special.append((kind, value))
                if kind >= Field.WEBSOCKET_KEY:
                    forward.append(b"%b: %b\r\n" % (name, value))
        self.raw = raw
        self.headers = tuple(fields)
        self._judge_host([value for kind, value in special if kind is Field.HOST])
        self._judge_framing(special)
        if len(special) == 1:  # Host alone
            self.connection_close = self.connection_keep_alive = self.expect_continue = False
            self.te_trailers = self.upgrade_websocket = False
            self.websocket_key = b""
            self.websocket_refusal = None
        else:
            forward = self._judge_options(special, forward)
        self.forward = b"".join(forward)
        self.start = b" HTTP/1.1\r\nHost: %b\r\n%b" % (self.host_line, self.forward)
        self.delicate = self.upgrade_websocket or self.websocket_refusal is not None or not self.host

    def __repr__(self) -> str:
        return f"<RequestBlock {self.host or '-'} {len(self.headers)} fields body={self.body}>"

    def edited(self, remove: Collection[bytes], add: Headers) -> RequestBlock:
        """This block without the lines to send on that `remove` names (in lower case), then with those of `add`.

        Host, framing and forwarding lines are not among them; `raw` and `headers` stay what the visitor sent.
        """
        lines = self.forward.split(b"\r\n")[:-1]
        kept = [line + b"\r\n" for line in lines if line.partition(b":")[0].lower() not in remove]
        kept += [b"%b: %b\r\n" % pair for pair in add]
        block = RequestBlock(self.raw, _JUDGED)
        block.forward = b"".join(kept)
        block.start = b" HTTP/1.1\r\nHost: %b\r\n%b" % (block.host_line, block.forward)
        return block

    def varied(self, raw: bytes, limits: HeadLimits) -> RequestBlock | None:
        """The block of `raw`, where it is this one but for the value of a line or two that pass unread, such as a
        cookie; else None: it must be judged by itself.

        On one connection most blocks that differ do so in this way, and only those lines are judged.
        """
        if self.delicate:
            return None
        lines = raw.split(b"\r\n")
        known = self.raw.split(b"\r\n")
        if len(lines) != len(known):
            return None
        differ = [place for place, line in enumerate(lines) if line != known[place]]
        if len(differ) > VARIED_LINES:
            return None
        headers = self.headers
        forward = self.forward
        for place in differ:
            line = lines[place]
            if place >= len(headers) or len(line) > limits.line:
                return None
            name, before = headers[place]
            if TREATED.get(name, _DROP) is not None or not line.startswith(name + b":"):
                return None
            value = line[len(name) + 1 :]
            if VALUES.fullmatch(value) is None:
                return None
            value = value.strip(b" \t")
            old = b"%b: %b\r\n" % (name, before)
            at = forward.find(old)
            # It is not there where Connection names it; and there may be more than one, or the end of a longer name.
            if at < 0 or (at and forward[at - 1] != _LF) or forward.find(old, at + 1) >= 0:
                return None
            forward = b"%b%b: %b\r\n%b" % (forward[:at], name, value, forward[at + len(old) :])
            headers = (*headers[:place], (name, value), *headers[place + 1 :])
        return RequestBlock(raw, limits, self, headers, forward)

    def _take_over(self, raw: bytes, known: RequestBlock, headers: Headers, forward: bytes) -> None:
        self.raw = raw
        self.headers = headers
        self.forward = forward
        self.start = known.start[: len(known.start) - len(known.forward)] + forward
        self.host, self.port, self.host_line = known.host, known.port, known.host_line
        self.body, self.content_length_given, self.framing = known.body, known.content_length_given, known.framing
        self.connection_close, self.connection_keep_alive = known.connection_close, known.connection_keep_alive
        self.expect_continue, self.te_trailers = known.expect_continue, known.te_trailers
        self.delicate = self.upgrade_websocket = False
        self.websocket_key = b""
        self.websocket_refusal = None

    def _judge_host(self, values: list[bytes]) -> None:
        if len(values) > 1:
            raise HttpError(400, "two-hosts", "More than one Host.")
        self.host_line = values[0] if values else b""
        if not values:
            # Refused by _judge_together, which can tell an HTTP/1.0 client what it lacks.
            self.host, self.port = "", None
        elif not values[0]:
            raise HttpError(400, "empty-host", "Host is empty.")
        else:
            self.host, self.port = parse_host(values[0])

    def _judge_framing(self, special: list[tuple[Field, bytes]]) -> None:
        lengths = [value for kind, value in special if kind is Field.LENGTH]
        codings = [value for kind, value in special if kind is Field.CODING]
        self.body = framing_of(lengths, codings) or 0
        self.content_length_given = bool(lengths)
        self.framing = CHUNKED_LINE if codings else b"Content-Length: %d\r\n" % self.body if lengths else b""

    def _judge_options(self, special: list[tuple[Field, bytes]], forward: list[bytes]) -> list[bytes]:
        """Connection and what goes with it; returns the lines that may be sent on."""
        connection, upgrade, expect, te = (
            [item for kind, value in special if kind is which for item in list_items(value)]
            for which in (Field.CONNECTION, Field.UPGRADE, Field.EXPECT, Field.TE)
        )
        self.connection_close = b"close" in connection
        self.connection_keep_alive = b"keep-alive" in connection
        self.te_trailers = b"trailers" in te
        self.expect_continue = bool(expect)
        if any(item != b"100-continue" for item in expect):
            raise HttpError(417, "unknown-expectation", "Expect asks for something else than 100-continue.")
        self.upgrade_websocket = False
        self.websocket_key = b""
        self.websocket_refusal = None
        if b"websocket" in upgrade:
            keys = [value for kind, value in special if kind is Field.WEBSOCKET_KEY]
            versions = [value for kind, value in special if kind is Field.WEBSOCKET_VERSION]
            self.websocket_refusal = _websocket_refusal(b"upgrade" in connection, keys, versions, self.body)
            if self.websocket_refusal is None:
                self.upgrade_websocket = True
                self.websocket_key = keys[0]
        named = set(connection) - {b"close", b"keep-alive", b"upgrade"}
        return without_named(forward, named) if named else forward


def _websocket_refusal(option: bool, keys: list[bytes], versions: list[bytes], body: int) -> HttpError | None:
    if not option:
        return HttpError(400, "websocket-connection", "A WebSocket was asked for without Connection: Upgrade.")
    if len(versions) == 1 and versions[0] != b"13":
        return HttpError(426, "websocket-version", "Only version 13 of WebSocket is spoken here.")
    if len(versions) != 1 or len(keys) != 1 or _WEBSOCKET_KEY.fullmatch(keys[0]) is None:
        return HttpError(
            400, "websocket-key", "A WebSocket handshake needs one version and one key of 16 bytes in base64."
        )
    if body:
        return HttpError(400, "websocket-body", "A WebSocket handshake has no body.")
    return None


class BlockMemory:
    """Header blocks that were judged lately, by their bytes: clients say the same again on their next connection.

    What comes for the second time is kept, since a cookie that counts makes every block another. The older half is
    forgotten when the newer one is full, so what is asked for stays.
    """

    __slots__ = ("_newer", "_older", "_once")

    def __init__(self) -> None:
        self._newer: dict[bytes, RequestBlock] = {}
        self._older: dict[bytes, RequestBlock] = {}
        self._once: set[int] = set()  # hashes of blocks that came

    def judge(self, raw: bytes, limits: HeadLimits, last: RequestBlock | None = None) -> RequestBlock:
        """The block of `raw`, judged now or remembered; `last` came before it. Raises HttpError."""
        newer = self._newer
        block = newer.get(raw)
        if block is not None:
            return block
        block = self._older.get(raw)
        if block is None:
            block = (None if last is None else last.varied(raw, limits)) or RequestBlock(raw, limits)
            once = self._once
            mark = hash(raw)
            if mark not in once or len(raw) > REMEMBERED_BYTES:
                if len(once) >= REMEMBERED:
                    once.clear()
                once.add(mark)
                return block
        if len(newer) >= REMEMBERED:
            self._older = newer
            newer = self._newer = {}
        newer[raw] = block
        return block


class RequestHead(NamedTuple):
    """A request's head, judged. `target` is in origin form (`/path?query`, bytes unchanged) or `*`."""

    method: bytes
    target: bytes
    minor: int  # 0 or 1
    block: RequestBlock

    @property
    def host(self) -> str:
        return self.block.host

    @property
    def body(self) -> int:
        return self.block.body

    @property
    def keep_alive(self) -> bool:
        """Does the client expect the connection to stay (RFC 9112 §9.3)?"""
        block = self.block
        return not block.connection_close and (self.minor == 1 or block.connection_keep_alive)

    @property
    def is_upgrade(self) -> bool:
        return self.block.upgrade_websocket

    @property
    def expects_continue(self) -> bool:
        """The client holds its body back until it hears 100 (RFC 9110 §10.1.1: not in HTTP/1.0, not without a body)."""
        block = self.block
        return block.expect_continue and self.minor == 1 and block.body != 0

    @property
    def idempotent(self) -> bool:
        """By its method the request may be repeated (RFC 9110 §9.2.2)."""
        return self.method in _IDEMPOTENT


def skip_leading_empty_lines(data: bytearray | bytes, start: int = 0) -> int:
    """Where the request line begins: behind at most a few CRLF (H66); raises HttpError 400 for more.

    Leave the skipped bytes in `data` until the head is cut, and call with the message's first index each time: so a
    drip of empty lines is counted. The head is `data[there:end]`, with `end` from `find_head_end(data, there, …)`.
    """
    at = start
    while data[at : at + 2] == b"\r\n":
        at += 2
        if at > start + 2 * LEADING_EMPTY_LINES:
            raise HttpError(400, "empty-lines", "Too many empty lines before a request.")
    return at


def find_head_end(data: bytearray | bytes, start: int, limits: HeadLimits) -> int:
    """The index just past the empty line that ends a head, or -1 while it is incomplete.

    `start` is where the search may begin again (an earlier return of -1 looked up to there, or the end of skipped empty
    lines). Raises HttpError as soon as what is there can no longer become a legal head: a limit passed (414, 431), a
    bare LF or CR, a NUL.
    """
    end = data.find(b"\r\n\r\n", max(0, start - 3)) + 4
    if end != 3:
        if end > limits.total:
            raise _too_long(data, limits)
        return end
    illegal = find_illegal(data, start)
    if illegal is not None:
        raise illegal
    size = len(data)
    if size > limits.total:
        raise _too_long(data, limits)
    if size > limits.line:
        line = data.rfind(b"\r\n")
        if line < 0:
            raise _too_long(data, limits)
        if size - line - 2 > limits.line:
            raise HttpError(431, "header-too-long", f"A header line is longer than {limits.line} bytes.")
    return -1


def _too_long(head: bytes | bytearray, limits: HeadLimits) -> HttpError:
    """Which part of an overlong head is to blame."""
    line = head[: limits.target + METHOD_MAX + 16].partition(b"\r\n")[0]
    space = line.find(b" ")
    if not 0 <= space <= METHOD_MAX:
        return HttpError(400, "bad-method", f"The method is longer than {METHOD_MAX} bytes.")
    if len(line) - space - len(b" HTTP/1.1") > limits.target + 1:
        return HttpError(414, "target-too-long", f"The request target is longer than {limits.target} bytes.")
    return HttpError(431, "head-too-large", f"The head is larger than {limits.total} bytes.")


def judge_request(
    head: Buffer,
    limits: HeadLimits,
    last: RequestBlock | None = None,
    *,
    memory: BlockMemory | None = None,
    scheme: str = "http",
) -> RequestHead:
    """Judge one complete request head (start line and header lines, with the final empty line).

    Strict on everything in reliability.md H01–H45, H52–H59: raises HttpError with the status and reason code. `last` is
    the connection's remembered block: where its bytes are equal only the request line is judged. `memory` is what other
    connections of the edge said. `scheme` is the edge's own, the only one that an absolute target may have.
    """
    if isinstance(head, memoryview):
        head = bytes(head)
    if len(head) > limits.total:
        raise _too_long(head, limits)
    authority = None
    match = _REQUEST_LINE.match(head)
    if match is not None:
        method, target, digit = match.groups()
        start = match.end()
    else:
        start = head.find(b"\r\n") + 2
        method, target, digit, authority = _judge_request_line(bytes(head[: start - 2]), limits, scheme.encode("ascii"))
    if len(target) > limits.target:
        raise _target_too_long(limits)
    if last is not None and len(head) - start == len(last.raw) and head.endswith(last.raw):
        block = last
    else:
        raw = bytes(head[start:])
        block = RequestBlock(raw, limits) if memory is None else memory.judge(raw, limits, last)
    if digit == b"1":
        minor = 1
        if block.delicate or authority is not None or method in _REFUSED_METHODS:
            _judge_together(method, minor, block, authority, scheme)
    else:
        minor = 0
        _judge_together(method, minor, block, authority, scheme)
    return tuple.__new__(RequestHead, (method, target, minor, block))


def _target_too_long(limits: HeadLimits) -> HttpError:
    return HttpError(414, "target-too-long", f"The request target is longer than {limits.target} bytes.")


def _judge_request_line(line: bytes, limits: HeadLimits, scheme: bytes) -> tuple[bytes, bytes, bytes, bytes | None]:
    """The rare request lines: `*`, absolute form, and everything wrong. (method, target, minor digit, authority)."""
    illegal = find_illegal(line, 0)
    if illegal is not None or b"\r" in line:
        raise illegal or HttpError(400, "bare-cr", "A CR without LF in the head.")
    parts = line.split(b" ")
    if len(parts) != 3:
        raise HttpError(
            400, "bad-request-line", "The request line is not method, target and version, one space between."
        )
    method, target, version = parts
    if TOKEN.fullmatch(method) is None or len(method) > METHOD_MAX:
        raise HttpError(400, "bad-method", "The method is no token or too long.")
    if method == b"PRI":
        raise HttpError(400, "http2-preface", "HTTP/2 is not spoken here.")
    if method in _REFUSED_METHODS:
        raise _method_refused(method)
    if len(target) > limits.target + len(scheme) + len(b"://") + 256:
        raise _target_too_long(limits)
    if _TARGET.fullmatch(target) is None:
        raise HttpError(400, "bad-target", "The request target is empty or holds a byte that must be escaped.")
    numbers = _VERSION.fullmatch(version)
    if numbers is None:
        raise HttpError(400, "bad-version", "The HTTP version is malformed.")
    if numbers[1] != b"1" or numbers[2] not in (b"0", b"1"):
        raise HttpError(505, "version", "Only HTTP/1.0 and HTTP/1.1 are spoken here.")
    if target == b"*":
        if method != b"OPTIONS":
            raise HttpError(400, "bad-target", "The target * is for OPTIONS only.")
        return method, target, numbers[2], None
    if target.startswith(b"/"):
        return method, target, numbers[2], None
    authority, origin = _split_absolute(target, scheme)
    if not origin and method == b"OPTIONS":
        return method, b"*", numbers[2], authority  # RFC 9112 §3.2.4
    return method, origin if origin.startswith(b"/") else b"/" + origin, numbers[2], authority


def _split_absolute(target: bytes, scheme: bytes) -> tuple[bytes, bytes]:
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise HttpError(400, "bad-target", "The request target is neither a path nor a URL.")
    found, authority, origin = match.groups()
    if found.lower() != scheme:
        raise HttpError(400, "bad-scheme", "The scheme of the request target is not served on this port.")
    if not authority or b"@" in authority:
        raise HttpError(400, "bad-authority", "The request target has no host, or a user name in it.")
    return authority, origin


def _judge_together(method: bytes, minor: int, block: RequestBlock, authority: bytes | None, scheme: str) -> None:
    """What depends on both the start line and the header block."""
    if method in _REFUSED_METHODS:
        raise _method_refused(method)
    if not block.host:
        hint = (
            "HTTP/1.0 clients must send it here as well: it names the tunnel."
            if minor == 0
            else "HTTP/1.1 asks for it."
        )
        raise HttpError(400, "no-host", f"The request has no Host header. {hint}")
    if authority is not None:
        default = 443 if scheme == "https" else 80  # RFC 9110 §4.2.3: to say it or not is the same
        host, port = parse_host(authority)
        said = default if block.port is None else block.port
        if host != block.host or said != (default if port is None else port):
            raise HttpError(400, "authority-not-host", "The host of the request target is not the one in Host.")
    if minor == 0 and block.body == CHUNKED:
        raise HttpError(400, "chunked-in-1.0", "Transfer-Encoding in an HTTP/1.0 request.")
    if block.websocket_refusal is not None:
        # A fresh one each time: a raised exception gathers traceback and context.
        refusal = block.websocket_refusal
        raise HttpError(refusal.status, refusal.code, refusal.detail)
    if block.upgrade_websocket and (method != b"GET" or minor == 0):
        raise HttpError(400, "websocket-method", "A WebSocket handshake is a GET of HTTP/1.1.")


def _method_refused(method: bytes) -> HttpError:
    return HttpError(405, "method", f"{method.decode('ascii')} is not served here.")


def render_request(
    head: RequestHead, host_line: bytes | None, forwarded: bytes, *, body: int, extra: bytes = b""
) -> bytes:
    """The canonical head for the local service.

    `host_line` None keeps the visitor's; `forwarded` is `Visit.forwarded`; `body` a length, or CHUNKED, or 0 (then a
    Content-Length: 0 only where the request had one); an upgrade keeps its Upgrade and Connection lines, and where
    the client waits for a 100 the `Expect: 100-continue` goes along. `extra` are header lines, each ended by CRLF.
    """
    block = head.block
    start = block.start if host_line is None else b" HTTP/1.1\r\nHost: %b\r\n%b" % (host_line, block.forward)
    if body == block.body:
        framing = block.framing
    elif body == CHUNKED:
        framing = CHUNKED_LINE
    else:
        framing = b"Content-Length: %d\r\n" % body
    if block.upgrade_websocket:
        extra = UPGRADE_LINES + extra
    elif block.expect_continue and body and head.minor:
        extra = b"Expect: 100-continue\r\n" + extra
    return b"".join((head.method, b" ", head.target, start, forwarded, framing, extra, b"\r\n"))
