"""A rustunnel link over a pretend trunk, with a played agent whose local service is the test itself."""

from __future__ import annotations

import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.agents.rustunnel_link import RustunnelLink
from rustunnel_py.errors import Reset
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.model.visit import LocalTarget, Visit, VisitKind
from rustunnel_py.wire.http1 import REQUEST_LIMITS, judge_request
from rustunnel_py.wire.yamux import Limits, Role
from tests.support.muxpair import Hearing, PretendLater, PretendTrunk, Side, feed

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.errors import HopError, LinkLost
    from rustunnel_py.hub.link import Exchange
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Crashable, Pipe

GET = b"GET /a HTTP/1.1\r\nHost: app.example\r\n\r\n"


def head_of(raw: bytes) -> RequestHead:
    return judge_request(raw, REQUEST_LIMITS)


class PretendPump:
    """The part of the pump that links use; time is what the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later_calls = PretendLater()
        self.sweeps: list[Callable[[float], None]] = []

    def later(self, by: Crashable, function: Callable[[], None]) -> None:
        self.later_calls(by, function)

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]:
        self.sweeps.append(function)
        return lambda: self.sweeps.remove(function)


@dataclass(eq=False)
class Turn:
    """An ExchangeSink that notes everything. `pays`: gives credit at once."""

    pays: bool = True
    exchange: Exchange | None = None
    events: list[str] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    reply: ReplyHead | None = None
    trailers: Headers | None = None
    error: HopError | None = None
    pipe: Pipe | None = None
    piped: Hearing | None = None
    on_head: Callable[[], None] | None = None
    on_data: Callable[[], None] | None = None
    on_end: Callable[[], None] | None = None

    def _note(self, event: str) -> None:
        assert not {"end", "failed", "upgraded"} & set(self.events), f"{event} after the last word"
        self.events.append(event)

    def interim(self, head: ReplyHead) -> None:
        self._note(str(head.status))

    def head(self, head: ReplyHead) -> None:
        self._note("head")
        self.reply = head
        if self.on_head is not None:
            self.on_head()

    def upgraded(self, head: ReplyHead, pipe: Pipe) -> None:
        self._note("upgraded")
        self.pipe = pipe
        self.piped = Hearing()
        pipe.sink = self.piped

    def data(self, data: memoryview) -> None:
        assert len(data)
        if self.events[-1:] != ["data"]:
            self._note("data")
        self.body += data
        if self.on_data is not None:
            self.on_data()
        if self.pays and self.exchange is not None:
            self.exchange.credit(len(data))

    def end(self, trailers: Headers) -> None:
        self._note("end")
        self.trailers = trailers
        if self.on_end is not None:
            self.on_end()

    def room(self) -> None:
        self._note("room")

    def failed(self, error: HopError) -> None:
        self._note("failed")
        self.error = error


class KeptAliveTrunk(PretendTrunk):
    """A whole trunk; what it would ping with is noted."""

    sent = 0
    received = 0
    ping: Callable[[int], None] | None = None

    def keep_alive(self, ping: Callable[[int], None]) -> None:
        self.ping = ping

    def close(self) -> None: ...

    def abort(self) -> None: ...


class LinkBench:
    """The link, its trunk's other end (a yamux server that notes its streams), and the visits of a test."""

    def __init__(
        self, *, prompt: bool = False, connect: bool = True, max_streams: int = 400, shared: bool = False
    ) -> None:
        self.shared = shared  # the session has several tunnels
        self.pump = PretendPump()
        self.notified: deque[tuple[str, Visit]] = deque()
        self.lost: list[LinkLost] = []
        self.link = RustunnelLink(
            self.pump,
            self._begin,
            prompt=prompt,
            is_shared=lambda: self.shared,
            data_lost=self.lost.append,
            limits=Limits(max_streams=max_streams),
        )
        self.trunk = KeptAliveTrunk()
        self.agent = Side(Role.SERVER)
        self.visits = 0
        if connect:
            self.connect()

    def _begin(self, visit: Visit) -> bytes:
        conn_id = uuid.uuid4()
        self.notified.append((str(conn_id), visit))
        return conn_id.bytes

    def connect(self) -> None:
        """A data socket comes, and the agent answers its first ping."""
        self.trunk = KeptAliveTrunk()
        self.agent = Side(Role.SERVER)
        self.link.attach(self.trunk)
        self.settle()

    def drop(self) -> None:
        """The data socket is cut."""
        self.trunk.sink.lost(Reset("cut"))
        self.pump.later_calls.run()

    def settle(self) -> None:
        """Carry bytes both ways and run deferred calls until nothing is under way."""
        while True:
            self.pump.later_calls.run()
            self.agent.later.run()
            out = self.trunk.take()
            back = self.agent.trunk.take()
            if out:
                feed(self.agent.session, out)
            if back and self.link.session is not None:
                feed(self.link.session, back)
            if not out and not back and not self.pump.later_calls.calls:
                return

    def pass_time(self, seconds: float) -> None:
        """A sweep each second, while the agent answers."""
        for _ in range(int(seconds)):
            self.pump.now += 1
            for sweep in list(self.pump.sweeps):
                sweep(self.pump.now)
            self.settle()

    def visit(
        self,
        *,
        tunnel: str = "t1",
        kind: VisitKind = VisitKind.HTTP,
        target: LocalTarget = LocalTarget(),  # noqa: B008  (frozen)
        connection: object = None,
    ) -> Visit:
        self.visits += 1
        return Visit(
            id=f"{self.visits:032x}",
            tunnel_id=tunnel,
            kind=kind,
            visitor=Peer("192.0.2.1", 4444),
            edge=Peer("192.0.2.2", 80),
            forwarded=b"X-Forwarded-For: 192.0.2.1\r\n",
            target=target,
            connection=connection,
        )

    def request(self, raw: bytes = GET, *, visit: Visit | None = None, finish: bool = True, pays: bool = True) -> Turn:
        """An exchange is begun and what it wrote has arrived at the agent."""
        turn = Turn(pays)
        turn.exchange = self.link.exchange(visit or self.visit(), head_of(raw), turn)
        if finish:
            turn.exchange.finish()
        self.settle()
        return turn

    @property
    def streams(self) -> list[Hearing]:
        """What the agent heard on each stream that was opened, in order."""
        return self.agent.accepted

    def reply(self, stream: Hearing, raw: bytes) -> None:
        """The local service behind `stream` writes."""
        assert stream.stream is not None
        stream.stream.send(raw)
        self.settle()

    def end(self, stream: Hearing) -> None:
        """The local service ends its direction."""
        assert stream.stream is not None
        stream.stream.send_eof()
        self.settle()

    def cut(self, stream: Hearing) -> None:
        """The agent resets the stream."""
        assert stream.stream is not None
        stream.stream.reset()
        self.settle()
