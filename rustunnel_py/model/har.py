"""Captures as HAR 1.2, and back. What HAR has no field for is in fields that begin with `_`, as it allows.

A binary request body is base64 in `postData.text`, marked by `_encoding`: HAR knows an encoding of replies only.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rustunnel_py.errors import BadRequest
from rustunnel_py.model.capture import Capture, Headers, Kind, Message
from rustunnel_py.model.tunnel import Peer

IMPORTED_BYTES_MAX = 32 * 2**20  # of a file; browsers' own exports of a busy page have some MiB
ENTRIES_MAX = 1000
_IPV6 = r"\[(([0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|::1|([0-9A-Fa-f]{1,4}:){1,6}:[0-9A-Fa-f]{1,4})\]"
_URL = rf"^https?://([A-Za-z0-9._~:@%-]+|{_IPV6}(:[0-9]*)?)([/?#].*)?$"
_STARTED = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?)?$"

Size = Annotated[int, Meta(ge=-1, le=2**53)]
"""Bytes; -1: not known."""


class Pair(msgspec.Struct):
    """A header, or a parameter of a query."""

    name: str
    value: str


class PostData(msgspec.Struct, rename={"mime_type": "mimeType", "encoding": "_encoding"}, omit_defaults=True):
    mime_type: str
    text: str = ""
    encoding: str | UnsetType = UNSET
    params: list[Pair] | UnsetType = UNSET


class HarRequest(
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
    method: Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")]
    url: Annotated[str, Meta(pattern=_URL)]
    http_version: str = "HTTP/1.1"
    cookies: list[Any] = []
    headers: list[Pair] = []
    query_string: list[Pair] = []
    headers_size: Size = -1
    body_size: Size = -1
    post_data: PostData | UnsetType = UNSET
    clipped: bool | UnsetType = UNSET
    trailers: list[Pair] | UnsetType = UNSET


class HarContent(msgspec.Struct, rename={"mime_type": "mimeType"}):
    size: Size = 0
    mime_type: str = ""
    text: str | UnsetType = UNSET
    encoding: str | UnsetType = UNSET


class HarResponse(
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
    status: Annotated[int, Meta(ge=0, le=999)]
    status_text: str = ""
    http_version: str = "HTTP/1.1"
    cookies: list[Any] = []
    headers: list[Pair] = []
    content: HarContent = msgspec.field(default_factory=HarContent)
    redirect_url: str = ""
    headers_size: Size = -1
    body_size: Size = -1
    clipped: bool | UnsetType = UNSET
    trailers: list[Pair] | UnsetType = UNSET


class HarTimings(msgspec.Struct):
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


class HarEntry(
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
    started: Annotated[str, Meta(pattern=_STARTED)]
    time: float
    request: HarRequest
    response: HarResponse
    cache: dict[str, Any] = {}
    timings: HarTimings = msgspec.field(default_factory=HarTimings)
    messages: list[WebSocketMessage] | UnsetType = UNSET
    resource_type: str | UnsetType = UNSET
    origin: str | UnsetType = UNSET
    hop: str | UnsetType = UNSET
    code: str | UnsetType = UNSET
    capture_id: str | UnsetType = UNSET
    visitor: str | UnsetType = UNSET


class HarLog(msgspec.Struct):
    entries: Annotated[list[HarEntry], Meta(max_length=ENTRIES_MAX)]


class HarFile(msgspec.Struct):
    log: HarLog


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
    entry = HarEntry(
        started=started.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z",
        time=_ms(capture.duration_ms),
        request=HarRequest(
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
        response=HarResponse(
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
        timings=HarTimings(
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


def _content(capture: Capture) -> HarContent:
    content = HarContent(capture.response_bytes, _first(capture.response_headers, b"content-type") or "x-unknown")
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
        try:
            har = msgspec.json.decode(data, type=HarFile)
        except msgspec.ValidationError:
            har = msgspec.convert(_whole(msgspec.json.decode(data)), HarFile)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        told = re.sub(r"^Expected `str` matching regex .*(?= - at )", "Not in the form that is wanted", str(error))
        raise BadRequest(f"the body is no HAR file: {told[:200]}") from None
    return [_capture(entry, now) for entry in har.log.entries]


def can_be_url(text: str) -> bool:
    """Whether `read` takes it for the URL of a request."""
    return re.match(_URL, text) is not None


def _whole(value: Any) -> Any:
    """Of what was read: 3.0 is a whole number in JSON."""
    match value:
        case float() if value.is_integer() and abs(value) <= 2**53:
            return int(value)
        case list():
            return [_whole(one) for one in value]
        case dict():
            return {name: _whole(one) for name, one in value.items()}
    return value


def _capture(entry: HarEntry, now: datetime) -> Capture:
    request, response = entry.request, entry.response
    scheme, authority, path = _cut(request.url)
    headers = _headers(request.headers)
    if not any(name.lower() == b"host" for name, _ in headers):
        headers = ((b"Host", _bytes(authority.rpartition("@")[2])), *headers)
    sent, got = _request_body(request), _response_body(response)
    return Capture(
        id=entry.capture_id or "",
        tunnel_id="",
        connection_id="00000000-0000-0000-0000-000000000000",
        captured_at=_instant(entry.started, now),
        visitor=Peer("", 0),
        scheme=scheme,
        method=request.method,
        path=_bytes(path).decode("latin-1"),
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


def _cut(url: str) -> tuple[str, str, str]:
    """Scheme, authority, and path with query: of a URL as the pattern has it, so that nothing can be wrong with it."""
    scheme, _, rest = url.partition("://")
    rest = rest.partition("#")[0]
    at = min((place for mark in "/?" if (place := rest.find(mark)) >= 0), default=len(rest))
    path = rest[at:]
    return scheme, rest[:at], path if path.startswith("/") else "/" + path


def _headers(pairs: list[Pair]) -> Headers:
    """Without the pseudo-headers of HTTP/2."""
    return tuple((_bytes(pair.name), _bytes(pair.value)) for pair in pairs if not pair.name.startswith(":"))


def _bytes(text: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _request_body(request: HarRequest) -> bytes:
    data = request.post_data
    if data is UNSET:
        return b""
    return _decoded(data.text, data.encoding)


def _response_body(response: HarResponse) -> bytes:
    content = response.content
    if content.text is UNSET:
        return b""
    return _decoded(content.text, content.encoding)


def _decoded(text: str, encoding: str | UnsetType) -> bytes:
    """What says that it is base64 and is none is taken as it stands."""
    if encoding == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except (ValueError, binascii.Error):
            pass
    return text.encode("utf-8", "replace")


def _instant(text: str, now: datetime) -> datetime:
    """Of an entry; one without a time zone is taken for UTC, one that is no day or lies in the future for now."""
    try:
        found = datetime.fromisoformat(text.upper())
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return now
    return min(found, now)


def _span(milliseconds: float) -> float:
    return milliseconds if 0 <= milliseconds < 1e12 else 0.0
