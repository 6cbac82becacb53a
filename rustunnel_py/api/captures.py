"""The captured requests of a tunnel, in the rustunnel dialect: routes. No rules."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

import msgspec
import trio
from quart import Response, request, websocket
from werkzeug.routing import BaseConverter

import rustunnel_py
from rustunnel_py.api.caller import actor, current
from rustunnel_py.api.capture_shapes import (
    EXPORT_IDS_MAX,
    LIST_MAX,
    DifferenceShown,
    DiffQuery,
    EditWanted,
    ExportQuery,
    FoundShown,
    ImportedShown,
    OpenShown,
    RecentQuery,
    RecordShown,
    ReplaysShown,
    ReplayWanted,
    RequestShown,
    SearchQuery,
    TierWanted,
    parse_edit,
    parse_filter,
    show_difference,
    show_open,
    show_record,
    show_replayed,
    show_request,
    show_requests,
)
from rustunnel_py.api.routes import (
    Auth,
    Gives,
    Routes,
    answer,
    check_json_type,
    has_body,
    nothing,
    parse_body,
    parse_id,
    parse_query,
    read_body,
)
from rustunnel_py.api.rustunnel import NOTHING, parse_cursor
from rustunnel_py.errors import BadRequest
from rustunnel_py.hub import audit
from rustunnel_py.hub.replay import BODY_MAX as EDITED_BODY_MAX
from rustunnel_py.model import har
from rustunnel_py.model.curl import curl_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from rustunnel_py.hub.inspector import Inspector
    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.model.access import Caller
    from rustunnel_py.model.capture import Capture

THREAD_BYTES = 128 * 1024  # more of bodies is encoded in a thread: it would hold the loop for milliseconds
EXPORT_PAGE = 50  # captures read at a time while a file is written
ALIVE_SECONDS = 15.0  # proxies end a stream that is silent for longer, some after 30 s
REPLAY_MAX = EDITED_BODY_MAX * 2 + 64 * 1024  # bytes of JSON: the longest edited body, escaped or base64

T = TypeVar("T")


_REQUESTS = "/tunnels/{tunnel_id}/requests"
_ONE = _REQUESTS + "/{capture:request_id}"


class CaptureIdConverter(BaseConverter):
    """Any id but the words that stand in its place, so that a path has one meaning, also for OPTIONS."""

    regex = r"(?!(?:open|search|diff|export|import|live)$)[^/]+"


def body_max(path: str) -> int | None:
    """Of a route here that reads more than the usual; None for all others."""
    if not path.startswith("/api/tunnels/"):
        return None
    if path.endswith("/requests/import"):
        return har.IMPORTED_BYTES_MAX
    return REPLAY_MAX if "/replay/" in path else None


def add_routes(api: Routes, inspector: Inspector, registry: Registry, note: audit.Note) -> None:
    """Everything under a tunnel's requests, and its replays."""
    _add_reading(api, inspector)
    _add_files(api, inspector, registry, note)
    _add_changing(api, inspector, note)
    _add_replay(api, inspector, note)
    _add_live(api, inspector)


def _add_reading(api: Routes, inspector: Inspector) -> None:
    @api.add(
        "GET", _REQUESTS, "The newest captured requests", query=RecentQuery, gives={200: list[RequestShown]},
        errors=(404,), tag="requests",
    )  # fmt: skip
    async def list_requests(tunnel_id: str) -> Response:
        """Also of a tunnel that has ended."""
        limit = min(parse_query(RecentQuery).limit, LIST_MAX)
        captures = await inspector.recent(current(), parse_id(tunnel_id), limit)
        return await _answer_with_bodies(captures, show_requests)

    @api.add(
        "GET", _REQUESTS + "/open", "The requests that have not ended", query=RecentQuery,
        gives={200: list[OpenShown]}, errors=(404,), tag="requests",
    )  # fmt: skip
    async def list_open_requests(tunnel_id: str) -> Response:
        """WebSockets, event streams, long polls, newest first. One of them is looked at as any other, and comes to the
        list of the captured requests, with the same id, when it ends.
        """
        limit = min(parse_query(RecentQuery).limit, LIST_MAX)
        captures = await inspector.open_ones(current(), parse_id(tunnel_id), limit)
        return answer([show_open(capture) for capture in captures])

    @api.add(
        "GET", _REQUESTS + "/search", "Search the captured requests", query=SearchQuery, gives={200: FoundShown},
        errors=(404,), tag="requests",
    )  # fmt: skip
    async def search_requests(tunnel_id: str) -> Response:
        """Newest first. A search in bodies may give no request and a cursor all the same: go on from there."""
        query, wanted_id = parse_query(SearchQuery), parse_id(tunnel_id)
        found = await inspector.search(
            current(), wanted_id, parse_filter(query), parse_cursor(query.cursor), min(query.limit, LIST_MAX)
        )
        cursor = None if found.cursor is None else str(found.cursor)
        lost = inspector.not_stored(wanted_id)

        def show(captures: list[Capture]) -> FoundShown:
            return FoundShown(show_requests(captures), cursor, lost)

        return await _answer_with_bodies(found.captures, show)

    @api.add(
        "GET", _REQUESTS + "/diff", "Compare two captured requests", query=DiffQuery, gives={200: DifferenceShown},
        errors=(404,), tag="requests",
    )  # fmt: skip
    async def diff_requests(tunnel_id: str) -> Response:
        query = parse_query(DiffQuery)
        found = await inspector.diff(current(), parse_id(tunnel_id), query.old, query.new)
        return answer(show_difference(found))

    @api.add(
        "GET", _ONE, "Everything known of a captured request", gives={200: RecordShown}, errors=(404,), tag="requests"
    )
    async def get_request(tunnel_id: str, request_id: str) -> Response:
        capture = await inspector.get(current(), parse_id(tunnel_id), request_id)
        return await _answer_with_bodies([capture], lambda captures: show_record(captures[0]))


def _add_files(api: Routes, inspector: Inspector, registry: Registry, note: audit.Note) -> None:
    async def download(tunnel_id: str, request_id: str, side: Literal["request", "response"]) -> Response:
        capture = await inspector.get(current(), parse_id(tunnel_id), request_id)
        body = capture.request_body if side == "request" else capture.response_body
        return _attachment(body, "application/octet-stream", f"{side}-{capture.id}.bin")

    any_bytes = {200: Gives("application/octet-stream", "The body as it was kept, as an attachment.")}

    @api.add("GET", _ONE + "/request-body", "A request's body", gives=any_bytes, errors=(404,), tag="requests")
    async def get_request_body(tunnel_id: str, request_id: str) -> Response:
        return await download(tunnel_id, request_id, "request")

    @api.add("GET", _ONE + "/response-body", "A reply's body", gives=any_bytes, errors=(404,), tag="requests")
    async def get_response_body(tunnel_id: str, request_id: str) -> Response:
        return await download(tunnel_id, request_id, "response")

    @api.add(
        "GET", _ONE + "/curl", "A captured request as a curl command",
        gives={200: Gives("text/plain", "A line for the shell.")}, errors=(404,), tag="requests",
    )  # fmt: skip
    async def get_curl(tunnel_id: str, request_id: str) -> Response:
        capture = await inspector.get(current(), parse_id(tunnel_id), request_id)
        text = curl_of(capture, base_url(registry, capture))
        return Response(text, content_type="text/plain; charset=utf-8")

    @api.add(
        "GET", _REQUESTS + "/export", "Captured requests as a HAR file", query=ExportQuery,
        gives={200: Gives("application/json", "HAR 1.2, as an attachment.")}, errors=(404,), tag="requests",
    )  # fmt: skip
    async def export_requests(tunnel_id: str) -> Response:
        by, wanted = actor(), parse_id(tunnel_id)
        ids = parse_query(ExportQuery).ids
        captures = _chosen(inspector, by.caller, wanted, None if ids is None else ids.split(","))
        first = await anext(captures, None)  # what cannot be had is told before the file begins

        async def write() -> AsyncIterator[bytes]:
            count = 0
            yield har.beginning(rustunnel_py.__version__)
            capture = first
            while capture is not None:
                entry = await _maybe_in_thread(
                    len(capture.request_body) + len(capture.response_body),
                    partial(har.entry_of, capture, base_url(registry, capture)),
                )
                yield (b",\n" if count else b"") + entry
                count += 1
                capture = await anext(captures, None)
            note(audit.CapturesExported(who=by.who, peer=str(by.peer), tunnel=wanted, count=count))
            yield har.ENDING

        response = _attachment(b"", "application/json", f"{wanted}.har")
        response.response = response.iterable_body_class(write())
        response.headers.pop("Content-Length", None)
        response.timeout = None
        return response

    @api.add(
        "POST", _REQUESTS + "/import", "Keep the requests of a HAR file",
        body=har.HarFile, gives={201: ImportedShown}, errors=(403, 404, 503),
        auth=Auth.WRITER, tag="requests",
    )  # fmt: skip
    async def import_requests(tunnel_id: str) -> Response:
        """They can be looked at, compared and replayed like those that passed here."""
        check_json_type()
        by, wanted = actor(), parse_id(tunnel_id)
        await inspector.require(by.caller, wanted)
        data = await read_body(har.IMPORTED_BYTES_MAX)
        captures = await trio.to_thread.run_sync(har.read, data, datetime.now(UTC))
        made = await inspector.import_(by.caller, wanted, captures)
        note(audit.CapturesImported(who=by.who, peer=str(by.peer), tunnel=wanted, count=len(made)))
        return answer(ImportedShown([capture.id for capture in made]), 201)


def _add_changing(api: Routes, inspector: Inspector, note: audit.Note) -> None:
    @api.add(
        "DELETE", _ONE, "Delete a captured request", gives={204: NOTHING}, errors=(404,), auth=Auth.WRITER,
        tag="requests",
    )  # fmt: skip
    async def delete_request(tunnel_id: str, request_id: str) -> Response:
        by, wanted = actor(), parse_id(tunnel_id)
        await inspector.delete(by.caller, wanted, request_id)
        note(audit.CapturesDeleted(who=by.who, peer=str(by.peer), tunnel=wanted, count=1))
        return nothing()

    @api.add(
        "PUT", _ONE + "/pin", "Keep a captured request whatever its age", gives={204: NOTHING}, errors=(404, 409),
        auth=Auth.WRITER, tag="requests",
    )  # fmt: skip
    async def pin_request(tunnel_id: str, request_id: str) -> Response:
        await inspector.pin(current(), parse_id(tunnel_id), request_id, True)
        return nothing()

    @api.add(
        "DELETE", _ONE + "/pin", "Let a captured request age again", gives={204: NOTHING}, errors=(404,),
        auth=Auth.WRITER, tag="requests",
    )  # fmt: skip
    async def unpin_request(tunnel_id: str, request_id: str) -> Response:
        await inspector.pin(current(), parse_id(tunnel_id), request_id, False)
        return nothing()

    @api.add(
        "PUT", "/tunnels/{tunnel_id}/redaction", "How much of a tunnel's captures is masked", body=TierWanted,
        gives={204: NOTHING}, errors=(404,), auth=Auth.WRITER, tag="requests",
    )  # fmt: skip
    async def set_redaction(tunnel_id: str) -> Response:
        """From now on, while the tunnel lives."""
        wanted = await parse_body(TierWanted)
        inspector.set_tier(current(), parse_id(tunnel_id), wanted.tier)
        return nothing()


def _add_replay(api: Routes, inspector: Inspector, note: audit.Note) -> None:
    @api.add(
        "POST", "/tunnels/{tunnel_id}/replay/{request_id}", "Show a captured request, or send it again",
        body=ReplayWanted, body_required=False, gives={200: (RequestShown, ReplaysShown)},
        errors=(404, 409, 502, 504), tag="requests",
    )  # fmt: skip
    async def replay_request(tunnel_id: str, request_id: str) -> Response:
        """Without a body the stored record. With `send` it goes through the tunnel to its local service, is captured
        as a new request, and the answer has that and what differs.
        """
        by, wanted_id = actor(), parse_id(tunnel_id)
        wanted = await parse_body(ReplayWanted, REPLAY_MAX) if await has_body() else ReplayWanted()
        if not wanted.send:
            if wanted.edit is not None:
                raise BadRequest("edit: goes with send: true")
            capture = await inspector.get(by.caller, wanted_id, request_id)
            return await _answer_with_bodies([capture], lambda captures: show_request(captures[0], bodies=True))
        edit = parse_edit(wanted.edit or EditWanted())
        replayed = await inspector.replay(by.caller, wanted_id, request_id, edit, wanted.times)
        note(
            audit.Replayed(
                who=by.who,
                peer=str(by.peer),
                tunnel=wanted_id,
                request=request_id,
                times=wanted.times,
                edited=wanted.edit is not None,
            )
        )
        return await _answer_with_bodies(
            [one.capture for one in replayed], lambda _: ReplaysShown([show_replayed(one) for one in replayed])
        )


def _add_live(api: Routes, inspector: Inspector) -> None:
    @api.add(
        "GET", _REQUESTS + "/live", "Captured requests as they come",
        gives={200: Gives("text/event-stream", "Events: `request` (a request without its bodies), `missed`, `end`.")},
        errors=(404, 409), tag="requests",
    )  # fmt: skip
    async def live_requests(tunnel_id: str) -> Response:
        """Server-sent events; the same path serves a WebSocket with the same as JSON messages. Ends with the tunnel,
        and within a second of the token.
        """
        wanted = parse_id(tunnel_id)
        if request.method == "HEAD":
            with inspector.look_on(current(), wanted):  # whether it could be had; there is no body to wait for
                return Response(b"", content_type="text/event-stream")
        news = _news(inspector, current(), wanted)
        await anext(news)

        async def write() -> AsyncIterator[bytes]:
            try:
                yield b": the requests of a tunnel, as they come\n\n"
                async for kind, data in news:
                    yield b"event: %b\ndata: %b\n\n" % (kind.encode(), data) if kind else b": still here\n\n"
            finally:
                await news.aclose()

        response = Response(b"", content_type="text/event-stream")
        response.response = response.iterable_body_class(write())
        response.headers.pop("Content-Length", None)
        response.headers["X-Accel-Buffering"] = "no"
        response.timeout = None
        return response

    @api.blueprint.websocket("/tunnels/<tunnel_id>/requests/live", endpoint="live_messages")
    async def live_messages(tunnel_id: str) -> None:
        news = _news(inspector, current(), parse_id(tunnel_id))
        await anext(news)
        await websocket.accept()
        try:
            async for kind, data in news:
                event = {"event": kind or "alive", "data": msgspec.Raw(data)}
                await websocket.send(msgspec.json.encode(event).decode())
        finally:
            await news.aclose()


async def _news(inspector: Inspector, caller: Caller, tunnel_id: str) -> AsyncGenerator[tuple[str, bytes], None]:
    """First an empty pair, once it looks on; then kinds and JSON. An empty kind is a sign of life."""
    with inspector.look_on(caller, tunnel_id) as viewer:
        yield "", b"null"
        while True:
            recording = None
            with trio.move_on_after(ALIVE_SECONDS) as scope:
                recording = await viewer.next()
            if scope.cancelled_caught:
                yield "", b"null"
                continue
            if recording is None:
                yield "end", b"{}"
                return
            missed = viewer.take_missed()
            if missed:
                yield "missed", b'{"count":%d}' % missed
            capture = await inspector.view(recording)
            yield "request", msgspec.json.encode(show_request(capture, bodies=False))


async def _chosen(
    inspector: Inspector, caller: Caller, tunnel_id: str, ids: list[str] | None
) -> AsyncIterator[Capture]:
    if ids is not None:
        if len(ids) > EXPORT_IDS_MAX:
            raise BadRequest(f"ids: at most {EXPORT_IDS_MAX}")
        for request_id in ids:
            yield await inspector.get(caller, tunnel_id, request_id)
        return
    cursor: int | None = None
    while True:
        found = await inspector.page(caller, tunnel_id, cursor, EXPORT_PAGE)
        for capture in found.captures:
            yield capture
        cursor = found.cursor
        if cursor is None:
            return


# what goes out


async def _maybe_in_thread(size: int, work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work) if size > THREAD_BYTES else work()


def base_url(registry: Registry, capture: Capture) -> str:
    """Where the request was addressed: the tunnel's public URL while there is one. Of a file it may be anything."""
    tunnel = registry.get(capture.tunnel_id)
    if tunnel is not None and not capture.imported:
        return registry.public_url(tunnel)
    told = f"{capture.scheme}://{capture.host}"
    return told if har.can_be_url(told) else f"{capture.scheme}://unknown.invalid"


def _attachment(body: bytes, media: str, name: str) -> Response:
    response = Response(body, content_type=media)
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    response.headers["Content-Security-Policy"] = "default-src 'none'; sandbox; frame-ancestors 'none'"
    return response


async def _answer_with_bodies(captures: list[Capture], show: Callable[[list[Capture]], object]) -> Response:
    size = sum(len(capture.request_body) + len(capture.response_body) for capture in captures)
    data = await _maybe_in_thread(size, lambda: msgspec.json.encode(show(captures)))
    return Response(data, content_type="application/json")
