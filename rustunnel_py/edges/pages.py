"""The few pages that the edge answers itself: every 4xx and 5xx of its own, and the bare domain.

Three forms of the same facts (status, stable code, the hop that failed, since when, what to do, request id):
HTML where `Accept` names it (browsers), JSON where it names that (API clients), else a few lines of
text. Nothing is loaded from outside, all text is escaped, and nothing but the visitor's own request is quoted.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from dataclasses import dataclass
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.errors import HopError, HttpError
    from rustunnel_py.wire.http1 import Headers, RequestHead

_ACCEPT_MAX = 1024  # browsers send some 130 bytes; a longer value is not worth the time

_STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;margin:12vh auto;max-width:36rem;padding:0 1rem;color:#222;"
    "background:#fff}h1{font-size:1.4rem;margin:0}dl{display:grid;grid-template-columns:max-content 1fr;"
    "gap:.2rem 1rem;color:#555;font-size:.9rem}dd{margin:0;overflow-wrap:anywhere}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}dl{color:#aaa}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# What a person can do, by code; the status decides for the rest.
_ADVICE = {
    "no-such-tunnel": "Check the address. If it is yours, start the agent again.",
    "agent-away": "Try again in a moment. If the tunnel is yours, look at the machine on which its agent runs.",
    "local-service-refused": "If the tunnel is yours, start the local service, or check its port.",
    "misdirected": "Open the address in a new window.",
}
_ADVICE_BY_STATUS = {
    408: "Send the request again.",
    413: "Send less at a time.",
    421: "Open the address in a new window.",
    429: "Slow down and try again.",
    500: "Tell the operator of this server the request id.",
    502: "If the tunnel is yours, look at its local service.",
    503: "Try again in a moment.",
    504: "Try again; if the tunnel is yours, look at why its local service takes so long.",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the edge answers itself. `hop`: the one that failed; "" where the request itself is wrong."""

    status: int
    code: str
    message: str
    hop: str = ""
    since: datetime | None = None
    retry_after: float | None = None
    headers: Headers = ()

    @classmethod
    def of_hop(cls, error: HopError, since: datetime | None = None) -> Problem:
        return cls(error.status, error.code, error.message, error.hop.value, since, error.retry_after)

    @classmethod
    def of_request(cls, error: HttpError) -> Problem:
        """A request that is refused as it stands."""
        return cls(error.status, error.code, error.detail, headers=_demanded(error.status))


@dataclass(frozen=True, slots=True)
class Page:
    """A reply of the edge's own, but for what belongs to the connection. Lines are each ended by CRLF."""

    status: int
    lines: bytes
    body: bytes

    def render(self, *, head_only: bool, close: bool, minor: int, now: datetime) -> bytes:
        """The whole reply. HTTP/1.0 has to be told that the connection stays."""
        connection = b"Connection: close\r\n" if close else b"" if minor else b"Connection: keep-alive\r\n"
        head = b"HTTP/1.1 %d %b\r\nDate: %b\r\n%bContent-Length: %d\r\n%b\r\n" % (
            self.status,
            _reason(self.status).encode("ascii"),
            format_datetime(now, usegmt=True).encode("ascii"),
            self.lines,
            len(self.body),
            connection,
        )
        return head if head_only else head + self.body


def problem_page(problem: Problem, accept: bytes, request_id: str) -> Page:
    """The page for a problem, in the form that `accept` asks for."""
    advice = _ADVICE.get(problem.code) or _ADVICE_BY_STATUS.get(problem.status, "")
    form = form_of(accept)
    if form == "html":
        body, kind = _html(problem, advice, request_id), b"text/html; charset=utf-8"
    elif form == "json":
        body, kind = _json(problem, advice, request_id), b"application/json"
    else:
        body, kind = _text(problem, advice, request_id), b"text/plain; charset=utf-8"
    lines = _common_lines(kind) + b"X-Request-Id: %b\r\n" % request_id.encode("ascii")
    if problem.retry_after is not None:
        lines += b"Retry-After: %d\r\n" % max(1, math.ceil(problem.retry_after))
    lines += b"".join(b"%b: %b\r\n" % pair for pair in problem.headers)
    return Page(problem.status, lines, body)


def front_page(accept: bytes, *, always_https: bool = False) -> Page:
    """The bare domain: that a server is here, and nothing about whom it serves.

    `always_https`: browsers may keep to https:// for this name from now on (RFC 6797), not for those below it.
    """
    form = form_of(accept)
    strict = b"Strict-Transport-Security: max-age=31536000\r\n" if always_https else b""
    if form == "json":
        return Page(200, strict + _common_lines(b"application/json"), b'{"service":"rustunnel-py"}\n')
    if form == "text":
        return Page(200, strict + _common_lines(b"text/plain; charset=utf-8"), b"This is a tunnel server.\n")
    body = _document("Tunnel server", "<h1>This is a tunnel server.</h1><p>Each tunnel has an address of its own.</p>")
    return Page(200, strict + _common_lines(b"text/html; charset=utf-8"), body)


def redirect_page(head: RequestHead, port: int) -> Page:
    """To the same target on https://; 308, so that a POST stays one."""
    host = head.block.host.encode("ascii") + (b"" if port == 443 else b":%d" % port)
    path = b"/" if head.target == b"*" else head.target
    return Page(308, b"Location: https://%b%b\r\n" % (host, path), b"")


def own_reply(status: int, headers: Headers, body: bytes) -> Page:
    """A policy's reply as a page."""
    return Page(status, b"".join(b"%b: %b\r\n" % pair for pair in headers), body)


def form_of(accept: bytes) -> str:
    """`html`, `json` or `text`: what an Accept value asks for by name; a wildcard names nothing (RFC 9110 §12.5.1)."""
    if not accept or len(accept) > _ACCEPT_MAX:
        return "text"
    best, best_quality = "text", 0.0
    for part in accept.decode("latin-1").lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        if media in ("text/html", "application/xhtml+xml"):
            form = "html"
        elif media == "application/json" or (media.startswith("application/") and media.endswith("+json")):
            form = "json"
        elif media == "text/plain":
            form = "text"
        else:
            continue
        quality = _quality(parameters)
        if quality > best_quality:
            best, best_quality = form, quality
    return best


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, float(parameter[2:]))
            except ValueError:
                return 0.0
    return 1.0


def _demanded(status: int) -> Headers:
    if status == 426:
        # RFC 6455 §4.4; and who sends Upgrade names it in Connection (RFC 9110 §7.8)
        return ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Version", b"13"))
    if status == 405:
        return ((b"Allow", b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),)  # a tunnel is method-blind otherwise
    return ()


def _common_lines(kind: bytes) -> bytes:
    return (
        b"Content-Type: %b\r\nCache-Control: no-store\r\nContent-Security-Policy: %b\r\n"
        b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\n"
    ) % (kind, _POLICY.encode("ascii"))


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _facts(problem: Problem, request_id: str) -> list[tuple[str, str]]:
    facts = [("code", problem.code)]
    if problem.hop:
        facts.append(("failed", problem.hop))
    if problem.since is not None:
        facts.append(("since", problem.since.strftime("%Y-%m-%d %H:%M:%S UTC")))
    facts.append(("request id", request_id))
    return facts


def _html(problem: Problem, advice: str, request_id: str) -> bytes:
    title = f"{problem.status} {_reason(problem.status)}"
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in _facts(problem, request_id)
    )
    more = f"<p>{html.escape(advice)}</p>" if advice else ""
    return _document(title, f"<h1>{html.escape(title)}</h1><p>{html.escape(problem.message)}</p>{more}<dl>{facts}</dl>")


def _document(title: str, content: str) -> bytes:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="robots" content="noindex">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>{content}</main></body></html>\n"
    ).encode()


def _json(problem: Problem, advice: str, request_id: str) -> bytes:
    error: dict[str, str | int] = {"status": problem.status, "code": problem.code, "message": problem.message}
    if problem.hop:
        error["hop"] = problem.hop
    if problem.since is not None:
        error["since"] = problem.since.isoformat(timespec="seconds")
    if problem.retry_after is not None:
        error["retry_after"] = max(1, math.ceil(problem.retry_after))
    if advice:
        error["advice"] = advice
    error["request_id"] = request_id
    return json.dumps({"error": error}, ensure_ascii=True).encode() + b"\n"


def _text(problem: Problem, advice: str, request_id: str) -> bytes:
    lines = [f"{problem.status} {_reason(problem.status)}: {problem.message}"]
    if advice:
        lines.append(advice)
    lines += [f"{name}: {value}" for name, value in _facts(problem, request_id)]
    return "\n".join(lines).encode("utf-8", "replace") + b"\n"
