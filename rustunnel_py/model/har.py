"""Captures as HAR 1.2, and back. What HAR has no field for is in fields that begin with `_`, as it allows.

A binary request body is base64 in `postData.text`, marked by `_encoding`: HAR knows an encoding of replies only.
"""

from __future__ import annotations

import base64
import binascii
import codecs
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

import msgspec
from msgspec import UNSET, UnsetType

from rustunnel_py.errors import BadRequest
from rustunnel_py.model.capture import Capture, Headers, Kind, Message
from rustunnel_py.model.tunnel import Peer

IMPORTED_BYTES_MAX = 32 * 2**20  # of a file; browsers' own exports of a busy page have some MiB
_METHOD_MAX = 64


class Pair(msgspec.Struct):
    """A header, or a parameter of a query."""

    name: str
    value: str


class PostData(msgspec.Struct, rename={"mime_type": "mimeType", "encoding": "_encoding"}, omit_defaults=True):
    mime_type: str
    text: str = ""
    encoding: str | UnsetType = UNSET
    params: list[Pair] | UnsetType = UNSET


class Request(
    msgspec.Struct,
    rename={
        "http_version": "httpVersion",
        "query_string": "queryString",
        "post_data": "postData",
        "headers_size": "headersSize",
        "body_size": "bodySize",
        "clipped": "_clipped",
        "trailers": "_trailers",
    },
):
    method: str
    url: str
    http_version: str = "HTTP/1.1"
    cookies: list[msgspec.Raw] = []
    headers: list[Pair] = []
    query_string: list[Pair] = []
    headers_size: int = -1
    body_size: int = -1
    post_data: PostData | UnsetType = UNSET
    clipped: bool | UnsetType = UNSET
    trailers: list[Pair] | UnsetType = UNSET


class Content(msgspec.Struct, rename={"mime_type": "mimeType"}):
    size: int = 0
    mime_type: str = ""
    text: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET


class Response(
    msgspec.Struct,
    rename={
        "status_text": "statusText",
        "http_version": "httpVersion",
        "redirect_url": "redirectURL",
        "headers_size": "headersSize",
        "body_size": "bodySize",
        "clipped": "_clipped",
        "trailers": "_trailers",
    },
):
    status: int
    status_text: str = ""
    http_version: str = "HTTP/1.1"
    cookies: list[msgspec.Raw] = []
    headers: list[Pair] = []
    content: Content = msgspec.field(default_factory=Content)
    redirect_url: str = ""
    headers_size: int = -1
    body_size: int = -1
    clipped: bool | UnsetType = UNSET
    trailers: list[Pair] | UnsetType = UNSET


class Timings(msgspec.Struct):
    """Milliseconds; -1: does not apply."""

    send: float = 0
    wait: float = 0
    receive: float = 0
    blocked: float = -1


class WebSocketMessage(msgspec.Struct):
    """As browsers have it: `type` is send or receive, `opcode` 1 text or 2 binary (then base64)."""

    type: str
    time: float
    opcode: int
    data: str


class Entry(
    msgspec.Struct,
    rename={
        "started": "startedDateTime",
        "messages": "_webSocketMessages",
        "resource_type": "_resourceType",
        "origin": "_replayOf",
        "hop": "_failedHop",
        "code": "_failure",
        "capture_id": "_id",
        "visitor": "_visitor",
    },
):
    started: str
    time: float
    request: Request
    response: Response
    cache: dict[str, msgspec.Raw] = {}
    timings: Timings = msgspec.field(default_factory=Timings)
    messages: list[WebSocketMessage] | UnsetType = UNSET
    resource_type: str | UnsetType = UNSET
    origin: str | UnsetType = UNSET
    hop: str | UnsetType = UNSET
    code: str | UnsetType = UNSET
    capture_id: str | UnsetType = UNSET
    visitor: str | UnsetType = UNSET


class _Log(msgspec.Struct):
    entries: list[Entry]


class _Har(msgspec.Struct):
    log: _Log


def beginning(version: str) -> bytes:
    """What stands before the entries of a file; commas between them and ENDING after them are the caller's."""
    creator = msgspec.json.encode({"name": "rustunnel-py", "version": version})
    return b'{"log":{"version":"1.2","creator":%b,"pages":[],"entries":[\n' % creator


ENDING = b"\n]}}\n"


def entry_of(capture: Capture, base_url: str) -> bytes:
    """One exchange as JSON. `base_url`: where it is addressed, scheme and authority."""
    version = f"HTTP/1.{capture.minor}"
    path = capture.path if capture.path.startswith("/") else "/" + capture.path
    started = capture.captured_at.astimezone(UTC)
    wait = capture.first_byte_ms if capture.first_byte_ms is not None else capture.duration_ms
    queued = capture.queue_ms or 0.0
    entry = Entry(
        started=f"{started:%Y-%m-%dT%H:%M:%S}.{started.microsecond // 1000:03d}Z",
        time=_ms(capture.duration_ms),
        request=Request(
            method=capture.method,
            url=base_url + path,
            http_version=version,
            headers=_pairs(capture.request_headers),
            query_string=[Pair(name, value) for name, value in _query(path)],
            body_size=capture.request_bytes,
            post_data=_post_data(capture) if capture.request_body or capture.request_bytes else UNSET,
            clipped=True if capture.request_clipped or capture.request_withheld else UNSET,
            trailers=_pairs(capture.request_trailers) if capture.request_trailers else UNSET,
        ),
        response=Response(
            status=capture.status,
            status_text=capture.reason,
            http_version=version,
            headers=_pairs(capture.response_headers),
            content=_content(capture),
            redirect_url=_first(capture.response_headers, b"location"),
            body_size=capture.response_bytes,
            clipped=True if capture.response_clipped or capture.response_withheld else UNSET,
            trailers=_pairs(capture.response_trailers) if capture.response_trailers else UNSET,
        ),
        timings=Timings(
            send=0,
            wait=_ms(max(wait - queued, 0.0)),
            receive=_ms(max(capture.duration_ms - wait, 0.0)),
            blocked=_ms(queued),
        ),
        messages=[_message(capture, message) for message in capture.messages] if capture.messages else UNSET,
        resource_type="websocket" if capture.kind is Kind.WEBSOCKET else UNSET,
        origin=capture.origin or UNSET,
        hop=capture.hop or UNSET,
        code=capture.code or UNSET,
        capture_id=capture.id,
        visitor=str(capture.visitor),
    )
    return msgspec.json.encode(entry)


def _ms(milliseconds: float) -> float:
    return round(max(milliseconds, 0.0), 3)


def _pairs(headers: Headers) -> list[Pair]:
    return [Pair(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _query(path: str) -> list[tuple[str, str]]:
    return parse_qsl(path.partition("?")[2], keep_blank_values=True, errors="replace")


def _first(headers: Headers, wanted: bytes) -> str:
    return next((value.decode("latin-1") for name, value in headers if name.lower() == wanted), "")


def text_of(body: bytes, *, clipped: bool) -> str | None:
    """A body as text; None where it is none. A clipped one may end inside a character."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=not clipped)
    except UnicodeDecodeError:
        return None


def _post_data(capture: Capture) -> PostData:
    mime_type = _first(capture.request_headers, b"content-type")
    text = text_of(capture.request_body, clipped=capture.request_clipped)
    if text is not None:
        return PostData(mime_type, text)
    return PostData(mime_type, base64.b64encode(capture.request_body).decode(), "base64")


def _content(capture: Capture) -> Content:
    content = Content(capture.response_bytes, _first(capture.response_headers, b"content-type") or "x-unknown")
    if capture.response_body:
        text = text_of(capture.response_body, clipped=capture.response_clipped)
        content.text = base64.b64encode(capture.response_body).decode() if text is None else text
        content.encoding = "base64" if text is None else UNSET
    return content


def _message(capture: Capture, message: Message) -> WebSocketMessage:
    at = capture.captured_at + timedelta(milliseconds=message.at_ms)
    text = None if message.kind == "binary" or message.compressed else text_of(message.content, clipped=True)
    data = base64.b64encode(message.content).decode() if text is None else text
    return WebSocketMessage("send" if message.forth else "receive", at.timestamp(), 2 if text is None else 1, data)


def read(data: bytes, now: datetime) -> list[Capture]:
    """The captures of a HAR file, without tunnel and ids of their own. Raises BadRequest, which says what is wrong."""
    try:
        har = msgspec.json.decode(data, type=_Har)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest(f"the body is no HAR file: {str(error)[:200]}") from None
    captures = []
    for number, entry in enumerate(har.log.entries):
        try:
            captures.append(_capture(entry, now))
        except (ValueError, OverflowError, binascii.Error) as error:
            raise BadRequest(f"entry {number} of the HAR file cannot be used: {str(error)[:100]}") from None
    return captures


def _capture(entry: Entry, now: datetime) -> Capture:
    request, response = entry.request, entry.response
    url = urlsplit(request.url)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ValueError("its url is none of http or https")
    if not request.method or len(request.method) > _METHOD_MAX or not request.method.isascii():
        raise ValueError("its method is none")
    if not 0 <= response.status <= 999:
        raise ValueError("its status is none")
    headers = _headers(request.headers)
    if not any(name.lower() == b"host" for name, _ in headers):
        headers = ((b"Host", _bytes(url.netloc.rpartition("@")[2])), *headers)
    sent, got = _request_body(request), _response_body(response)
    return Capture(
        id=entry.capture_id or "",
        tunnel_id="",
        connection_id="00000000-0000-0000-0000-000000000000",
        captured_at=_instant(entry.started, now),
        visitor=Peer("", 0),
        scheme=url.scheme,
        method=request.method,
        path=_bytes((url.path or "/") + (f"?{url.query}" if url.query else "")).decode("latin-1"),
        request_headers=headers,
        request_trailers=() if request.trailers is UNSET else _headers(request.trailers),
        request_body=sent,
        request_bytes=max(request.body_size, len(sent)),
        request_clipped=request.clipped is True,
        status=response.status,
        reason=_bytes(response.status_text).decode("latin-1"),
        response_headers=_headers(response.headers),
        response_trailers=() if response.trailers is UNSET else _headers(response.trailers),
        response_body=got,
        response_bytes=max(response.body_size, response.content.size, len(got)),
        response_clipped=response.clipped is True,
        duration_ms=_span(entry.time),
        first_byte_ms=_span(max(entry.timings.blocked, 0) + entry.timings.wait),
        imported=True,
    )


def _headers(pairs: list[Pair]) -> Headers:
    """Without the pseudo-headers of HTTP/2."""
    return tuple((_bytes(pair.name), _bytes(pair.value)) for pair in pairs if not pair.name.startswith(":"))


def _bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _request_body(request: Request) -> bytes:
    data = request.post_data
    if data is UNSET:
        return b""
    if data.encoding == "base64":
        return base64.b64decode(data.text, validate=True)
    return data.text.encode("utf-8", "replace")


def _response_body(response: Response) -> bytes:
    content = response.content
    if content.text is UNSET:
        return b""
    if content.encoding == "base64":
        return base64.b64decode(content.text, validate=True)
    return content.text.encode("utf-8", "replace")


def _instant(text: str, now: datetime) -> datetime:
    """Of an entry; one without a time zone is taken for UTC, one in the future for now."""
    found = datetime.fromisoformat(text)
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    return min(found, now)


def _span(milliseconds: float) -> float:
    return milliseconds if 0 <= milliseconds < 1e12 else 0.0
