"""Header fields: the grammar of a block of them, of a Host, and their bounds (RFC 9112 §5, RFC 9110 §5, §7.2).

A block is every header line with the empty line behind it. One anchored expression says yes or no to the whole of it;
only after a no does anybody look for the reason. So the common case costs one scan in C.

    block  = *( name ":" value CRLF ) CRLF
    name   = 1*tchar                        no space, no obs-fold
    value  = *( HTAB / SP / VCHAR / obs-text )   no CR, LF, NUL or other control
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.errors import HttpError

if TYPE_CHECKING:
    from rustunnel_py.wire.sink import Buffer

Headers: TypeAlias = "tuple[tuple[bytes, bytes], ...]"
"""Names in the case they came in, values stripped of outer whitespace, in order."""


# How a body is framed, in one integer: n >= 0 is its length (0: none), or one of these.
CHUNKED = -1
UNTIL_CLOSE = -2  # replies only

CHUNKED_LINE = b"Transfer-Encoding: chunked\r\n"
UPGRADE_LINES = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """Bounds on a head (reliability H19, H26, H27): defaults as a public front door needs them."""

    target: int = 8 * 1024
    line: int = 8 * 1024 + 512  # one header line
    total: int = 32 * 1024  # the whole head
    count: int = 100


REQUEST_LIMITS = HeadLimits()

# A local service may set many cookies and a long policy; it is still one head of bounded size.
REPLY_LIMITS = HeadLimits(line=64 * 1024, total=64 * 1024, count=200)

TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
VALUE = rb"\t\x20-\x7e\x80-\xff"

VALUES = re.compile(rb"[" + VALUE + rb"]*+")
TOKEN = re.compile(rb"[" + TCHAR + rb"]++")
_BLOCK = re.compile(rb"(?:[" + TCHAR + rb"]++:[" + VALUE + rb"]*+\r\n)*\r\n")  # no possessive group: see body.py
# Only ever run over what _BLOCK accepted.
_FIELD = re.compile(rb"([^:]++):[ \t]*+((?:[^\r\n]*[^\r\n \t])?)[ \t]*+\r\n")
_LONE = re.compile(rb"\x00|(?<!\r)\n|\r(?!\n|\Z)")

# `Content-Length` and `Content_Length` are one variable to CGI, WSGI and Rack: a name is known by its letters and
# digits alone, so that no twin of a name with a meaning is taken for an ordinary one (H07).
FOLD = bytes.maketrans(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%&'*+.^_`|~", b"abcdefghijklmnopqrstuvwxyz" + b"-" * 14)

_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:({_LABEL}(?:\.{_LABEL})*)\.?|(\[[^\]@/?#\\\s]+\]))(?::([0-9]{{1,5}}))?")
_IP_FUTURE = re.compile(r"v[0-9a-f]+\.[a-z0-9._~!$&'()*+,;=:-]+")
_HOST_MAX = 253  # RFC 1035 §2.3.4, without the final dot


def read_fields(block: bytes, limits: HeadLimits) -> list[tuple[bytes, bytes]]:
    """The (name, value) pairs of a block; raises HttpError 400 or 431."""
    if _BLOCK.fullmatch(block) is None:
        raise _why(block)
    fields: list[tuple[bytes, bytes]] = _FIELD.findall(block)
    if len(fields) > limits.count:
        raise HttpError(431, "too-many-headers", f"More than {limits.count} header lines.")
    if len(block) > limits.line:
        check_line_lengths(block, limits)
    return fields


def check_line_lengths(block: bytes, limits: HeadLimits) -> None:
    if max(map(len, block.split(b"\r\n"))) > limits.line:
        raise HttpError(431, "header-too-long", f"A header line is longer than {limits.line} bytes.")


def find_illegal(data: Buffer, start: int) -> HttpError | None:
    """What can never be part of a head, whatever follows: a NUL, a bare LF, a bare CR. A final CR is not bare yet."""
    match = _LONE.search(data, max(0, start - 1))
    if match is None:
        return None
    if match[0] == b"\0":
        return HttpError(400, "nul", "A NUL byte in the head.")
    if match[0] == b"\n":
        return HttpError(400, "bare-lf", "A line of the head does not end with CR LF.")
    return HttpError(400, "bare-cr", "A CR without LF in the head.")


def _why(block: bytes) -> HttpError:
    """The reason why a block is none, for the first line that is wrong."""
    illegal = find_illegal(block, 0)
    if illegal is not None:
        return illegal
    for line in block.split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            return HttpError(400, "obs-fold", "A header line begins with whitespace.")
        if line and not colon:
            return HttpError(400, "no-colon", "A header line has no colon.")
        if line and TOKEN.fullmatch(name) is None:
            return HttpError(400, "bad-header-name", "A header name is empty or holds a character that is not allowed.")
        if re.fullmatch(rb"[" + VALUE + rb"]*", value) is None:
            return HttpError(400, "control-byte", "A header value holds a control character.")
    return HttpError(400, "bad-head", "The head does not end with one empty line.")


def parse_host(value: bytes) -> tuple[str, int | None]:
    """A Host value or an authority: (name in lower case without final dot, port); raises HttpError 400.

    Names are letters, digits and hyphens (no `_`, no escapes, no user name); literals are `[…]` as in RFC
    3986 §3.2.2.
    """
    # Latin-1: none of its letters folds into ASCII, as a few of Unicode do.
    match = _HOST.fullmatch(value.decode("latin-1").lower())
    if match is None:
        raise HttpError(400, "bad-host", "Host is not a host name with an optional port.")
    name, literal, port = match.groups()
    if port is not None and int(port) > 65535:
        raise HttpError(400, "bad-host", "The port in Host is no port.")
    if literal is not None:
        _check_literal(literal[1:-1])
        name = literal
    elif len(name) > _HOST_MAX:
        raise HttpError(400, "bad-host", f"Host is longer than {_HOST_MAX} characters.")
    return name, None if port is None else int(port)


def _check_literal(inside: str) -> None:
    if _IP_FUTURE.fullmatch(inside) is not None:
        return
    try:
        if "%" in inside:
            raise ValueError(inside)
        ipaddress.IPv6Address(inside)
    except ValueError:
        raise HttpError(400, "bad-host", "The address in Host is no IPv6 address.") from None


def framing_of(lengths: list[bytes], codings: list[bytes]) -> int | None:
    """A body's length, or CHUNKED, by Content-Length and Transfer-Encoding; None: neither is there (H01–H10)."""
    if codings:
        if lengths:
            raise HttpError(400, "length-and-chunked", "Content-Length together with Transfer-Encoding.")
        if len(codings) > 1:
            raise HttpError(400, "two-transfer-encodings", "More than one Transfer-Encoding.")
        if codings[0].lower() != b"chunked":
            raise HttpError(400, "bad-transfer-encoding", "Transfer-Encoding is not exactly `chunked`.")
        return CHUNKED
    if not lengths:
        return None
    if len(lengths) > 1:
        raise HttpError(400, "two-content-lengths", "More than one Content-Length.")
    if _LENGTH.fullmatch(lengths[0]) is None:
        raise HttpError(400, "bad-content-length", "Content-Length is not one plain decimal number.")
    return int(lengths[0])


def list_items(value: bytes) -> list[bytes]:
    """The elements of a comma-separated list in lower case; empty ones are left out (RFC 9110 §5.6.1.2)."""
    return [item for part in value.lower().split(b",") if (item := part.strip(b" \t"))]
