"""What the routes of captured requests read and show."""

from __future__ import annotations

import base64
from datetime import datetime  # noqa: TC003  (a field's type is read at run time)
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rustunnel_py.api.routes import show_instant
from rustunnel_py.api.rustunnel import PAGE, Cursor, Limit
from rustunnel_py.errors import BadRequest
from rustunnel_py.hub.replay import TIMES_MAX, Edit
from rustunnel_py.model import har
from rustunnel_py.model.capture import Kind
from rustunnel_py.store.captures import Filter

if TYPE_CHECKING:
    from rustunnel_py.hub.replay import Replayed
    from rustunnel_py.model.capture import BodyChange, Capture, Difference, HeaderChange, Headers, Message

LIST_MAX = 500  # of the newest; as many as there are in memory
SHOWN_BYTES_MAX = 16 * 2**20  # of bodies in one answer; the records past it come without theirs
EXPORT_IDS_MAX = 1000
_BASE64 = r"^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


class RequestShown(msgspec.Struct, kw_only=True):
    """A captured request. A body is its text; what is no text is `base64:` and its bytes; null: nothing was kept."""

    id: str
    tunnel_id: str
    conn_id: str
    method: str
    path: str
    status: int
    request_bytes: int
    response_bytes: int
    duration_ms: int
    captured_at: str
    request_body: str | None
    response_body: str | None


class OpenShown(msgspec.Struct, kw_only=True):
    """A request that has not ended, as far as it has come. `status` null: there is no reply yet."""

    id: str
    tunnel_id: str
    conn_id: str
    method: str
    path: str
    status: int | None
    request_bytes: int
    response_bytes: int
    duration_ms: int
    captured_at: str
    visitor: str
    kind: Literal["http", "websocket", "events"]
    messages_to_service: int
    messages_to_visitor: int
    replay_of: str | None


class MessageShown(msgspec.Struct):
    """A WebSocket message or an event; `size` is the true one, `content` as far as it was kept."""

    direction: Literal["to_service", "to_visitor"]
    kind: str
    size: int
    at_ms: float
    content: str
    encoding: Literal["text", "base64"]


class SideShown(msgspec.Struct):
    """One half of an exchange. `withheld`: the body was left out because it could not be redacted."""

    headers: list[tuple[str, str]]
    trailers: list[tuple[str, str]]
    body: str | None
    encoding: Literal["text", "base64"] | None
    bytes: int
    clipped: bool
    withheld: bool


class TimingsShown(msgspec.Struct):
    """Milliseconds from the request's head on; null: it did not come to that. `agent`: from hand-over to reply."""

    queue: float | None
    agent: float | None
    first_byte: float | None
    total: float


class RecordShown(RequestShown, kw_only=True):
    """A captured request with all that is known of it. `open`: it has not ended; `status` is 0 before a reply."""

    scheme: str
    host: str
    http_version: str
    reason: str
    visitor: str
    request: SideShown
    response: SideShown
    timings: TimingsShown
    failed_hop: str | None
    failure: str | None
    kind: Literal["http", "websocket", "events"]
    messages: list[MessageShown]
    messages_to_service: int
    messages_to_visitor: int
    messages_incomplete: bool
    replay_of: str | None
    imported: bool
    pinned: bool
    open: bool


class FoundShown(msgspec.Struct):
    """`next`: the cursor of the following page. `captures_not_stored` were overwritten before they were stored."""

    requests: list[RequestShown]
    next: str | None
    captures_not_stored: int


class HeaderChangeShown(msgspec.Struct):
    """All values of a header; none: it is not there."""

    name: str
    old: list[str]
    new: list[str]


class BodyChangeShown(msgspec.Struct):
    """`first_difference` is an offset, null where nothing differs; `comparable` false: one of them is not whole."""

    old_bytes: int
    new_bytes: int
    first_difference: int | None
    comparable: bool


class DifferenceShown(msgspec.Struct):
    """What the new one has otherwise; pairs are old and new, null is the same."""

    method: tuple[str, str] | None
    path: tuple[str, str] | None
    status: tuple[int, int] | None
    request_headers: list[HeaderChangeShown]
    response_headers: list[HeaderChangeShown]
    request_body: BodyChangeShown | None
    response_body: BodyChangeShown | None
    duration_ms: tuple[float, float]


class ReplayedShown(msgspec.Struct):
    """What came of one sending: a new record, and how it differs from the old one."""

    request: RecordShown
    difference: DifferenceShown


class ReplaysShown(msgspec.Struct):
    """One for each time."""

    replays: list[ReplayedShown]


class ImportedShown(msgspec.Struct):
    """The ids of the new records, in the order of the file."""

    ids: list[str]


class EditWanted(msgspec.Struct, forbid_unknown_fields=True):
    """What is sent otherwise. `headers` replaces those it names, null removes one."""

    method: Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$")] | None = None
    path: Annotated[str, Meta(pattern=r"^/[!-~]*$", max_length=16384)] | None = None
    headers: Annotated[dict[str, str | None], Meta(max_length=200)] | None = None
    body: str | None = None
    body_base64: Annotated[str, Meta(pattern=_BASE64)] | None = None


class ReplayWanted(msgspec.Struct, forbid_unknown_fields=True):
    """`send` true sends the request; false, as no body at all, only shows the record."""

    send: bool = False
    edit: EditWanted | None = None
    times: Annotated[int, Meta(ge=1, le=TIMES_MAX)] = 1


class TierWanted(msgspec.Struct, forbid_unknown_fields=True):
    """How much of a tunnel's captures is masked."""

    tier: Literal["none", "standard", "strict"]


class RecentQuery(msgspec.Struct):
    """How many of the newest."""

    limit: Annotated[int, Meta(ge=1, le=2**53, description=f"More than {LIST_MAX} is {LIST_MAX}.")] = PAGE


class SearchQuery(msgspec.Struct):
    """Everything that is given must hold. Texts are found without regard to case."""

    method: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    status: (
        Annotated[
            str,
            Meta(pattern=r"^([1-9][0-9]{2}(-[1-9][0-9]{2})?|[1-9]xx)$", description="404, 400-499, 5xx."),
        ]
        | None
    ) = None
    path: Annotated[str, Meta(min_length=1, max_length=1000, description="A part of it.")] | None = None
    header: (
        Annotated[str, Meta(min_length=1, max_length=1000, description="A part of a name, or `name: part of a value`.")]
        | None
    ) = None
    body: Annotated[str, Meta(min_length=1, max_length=1000, description="A part of a body or message.")] | None = None
    since: Annotated[datetime, Meta(tz=True)] | None = None
    until: Annotated[datetime, Meta(tz=True)] | None = None
    pinned: bool | None = None
    limit: Limit = PAGE
    cursor: Cursor = None


class ExportQuery(msgspec.Struct):
    """Which requests; all without `ids`."""

    ids: (
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9A-Fa-f-]{36}(,[0-9A-Fa-f-]{36})*$",
                max_length=37 * EXPORT_IDS_MAX,
                description="With commas between.",
            ),
        ]
        | None
    ) = None


class DiffQuery(msgspec.Struct):
    """Two requests of the tunnel."""

    old: Annotated[str, Meta(max_length=36)]
    new: Annotated[str, Meta(max_length=36)]


# what comes in


def parse_filter(query: SearchQuery) -> Filter:
    statuses = None
    if query.status is not None:
        if query.status.endswith("xx"):
            first = int(query.status[0]) * 100
            statuses = first, first + 99
        else:
            low, _, high = query.status.partition("-")
            statuses = int(low), int(high or low)
    return Filter(
        method=query.method,
        statuses=statuses,
        path=query.path,
        header=query.header,
        body=None if query.body is None else query.body.encode("utf-8", "surrogatepass"),
        since=query.since,
        until=query.until,
        pinned=query.pinned,
    )


def parse_edit(wanted: EditWanted) -> Edit:
    """Raises BadRequest."""
    if wanted.body is not None and wanted.body_base64 is not None:
        raise BadRequest("edit: body or body_base64, not both")
    body = None if wanted.body is None else wanted.body.encode()
    if wanted.body_base64 is not None:
        body = base64.b64decode(wanted.body_base64)
    return Edit(
        method=None if wanted.method is None else wanted.method.encode("ascii"),
        path=None if wanted.path is None else wanted.path.encode("ascii"),
        headers=tuple(
            (_header_bytes(name), None if value is None else _header_bytes(value))
            for name, value in (wanted.headers or {}).items()
        ),
        body=body,
    )


def _header_bytes(text: str) -> bytes:
    """As browsers send it: Latin-1 where that is possible, else UTF-8."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


# what goes out


def show_requests(captures: list[Capture]) -> list[RequestShown]:
    """With their bodies, as long as those are not too much."""
    shown, size = [], 0
    for capture in captures:
        size += len(capture.request_body) + len(capture.response_body)
        shown.append(show_request(capture, bodies=size <= SHOWN_BYTES_MAX))
    return shown


def show_request(capture: Capture, *, bodies: bool) -> RequestShown:
    return RequestShown(**_common(capture, bodies=bodies))


def _common(capture: Capture, *, bodies: bool) -> dict[str, Any]:
    """The fields of RequestShown."""
    return {
        "id": capture.id,
        "tunnel_id": capture.tunnel_id,
        "conn_id": capture.connection_id,
        "method": capture.method,
        "path": capture.path,
        "status": capture.status,
        "request_bytes": capture.request_bytes,
        "response_bytes": capture.response_bytes,
        "duration_ms": round(capture.duration_ms),
        "captured_at": show_instant(capture.captured_at),
        "request_body": _marked(capture.request_body, capture.request_clipped) if bodies else None,
        "response_body": _marked(capture.response_body, capture.response_clipped) if bodies else None,
    }


def _marked(body: bytes, clipped: bool) -> str | None:
    if not body:
        return None
    text = har.text_of(body, clipped=clipped)
    return f"base64:{base64.b64encode(body).decode()}" if text is None else text


def show_record(capture: Capture) -> RecordShown:
    return RecordShown(
        **_common(capture, bodies=True),
        scheme=capture.scheme,
        host=capture.host,
        http_version=f"1.{capture.minor}",
        reason=capture.reason,
        visitor=_show_visitor(capture),
        request=_side(
            capture.request_headers,
            capture.request_trailers,
            capture.request_body,
            capture.request_bytes,
            capture.request_clipped,
            capture.request_withheld,
        ),
        response=_side(
            capture.response_headers,
            capture.response_trailers,
            capture.response_body,
            capture.response_bytes,
            capture.response_clipped,
            capture.response_withheld,
        ),
        timings=TimingsShown(capture.queue_ms, capture.agent_ms, capture.first_byte_ms, capture.duration_ms),
        failed_hop=capture.hop,
        failure=capture.code,
        kind=_KINDS[capture.kind],
        messages=[_show_message(message) for message in capture.messages],
        messages_to_service=capture.messages_forth,
        messages_to_visitor=capture.messages_back,
        messages_incomplete=capture.messages_unwatched,
        replay_of=capture.origin,
        imported=capture.imported,
        pinned=capture.pinned,
        open=capture.is_open,
    )


def show_open(capture: Capture) -> OpenShown:
    return OpenShown(
        id=capture.id,
        tunnel_id=capture.tunnel_id,
        conn_id=capture.connection_id,
        method=capture.method,
        path=capture.path,
        status=capture.status or None,
        request_bytes=capture.request_bytes,
        response_bytes=capture.response_bytes,
        duration_ms=round(capture.duration_ms),
        captured_at=show_instant(capture.captured_at),
        visitor=_show_visitor(capture),
        kind=_KINDS[capture.kind],
        messages_to_service=capture.messages_forth,
        messages_to_visitor=capture.messages_back,
        replay_of=capture.origin,
    )


def _show_visitor(capture: Capture) -> str:
    """Empty for one that came from a file without it."""
    return str(capture.visitor) if capture.visitor.ip else ""


_KINDS: dict[Kind, Literal["http", "websocket", "events"]] = {
    Kind.HTTP: "http",
    Kind.WEBSOCKET: "websocket",
    Kind.EVENTS: "events",
}


def _side(headers: Headers, trailers: Headers, body: bytes, size: int, clipped: bool, withheld: bool) -> SideShown:
    text, encoding = _encoded(body, clipped) if body else (None, None)
    return SideShown(_show_headers(headers), _show_headers(trailers), text, encoding, size, clipped, withheld)


def _encoded(body: bytes, clipped: bool) -> tuple[str, Literal["text", "base64"]]:
    text = har.text_of(body, clipped=clipped)
    return (base64.b64encode(body).decode(), "base64") if text is None else (text, "text")


def _show_headers(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def _show_message(message: Message) -> MessageShown:
    clipped = len(message.content) < message.size
    if message.kind == "binary" or message.compressed:
        content, encoding = base64.b64encode(message.content).decode(), "base64"
    else:
        content, encoding = _encoded(message.content, clipped)
    return MessageShown(
        "to_service" if message.forth else "to_visitor",
        message.kind,
        message.size,
        round(message.at_ms, 3),
        content,
        "base64" if encoding == "base64" else "text",
    )


def show_difference(found: Difference) -> DifferenceShown:
    return DifferenceShown(
        found.method,
        found.path,
        found.status,
        [_show_change(change) for change in found.request_headers],
        [_show_change(change) for change in found.response_headers],
        _show_body_change(found.request_body),
        _show_body_change(found.response_body),
        found.duration_ms,
    )


def _show_change(change: HeaderChange) -> HeaderChangeShown:
    return HeaderChangeShown(
        change.name,
        [value.decode("latin-1") for value in change.old],
        [value.decode("latin-1") for value in change.new],
    )


def _show_body_change(change: BodyChange | None) -> BodyChangeShown | None:
    if change is None:
        return None
    return BodyChangeShown(change.old_bytes, change.new_bytes, change.at, change.comparable)


def show_replayed(replayed: Replayed) -> ReplayedShown:
    return ReplayedShown(show_record(replayed.capture), show_difference(replayed.difference))
