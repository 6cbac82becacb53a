"""One request of a visitor, from its head to its end: the sink of its exchange, which writes the reply."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.edges.upgrade import refused_switch
from rustunnel_py.errors import HttpError
from rustunnel_py.wire.http1 import CHUNKED, UNTIL_CLOSE, chunk, last_chunk, render_reply, reply_framing
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable

    import trio

    from rustunnel_py.edges.shared import Tap
    from rustunnel_py.edges.visitor import Visitor
    from rustunnel_py.errors import HopError
    from rustunnel_py.hub.gate import Gate, Wait
    from rustunnel_py.hub.link import Exchange, Link
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Pipe

SMALL_CHUNK = 4096  # up to here one copy is cheaper than three sends
_EVENTS = b"text/event-stream"


class Turn:
    """One request of a visitor, and the sink of its exchange."""

    __slots__ = (
        "_framing",
        "_interims",
        "_owed",
        "blocked",
        "close",
        "connection",
        "continued",
        "exchange",
        "forwarded",
        "gate",
        "input_seen",
        "output",
        "over",
        "owed_input",
        "passed",
        "reply",
        "request",
        "scope",
        "status",
        "tap",
        "tunnel",
        "uploaded",
        "visit",
        "visitor",
        "wait",
        "wrap",
    )

    def __init__(
        self, visitor: Visitor, connection: Connection, tunnel: Tunnel, visit: Visit, request: RequestHead
    ) -> None:
        self.visitor = visitor
        self.connection = connection
        self.tunnel = tunnel
        self.visit = visit
        self.request = request
        self.exchange: Exchange | None = None
        self.gate: Gate | None = None  # the one that admitted it and is owed a `leave`
        self.wait: Wait | None = None  # a policy that it waits for
        self.wrap: Callable[[Link], Link] | None = None
        self.scope: trio.CancelScope | None = None  # of its parked task
        self.tap: Tap | None = None
        self.status = 0
        self.uploaded = False  # the request is complete
        self.blocked = False  # the link has no room
        self.owed_input = 0  # consumed while blocked, not yet credited
        self.input_seen = 0  # since the body's rate was last looked at
        self.continued = False  # a 100 went out, or is not needed any more
        self.reply: ReplyHead | None = None  # as soon as it is passed on
        self.close = False  # the connection ends with this reply
        self.forwarded = 0  # payload of the request
        self.output = 0  # payload of the reply
        self.passed = -1  # either way, when it was last looked at (`deadlines`)
        self.over = False
        self._framing = 0
        self._interims = 0
        self._owed = 0  # payload taken while the output was full

    def __repr__(self) -> str:
        return f"<Turn {self.request.method.decode('ascii')} {self.visit.id} {self.status or ''}>"

    # what the link calls

    def interim(self, head: ReplyHead) -> None:
        """Passed on to HTTP/1.1, up to a number; of 100 at most one, and none once the body comes."""
        if self.over or self.reply is not None or self.request.minor == 0:
            return
        if head.status == 100:
            if self.continued:
                return
            self.continued = True
            self.visitor.body_goes_on()
        self._interims += 1
        visitor = self.visitor
        if self._interims <= visitor.interims_max and not self.connection.send(
            render_reply(head, body=0, minor=1, close=False)
        ):
            visitor.stalled()

    def head(self, head: ReplyHead) -> None:
        if self.over:
            return
        request = self.request
        self.status = head.status
        self.reply = head
        framing = self._framing = reply_framing(head, request.minor)
        close = self.close = (
            not self.uploaded or framing == UNTIL_CLOSE or not request.keep_alive or self.visitor.ends_soon
        )
        if self.tap is not None:
            self.tap.head(head)
        if not self.connection.send(render_reply(head, body=framing, minor=request.minor, close=close)):
            self.visitor.stalled()

    def data(self, data: memoryview) -> None:
        if self.over:
            return
        size = len(data)
        self.output += size
        if self.tap is not None:
            self.tap.data(data)
        connection = self.connection
        if self._framing != CHUNKED:
            room = connection.send(data)
        elif size <= SMALL_CHUNK:
            room = connection.send(b"".join((b"%x\r\n" % size, data, b"\r\n")))
        else:
            before, after = chunk(data)
            connection.send(before)
            connection.send(data)
            room = connection.send(after)
        if room:
            exchange = self.exchange
            if exchange is not None:
                exchange.credit(size)
        else:
            self._owed += size
            self.visitor.stalled()

    def end(self, trailers: Headers) -> None:
        if self.over:
            return
        if trailers and self.tap is not None:
            self.tap.reply_trailers(trailers)
        if self._framing == CHUNKED and not self.connection.send(last_chunk(trailers)):
            self.visitor.stalled()
        self.visitor.turn_over(self)

    def room(self) -> None:
        """The link takes more of the request's body."""
        if self.over or not self.blocked:
            return
        self.blocked = False
        owed, self.owed_input = self.owed_input, 0
        self.visitor.body_goes_on()
        if owed:
            self.connection.credit(owed)

    def upgraded(self, head: ReplyHead, pipe: Pipe) -> None:
        refused = None if self.over else refused_switch(self.request, head)
        if self.over or refused is not None:
            pipe.sink = SILENT
            pipe.reset()
            if refused is not None:
                self.visitor.turn_failed(self, refused)
            return
        self.visitor.switched(self, head, pipe)

    def failed(self, error: HopError) -> None:
        if not self.over:
            self.visitor.turn_failed(self, error)

    # what the visitor calls

    @property
    def waits_for_continue(self) -> bool:
        """The visitor holds its body back until it hears 100: it is not the slow one."""
        return not self.continued and self.request.expects_continue

    @property
    def head_sent(self) -> bool:
        return self.reply is not None

    @property
    def is_event_stream(self) -> bool:
        """Nothing may come for as long as nothing happens (HTML, server-sent events)."""
        lines = () if self.reply is None else self.reply.headers
        return any(name.lower() == b"content-type" and _is_events(value) for name, value in lines)

    def wrapped(self, link: Link) -> Link:
        return link if self.wrap is None else self.wrap(link)

    def pay(self) -> None:
        """The output has room again."""
        owed, self._owed = self._owed, 0
        if owed and self.exchange is not None:
            self.exchange.credit(owed)

    def settle(self, now: float, cut: bool) -> None:
        """It is over. Gives back what policies hold and tells who watches; the second call does nothing.

        `cut`: its reply had begun, and was not whole.
        """
        if self.over:
            return
        self.over = True
        scope = self.scope
        if scope is not None:
            scope.cancel()
        if self.wait is not None:
            self.wait.abandon()
        if self.gate is not None:
            self.gate.leave(self.visit)
        if self.owed_input:  # a reply that ended before the link had room: its `room` will not come any more
            owed, self.owed_input = self.owed_input, 0
            self.connection.credit(owed)
        tell, tap, access = self.tunnel.tell, self.tap, self.visitor.access_log
        milliseconds = (now - self.visit.arrived) * 1000.0
        self.tunnel.tally.request(self.status, milliseconds, self.forwarded, self.output)
        if access is not None:
            visit = self.visit
            access.request(
                visit.visitor, self.request, self.status, self.output, milliseconds, visit.id, visit.scheme, cut=cut
            )
        if tell is not None or tap is not None:
            if tap is not None:
                tap.over(self.status, milliseconds)
            if tell is not None:
                tell(self.request.method, self.request.target, self.status, milliseconds, self.visit.id, cut)


class Upload:
    """Passes a request's body to its exchange."""

    __slots__ = ("_most", "_size", "_turn")

    def __init__(self, turn: Turn, most: int) -> None:
        self._turn = turn
        self._most = most
        self._size = 0

    def data(self, data: memoryview) -> None:
        turn = self._turn
        turn.forwarded += len(data)
        if self._most:
            self._size += len(data)
            if self._size > self._most:
                raise HttpError(413, "body-too-large", f"A request's body may have {self._most} bytes.")
        if turn.tap is not None:
            turn.tap.sent(data)
        if turn.exchange is not None and not turn.exchange.send(data):
            turn.blocked = True

    def end(self, trailers: Headers) -> None:
        turn = self._turn
        turn.uploaded = True
        if trailers and turn.tap is not None:
            turn.tap.request_trailers(trailers)
        if turn.exchange is not None:
            turn.exchange.finish(trailers)


class Collected:
    """Keeps a request's body for a policy, which hears of it by `tell`: when what follows the body is held again."""

    __slots__ = ("_body", "_done", "_limit", "_trailers", "_turn")

    def __init__(self, limit: int, turn: Turn, done: Callable[[bytes, Headers], None]) -> None:
        self._limit = limit
        self._turn = turn
        self._done = done
        self._body = bytearray()
        self._trailers: Headers = ()

    def data(self, data: memoryview) -> None:
        if len(self._body) + len(data) > self._limit:
            raise HttpError(413, "body-too-large", f"Here a request's body may have {self._limit} bytes.")
        self._body += data
        if self._turn.tap is not None:
            self._turn.tap.sent(data)

    def end(self, trailers: Headers) -> None:
        self._turn.uploaded = True
        if trailers and self._turn.tap is not None:
            self._turn.tap.request_trailers(trailers)
        self._trailers = trailers

    def tell(self) -> None:
        self._done(bytes(self._body), self._trailers)


def _is_events(value: bytes) -> bool:
    return value.partition(b";")[0].strip().lower() == _EVENTS
