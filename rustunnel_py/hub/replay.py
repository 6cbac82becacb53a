"""A captured request, sent again: built from it and an edit, judged like a visitor's, sent to its tunnel only.

Where a request goes is never said by it: it goes by the link of the tunnel that it was captured on, or nowhere.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from rustunnel_py.errors import BadRequest, Hop, HopError, HttpError, Unavailable
from rustunnel_py.hub.converse import converse
from rustunnel_py.hub.gate import PASS, Answer, Delay, NeedBody, Pass, Wait, edited
from rustunnel_py.hub.under_way import UnderWay
from rustunnel_py.model.capture import Capture, Difference, difference
from rustunnel_py.model.redact import masked_names
from rustunnel_py.model.tunnel import HttpHost, Peer
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.wire.http1 import REQUEST_LIMITS, forwarded_lines, judge_request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.hub.capture_views import CaptureViews
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.recording import Recording
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.hub.rings import Rings
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.http1 import Headers, RequestHead

TIMES_MAX = 100
REPLAYS_AT_ONCE = 4  # of one tunnel
BODY_MAX = 16 * 1024 * 1024  # bytes of an edited body; what a capture has is shorter by far
ANSWER_SECONDS = 60.0  # for each of them, until the reply is complete
WAIT_SECONDS = 10.0  # for an agent that is away just now

_NOWHERE = Peer("127.0.0.1", 0)  # a replay comes in by no edge

# The connection's business, not the request's; and the body's length is what the body has.
_NOT_SENT = frozenset(
    {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"expect", b"upgrade", b"te"}
)


@dataclass(frozen=True, slots=True)
class Edit:
    """What is otherwise than in the original; None: nothing.

    `headers` replaces all values of each header that it names; a value of None takes the header away.
    """

    method: bytes | None = None
    path: bytes | None = None
    headers: tuple[tuple[bytes, bytes | None], ...] = ()
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class Original:
    """A captured request. `masked`: it comes from the store, where secrets are not what they were."""

    id: str
    method: bytes
    path: bytes
    headers: Headers
    body: bytes
    lacks_body: bool  # clipped or withheld
    is_upgrade: bool
    scheme: str
    visitor: Peer
    masked: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """A new capture, and what it has otherwise than its origin."""

    capture: Capture
    difference: Difference


def build(original: Original, edit: Edit, tunnel: Tunnel) -> tuple[RequestHead, bytes]:
    """The request to send, judged like a visitor's. Raises BadRequest, which says what is wrong or missing."""
    if original.is_upgrade:
        raise BadRequest("a WebSocket cannot be replayed")
    if original.lacks_body and edit.body is None:
        raise BadRequest("the request's body was not kept in full; give one in edit.body")
    body = original.body if edit.body is None else edit.body
    if len(body) > BODY_MAX:
        raise BadRequest(f"edit.body: at most {BODY_MAX} bytes")
    path = original.path if edit.path is None else edit.path
    headers = _edited_headers(original.headers, edit.headers)
    if original.masked:
        kept = tuple(pair for pair in headers if pair in original.headers)
        missing = masked_names(
            kept, b"" if edit.path is not None else path, b"" if edit.body is not None else original.body
        )
        if missing:
            raise BadRequest(f"what was redacted in the store must be given in edit: {', '.join(missing)}")
    head = _judged(original.method if edit.method is None else edit.method, path, headers, len(body), original.scheme)
    if not isinstance(tunnel.address, HttpHost) or head.host != tunnel.address.host:
        raise BadRequest(f"edit.headers: Host must be {tunnel.address}; a replay goes to its own tunnel only")
    return head, body


def _edited_headers(headers: Headers, changes: tuple[tuple[bytes, bytes | None], ...]) -> Headers:
    named = {name.lower() for name, _ in changes}
    kept = [pair for pair in headers if pair[0].lower() not in named]
    return (*kept, *((name, value) for name, value in changes if value is not None))


def _judged(method: bytes, path: bytes, headers: Headers, size: int, scheme: str) -> RequestHead:
    lines = [b"%b %b HTTP/1.1\r\n" % (method, path)]
    for name, value in headers:
        if b"\r" in name + value or b"\n" in name + value:
            raise BadRequest("edit.headers: a header is one line")
        if name.lower() not in _NOT_SENT:
            lines.append(b"%b: %b\r\n" % (name, value))
    if any(byte in method + path for byte in b" \r\n"):
        raise BadRequest("edit: method and path have no blanks and no line ends")
    if size or method in (b"POST", b"PUT", b"PATCH"):
        lines.append(b"Content-Length: %d\r\n" % size)
    try:
        return judge_request(b"".join((*lines, b"\r\n")), REQUEST_LIMITS, scheme=scheme)
    except HttpError as error:
        raise BadRequest(f"this request cannot be sent: {error.detail}") from None


class Replays:
    """Those under way, REPLAYS_AT_ONCE of one tunnel."""

    def __init__(self, pump: Pump, rings: Rings, views: CaptureViews) -> None:
        self._pump = pump
        self._rings = rings
        self._views = views
        self._running: dict[str, int] = {}  # by tunnel
        self._under_way: dict[Recording, float] = {}  # and when it began

    async def run(
        self, tunnel: Tunnel, shown: Capture, recording: Recording | None, edit: Edit, times: int
    ) -> list[Replayed]:
        """Send `shown` again, `times` in a row; `recording`: what memory has of it. Raises BadRequest, Unavailable."""
        original = _original(shown, recording)
        head, body = build(original, edit, tunnel)
        with self._one_more(tunnel.id):
            return [await self._one(tunnel, original, shown, head, body) for _ in range(times)]

    def under_way(self, tunnel_id: str) -> list[UnderWay]:
        """Those of a tunnel that have not ended."""
        return [
            UnderWay(recording, arrived, 0)
            for recording, arrived in self._under_way.items()
            if recording.ring.tunnel_id == tunnel_id
        ]

    async def _one(
        self, tunnel: Tunnel, original: Original, shown: Capture, head: RequestHead, body: bytes
    ) -> Replayed:
        visit = visit_for(tunnel, original, secrets.token_hex(16), _NOWHERE, head, trio.current_time())
        recording = self._rings.watch(tunnel, visit, head)
        recording.replays(shown.id)
        tunnel.requests += 1
        self._under_way[recording] = visit.arrived
        try:
            await send(self._pump, tunnel, visit, head, body, recording)
        finally:
            del self._under_way[recording]
        capture = await self._views.view(recording)
        return Replayed(capture, difference(shown, capture))

    @contextmanager
    def _one_more(self, tunnel_id: str) -> Iterator[None]:
        present = self._running.get(tunnel_id, 0)
        if present >= REPLAYS_AT_ONCE:
            raise Unavailable("limit", "this tunnel has enough replays under way; try again when one has ended")
        self._running[tunnel_id] = present + 1
        try:
            yield
        finally:
            self._running[tunnel_id] -= 1
            if not self._running[tunnel_id]:
                del self._running[tunnel_id]


def _original(shown: Capture, recording: Recording | None) -> Original:
    """From memory where that is possible: secrets are as they were."""
    is_upgrade = shown.status == 101
    if recording is not None:
        request = recording.request
        return Original(
            shown.id,
            request.method,
            request.target,
            request.block.headers,
            recording.request_body,
            recording.is_clipped,
            is_upgrade or recording.is_upgrade,
            shown.scheme,
            shown.visitor,
            masked=False,
        )
    return Original(
        shown.id,
        shown.method.encode("latin-1"),
        shown.path.encode("latin-1"),
        shown.request_headers,
        shown.request_body,
        shown.request_clipped or shown.request_withheld,
        is_upgrade or any(name.lower() == b"sec-websocket-key" for name, _ in shown.request_headers),
        shown.scheme,
        shown.visitor,
        masked=True,
    )


async def send(pump: Pump, tunnel: Tunnel, visit: Visit, head: RequestHead, body: bytes, recording: Recording) -> None:
    """Carry it, and let `recording` see what happens; a failure is part of the record. Waits for its end."""
    status = 0
    if body:
        recording.sent(memoryview(body))
    try:
        with trio.fail_after(ANSWER_SECONDS):
            status = await _through_the_gate(pump, tunnel, visit, head, body, recording)
    except trio.TooSlowError:
        status = 504
        recording.failed(Hop.LOCAL_SERVICE, "too-slow")
    except HopError as error:
        status = error.status
        recording.failed(error.hop, error.code)
    finally:
        recording.over(status or 499, (trio.current_time() - visit.arrived) * 1000.0)


async def _through_the_gate(
    pump: Pump, tunnel: Tunnel, visit: Visit, head: RequestHead, body: bytes, recording: Recording
) -> int:
    """What a visitor's request meets meets this one: limits, logins, changes."""
    gate = tunnel.gate
    if gate is None:
        return await _carry(pump, await _link(tunnel, visit), visit, head, body, recording)
    verdict = gate.admit(tunnel, visit, head)
    while isinstance(verdict, Wait):
        try:
            verdict = await _settled(verdict, body)
        except BaseException:
            if isinstance(verdict, Wait):
                verdict.abandon()
            raise
    if isinstance(verdict, Answer):
        content = verdict.content
        if isinstance(content, HopError):
            raise content
        recording.answered(b"".join(b"%b: %b\r\n" % pair for pair in content.headers), content.body)
        return content.status
    try:
        link = await _link(tunnel, visit)
        if verdict is not PASS:
            head = edited(head, verdict)
            visit.target = verdict.target or visit.target
            link = verdict.wrap(link) if verdict.wrap is not None else link
        return await _carry(pump, link, visit, head, body, recording)
    finally:
        gate.leave(visit)


async def _settled(wait: Wait, body: bytes) -> Pass | Answer | Wait:
    asked = wait.verdict
    if isinstance(asked, NeedBody):
        if len(body) > asked.limit:
            raise HopError(Hop.EDGE, 413, "body-too-large", f"Here a request's body may have {asked.limit} bytes.")
        return wait.settle(asked.then(body))
    if isinstance(asked, Delay):
        await trio.sleep(asked.seconds)
        return wait.settle(PASS)
    return wait.settle(await trio.to_thread.run_sync(asked.function, abandon_on_cancel=True))


async def _link(tunnel: Tunnel, visit: Visit) -> Link:
    link = tunnel.links.pick(visit)
    with trio.move_on_after(WAIT_SECONDS):
        while link is None:
            await tunnel.links.changed()
            link = tunnel.links.pick(visit)
    if link is None:
        raise HopError(Hop.AGENT, 503, "agent-away", "The agent of this tunnel is away.", retry_after=5.0)
    return link


async def _carry(pump: Pump, link: Link, visit: Visit, head: RequestHead, body: bytes, recording: Recording) -> int:
    recording.begun()
    async with converse(pump, link, visit, head, body) as reply:
        if reply.reply_head is None:
            raise HopError(Hop.LOCAL_SERVICE, 502, "cut-reply", "The reply was cut short.")
        recording.head(reply.reply_head)
        async for chunk in reply:
            recording.data(memoryview(chunk))
        if reply.trailers:
            recording.reply_trailers(reply.trailers)
        return reply.reply_head.status


def visit_for(tunnel: Tunnel, original: Original, visit_id: str, edge: Peer, head: RequestHead, now: float) -> Visit:
    """The new visit: by the original's visitor, as the local service sees it."""
    port = head.block.port if head.block.port is not None else 443 if original.scheme == "https" else 80
    return Visit(
        visit_id,
        tunnel.id,
        VisitKind.HTTP,
        original.visitor,
        edge,
        original.scheme,
        forwarded_lines(original.visitor.ip, original.scheme, head.block.host_line, port),
        tunnel.target,
        object(),  # a connection of its own: no stream is shared with the original's
        now,
    )
