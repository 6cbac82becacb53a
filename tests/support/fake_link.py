"""A link without an agent: records each request in canonical form and plays the replies that a test gives it.

As the real ones, it never calls an exchange's sink from within a call: replies are played by `reply`, or
with `answer` set by `run`, which stands for the pump's next round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.errors import Hop, HopError, HttpError, LinkLost, Reset
from rustunnel_py.model.visit import Carries, Visit
from rustunnel_py.wire.http1 import (
    CHUNKED,
    REPLY_LIMITS,
    BodyReader,
    Headers,
    RequestHead,
    chunk,
    find_reply_head_end,
    judge_reply,
    last_chunk,
    render_request,
)
from rustunnel_py.wire.sink import SILENT, Buffer, Sink

if TYPE_CHECKING:
    from rustunnel_py.hub.link import ExchangeSink

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class FakePipe:
    """The local service's side of a raw connection. `sent` is what came from the visitor."""

    def __init__(self, *, room: float = math.inf) -> None:
        self.sink: Sink = SILENT
        self.room_left = room
        self.sent = bytearray()
        self.eof_sent = False
        self.was_reset = False
        self.uncredited = 0

    def send(self, data: Buffer) -> bool:
        self.sent += data
        self.room_left -= len(data)
        return self.room_left > 0

    def send_eof(self) -> None:
        self.eof_sent = True

    def credit(self, size: int) -> None:
        self.uncredited -= size
        assert self.uncredited >= 0, "more credit than data"

    def reset(self) -> None:
        self.was_reset = True

    def feed(self, data: bytes) -> None:
        self.uncredited += len(data)
        _lend(data, self.sink.data)

    def feed_eof(self) -> None:
        self.sink.eof()

    def give_room(self, size: float = math.inf) -> None:
        self.room_left = size
        self.sink.room()

    def lose(self, error: LinkLost | None = None) -> None:
        self.sink.lost(error or Reset("the local service reset it"))


class FakeExchange:
    """One request as the local service would see it, and the way to play its reply."""

    def __init__(self, link: FakeLink, visit: Visit, head: RequestHead, sink: ExchangeSink) -> None:
        self.visit = visit
        self.request = head
        self.canonical = bytearray(render_request(head, visit.target.host_header, visit.forwarded, body=head.body))
        self.body = bytearray()
        self.trailers: Headers = ()
        self.finished = False
        self.was_reset = False
        self.over = False  # the reply ended, one way or another
        self.uncredited = 0
        self.room_left = link.room
        self.pipe: FakePipe | None = None
        self._link = link
        self._sink = sink
        self._reader: BodyReader | None = None

    def __repr__(self) -> str:
        return f"<FakeExchange {self.request.method!r} {self.request.target!r}>"

    # what the edge calls

    def send(self, data: Buffer) -> bool:
        assert not self.finished, "body after the end"
        assert not self.was_reset, "body after a reset"
        self.body += data
        if self.request.body == CHUNKED:
            before, after = chunk(data)
            self.canonical += before + bytes(data) + after
        else:
            self.canonical += data
        self.room_left -= len(data)
        return self.room_left > 0

    def finish(self, trailers: Headers = ()) -> None:
        assert not self.finished, "finished twice"
        self.finished = True
        self.trailers = trailers
        if self.request.body == CHUNKED:
            self.canonical += last_chunk(trailers)
        elif self.request.body > 0:
            assert len(self.body) == self.request.body, "finished before the body's length"
        if self._link.answer is not None:
            self._link.due.append(self._answer)

    def credit(self, size: int) -> None:
        if not self.over:
            self.uncredited -= size
            assert self.uncredited >= 0, "more credit than data"

    def reset(self) -> None:
        self.was_reset = True

    # what tests call

    @property
    def is_live(self) -> bool:
        return not self.was_reset and not self.over

    def _answer(self) -> None:
        answer = self._link.answer
        if answer is not None and self.is_live:
            self.reply(answer if isinstance(answer, bytes) else answer(self))

    def reply(self, data: bytes) -> None:
        """The bytes of the local service; several calls make one reply, a head comes whole. Nothing after a reset."""
        while data and self.is_live:
            if self._reader is None:
                try:
                    end = find_reply_head_end(data, 0, REPLY_LIMITS)
                    if end < 0:
                        return
                    raw, data = data[:end], data[end:]
                    head = judge_reply(raw, self.request.method, REPLY_LIMITS, upgrade=self.request.is_upgrade)
                except HttpError as error:
                    self.fail(HopError(Hop.LOCAL_SERVICE, 502, error.code, error.detail))
                    return
                if head.status == 101:
                    self.pipe = FakePipe(room=self._link.room)
                    self.over = True
                    self._sink.upgraded(head, self.pipe)
                    if data:
                        self.pipe.feed(data)
                    return
                if head.status < 200:
                    if head.status in (100, 103):
                        self._sink.interim(head)
                    continue
                self._sink.head(head)
                self._reader = BodyReader(head.body, self, REPLY_LIMITS)
                if self._reader.done and self.is_live:
                    self.end(())
            else:
                used = 0
                reader = self._reader

                def feed(view: memoryview, reader: BodyReader = reader) -> None:
                    nonlocal used
                    try:
                        used = reader.feed(view)
                    except HttpError as error:
                        self.fail(HopError(Hop.LOCAL_SERVICE, 502, error.code, error.detail))

                _lend(data, feed)
                if used == 0:
                    return
                data = data[used:]

    def reply_eof(self) -> None:
        """The local service ended its side."""
        if self.is_live and (self._reader is None or not self._reader.end_of_input()):
            self.fail(HopError(Hop.LOCAL_SERVICE, 502, "cut-reply", "The reply was cut short."))

    def fail(self, error: HopError) -> None:
        if self.is_live:
            self.over = True
            self._sink.failed(error)

    def give_room(self, size: float = math.inf) -> None:
        self.room_left = size
        if self.is_live:
            self._sink.room()

    # the body reader's sink

    def data(self, data: memoryview) -> None:
        if self.is_live:
            self.uncredited += len(data)
            self._sink.data(data)

    def end(self, trailers: Headers) -> None:
        if self.is_live:
            self.over = True
            self._sink.end(trailers)


Answer = bytes | Callable[[FakeExchange], bytes]


@dataclass
class FakeLink:
    """`answer` is the reply to every complete request; None: the test plays each by itself."""

    answer: Answer | None = None
    room: float = math.inf  # bytes of a request's body until `send` says stop
    refusal: HopError | None = None
    carries: Carries = field(default_factory=lambda: Carries("fake"))
    exchanges: list[FakeExchange] = field(default_factory=list)
    pipes: list[FakePipe] = field(default_factory=list)
    due: list[Callable[[], None]] = field(default_factory=list)

    def exchange(self, visit: Visit, head: RequestHead, sink: ExchangeSink) -> FakeExchange:
        if self.refusal is not None:
            raise self.refusal
        exchange = FakeExchange(self, visit, head, sink)
        self.exchanges.append(exchange)
        return exchange

    def open(self, visit: Visit) -> FakePipe:
        if self.refusal is not None:
            raise self.refusal
        pipe = FakePipe(room=self.room)
        self.pipes.append(pipe)
        return pipe

    def run(self) -> None:
        """Play what is due, and what becomes due by it."""
        while self.due:
            self.due.pop(0)()

    @property
    def canonical(self) -> list[bytes]:
        """Every request that came, whole or not, head and body as they would be on the wire."""
        return [bytes(exchange.canonical) for exchange in self.exchanges]


def _lend(data: bytes, take: Callable[[memoryview], None]) -> None:
    """Deliver from a buffer that is poisoned afterwards (rule 2)."""
    buffer = bytearray(data)
    view = memoryview(buffer)
    take(view)
    buffer[:] = b"\xee" * len(buffer)
    view.release()
