"""One public connection, and each request on it: machines without a loop. `phase` has its states.

`Visitor` is the sink of its connection: it cuts heads, routes them, and passes the body on. `Turn` is the sink
of one exchange: it writes the reply. A turn that is over hears nothing, so a late callback cannot hit
the next request.

Credit: input is paid for when it is consumed. What waits (a partial head, pipelined requests, all that comes
while parked or before a 101) stays unpaid, so reading stops by itself at the connection's read-ahead. A reply's bytes
are paid for when the connection took them, or at its next `room`.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog

from rustunnel_py.edges.admission import Admission
from rustunnel_py.edges.deadlines import Ending, next_due, overdue, quiet_seconds
from rustunnel_py.edges.pages import Page, Problem, front_page, problem_page, redirect_page
from rustunnel_py.edges.parked import no_such_tunnel
from rustunnel_py.edges.phase import Phase
from rustunnel_py.edges.turn import Collected, Turn, Upload
from rustunnel_py.edges.upgrade import switch
from rustunnel_py.errors import Hop, HopError, HttpError
from rustunnel_py.hub.gate import PASS
from rustunnel_py.model.bucket import source_of
from rustunnel_py.model.visit import Visit, VisitKind
from rustunnel_py.wire.http1 import (
    BodyReader,
    find_head_end,
    forwarded_lines,
    judge_request,
    skip_leading_empty_lines,
)
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from rustunnel_py.edges.access_log import AccessLog
    from rustunnel_py.edges.deadlines import Overdue
    from rustunnel_py.edges.limits import EdgeLimits
    from rustunnel_py.edges.parked import Parking
    from rustunnel_py.edges.shared import Shared
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.relay import RelayEnd
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestBlock, RequestHead
    from rustunnel_py.wire.sink import Pipe

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

VISITOR_LEFT = 499  # what is told of a visit whose visitor left before the reply; nginx's number
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# Looked up once: an enum's member costs two look-ups each time.
_HEAD, _FULL, _PARKED, _COLLECT = Phase.HEAD, Phase.FULL, Phase.PARKED, Phase.COLLECT
_BODY, _REPLY, _UPGRADED, _DONE = Phase.BODY, Phase.REPLY, Phase.UPGRADED, Phase.DONE
_HANDED_OVER = Phase.HANDED_OVER
_HTTP = VisitKind.HTTP


class Visitor:
    """One public connection. Made by the edge, which hears when the connection is gone."""

    __slots__ = (
        "_block",
        "_forwarded",
        "_head",
        "_held",
        "_local",
        "_origin",
        "_peer",
        "_pipe",
        "_raw",
        "_reader",
        "_scheme",
        "_searched",
        "_served",
        "_shared",
        "_sni",
        "_source",
        "connection",
        "delivered",
        "ended",
        "full_since",
        "phase",
        "quiet_since",
        "since",
        "turn",
    )

    def __init__(self, shared: Shared, connection: Connection, *, source: str = "", sni: str | None = None) -> None:
        self._shared = shared
        self.connection = connection
        self._source = source  # what its address counts as
        self._peer: Peer = connection.peer
        self._local: Peer = connection.local
        self._origin = self._peer  # who really came, where the peer is a trusted proxy
        self._scheme = shared.scheme
        self._sni = None if sni is None else sni.lower()  # the name that the TLS client asked for
        self._held = bytearray()  # input not consumed yet, all of it unpaid
        self._searched = 0  # so far there is no end of a head in it
        self._raw = b""  # the last head that was judged: the next one is often the same
        self._head: RequestHead | None = None
        self._block: RequestBlock | None = None
        self._forwarded = b""
        self._reader: BodyReader | None = None
        self._pipe: Pipe | None = None
        self._served = False  # something was answered
        # For `deadlines`, too.
        self.phase = _HEAD
        self.turn: Turn | None = None  # the request under way
        self.ended = False  # the visitor's side
        self.since = shared.pump.now  # when the phase began
        self.full_since = math.inf  # the output; begun anew with each look at how fast it is read
        self.delivered = 0  # of the output, at that look
        self.quiet_since = self.since  # of the turn, as far as looks tell
        connection.sink = self
        connection.due = self.since + shared.limits.header_seconds

    def __repr__(self) -> str:
        return f"<Visitor {self._peer} {self.phase.name} {self.turn or ''}>"

    @property
    def is_handed_over(self) -> bool:
        """`take_control` took the connection; it is no visitor any more."""
        return self.phase is _HANDED_OVER

    # what the connection calls

    def data(self, data: memoryview) -> None:
        try:
            phase = self.phase
            if phase is _HEAD and not self._held:
                self._first_bytes(bytes(data))
            elif phase is _BODY or phase is _COLLECT:
                if self._held:
                    self._held += data
                    self._feed_held()
                else:
                    self._feed(data)
                if self._held and self.phase is _HEAD:
                    self._next()
            elif phase is not _DONE:
                self._held += data
                if phase is _HEAD:
                    self._next()
        except Exception as error:
            self._shared.pump.crash(self, error)

    def eof(self) -> None:
        try:
            self.ended = True
            phase = self.phase
            if phase is _HEAD or (phase is _FULL and not self._holds_request()):
                self._finish()
            elif phase is _BODY or phase is _COLLECT:
                self._refuse(HttpError(400, "cut-body", "The request ended before its body was complete."))
            elif phase is _REPLY and self.turn is not None:
                now = self._shared.pump.now
                quiet_seconds(self, self.turn, now)  # from here on something has to move
                connection = self.connection
                connection.due = min(connection.due, now + self._shared.limits.half_closed_seconds)
        except Exception as error:
            self._shared.pump.crash(self, error)

    def room(self) -> None:
        try:
            self.full_since = math.inf
            turn = self.turn
            if turn is not None:
                turn.pay()
            elif self.phase is _FULL:
                self._idle()
                self._next()
        except Exception as error:
            self._shared.pump.crash(self, error)

    def lost(self, error: LinkLost) -> None:
        self._leave()

    def expired(self) -> None:
        try:
            now = self._shared.pump.now
            late = overdue(self, now)
            if late is not None:
                self._end_late(late)
                self.go_on()
            elif self.phase is not _DONE:
                self.connection.due = next_due(self, now)
        except Exception as error:
            self._shared.pump.crash(self, error)

    def crashed(self, error: Exception) -> None:
        """A callback of ours raised (the guard has counted it): a 500, or a cut where a reply is under way."""
        self.give_up(HopError(Hop.EDGE, 500, "crash", "This server made a mistake."))

    # what a turn asks

    @property
    def ends_soon(self) -> bool:
        """No request will follow the present one.

        What was sent early to a WebSocket that did not come to be is no request, whatever it looks like. A visitor that
        ended its side behind several requests has an answer to each.
        """
        return (
            (self.ended and not self._holds_request())
            or self._shared.draining
            or (bool(self._held) and self._awaits_switch())
        )

    @property
    def access_log(self) -> AccessLog | None:
        return self._shared.access

    @property
    def interims_max(self) -> int:
        return self._shared.limits.interims

    def _holds_request(self) -> bool:
        """What is held begins with a whole head, or with what can be none and is to be refused."""
        held = self._held
        try:
            return find_head_end(held, skip_leading_empty_lines(held), self._shared.limits.heads) >= 0
        except HttpError:
            return True

    def _awaits_switch(self) -> bool:
        return self.turn is not None and self.turn.request.is_upgrade

    def body_goes_on(self) -> None:
        """It was not the visitor who was slow: its body is timed from now on."""
        if self.phase is _BODY:
            self.connection.due = next_due(self, self._shared.pump.now)

    # what `deadlines` asks

    @property
    def limits(self) -> EdgeLimits:
        return self._shared.limits

    @property
    def holds_input(self) -> bool:
        return bool(self._held)

    # what the edge calls

    def drain(self) -> None:
        """The server stops: an idle connection ends now, others with `Connection: close` after their reply."""
        if (self.phase is _HEAD and not self._held) or self.phase is _FULL:
            self._finish()

    def end(self) -> None:
        """The time is over: work under way is cut, and looks cut; what still flushes or lingers ends at once."""
        if self.phase is _DONE:
            self.connection.abort()
            return
        idle = self.turn is None
        self._leave(Hop.EDGE, "server-stopped")
        if idle:
            self.connection.close()
        else:
            self.connection.cut()

    def gone(self) -> None:
        """The connection's socket is closed."""
        self._leave()

    # heads

    def _first_bytes(self, raw: bytes) -> None:
        """Input while idle. Almost always one whole head, which is taken without a copy into the buffer."""
        if raw == self._raw:
            self._take(raw, len(raw))
            return
        if raw[0] != 13:
            try:
                end = find_head_end(raw, 0, self._shared.limits.heads)
            except HttpError as error:
                self._refuse(error, raw)
                return
            if end == len(raw):
                self._take(raw, end)
                return
        self._held += raw
        if self._served:  # the first head's time began with the connection
            self.connection.due = self._shared.pump.now + self._shared.limits.header_seconds
        self._next()

    def go_on(self) -> None:
        """After whatever may have answered a request: the pipelined ones behind it.

        For what the pump, a link or a parked task calls, and for nothing that `_next` leads to: its loop goes on by
        itself, however many requests of a segment are answered at once. A crash is that of the next request, and not
        of its caller.
        """
        try:
            if self._held and self.phase is _HEAD:
                self._next()
        except Exception as error:
            self._shared.pump.crash(self, error)

    def _next(self) -> None:
        """Take requests from what is held, as long as nothing is under way."""
        held = self._held
        while held and self.phase is _HEAD:
            try:
                start = skip_leading_empty_lines(held) if held[0] == 13 else 0
                end = find_head_end(held, max(start, self._searched), self._shared.limits.heads)
            except HttpError as error:
                self._refuse(error)
                return
            if end < 0:
                self._searched = len(held)
                return
            raw = bytes(held[start:end])
            del held[:end]
            self._searched = 0
            if start:
                self.connection.credit(start)
            self._take(raw, end - start)

    def _take(self, raw: bytes, size: int) -> None:
        """One request's head: judge it, route it, let the tunnel's policies see it, send it to a link."""
        shared = self._shared
        connection = self.connection
        head = self._head
        if head is None or raw != self._raw:
            known = self._block
            try:
                head = judge_request(raw, shared.limits.heads, known, memory=shared.blocks, scheme=shared.scheme)
            except HttpError as error:
                connection.credit(size)
                self._refuse(error, raw)
                return
            self._head = head
            self._raw = raw
            if head.block is not known:
                self._remember(head.block, known)
        block = head.block
        tunnel = shared.find_host(block.host)
        if tunnel is None:
            self._unknown(head, raw, size)
            return
        connection.credit(size)
        now = shared.pump.now
        visit = Visit(
            shared.ids.next(),
            tunnel.id,
            _HTTP,
            self._origin,
            self._local,
            self._scheme,
            self._forwarded,
            tunnel.target,
            connection,
            now,
        )
        turn = self.turn = Turn(self, connection, tunnel, visit, head)
        tunnel.requests += 1
        if shared.watch is not None:
            turn.tap = shared.watch(tunnel, visit, head)
        if block.body or self._sni is not None or shared.is_choosy:
            refused = self._refused(tunnel, head, now)
            if refused is not None:
                self.give_up(refused)
                return
            if shared.redirect_port is not None and self._scheme == "http":
                self.answer_turn(turn, redirect_page(head, shared.redirect_port))
                return
        gate = tunnel.gate
        if gate is not None:
            verdict = gate.admit(tunnel, visit, head)
            if verdict is not PASS:
                Admission(self, turn).judged(gate, verdict)
                return
            turn.gate = gate
        link = tunnel.links.pick(visit)
        if link is None:
            Admission(self, turn).wait_for_link()
        else:
            self.send_to(turn, link)

    def _remember(self, block: RequestBlock, known: RequestBlock | None) -> None:
        """A new header block: work out what depends on its Host."""
        shared = self._shared
        self._block = block
        host = block.host_line
        proxied = shared.trusted is not None and self._peer.ip in shared.trusted
        if proxied and shared.trusted is not None:
            self._origin = shared.trusted.visitor(block.headers, self._peer)
            self._scheme = shared.trusted.scheme(block.headers, shared.scheme)
            self._source = source_of(self._origin.ip)
            host = shared.trusted.host(block.headers, host)
        if proxied or known is None or known.host_line != block.host_line:
            port = block.port if block.port is not None else 443 if self._scheme == "https" else 80
            self._forwarded = forwarded_lines(self._origin.ip, self._scheme, host, port)

    def _refused(self, tunnel: Tunnel, head: RequestHead, now: float) -> HopError | None:
        """The edge's own limits, and H45."""
        shared = self._shared
        sni = self._sni
        if sni is not None and sni != head.block.host and shared.find_host(sni) is not None:
            return HopError(Hop.EDGE, 421, "misdirected", "This connection was opened for another host.")
        if shared.rates is not None:
            wait = shared.rates.take(self._source, now)
            if wait:
                message = "Too many requests from your address."
                return HopError(Hop.EDGE, 429, "too-many-requests", message, retry_after=wait)
        most = shared.limits.body_max_bytes
        if most and head.block.body > most:
            return HopError(Hop.EDGE, 413, "body-too-large", f"A request's body may have {most} bytes.")
        return None

    def _unknown(self, head: RequestHead, raw: bytes, size: int) -> None:
        """A host that is no tunnel: the server's own name, or nobody's."""
        shared = self._shared
        if not shared.is_bare(head.host):
            self.connection.credit(size)
            self._answer_problem(Problem.of_hop(no_such_tunnel()), head)
            return
        take_control = shared.take_control
        if take_control is not None and not self.ended:  # whoever takes it has to hear its end
            held = raw + bytes(self._held)
            self.connection.due = math.inf  # none of ours is left; where it is not taken, the answer sets the next one
            if take_control(self.connection, head, held):
                self.phase = _HANDED_OVER  # the connection has another sink now; what came is still unpaid
                self._held.clear()
                return
        self.connection.credit(size)
        if head.method in (b"GET", b"HEAD"):
            self._answer(front_page(_accept(head), always_https=shared.always_https), head)
        else:
            allow = ((b"Allow", b"GET, HEAD"),)
            self._answer_problem(Problem(405, "method", "There is nothing to do here.", headers=allow), head)

    # the way to a link, of which `admission` decides

    @property
    def parking(self) -> Parking | None:
        return self._shared.parking

    def send_to(self, turn: Turn, link: Link, body: bytes | None = None, trailers: Headers = ()) -> None:
        """Start the exchange. `body`: it was read already, for a policy."""
        shared = self._shared
        head = turn.request
        try:
            exchange = turn.exchange = link.exchange(turn.visit, head, turn)
        except HopError as error:
            self.give_up(error)
            return
        self.since = now = shared.pump.now
        if turn.tap is not None:
            turn.tap.begun()
        if body is None and head.block.body:
            turn.uploaded = False
            self.phase = _BODY
            self._reader = BodyReader(head.block.body, Upload(turn, shared.limits.body_max_bytes), shared.limits.heads)
            self.connection.due = now + shared.limits.body_window_seconds
            if self._held:
                self._feed_held()
            if self.ended:
                self.eof()
            return
        if body:
            exchange.send(body)
        turn.uploaded = True
        exchange.finish(trailers)
        self.phase = _REPLY
        self.connection.due = now + shared.reply_look_seconds
        if self.ended:
            self.eof()

    def park(self, turn: Turn, start: Callable[[], trio.CancelScope]) -> None:
        try:
            turn.scope = start()
        except HopError as error:
            self.give_up(error)
            return
        self.phase = _PARKED
        self.connection.due = math.inf  # the parked task has its own deadline

    def unparked(self, turn: Turn) -> bool:
        """Whether a resumed wait still concerns anybody."""
        if self.turn is not turn or self.phase is not _PARKED:
            return False
        turn.scope = None
        return True

    # request bodies

    def collect(self, turn: Turn, limit: int, done: Callable[[bytes, Headers], None]) -> None:
        """Read the body for a policy; `done` hears all of it."""
        limits = self._shared.limits
        turn.uploaded = False
        self.phase = _COLLECT
        self.since = self._shared.pump.now
        self._reader = BodyReader(turn.request.body, Collected(limit, turn, done), limits.heads)
        self.connection.due = self.since + limits.body_window_seconds
        if turn.request.expects_continue:
            turn.continued = True
            self.connection.send(CONTINUE)
        if self._held:
            self._feed_held()
        if self.ended and self.phase is _COLLECT:
            self.eof()

    def _feed_held(self) -> None:
        rest = bytes(self._held)
        self._held.clear()
        self._feed(memoryview(rest))

    def _feed(self, data: memoryview) -> None:
        """Body bytes, and perhaps what follows them."""
        turn, reader = self.turn, self._reader
        if turn is None or reader is None:
            raise RuntimeError(f"a body without a request: {self!r}")
        try:
            used = reader.feed(data)
        except HttpError as error:
            self.connection.credit(len(data))
            self._refuse(error)
            return
        if turn.blocked:
            turn.owed_input += used
        else:
            self.connection.credit(used)
        turn.input_seen += used
        turn.continued = True  # who sends has stopped waiting for a 100
        if used < len(data) and self.phase is not _DONE:
            self._held += data[used:]
        if reader.done and self.turn is turn:
            self._reader = None
            if self.phase is _BODY:
                self.phase = _REPLY
                self.since = now = self._shared.pump.now
                self.connection.due = now + self._shared.reply_look_seconds
            else:
                self.phase = _PARKED  # settled at once; nothing more is read
                collected = reader.sink
                assert isinstance(collected, Collected)
                collected.tell()

    # answers of our own

    def _refuse(self, error: HttpError, raw: bytes = b"") -> None:
        """The request is bad as it stands, or turned bad on its way: nothing of it may look complete.

        `raw`: what is not held of a head that could not be judged.
        """
        turn = self.turn
        problem = Problem.of_request(error)
        visit_id = self._shared.ids.next() if turn is None else turn.visit.id
        self._count(problem, visit_id)
        if turn is None:
            self._note_access(None, problem.status, visit_id)
            page = problem_page(problem, _accept_of(self._block), visit_id)
            self._write(page, head_only=(raw or self._held).startswith(b"HEAD "), close=True, minor=1)
            self._finish(linger=True)
            return
        turn.status = problem.status
        if turn.tap is not None:
            turn.tap.failed(Hop.EDGE, error.code)
        self._stop_exchange(turn)
        if turn.head_sent:
            self._cut(turn)
            return
        page = problem_page(problem, _accept(turn.request), visit_id)
        self._write(page, head_only=turn.request.method == b"HEAD", close=True, minor=turn.request.minor)
        self._close_turn(turn)
        self._finish(linger=True)

    def give_up(self, error: HopError) -> None:
        """The present request fails here: a page while nothing of a reply was sent, else a cut."""
        turn = self.turn
        if self.phase is _DONE:
            return
        if turn is None:
            self._answer_problem(Problem.of_hop(error), None)
            return
        if turn.tap is not None:
            turn.tap.failed(error.hop, error.code)
        if self.phase is _UPGRADED or turn.head_sent:
            self._shared.census.count(error.code)
            log.debug("reply cut", hop=error.hop.value, code=error.code, visit=turn.visit.id, peer=str(self._peer))
            self._stop_exchange(turn)
            self._cut(turn)
            return
        problem = Problem.of_hop(error, self._away_since(turn.tunnel) if error.code == "agent-away" else None)
        self._count(problem, turn.visit.id)
        self.answer_turn(turn, problem_page(problem, _accept(turn.request), turn.visit.id))

    def _away_since(self, tunnel: Tunnel) -> datetime | None:
        since = tunnel.links.away_since
        return None if since is None else datetime.now(UTC) - timedelta(seconds=self._shared.pump.now - since)

    def answer_turn(self, turn: Turn, page: Page) -> None:
        """A page instead of a reply to the present request."""
        self._stop_exchange(turn)
        request = turn.request
        turn.status = page.status
        if turn.tap is not None:
            turn.tap.answered(page.lines, page.body)
        unread = not turn.uploaded and request.block.body != 0
        close = unread or self.ends_soon or not request.keep_alive or page.status == 500
        self._write(page, head_only=request.method == b"HEAD", close=close, minor=request.minor)
        self._close_turn(turn)
        if close:
            self._finish(linger=unread)
        else:
            self._idle()

    def _answer_problem(self, problem: Problem, head: RequestHead | None) -> None:
        visit_id = self._shared.ids.next()
        self._count(problem, visit_id)
        self._note_access(head, problem.status, visit_id)
        self._answer(problem_page(problem, b"" if head is None else _accept(head), visit_id), head)

    def _answer(self, page: Page, head: RequestHead | None) -> None:
        """A page where no tunnel is concerned."""
        close = head is None or head.body != 0 or not head.keep_alive or self.ends_soon
        head_only = head is not None and head.method == b"HEAD"
        self._write(page, head_only=head_only, close=close, minor=1 if head is None else head.minor)
        if close:
            self._finish(linger=head is None or head.body != 0)
        else:
            self._idle()

    def _write(self, page: Page, *, head_only: bool, close: bool, minor: int) -> None:
        self._served = True
        data = page.render(head_only=head_only, close=close, minor=minor, now=datetime.now(UTC))
        if not self.connection.send(data):
            self.stalled()

    def _note_access(self, head: RequestHead | None, status: int, visit_id: str) -> None:
        """What no tunnel served; what one did is noted when its turn is over."""
        access = self._shared.access
        if access is not None:
            access.request(self._origin, head, status, 0, None, visit_id, self._scheme)

    def _count(self, problem: Problem, visit_id: str) -> None:
        self._shared.census.count(problem.code)
        log.debug(
            "answered by the edge", status=problem.status, code=problem.code, visit=visit_id, peer=str(self._peer)
        )

    # ends

    def stalled(self) -> None:
        """The output is full: from now on the visitor has to read at a rate."""
        if self.full_since == math.inf:
            now = self.full_since = self._shared.pump.now
            connection = self.connection
            self.delivered = connection.delivered
            connection.due = min(connection.due, now + self._shared.limits.send_window_seconds)

    def turn_over(self, turn: Turn) -> None:
        """The reply is complete: the next request, or the end."""
        self._served = True
        last = turn.close or self.ends_soon
        self._close_turn(turn)
        exchange, turn.exchange = turn.exchange, None  # each knows the other: left so, only the collector frees them
        if not turn.uploaded:
            if exchange is not None:
                exchange.reset()  # its request never becomes complete
            self._finish(linger=True)
        elif last:
            self._finish()
        else:
            self._idle()
            if self._held:
                self.go_on()

    def turn_failed(self, turn: Turn, error: HopError) -> None:
        turn.exchange = None  # it has ended by itself
        self.give_up(error)
        self.go_on()

    def switched(self, turn: Turn, reply: ReplyHead, pipe: Pipe) -> None:
        """A 101 that fits: from here on the relay has the connection."""
        early = bytes(self._held)
        self._held.clear()
        self.phase = _UPGRADED
        self._pipe = pipe
        turn.status = reply.status
        turn.reply = reply
        turn.exchange = None
        tap = turn.tap
        if tap is not None:
            tap.upgraded(reply)
        switch(
            self._shared.pump,
            self.connection,
            pipe,
            reply,
            early,
            ended=self.ended,
            on_end=self._relay_ended,
            tap=None if tap is None else tap.relayed,
        )

    def _relay_ended(self, end: RelayEnd) -> None:
        turn = self.turn
        self._pipe = None
        if turn is not None:
            turn.forwarded += end.forth
            turn.output += end.back
            self._close_turn(turn)
        self.phase = _DONE

    def _idle(self) -> None:
        """Ready for the next request, as soon as the output has room."""
        shared = self._shared
        self.since = now = shared.pump.now
        if self.full_since == math.inf:
            self.phase = _HEAD
            seconds = shared.limits.header_seconds if self._held else shared.limits.idle_seconds
            self.connection.due = now + seconds
        else:
            self.phase = _FULL
            self.connection.due = self.full_since + shared.limits.send_window_seconds

    def _close_turn(self, turn: Turn, *, cut: bool = False) -> None:
        """What a visit took is given back, and who watches is told; once, however it ended."""
        self.turn = None
        self._reader = None
        turn.settle(self._shared.pump.now, cut)

    def _stop_exchange(self, turn: Turn) -> None:
        exchange, turn.exchange = turn.exchange, None
        if exchange is not None:
            exchange.reset()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.sink = SILENT
            pipe.reset()

    def _cut(self, turn: Turn) -> None:
        """A reply that cannot become complete must not look so (rule 12)."""
        self._close_turn(turn, cut=True)
        self.phase = _DONE
        self._held.clear()
        self.connection.cut()

    def _finish(self, *, linger: bool = False) -> None:
        self.phase = _DONE
        unread = linger or bool(self._held)
        self._held.clear()
        if unread:
            self.connection.close_lingering()
        else:
            self.connection.close()

    def _leave(self, hop: Hop | None = None, code: str = Ending.LEFT.value) -> None:
        """The visitor is gone, or has to go: nothing of it stays."""
        if self.phase is _DONE and self.turn is None:
            return
        self.phase = _DONE
        self._held.clear()
        turn = self.turn
        if turn is not None:
            turn.status = turn.status or VISITOR_LEFT
            if turn.tap is not None:
                turn.tap.failed(hop, code)
            self._stop_exchange(turn)
            self._close_turn(turn, cut=turn.head_sent)

    def _end_late(self, late: Overdue) -> None:
        if isinstance(late, HopError):
            self.give_up(late)
        elif isinstance(late, HttpError):
            self._refuse(late)
        elif late is Ending.IDLE:
            self._finish()
        else:
            if late is Ending.SLOW_READER:
                self._shared.census.count(late.value)
            self._leave(code=late.value)
            self.connection.abort()


def _accept(head: RequestHead) -> bytes:
    return _accept_of(head.block)


def _accept_of(block: RequestBlock | None) -> bytes:
    """The Accept that asks for a form of page; only read for pages of our own."""
    if block is None:
        return b""
    return b",".join(value for name, value in block.headers if name.lower() == b"accept")
