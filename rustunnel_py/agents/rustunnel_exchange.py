"""One request and its reply on a stream of a rustunnel link: a machine between the edge and the local service.

    waiting ── a place ──► head ──► length | chunks | until eof ──► over
                            ▲ │
                            └─┴─ 1xx;  a stale kept stream: once more, on a fresh one

It is an `Exchange` for the edge, and the sink of its stream while it lasts. Bodies by length, by far the most, are cut
here; chunks go through `BodyReader`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.errors import Crash, Expired, Hop, HopError, HttpError
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
from rustunnel_py.wire.proxy import encode as encode_proxy
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from rustunnel_py.agents.rustunnel_link import Local, RustunnelLink
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.hub.link import ExchangeSink
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Buffer, Pipe, Sink

REPLAY_MAX = 64 * 1024  # a body up to here is kept at hand for the one retry
INTERIMS_SENT = 16  # 1xx heads of one reply that are passed on; 103 comes once or twice in practice
INTERIMS_MAX = 1000  # 1xx heads after which a local service is taken for broken (H50)
KNOWN_MAX = 2048  # a longer head is not remembered
PEEK = 4096  # heads are nearly always shorter; copying more of a bulk view would cost

# What an exchange is at.
_WAITING = 0  # for a stream
_HEAD = 1  # reading heads of the reply
_LENGTH = 2
_CHUNKS = 3
_UNTIL_EOF = 4
_OVER = 5


class LinkExchange:
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
        self._local: Local | None = None
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

    def may_use(self, local: Local) -> bool:
        visit = self.visit
        return local.tunnel_id == visit.tunnel_id and local.owner is None and not visit.target.proxy_protocol

    def start(self, local: Local, *, fresh: bool) -> None:
        """Write the head, and what has come of the body, to a stream."""
        head = self._head
        visit = self.visit
        block = head.block
        target = visit.target
        out = render_request(head, target.host_header, visit.forwarded, body=block.body)
        if fresh and target.proxy_protocol:
            out = encode_proxy(target.proxy_protocol, visit.visitor, visit.edge) + out
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
        self.since = link.pump.now
        link.unanswered.add(self)
        if stream.send(out) and self._blocked:
            link.pump.later(self, self.room)

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
        self.since = self._link.pump.now
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
            self.since = self._link.pump.now
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
            self._link.left_queue(self)
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
        self.since = self._link.pump.now
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
            self._link.left_queue(self)
            self.give_up(self._link.no_place())
        elif self._phase == _HEAD:
            self._fail(504, "local-service-slow", "The local service did not answer in time.")

    def give_up(self, error: HopError) -> None:
        """It waited for nothing."""
        self._over()
        self._sink.failed(error)

    def crashed(self, error: Exception) -> None:
        """A deferred call of ours raised."""
        if self._phase == _WAITING:
            self._link.left_queue(self)
        if self._phase != _OVER:
            self._fail(500, "crash", "The server failed to pass on this exchange.", Hop.EDGE)

    # the reply

    def _take_head(self, data: memoryview) -> None:
        """Cut heads off `data`: interim ones, then the reply's own; what follows is its body."""
        local = self._local
        assert local is not None
        method = self._head.method
        known = local.known
        if known is not None and known[0] == method and self._partial is None:
            raw = known[1]
            size = len(raw)
            if bytes(data[:size]) == raw:
                self._begin(known[2], data[size:])
                return
        rest = data
        while self._phase == _HEAD:
            try:
                cut = self._cut_head(rest)
                if cut is None:
                    return
                raw, rest = cut
                reply = judge_reply(raw, method, REPLY_LIMITS, upgrade=self._head.block.upgrade_websocket)
            except HttpError as error:
                self._fail(502, error.code, error.detail)
                return
            status = reply.status
            if status >= 200:
                if len(raw) <= KNOWN_MAX:
                    local.known = method, raw, reply
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
        self._link.unanswered.discard(self)
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
        self._link.unanswered.discard(self)
        self._local = None
        self._body = None
        self._partial = None
        reader, self._reader = self._reader, None  # which knows us: left so, only the collector frees both
        if reader is not None:
            reader.stop()

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
            link.retire(local)
        else:
            if reply.owns_connection and local.owner is None:
                local.owner = local if self.visit.connection is None else self.visit.connection
            link.keep(local, reply.keep_alive_timeout)
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
        link.unanswered.discard(self)
        session = link.session
        if session is not None and link.has_place(session, self.visit.tunnel_id):
            self.start(link.open_local(session, self.visit), fresh=True)
            return
        self._phase = _WAITING
        if self._body is None:
            self._body = bytearray()
        try:
            link.enqueue(self, first=True)
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

    def __init__(self, exchange: LinkExchange) -> None:
        self._exchange = exchange

    def data(self, data: memoryview) -> None:
        self._exchange._take_payload(data)

    def end(self, trailers: Headers) -> None:
        self._exchange._trailers = trailers


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
