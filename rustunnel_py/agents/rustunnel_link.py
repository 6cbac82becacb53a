"""The link to one rustunnel agent: exchanges and raw pipes over the yamux streams of its data socket.

A stream is a connection to the local service, and for HTTP it is *kept*: after a complete reply it goes to the pool
of its tunnel and carries the next request. How the link predicts:

* An exchange is the sink of its stream while it lasts; idle, the stream's sink is its `_Local`, which throws it away
  at the first sign of life. Never is a stream used again after any doubt: bytes too many, a reply before the
  request's end, `Connection: close`, a cut.
* A kept stream that turns out closed before anything of the reply came is replaced by a fresh one, once, where the
  request may be repeated: an idempotent method, and its body still at hand.
* Where there is no data socket, or no place (400 open streams, 256 unacknowledged), exchanges and pipes wait in one
  queue, bounded in number and time. It blocks nobody: heartbeats and kept streams go on.
* What was read of a stream is paid for: framing by the link at once, payload by the edge's `credit`, the rest at the
  end, so that a kept stream's window never shrinks.
* Loss of the data socket fails what is in flight at once; what waits goes on waiting for the next one.
"""

from __future__ import annotations

import secrets
import uuid
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from rustunnel_py.errors import Crash, Expired, Hop, HopError, HttpError, LinkLost, Refused, Reset
from rustunnel_py.model.visit import Carries
from rustunnel_py.wire.http1 import (
    CHUNKED,
    REPLY_LIMITS,
    UNTIL_CLOSE,
    BodyReader,
    check_upgraded,
    chunk,
    find_reply_head_end,
    judge_reply,
    last_chunk,
    render_request,
)
from rustunnel_py.wire.proxy import proxy_header
from rustunnel_py.wire.sink import SILENT
from rustunnel_py.wire.yamux import Limits, Role, Session, Stream

if TYPE_CHECKING:
    from rustunnel_py.hub.link import ExchangeSink
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Buffer, Crashable, Pipe, Sink

Notify: TypeAlias = "Callable[[str, Visit], None]"
"""`notify(conn_id, visit)`: announce a stream to the agent on its control socket."""

KEEP_SECONDS = 60.0  # idle streams; local services themselves keep connections 2 to 75 s
KEPT_PER_TUNNEL = 128  # as many as busy visitors come back within one round trip; more are closed after use
SURE_SECONDS = 2.0  # idle longer: it may just be closing, so only requests that can be repeated use it
CLOSING_MARGIN = 1.0  # the same, before the end that `Keep-Alive: timeout` announced
REPLAY_MAX = 64 * 1024  # a body up to here is kept at hand for the one retry
QUEUE_MAX = 1000  # visits of one agent that wait for a place or a data socket
QUEUE_SECONDS = 10.0  # and for how long: what a visitor takes for a slow page
OPENING_SECONDS = 10.0  # until an agent that acknowledges at once has acknowledged a stream
FIRST_BYTE_SECONDS = 300.0  # from the end of the request; long polls end well below, the original's 60 s cut some
RETIRE_SECONDS = 2.0  # for the local service to end a connection that is of no more use
PING_SECONDS = 10.0  # yamux pings: keep idle paths open and measure silence
PONG_SECONDS = 5.0  # on raw data sockets, which have no other sign of life
INTERIMS_SENT = 16  # 1xx heads of one reply that are passed on; 103 comes once or twice in practice
INTERIMS_MAX = 1000  # 1xx heads after which a local service is taken for broken (H50)
PEEK = 4096  # heads are nearly always shorter; copying more of a bulk view would cost

# What an exchange is at.
_WAITING = 0  # for a stream
_HEAD = 1  # reading heads of the reply
_LENGTH = 2
_CHUNKS = 3
_UNTIL_EOF = 4
_OVER = 5


class PumpPart(Protocol):
    """What a link needs of the pump."""

    @property
    def now(self) -> float: ...

    def later(self, by: Crashable, function: Callable[[], None]) -> None: ...

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]: ...


class _Local:
    """One connection to a local service: a yamux stream, and what is known of it. The stream's sink while idle."""

    __slots__ = ("link", "owner", "session", "since", "stream", "tunnel_id", "until")

    def __init__(self, link: RustunnelLink, session: Session, stream: Stream, tunnel_id: str) -> None:
        self.link = link
        self.session = session
        self.stream = stream
        self.tunnel_id = tunnel_id
        self.owner: object = None  # the one visitor connection that may use it; None: anybody's
        self.since = 0.0  # idle since; retiring since
        self.until = 0.0  # not to be used from then on

    def data(self, data: memoryview) -> None:
        self.link._forget(self)  # nobody asked for it: the next reply would be the wrong one
        self.stream.reset()

    def eof(self) -> None:
        self.link._forget(self)
        self.stream.send_eof()

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self.link._forget(self)

    def expired(self) -> None: ...


class RustunnelLink:
    """Implements `hub.link.Link` for one agent session; data sockets come and go below it."""

    def __init__(
        self,
        pump: PumpPart,
        notify: Notify,
        *,
        prompt: bool = False,
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
        data_lost: Callable[[LinkLost], None] | None = None,
        limits: Limits = Limits(),
    ) -> None:
        """`prompt`: the agent acknowledges streams at once (ours; the stock one only with its first byte).

        `data_lost` is called when a data socket's session ended by itself: its owner closes the socket, flushing it.
        """
        self.carries = Carries("rustunnel")
        self._pump = pump
        self._notify = notify
        self._prompt = prompt
        self._first_byte_seconds = first_byte_seconds
        self._data_lost = data_lost
        self._limits = limits
        self._session: Session | None = None
        self._raw = False
        self._closed: LinkLost | None = None
        self._kept: dict[str, list[_Local]] = {}  # by tunnel: only a PROXY header ties a connection to more than that
        self._owned: dict[tuple[str, object], _Local] = {}
        self._retiring: dict[_Local, None] = {}
        self._unanswered: set[_Exchange] = set()
        self._opening: dict[Stream, float] = {}
        self._queue: deque[_Exchange | _WaitingPipe] = deque()
        self._waiting = 0
        self._pongs_due = 0
        self._pinged = 0.0
        self._ping_due = 0.0
        self._off_sweep = pump.on_sweep(self.sweep)

    def __repr__(self) -> str:
        return f"<RustunnelLink {self._session!r}, {self._waiting} waiting>"

    @property
    def connected(self) -> bool:
        """There is a data socket."""
        return self._session is not None

    # the waist

    def exchange(self, visit: Visit, head: RequestHead, sink: ExchangeSink) -> _Exchange:
        """Carry one request. Raises HopError(503) where the agent is gone or too many wait for it."""
        exchange = _Exchange(self, visit, head, sink)
        session = self._session
        if session is not None:
            local = self._take(visit, exchange.repeatable)
            if local is not None:
                exchange.start(local, fresh=False)
                return exchange
            if self._has_place(session):
                exchange.start(self._open(session, visit), fresh=True)
                return exchange
        self._enqueue(exchange)
        return exchange

    def open(self, visit: Visit) -> Pipe:
        """A raw connection to the local service. Raises HopError(503) as `exchange` does."""
        session = self._session
        if session is not None and self._has_place(session):
            return self._open_raw(session, visit)
        pipe = _WaitingPipe(self, visit)
        self._enqueue(pipe)
        return pipe

    # data sockets

    def attach(self, trunk: Pipe, *, raw: bool) -> Session:
        """A data socket came: `trunk` carries yamux from now on. One that is still there is given up first."""
        if self._session is not None:
            self.detach(Reset("another data socket took its place"))
        session = Session(
            Role.CLIENT,
            trunk,
            self._pump.later,
            ended=self._ended,
            streams_free=self._serve_queue,
            limits=self._limits,
        )
        trunk.sink = session
        self._session = session
        self._raw = raw
        self._send_ping(session, self._pump.now)
        self._serve_queue()
        return session

    def detach(self, error: LinkLost) -> None:
        """The data socket is given up by its owner: what is in flight fails at once."""
        session = self._session
        if session is not None:
            self._session = None  # so that `_ended` knows that its owner knows
            session.lost(error)
            self._clear()

    def close(self, error: LinkLost) -> None:
        """The session of the agent is over: nobody waits for anything any more."""
        if self._closed is not None:
            return
        self._closed = error
        self._off_sweep()
        self.detach(error)
        while self._queue:
            waiting = self._queue.popleft()
            if waiting.waits:
                waiting.give_up(HopError(Hop.AGENT, 502, "agent-lost", "The agent's connection was lost."))
        self._waiting = 0

    def forget_tunnel(self, tunnel_id: str) -> None:
        """The tunnel ended: its kept streams are of no more use."""
        for local in self._kept.pop(tunnel_id, ()):
            self._retire(local)

    def sweep(self, now: float) -> None:
        """Once a second, by the pump: deadlines of streams, of those who wait, of the data socket."""
        later = self._pump.later
        for exchange in self._unanswered:
            if now - exchange.since > self._first_byte_seconds:
                later(exchange, exchange.expire)
        for waiting in self._queue:
            if waiting.waits and now - waiting.since > QUEUE_SECONDS:
                later(waiting, waiting.expire)
        self._sweep_locals(now)
        session = self._session
        if session is not None:
            self._sweep_opening(now)
            session.sweep(now)
            self._sweep_pings(session, now)

    def _sweep_locals(self, now: float) -> None:
        for tunnel_id, pool in list(self._kept.items()):
            while pool and now >= pool[0].until:
                self._retire(pool.pop(0))
            if not pool:
                del self._kept[tunnel_id]
        for key, local in list(self._owned.items()):
            if now >= local.until:
                del self._owned[key]
                self._retire(local)
        for local in list(self._retiring):
            if now - local.since < RETIRE_SECONDS:
                break
            del self._retiring[local]
            local.stream.reset()

    def _sweep_opening(self, now: float) -> None:
        for stream, due in list(self._opening.items()):
            if stream.acknowledged:
                del self._opening[stream]
            elif now >= due:
                del self._opening[stream]
                late = _Late(stream.sink)
                stream.reset()
                self._pump.later(late, late.tell)

    def _sweep_pings(self, session: Session, now: float) -> None:
        if self._raw and session.pongs < self._pongs_due and now - self._pinged > PONG_SECONDS:
            session.lost(Expired(f"the data socket was silent for {PONG_SECONDS:g} s after a ping"))
        elif now >= self._ping_due:
            self._send_ping(session, now)

    def _send_ping(self, session: Session, now: float) -> None:
        self._pongs_due = session.pongs + 1
        self._pinged = now
        self._ping_due = now + PING_SECONDS
        session.ping(secrets.randbits(32))

    def _ended(self, error: LinkLost) -> None:
        """The session ended, by its trunk or by the agent's fault; every stream has heard so."""
        if self._session is None or not self._session.over:
            return
        self._session = None
        self._clear()
        if self._data_lost is not None:
            self._data_lost(error)

    def _clear(self) -> None:
        self._kept.clear()
        self._owned.clear()
        self._retiring.clear()
        self._opening.clear()

    # streams

    def _take(self, visit: Visit, repeatable: bool) -> _Local | None:
        """A kept stream that this visit may use."""
        now = self._pump.now
        if self._owned:
            own = self._owned.pop((visit.tunnel_id, visit.connection), None)
            if own is not None:
                if now < own.until and (repeatable or now - own.since <= SURE_SECONDS):
                    return own
                self._retire(own)
        if visit.target.proxy_protocol:
            return None
        pool = self._kept.get(visit.tunnel_id)
        while pool:
            local = pool[-1]  # the one that was busy last: its local service is least likely to have closed it
            if now < local.until:
                return pool.pop() if repeatable or now - local.since <= SURE_SECONDS else None
            self._retire(pool.pop())
        return None

    def _has_place(self, session: Session) -> bool:
        """A stream may be opened, if need be after giving up the one that was idle longest."""
        if session.can_open():
            return True
        if session.goes_away or session.unacknowledged >= self._limits.max_unacknowledged:
            return False
        oldest = min((pool for pool in self._kept.values() if pool), key=lambda pool: pool[0].since, default=None)
        if oldest is None:
            return False
        oldest.pop(0).stream.reset()
        return session.can_open()

    def _open_stream(self, session: Session, visit: Visit) -> Stream:
        conn_id = uuid.UUID(bytes=secrets.token_bytes(16), version=4)
        # The 16 bytes alone in the first frame, as the original sends them.
        stream = session.open(conn_id.bytes)
        if self._prompt:
            self._opening[stream] = self._pump.now + OPENING_SECONDS
        self._notify(str(conn_id), visit)
        return stream

    def _open(self, session: Session, visit: Visit) -> _Local:
        return _Local(self, session, self._open_stream(session, visit), visit.tunnel_id)

    def _open_raw(self, session: Session, visit: Visit) -> Stream:
        stream = self._open_stream(session, visit)
        if visit.target.proxy_protocol:
            stream.send(_proxy_header(visit))
        return stream

    def _keep(self, local: _Local, timeout: float | None) -> None:
        """After a complete reply: whoever waits gets it, else the pool."""
        now = self._pump.now
        local.since = now
        local.until = now + (KEEP_SECONDS if timeout is None else min(timeout - CLOSING_MARGIN, KEEP_SECONDS))
        stream = local.stream
        stream.sink = local
        if local.owner is not None:
            before = self._owned.pop((local.tunnel_id, local.owner), None)
            self._owned[(local.tunnel_id, local.owner)] = local
            if before is not None:
                self._retire(before)
            return
        if self._waiting and self._hand_over(local):
            return
        pool = self._kept.get(local.tunnel_id)
        if pool is None:
            pool = self._kept[local.tunnel_id] = []
        if len(pool) >= KEPT_PER_TUNNEL:
            self._retire(local)
        else:
            pool.append(local)

    def _hand_over(self, local: _Local) -> bool:
        """Give a stream that just became idle to the first that waits; or its place, if that one wants another tunnel."""
        first = self._first_waiting()
        if first is None:
            return False
        if isinstance(first, _Exchange) and first.may_use(local):
            self._queue.popleft()
            self._waiting -= 1
            first.start(local, fresh=False)
            return True
        if local.session.open_streams < self._limits.max_streams:
            return False  # unacknowledged streams are what it waits for: ending this one helps nobody
        local.stream.reset()
        self._pump.later(self, self._serve_queue)
        return True

    def _retire(self, local: _Local) -> None:
        """End a connection that is of no more use: politely, then by RST."""
        stream = local.stream
        if local.session.over:
            return
        stream.sink = local
        local.since = self._pump.now
        self._retiring[local] = None
        stream.send_eof()

    def _forget(self, local: _Local) -> None:
        """An idle stream ended by itself."""
        if local in self._retiring:
            del self._retiring[local]
            return
        if local.owner is not None:
            if self._owned.get((local.tunnel_id, local.owner)) is local:
                del self._owned[(local.tunnel_id, local.owner)]
            return
        pool = self._kept.get(local.tunnel_id)
        if pool and local in pool:
            pool.remove(local)
            if not pool:
                del self._kept[local.tunnel_id]

    # those who wait

    def _enqueue(self, waiting: _Exchange | _WaitingPipe, *, first: bool = False) -> None:
        if self._closed is not None:
            raise HopError(Hop.AGENT, 503, "agent-away", "The agent of this tunnel is not connected.", retry_after=1)
        if self._waiting >= QUEUE_MAX:
            raise HopError(
                Hop.AGENT, 503, "agent-busy", "Too many visits wait for the agent of this tunnel.", retry_after=1
            )
        waiting.since = self._pump.now
        self._waiting += 1
        if first:
            self._queue.appendleft(waiting)
        else:
            self._queue.append(waiting)

    def _left_queue(self) -> None:
        """One of the queue gave up; its entry is dropped when it comes to the front."""
        self._waiting -= 1
        if not self._waiting:
            self._queue.clear()

    def _first_waiting(self) -> _Exchange | _WaitingPipe | None:
        queue = self._queue
        while queue and not queue[0].waits:
            queue.popleft()
        return queue[0] if queue else None

    def _serve_queue(self) -> None:
        while (first := self._first_waiting()) is not None:
            session = self._session
            if session is None:
                return
            visit = first.visit
            local = self._take(visit, first.repeatable) if isinstance(first, _Exchange) else None
            if local is None and not self._has_place(session):
                return
            self._queue.popleft()
            self._waiting -= 1
            if isinstance(first, _WaitingPipe):
                first.start(self._open_raw(session, visit))
            elif local is not None:
                first.start(local, fresh=False)
            else:
                first.start(self._open(session, visit), fresh=True)

    def crashed(self, error: Exception) -> None:
        """A deferred call of the link raised; the visits that it was about run into their deadlines."""


class _Late:
    """Tells a stream's sink of a deadline that the link watched over, guarded by the pump."""

    __slots__ = ("_sink",)

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def tell(self) -> None:
        self._sink.lost(Expired(f"the agent did not take the connection within {OPENING_SECONDS:g} s"))

    def crashed(self, error: Exception) -> None: ...


class _Exchange:
    """One request and its reply: an `Exchange` for the edge, and the sink of its stream."""

    __slots__ = (
        "_blocked",
        "_body",
        "_chunked",
        "_extra",
        "_final",
        "_finished",
        "_head",
        "_interims",
        "_left",
        "_link",
        "_local",
        "_partial",
        "_phase",
        "_reader",
        "_repeated",
        "_reply",
        "_reused",
        "_sink",
        "_stream",
        "_trailers",
        "_unpaid",
        "repeatable",
        "since",
        "visit",
    )

    def __init__(self, link: RustunnelLink, visit: Visit, head: RequestHead, sink: ExchangeSink) -> None:
        body = head.block.body
        self.visit = visit
        self.since = 0.0  # of the last progress that the deadline counts from
        self.repeatable = head.idempotent and 0 <= body <= REPLAY_MAX and not head.block.upgrade_websocket
        self._link = link
        self._head = head
        self._sink = sink
        self._phase = _WAITING
        self._local: _Local | None = None
        self._stream: Pipe = _NOWHERE
        self._chunked = body == CHUNKED
        # What was written of the body, framed: while it waits, and for the retry.
        self._body: bytearray | None = bytearray() if body else None
        self._finished = False
        self._blocked = False  # a send returned False: `room` is due
        self._reused = False
        self._repeated = False
        self._partial: bytearray | None = None  # of a reply's head
        self._reply: ReplyHead | None = None
        self._interims = 0
        self._left = 0
        self._reader: BodyReader | None = None
        self._trailers: Headers | None = None  # of a chunked reply that is complete
        self._unpaid = 0  # bytes of the stream that nobody has given credit for
        self._final = False  # the last payload is being delivered: what is unpaid will be paid in one go
        self._extra = False  # more came than the reply has

    def __repr__(self) -> str:
        phase = ("waiting", "head", "length", "chunks", "until eof", "over")[self._phase]
        return f"<Exchange {self._head.method!r} {phase} on {self._stream!r}>"

    @property
    def waits(self) -> bool:
        return self._phase == _WAITING

    def may_use(self, local: _Local) -> bool:
        visit = self.visit
        return local.tunnel_id == visit.tunnel_id and local.owner is None and not visit.target.proxy_protocol

    def start(self, local: _Local, *, fresh: bool) -> None:
        """Write the head, and what has come of the body, to a stream."""
        head = self._head
        visit = self.visit
        block = head.block
        target = visit.target
        out = render_request(head, target.host_header, visit.forwarded, body=block.body)
        if fresh and target.proxy_protocol:
            out = _proxy_header(visit) + out
            local.owner = local if visit.connection is None else visit.connection
        body = self._body
        if body is not None:
            out += body
            if fresh or not self.repeatable:
                self._body = None  # there is no second try
        link = self._link
        stream = local.stream
        self._local = local
        self._stream = stream
        stream.sink = self
        self._reused = not fresh
        self._phase = _HEAD
        self.since = link._pump.now
        link._unanswered.add(self)
        if stream.send(out) and self._blocked:
            link._pump.later(self, self.room)

    # what the edge calls

    def send(self, data: Buffer) -> bool:
        phase = self._phase
        if phase == _OVER:
            return True  # drained: the answer came before the end of the request
        if not data:
            return True
        if self._chunked:
            before, after = chunk(data)
            data = b"".join((before, data, after))
        body = self._body
        if body is not None:
            body += data
            if phase == _WAITING:
                self._blocked = True
                return False
            if len(body) > REPLAY_MAX:
                self._body = None
                self.repeatable = False
        self.since = self._link._pump.now
        if self._stream.send(data):
            return True
        self._blocked = True
        return False

    def finish(self, trailers: Headers = ()) -> None:
        if self._finished:
            return
        self._finished = True
        if not self._chunked or self._phase == _OVER:
            return
        end = last_chunk(trailers)
        if self._body is not None:
            self._body += end
        if self._phase != _WAITING:
            self.since = self._link._pump.now
            self._stream.send(end)

    def credit(self, size: int) -> None:
        if self._final or self._phase == _OVER:
            return
        if size > self._unpaid:
            size = self._unpaid
        self._unpaid -= size
        self._stream.credit(size)

    def reset(self) -> None:
        phase = self._phase
        if phase == _OVER:
            return
        if phase == _WAITING:
            self._link._left_queue()
        self._over()
        self._stream.reset()
        self._stream = _NOWHERE

    # the stream's sink

    def data(self, data: memoryview) -> None:
        self._unpaid += len(data)
        phase = self._phase
        if phase == _LENGTH:
            self._take_length(data)
        elif phase == _UNTIL_EOF:
            self._sink.data(data)
        elif phase == _CHUNKS:
            self._take_chunks(data)
        elif phase == _HEAD:
            self._take_head(data)

    def eof(self) -> None:
        phase = self._phase
        if phase == _UNTIL_EOF:
            self._complete(())
        elif phase == _HEAD and self._partial is None and not self._interims:
            self._closed("local-service-closed", "The local service closed the connection without an answer.")
        else:
            self._fail(502, "local-service-cut", "The local service closed the connection in the middle of its answer.")

    def room(self) -> None:
        if self._phase == _OVER:
            return
        self.since = self._link._pump.now
        if self._blocked:
            self._blocked = False
            if not self._finished:
                self._sink.room()

    def lost(self, error: LinkLost) -> None:
        local = self._local
        if local is None or self._phase == _OVER:
            return
        if isinstance(error, Crash):
            self._fail(500, "crash", "The server failed to pass on this exchange.", Hop.EDGE)
        elif local.session.over:
            self._fail(502, "agent-lost", "The connection to the agent was lost.", Hop.AGENT)
        elif isinstance(error, Expired):
            self._fail(502, "agent-silent", "The agent did not take the connection.", Hop.AGENT)
        elif self._phase != _HEAD or self._partial is not None or self._interims:
            self._fail(502, "local-service-cut", "The local service cut the connection in the middle of its answer.")
        elif self._reused:
            self._closed("local-service-closed", "The local service cut the connection without an answer.")
        else:
            self._fail(502, "local-service-refused", "The local service does not accept connections.")

    def expired(self) -> None: ...

    # deadlines and guards

    def expire(self) -> None:
        """The link's sweep found it overdue."""
        if self._phase == _WAITING:
            self._link._left_queue()
            self.give_up(_no_place(self._link))
        elif self._phase == _HEAD:
            self._fail(504, "local-service-slow", "The local service did not answer in time.")

    def give_up(self, error: HopError) -> None:
        """It waited for nothing."""
        self._over()
        self._sink.failed(error)

    def crashed(self, error: Exception) -> None:
        """A deferred call of ours raised."""
        if self._phase == _WAITING:
            self._link._left_queue()
        if self._phase != _OVER:
            self._fail(500, "crash", "The server failed to pass on this exchange.", Hop.EDGE)

    # the reply

    def _take_head(self, data: memoryview) -> None:
        """Cut heads off `data`: interim ones, then the reply's own; what follows is its body."""
        rest = data
        while self._phase == _HEAD:
            try:
                cut = self._cut_head(rest)
                if cut is None:
                    return
                raw, rest = cut
                reply = judge_reply(raw, self._head.method, REPLY_LIMITS, upgrade=self._head.block.upgrade_websocket)
            except HttpError as error:
                self._fail(502, error.code, error.detail)
                return
            status = reply.status
            if status >= 200:
                self._begin(reply, rest)
                return
            if status == 101:
                self._upgrade(reply, rest)
                return
            self._interims += 1
            if self._interims <= INTERIMS_SENT:
                self._sink.interim(reply)
            elif self._interims > INTERIMS_MAX:
                self._fail(502, "too-many-interim-answers", "The local service sends nothing but interim answers.")
            if not rest:
                return

    def _cut_head(self, data: memoryview) -> tuple[bytes, memoryview] | None:
        """One head and what follows it; None while it is incomplete, what came is kept then."""
        partial = self._partial
        if partial is None:
            peek = bytes(data[:PEEK])
            end = find_reply_head_end(peek, 0, REPLY_LIMITS)
            if end >= 0:
                return peek[:end], data[end:]
            if len(data) <= PEEK:
                self._partial = bytearray(peek)
                return None
            partial = self._partial = bytearray()
        known = len(partial)
        partial += data[: REPLY_LIMITS.total + 1]
        end = find_reply_head_end(partial, known, REPLY_LIMITS)
        if end < 0:
            return None
        self._partial = None
        return bytes(partial[:end]), data[end - known :]

    def _begin(self, reply: ReplyHead, rest: memoryview) -> None:
        self._link._unanswered.discard(self)
        self._reply = reply
        self._body = None
        self._pay_framing(len(rest))
        length = reply.body
        if length >= 0:
            self._phase = _LENGTH
            self._left = length
            self._sink.head(reply)
            if self._phase != _LENGTH:
                return
            if length == 0:
                self._extra = len(rest) > 0
                self._complete(())
            elif rest:
                self._take_length(rest)
        elif length == UNTIL_CLOSE:
            self._phase = _UNTIL_EOF
            self._sink.head(reply)
            if rest and self._phase == _UNTIL_EOF:
                self._sink.data(rest)
        else:
            self._phase = _CHUNKS
            self._reader = BodyReader(CHUNKED, _ChunkSink(self), REPLY_LIMITS)
            self._sink.head(reply)
            if rest and self._phase == _CHUNKS:
                self._take_chunks(rest)

    def _pay_framing(self, unpaid: int) -> None:
        """All but the last `unpaid` bytes are used: give credit for them, unless the end is near and will."""
        used = self._unpaid - unpaid
        reply = self._reply
        if used > 0 and (reply is None or not 0 <= reply.body <= unpaid):
            self._unpaid = unpaid
            self._stream.credit(used)

    def _take_length(self, data: memoryview) -> None:
        left = self._left
        size = len(data)
        if size < left:
            self._left = left - size
            self._sink.data(data)
            return
        self._final = True
        if size > left:
            self._extra = True
            data = data[:left]
        self._left = 0
        self._sink.data(data)
        if self._phase == _LENGTH:
            self._complete(())

    def _take_chunks(self, data: memoryview) -> None:
        reader = self._reader
        assert reader is not None
        before = self._left  # payload delivered so far
        try:
            used = reader.feed(data)
        except HttpError as error:
            if self._phase == _CHUNKS:
                self._fail(502, error.code, error.detail)
            return
        if self._phase != _CHUNKS:
            return
        if self._trailers is not None:
            self._extra = used < len(data)
            self._complete(self._trailers)
            return
        framing = used - (self._left - before)
        if framing:
            self._unpaid -= framing
            self._stream.credit(framing)

    def _take_payload(self, data: memoryview) -> None:
        if self._phase == _CHUNKS:
            self._left += len(data)
            self._sink.data(data)
            if self._phase != _CHUNKS and self._reader is not None:
                self._reader.stop()

    def _upgrade(self, reply: ReplyHead, rest: memoryview) -> None:
        """A 101: from here on the stream is a pipe of the edge's."""
        try:
            check_upgraded(self._head, reply)
        except HttpError as error:
            self._fail(502, error.code, error.detail)
            return
        stream = self._stream
        sink = self._sink
        self._pay_framing(len(rest))
        self._over()
        self._stream = _NOWHERE
        stream.sink = SILENT
        sink.upgraded(reply, stream)
        if rest:
            stream.sink.data(rest)

    # ends

    def _over(self) -> None:
        self._phase = _OVER
        self._link._unanswered.discard(self)
        self._local = None
        self._body = None
        self._partial = None

    def _complete(self, trailers: Headers) -> None:
        reply = self._reply
        local = self._local
        stream = self._stream
        sink = self._sink
        assert reply is not None
        assert local is not None
        link = self._link
        self._over()
        self._stream = _NOWHERE
        if self._unpaid:
            stream.credit(self._unpaid)
            self._unpaid = 0
        if not self._finished:
            # The answer came first: whatever the local service would take for the rest of the request is in doubt.
            stream.reset()
        elif self._extra or reply.doubtful:
            stream.reset()
        elif reply.body == UNTIL_CLOSE:
            stream.sink = SILENT  # its other half has ended
            stream.send_eof()
        elif not reply.keep_alive or local.session.goes_away:
            link._retire(local)
        else:
            if reply.owns_connection and local.owner is None:
                local.owner = local if self.visit.connection is None else self.visit.connection
            link._keep(local, reply.keep_alive_timeout)
        sink.end(trailers)

    def _closed(self, code: str, message: str) -> None:
        """The stream ended before anything of the reply came."""
        link = self._link
        if not (self._reused and self.repeatable and not self._repeated):
            self._fail(502, code, message)
            return
        self._repeated = True
        self._stream.reset()
        self._stream = _NOWHERE
        self._local = None
        link._unanswered.discard(self)
        session = link._session
        if session is not None and link._has_place(session):
            self.start(link._open(session, self.visit), fresh=True)
            return
        self._phase = _WAITING
        if self._body is None:
            self._body = bytearray()
        try:
            link._enqueue(self, first=True)
        except HopError as error:
            self.give_up(error)

    def _fail(self, status: int, code: str, message: str, hop: Hop = Hop.LOCAL_SERVICE) -> None:
        stream = self._stream
        sink = self._sink
        self._over()
        self._stream = _NOWHERE
        stream.reset()
        sink.failed(HopError(hop, status, code, message))


class _ChunkSink:
    """Where the reader of a chunked reply delivers."""

    __slots__ = ("_exchange",)

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    def data(self, data: memoryview) -> None:
        self._exchange._take_payload(data)

    def end(self, trailers: Headers) -> None:
        self._exchange._trailers = trailers


class _WaitingPipe:
    """A pipe whose stream is opened when there is a place for it; then it passes everything on."""

    __slots__ = ("_blocked", "_eof", "_link", "_over", "_pending", "_sink", "_stream", "since", "visit")

    def __init__(self, link: RustunnelLink, visit: Visit) -> None:
        self.visit = visit
        self.since = 0.0
        self._link = link
        self._sink: Sink = SILENT
        self._stream: Pipe | None = None
        self._pending = bytearray()
        self._eof = False
        self._blocked = False
        self._over = False

    @property
    def waits(self) -> bool:
        return self._stream is None and not self._over

    @property
    def sink(self) -> Sink:
        return self._sink if self._stream is None else self._stream.sink

    @sink.setter
    def sink(self, sink: Sink) -> None:
        if self._stream is None:
            self._sink = sink
        else:
            self._stream.sink = sink

    def start(self, stream: Pipe) -> None:
        stream.sink = self._sink
        self._stream = stream
        room = stream.send(self._pending) if self._pending else True
        self._pending = bytearray()
        if self._eof:
            stream.send_eof()
        elif self._blocked and room:
            self._link._pump.later(self, self._tell_room)

    def send(self, data: Buffer) -> bool:
        if self._stream is not None:
            return self._stream.send(data)
        if self._over or self._eof:
            return True
        self._pending += data
        self._blocked = True
        return False

    def send_eof(self) -> None:
        if self._stream is not None:
            self._stream.send_eof()
        self._eof = True

    def credit(self, size: int) -> None:
        if self._stream is not None:
            self._stream.credit(size)

    def reset(self) -> None:
        if self._stream is not None:
            self._stream.reset()
        elif not self._over:
            self._over = True
            self._sink = SILENT
            self._link._left_queue()

    def expire(self) -> None:
        if self.waits:
            self._link._left_queue()
            self.give_up(_no_place(self._link))

    def give_up(self, error: HopError) -> None:
        sink = self._sink
        self._over = True
        self._sink = SILENT
        sink.lost(Refused(error.message))

    def crashed(self, error: Exception) -> None:
        self.reset()

    def _tell_room(self) -> None:
        self.sink.room()


class _Nowhere:
    """The pipe of an exchange that has no stream."""

    __slots__ = ()
    sink: Sink = SILENT

    def send(self, data: Buffer) -> bool:
        return True

    def send_eof(self) -> None: ...

    def credit(self, size: int) -> None: ...

    def reset(self) -> None: ...


_NOWHERE = _Nowhere()


def _proxy_header(visit: Visit) -> bytes:
    visitor, edge = visit.visitor, visit.edge
    return proxy_header(visit.target.proxy_protocol, (visitor.ip, visitor.port), (edge.ip, edge.port))


def _no_place(link: RustunnelLink) -> HopError:
    if link.connected:
        code, message = "agent-busy", "The agent of this tunnel has no place for another visit."
    else:
        code, message = "agent-away", "The agent of this tunnel has no data connection."
    return HopError(Hop.AGENT, 503, code, message, retry_after=1)
