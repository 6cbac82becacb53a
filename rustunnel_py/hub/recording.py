"""One exchange as the ring has it: what passes by is noted, and nothing else is done about it.

A recording is the edge's tap and the ring's item in one object. It keeps references to the judged heads and the first
bytes of each body; everything costly (decoding, redacting, ids as text) is done by `capture`, once somebody looks.
Nothing in here keeps the visitor's connection alive.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol

from rustunnel_py.model.capture import Capture, Kind, Message
from rustunnel_py.model.ring import Budget, Ring
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.wire.http1 import RequestHead
from rustunnel_py.wire.messages import Allowance, EventWatcher, FrameWatcher, Seen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rustunnel_py.errors import Hop
    from rustunnel_py.model.redact import Redactor
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.wire.http1 import Headers, ReplyHead

MESSAGES_MAX = 1000  # messages of one exchange that are kept; the others are counted
FRAMES_PER_SECOND = 5000  # WebSocket frames watched, in both directions together: some percent of a core
FRAMES_BURST = 2000
OVERHEAD = 1536  # bytes of a recording besides heads and bodies: the object, its numbers, its place in the ring
MESSAGE_OVERHEAD = 256
CONNECTIONS_MAX = 512  # whose ids are remembered; they are worked out again, the same, for others

_EVENT_STREAM = b"text/event-stream"
_SALT = secrets.token_bytes(16)  # ids of connections mean nothing outside this process


class Clock(Protocol):
    """The pump, as recordings see it."""

    now: float


class Viewer(Protocol):
    """Who hears of captures as they come. Called on the hot path: it appends and wakes somebody."""

    def captured(self, recording: Recording) -> None: ...

    def end(self) -> None:
        """The tunnel has ended."""


class TunnelRing(Ring["Recording"]):
    """The recordings of one tunnel, and what they have in common."""

    __slots__ = (
        "_connections",
        "body_max",
        "clock",
        "is_listed",
        "numbers",
        "owner",
        "redactor",
        "relist",
        "settled",
        "tunnel_id",
        "viewers",
    )

    relist: Callable[[TunnelRing], None]
    """What brings a ring back after its tunnel has ended; set with `is_listed`."""

    def __init__(
        self,
        tunnel_id: str,
        owner: str,
        limit: int,
        budget: Budget,
        *,
        body_max: int,
        clock: Clock,
        numbers: Iterator[int],
        redactor: Redactor,
    ) -> None:
        super().__init__(limit, budget)
        self.tunnel_id = tunnel_id
        self.owner = owner
        self.body_max = body_max
        self.clock = clock
        self.numbers = numbers
        self.redactor = redactor
        self.viewers: list[Viewer] = []
        self._connections: dict[tuple[int, str, int], str] = {}
        self.settled = 0  # up to this number everything in here is stored
        self.is_listed = True  # False: its tunnel ended and it was emptied; the next recording brings it back

    def waiting(self) -> Iterator[Recording]:
        """What is not stored yet, newest first."""
        for recording in reversed(self):
            if recording.seq <= self.settled:
                return
            if not recording.stored:
                yield recording

    def connection_id(self, address: int, visitor: Peer) -> str:
        """The same for all exchanges of one connection."""
        key = (address, visitor.ip, visitor.port)
        known = self._connections.get(key)
        if known is None:
            if len(self._connections) >= CONNECTIONS_MAX:
                self._connections.clear()
            text = f"{address} {visitor.ip} {visitor.port}".encode()
            known = dashed(hashlib.blake2b(text, digest_size=16, key=_SALT).hexdigest())
            self._connections[key] = known
        return known


@dataclass(slots=True, eq=False)
class _Rest:
    """What only some exchanges have."""

    request_trailers: Headers = ()
    reply_trailers: Headers = ()
    hop: str | None = None
    code: str | None = None
    answered: tuple[bytes, bytes] | None = None  # the edge's own answer
    origin: str | None = None
    upgraded: bool = False
    allowance: Allowance | None = None
    events: EventWatcher | None = None
    forth: FrameWatcher | None = None
    back: FrameWatcher | None = None
    messages: list[Message] = field(default_factory=list)
    unwatched: bool = False


class Recording:
    """The tap of one exchange, and its place in the ring."""

    __slots__ = (
        "_arrived", "_begun", "_block", "_connection", "_first", "_method", "_milliseconds", "_minor", "_reason",
        "_reply", "_reply_body", "_reply_bytes", "_request_body", "_request_bytes", "_rest", "_scheme", "_status",
        "_target", "_visitor", "id", "ring", "seq", "size", "stored",
    )  # fmt: skip

    def __init__(self, ring: TunnelRing, visit: Visit, head: RequestHead) -> None:
        self.ring = ring
        self.id = visit.id
        # The parts, not the heads: the collector has to walk over every object that a full ring keeps.
        self._method, self._target, self._minor, self._block = head
        self._visitor = visit.visitor
        self._scheme = visit.scheme
        self._connection = id(visit.connection)
        self._arrived = visit.arrived
        self._begun = self._first = 0.0
        self._reply: Headers | None = None
        self._reason = b""
        self.size = 0
        self._request_body: bytes | bytearray = b""
        self._reply_body: bytes | bytearray = b""
        self._request_bytes = self._reply_bytes = 0
        self._rest: _Rest | None = None
        self.stored = False

    def __repr__(self) -> str:
        return f"<Recording {self._method.decode('latin-1')} {self.id}>"

    # the tap

    def begun(self) -> None:
        """It is handed to a link."""
        self._begun = self.ring.clock.now

    def sent(self, data: memoryview) -> None:
        size = len(data)
        have = self._request_bytes
        self._request_bytes = have + size
        most = self.ring.body_max
        if not have:
            self._request_body = bytes(data if size <= most else data[:most])
        elif have < most:
            self._request_body = _longer(self._request_body, data[: most - have])

    def head(self, head: ReplyHead) -> None:
        self._reply = head.headers
        self._reason = head.reason
        self.size = 2 * len(head.forward)  # each line is there twice: as it came, and cut
        self._first = self.ring.clock.now
        if head.body < 0 and _EVENT_STREAM in head.forward:
            rest = self._needs_rest()
            rest.allowance = Allowance(self.ring.body_max, MESSAGES_MAX)
            rest.events = EventWatcher(rest.allowance)

    def data(self, data: memoryview) -> None:
        size = len(data)
        have = self._reply_bytes
        self._reply_bytes = have + size
        most = self.ring.body_max
        if not have:
            self._reply_body = bytes(data if size <= most else data[:most])
        elif have < most:
            self._reply_body = _longer(self._reply_body, data[: most - have])
        rest = self._rest
        if rest is not None and rest.events is not None:
            self._heard(rest.events.feed(data), forth=False)

    def request_trailers(self, trailers: Headers) -> None:
        self._needs_rest().request_trailers = trailers

    def reply_trailers(self, trailers: Headers) -> None:
        self._needs_rest().reply_trailers = trailers

    def failed(self, hop: Hop | None, code: str) -> None:
        rest = self._needs_rest()
        rest.hop = None if hop is None else hop.value
        rest.code = code

    def answered(self, lines: bytes, body: bytes) -> None:
        """The edge answers by itself: a page, or a policy's reply. Header lines are each ended by CRLF."""
        self._needs_rest().answered = (lines, body[: self.ring.body_max])
        self._reply_bytes = len(body)

    def upgraded(self, head: ReplyHead) -> None:
        """A 101; from now on `relayed` is called."""
        self.head(head)
        rest = self._needs_rest()
        rest.upgraded = True
        rest.allowance = Allowance(self.ring.body_max, MESSAGES_MAX)
        rest.forth = FrameWatcher(rest.allowance)
        rest.back = FrameWatcher(rest.allowance)

    def relayed(self, data: memoryview, forth: bool) -> None:
        """What passes after an upgrade."""
        if forth:
            self._request_bytes += len(data)
        else:
            self._reply_bytes += len(data)
        rest = self._rest
        if rest is None or rest.unwatched or rest.forth is None or rest.back is None:
            return
        watcher = rest.forth if forth else rest.back
        seen = watcher.feed(data)
        if seen:
            self._heard(seen, forth=forth)
        lasted = self.ring.clock.now - self._arrived
        if not watcher.watching or rest.forth.frames + rest.back.frames > FRAMES_BURST + FRAMES_PER_SECOND * lasted:
            rest.unwatched = True

    def over(self, status: int, milliseconds: float) -> None:
        """The exchange has ended, one way or another: into the ring."""
        ring = self.ring
        self._status = status
        self._milliseconds = milliseconds
        self.seq = next(ring.numbers)
        size = self.size + OVERHEAD + len(self._block.raw) + len(self._request_body) + len(self._reply_body)
        if self._rest is not None:
            size += self._size_of_rest(self._rest)
        self.size = size
        ring.append(self)
        if not ring.is_listed:
            ring.relist(ring)
        for viewer in ring.viewers:
            viewer.captured(self)

    # what is not on every exchange's way

    def replays(self, origin: str) -> None:
        self._needs_rest().origin = origin

    def _needs_rest(self) -> _Rest:
        if self._rest is None:
            self._rest = _Rest()
        return self._rest

    def _heard(self, seen: list[Seen], *, forth: bool) -> None:
        at = (self.ring.clock.now - self._arrived) * 1000.0
        self._needs_rest().messages += [
            Message(forth, message.kind, message.size, at, message.content, message.compressed) for message in seen
        ]

    def _size_of_rest(self, rest: _Rest) -> int:
        return 512 + sum(MESSAGE_OVERHEAD + len(message.content) for message in rest.messages)

    # for those who look

    @property
    def request(self) -> RequestHead:
        """Unredacted: for a replay only."""
        return RequestHead(self._method, self._target, self._minor, self._block)

    @property
    def request_body(self) -> bytes:
        """Unredacted: for a replay only."""
        return bytes(self._request_body)

    @property
    def is_clipped(self) -> bool:
        """The request's body is longer than what was kept of it."""
        return self._request_bytes > len(self._request_body)

    @property
    def is_upgrade(self) -> bool:
        return self._block.upgrade_websocket

    @property
    def heavy(self) -> bool:
        """Looking at it takes long."""
        return self.size > 32 * 1024

    def so_far(self, status: int, now: float, *, contents: bool) -> Recording:
        """What there is of it, as if it ended now with this status: its number is 0. The exchange itself goes on.

        `now` is the ring's clock. Without `contents` it has no bodies and no messages, only their numbers: for a list,
        which would redact megabytes.
        """
        visit = Visit(self.id, self.ring.tunnel_id, VisitKind.HTTP, self._visitor, self._visitor, self._scheme)
        seen = Recording(self.ring, visit, self.request)
        seen.seq = 0
        seen._status = status
        seen._milliseconds = (now - self._arrived) * 1000.0
        seen._connection = self._connection
        seen._arrived = self._arrived
        seen._begun = self._begun
        seen._first = self._first
        seen._reply = self._reply
        seen._reason = self._reason
        seen._request_bytes = self._request_bytes
        seen._reply_bytes = self._reply_bytes
        seen.size = self.size + OVERHEAD
        # Of its own, since it is made ready in a thread where that takes long, and traffic goes on meanwhile.
        if contents:
            seen._request_body = bytes(self._request_body)
            seen._reply_body = bytes(self._reply_body)
            seen.size += len(seen._request_body) + len(seen._reply_body)
        if self._rest is not None:
            messages = list(self._rest.messages) if contents else []
            seen._rest = replace(self._rest, messages=messages)
            seen.size += sum(len(message.content) for message in messages)
        return seen

    def capture(self, now: float, wall: datetime) -> Capture:
        """What may leave the ring: redacted. `now` and `wall` are the same instant on both clocks."""
        rest = self._rest
        redactor = self.ring.redactor
        arrived, begun, first = self._arrived, self._begun, self._first
        capture = Capture(
            seq=self.seq,
            id=dashed(self.id),
            tunnel_id=self.ring.tunnel_id,
            connection_id=self.ring.connection_id(self._connection, self._visitor),
            captured_at=wall + timedelta(seconds=arrived - now),
            visitor=self._visitor,
            scheme=self._scheme,
            method=self._method.decode("latin-1"),
            path=redactor.target(self._target).decode("latin-1"),
            minor=self._minor,
            request_headers=(),
            request_bytes=self._request_bytes,
            status=self._status,
            response_bytes=self._reply_bytes,
            duration_ms=self._milliseconds,
        )
        if begun:
            capture.queue_ms = (begun - arrived) * 1000.0
        if first:
            capture.first_byte_ms = (first - arrived) * 1000.0
            if begun:
                capture.agent_ms = (first - begun) * 1000.0
        judged = redactor.judge(self._block.headers)
        capture.request_headers = judged.headers
        body = self._request_body
        if body:
            kept = redactor.body(bytes(body), judged)
            capture.request_clipped = len(body) < self._request_bytes
            capture.request_withheld = kept is None
            capture.request_body = kept or b""
        body = self._reply_body
        if self._reply is not None:
            judged = redactor.judge(self._reply)
            capture.reason = self._reason.decode("latin-1")
            capture.response_headers = judged.headers
        elif rest is not None and rest.answered is not None:
            judged = redactor.judge(_fields(rest.answered[0]))
            capture.response_headers = judged.headers
            body = rest.answered[1]
        if body:
            kept = redactor.body(bytes(body), judged)
            capture.response_clipped = len(body) < self._reply_bytes
            capture.response_withheld = kept is None
            capture.response_body = kept or b""
        if rest is not None:
            _add_rest(capture, rest, redactor)
        return capture


def _add_rest(capture: Capture, rest: _Rest, redactor: Redactor) -> None:
    capture.hop, capture.code, capture.origin = rest.hop, rest.code, rest.origin
    capture.request_trailers = redactor.judge(rest.request_trailers).headers
    capture.response_trailers = redactor.judge(rest.reply_trailers).headers
    if rest.events is not None:
        capture.kind = Kind.EVENTS
        capture.messages_back = rest.events.count
    elif rest.forth is not None and rest.back is not None:
        capture.kind = Kind.WEBSOCKET
        capture.messages_forth, capture.messages_back = rest.forth.count, rest.back.count
        capture.messages_unwatched = rest.unwatched
    if rest.messages:
        capture.messages = tuple(
            Message(m.forth, m.kind, m.size, m.at_ms, redactor.message(m) or b"", m.compressed) for m in rest.messages
        )


def _fields(lines: bytes) -> Headers:
    pairs = [line.partition(b": ") for line in lines.split(b"\r\n") if line]
    return tuple((name, value) for name, _, value in pairs)


def dashed(digits: str) -> str:
    """32 hex digits as a UUID is written."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _longer(body: bytes | bytearray, data: memoryview) -> bytearray:
    if isinstance(body, bytes):
        body = bytearray(body)
    body += data
    return body
