"""The link to one rustunnel agent: exchanges and raw pipes over the yamux streams of its data socket.

A stream is a connection to the local service, and for HTTP it is *kept*: after a complete reply it goes to the pool
of its tunnel and carries the next request. How the link predicts:

* An exchange is the sink of its stream while it lasts; idle, the stream's sink is its `Local`, which throws it away
  at the first sign of life. Never is a stream used again after any doubt: bytes too many, a reply before the
  request's end, `Connection: close`, a cut.
* As many are kept as a session may have: with fewer, so many busy visitors would open a stream for every request. Who
  wants another one and finds no place takes that of the one that was idle longest.
* A kept stream that turns out closed before anything of the reply came is replaced by a fresh one, once, where the
  request may be repeated: an idempotent method, and its body still at hand.
* Where there is no data socket, or no place (as many open streams as the agent stands, or 256 unacknowledged ones),
  exchanges and pipes wait, bounded in number and time, in a line for each tunnel. That blocks nobody: heartbeats and
  kept streams go on.
* No tunnel shuts out the others of its session: it takes places, open or unacknowledged ones, and stands in line, as
  long as it has less than `SHARE` times what is left. The only tunnel of a session may take all.
* What was read of a stream is paid for: framing by the link at once, payload by the edge's `credit`, the rest at the
  end, so that a kept stream's window never shrinks.
* Loss of the data socket fails what is in flight at once; what waits goes on waiting for the next one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Protocol, TypeAlias

from rustunnel_py.agents.rustunnel_exchange import LinkExchange
from rustunnel_py.agents.rustunnel_waiting import Lines, Waiting, WaitingPipe
from rustunnel_py.errors import Expired, Hop, HopError, LinkLost, Reset
from rustunnel_py.model.visit import Carries
from rustunnel_py.wire.proxy import encode as encode_proxy
from rustunnel_py.wire.yamux import Group, Limits, Role, Session, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.hub.link import ExchangeSink
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.trunk import Trunk
    from rustunnel_py.wire.http1 import ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Crashable, Pipe, Sink

Begin: TypeAlias = "Callable[[Visit], bytes]"
"""What a stream for this visit begins with; whatever else the agent has to hear of it is said to it then."""

KEEP_SECONDS = 60.0  # idle streams; local services themselves keep connections 2 to 75 s
SURE_SECONDS = 2.0  # idle longer: it may just be closing, so only requests that can be repeated use it
CLOSING_MARGIN = 1.0  # the same, before the end that `Keep-Alive: timeout` announced
QUEUE_MAX = 1000  # visits of one agent that wait for a place or a data socket
QUEUE_SECONDS = 10.0  # and for how long: what a visitor takes for a slow page
OPENING_SECONDS = 10.0  # until an agent that acknowledges at once has acknowledged a stream
FIRST_BYTE_SECONDS = 300.0  # from the end of the request; long polls end well below, the original's 60 s cut some
RETIRE_SECONDS = 2.0  # for the local service to end a connection that is of no more use
# Kept streams that are reset to make place for others, a second; the rest are ended politely, which takes a moment
# longer. Our own agent gives up a session that resets 1 000.
EVICTIONS_A_SECOND = 250
# Where several tunnels share a session, one may have so many times the places that are left: three quarters of all if
# it is the only one that wants many, three sevenths if two do. Whoever has few finds one, however many others crowd.
SHARE = 3


class PumpPart(Protocol):
    """What a link needs of the pump."""

    @property
    def now(self) -> float: ...

    def later(self, by: Crashable, function: Callable[[], None]) -> None: ...

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]: ...


class Local:
    """One connection to a local service: a yamux stream, and what is known of it. The stream's sink while idle."""

    __slots__ = ("known", "link", "owner", "session", "since", "stream", "tunnel_id", "until")

    def __init__(self, link: RustunnelLink, session: Session, stream: Stream, tunnel_id: str) -> None:
        self.link = link
        self.session = session
        self.stream = stream
        self.tunnel_id = tunnel_id
        # Its last reply's head, with the request's method, and the judgement of it: services repeat their heads.
        self.known: tuple[bytes, bytes, ReplyHead] | None = None
        self.owner: object = None  # the one visitor connection that may use it; None: anybody's
        self.since = 0.0  # idle since; retiring since
        self.until = 0.0  # not to be used from then on

    def data(self, data: memoryview) -> None:
        self.link.forget(self)  # nobody asked for it: the next reply would be the wrong one
        self.stream.reset()

    def eof(self) -> None:
        self.link.forget(self)
        self.stream.send_eof()

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self.link.forget(self)

    def expired(self) -> None: ...


class RustunnelLink:
    """Implements `hub.link.Link` for one agent session; data sockets come and go below it."""

    def __init__(
        self,
        pump: PumpPart,
        begin: Begin,
        *,
        prompt: bool = False,
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
        is_shared: Callable[[], bool] = lambda: False,
        data_lost: Callable[[LinkLost], None] | None = None,
        limits: Limits = Limits(),  # noqa: B008  (frozen)
    ) -> None:
        """`prompt`: the agent acknowledges streams at once (ours; the stock one only with its first byte).

        `is_shared` says whether the session has several tunnels; asked when a stream is to be opened.

        `data_lost` is called when a data socket's session ended by itself: its owner closes the socket, flushing it.
        """
        self.carries = Carries("rustunnel")
        self.pump = pump
        self._begin = begin
        self._prompt = prompt
        self._is_shared = is_shared
        self._first_byte_seconds = first_byte_seconds
        self._data_lost = data_lost
        self._limits = limits
        self.session: Session | None = None
        self._closed: LinkLost | None = None
        self._kept: dict[str, list[Local]] = {}  # by tunnel: only a PROXY header ties a connection to more than that
        self._owned: dict[tuple[str, object], Local] = {}
        self._retiring: dict[Local, None] = {}
        # Kept streams and since when they were idle, the oldest last, as it was when somebody last wanted a place.
        self._oldest: list[tuple[float, Local]] = []
        self.unanswered: set[LinkExchange] = set()
        self._opening: dict[Stream, float] = {}
        self._groups: dict[str, Group] = {}  # by tunnel: its streams; dropped by the sweep when it has none
        self._lines = Lines()
        self._crowded = False  # a tunnel waits for a place though there are some: it has its part
        self._evictions_left = EVICTIONS_A_SECOND
        self._off_sweep = pump.on_sweep(self.sweep)

    def __repr__(self) -> str:
        return f"<RustunnelLink {self.session!r}, {self.waiting} waiting>"

    @property
    def connected(self) -> bool:
        """There is a data socket."""
        return self.session is not None

    @property
    def waiting(self) -> int:
        """Visits that wait for a place or a data socket."""
        return self._lines.count

    # the waist

    def exchange(self, visit: Visit, head: RequestHead, sink: ExchangeSink) -> LinkExchange:
        """Carry one request. Raises HopError(503) where the agent is gone or too many wait for it."""
        exchange = LinkExchange(self, visit, head, sink)
        session = self.session
        if session is not None:
            local = self._take(visit, exchange.repeatable)
            if local is not None:
                exchange.start(local, fresh=False)
                return exchange
            if self.has_place(session, visit.tunnel_id):
                exchange.start(self.open_local(session, visit), fresh=True)
                return exchange
        self.enqueue(exchange)
        return exchange

    def open(self, visit: Visit) -> Pipe:
        """A raw connection to the local service. Raises HopError(503) as `exchange` does."""
        session = self.session
        if session is not None and self.has_place(session, visit.tunnel_id):
            return self._open_raw(session, visit)
        pipe = WaitingPipe(self, visit)
        self.enqueue(pipe)
        return pipe

    # data sockets

    def attach(self, trunk: Trunk) -> None:
        """A data socket came: `trunk` carries yamux from now on. One that is still there is given up first."""
        if self.session is not None:
            self.detach(Reset("another data socket took its place"))
        session = Session(
            Role.CLIENT,
            trunk,
            self.pump.later,
            ended=self._ended,
            streams_free=self._serve_lines,
            limits=self._limits,
        )
        trunk.sink = session
        self.session = session
        session.ping(secrets.randbits(32))  # both stock sides do so right at the start
        trunk.keep_alive(session.ping)
        self._serve_lines()

    def detach(self, error: LinkLost) -> None:
        """The data socket is given up by its owner: what is in flight fails at once."""
        session = self.session
        if session is not None:
            self.session = None  # so that `_ended` knows that its owner knows
            session.lost(error)
            self._clear()

    def close(self, error: LinkLost) -> None:
        """The session of the agent is over: nobody waits for anything any more."""
        if self._closed is not None:
            return
        self._closed = error
        self._off_sweep()
        self.detach(error)
        for waiting in self._lines.clear():
            if waiting.waits:
                waiting.give_up(HopError(Hop.AGENT, 502, "agent-lost", "The agent's connection was lost."))

    def forget_tunnel(self, tunnel_id: str) -> None:
        """The tunnel ended: its kept streams are of no more use."""
        for local in self._kept.pop(tunnel_id, ()):
            self.retire(local)
        if self._crowded:
            self.pump.later(self, self._serve_lines)  # who shares the session with fewer may have more of it

    def sweep(self, now: float) -> None:
        """Once a second, by the pump: deadlines of streams and of those who wait."""
        self._evictions_left = EVICTIONS_A_SECOND
        later = self.pump.later
        for exchange in self.unanswered:
            if now - exchange.since > self._first_byte_seconds:
                later(exchange, exchange.expire)
        for waiting in self._lines:
            if now - waiting.since > QUEUE_SECONDS:
                later(waiting, waiting.expire)
        for tunnel_id in [tunnel_id for tunnel_id, group in self._groups.items() if not group.open]:
            del self._groups[tunnel_id]
        self._sweep_locals(now)
        session = self.session
        if session is not None:
            if session.goes_away:
                self._retire_kept()
            self._sweep_opening(now)
            session.sweep(now)

    def _retire_kept(self) -> None:
        """No new stream may be opened: the sooner the old ones end, the sooner another data socket serves."""
        for local in [local for pool in self._kept.values() for local in pool] + list(self._owned.values()):
            self.retire(local)
        self._kept.clear()
        self._owned.clear()

    def _sweep_locals(self, now: float) -> None:
        for tunnel_id, pool in list(self._kept.items()):
            for local in [local for local in pool if now >= local.until]:
                pool.remove(local)
                self.retire(local)
            if not pool:
                del self._kept[tunnel_id]
        for key, local in list(self._owned.items()):
            if now >= local.until:
                del self._owned[key]
                self.retire(local)
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
                self.pump.later(late, late.tell)

    def _ended(self, error: LinkLost) -> None:
        """The session ended, by its trunk or by the agent's fault; every stream has heard so."""
        if self.session is None or not self.session.over:
            return
        self.session = None
        self._clear()
        if self._data_lost is not None:
            self._data_lost(error)

    def _clear(self) -> None:
        self._kept.clear()
        self._owned.clear()
        self._retiring.clear()
        self._oldest.clear()
        self._opening.clear()

    # streams

    def _take(self, visit: Visit, repeatable: bool) -> Local | None:
        """A kept stream that this visit may use."""
        now = self.pump.now
        if self._owned:
            own = self._owned.pop((visit.tunnel_id, visit.connection), None)
            if own is not None:
                if now < own.until and (repeatable or now - own.since <= SURE_SECONDS):
                    return own
                self.retire(own)
        if visit.target.proxy_protocol:
            return None
        pool = self._kept.get(visit.tunnel_id)
        while pool:
            local = pool[-1]  # the one that was busy last: its local service is least likely to have closed it
            if now < local.until:
                return pool.pop() if repeatable or now - local.since <= SURE_SECONDS else None
            self.retire(pool.pop())
        return None

    def has_place(self, session: Session, tunnel_id: str) -> bool:
        """The tunnel may open a stream, if need be after giving up the one that was idle longest."""
        if self._is_shared() and self._crowds(session, tunnel_id):
            self._crowded = True
            session.tell_when_free()
            return False
        if session.can_open():
            return True
        if session.goes_away or session.unacknowledged >= self._limits.max_unacknowledged:
            return False
        if len(self._retiring) > self.waiting:
            return False  # as many are ending already as there are that wait
        oldest = self._pop_oldest()
        if oldest is None:
            return False
        self._evict(oldest)
        return session.can_open()

    def _crowds(self, session: Session, tunnel_id: str) -> bool:
        """The tunnel has its part of the session's places. A kept stream that is idle is a place that is left."""
        group = self._groups.get(tunnel_id)
        unacknowledged = 0 if group is None else group.unacknowledged
        if unacknowledged >= SHARE * (self._limits.max_unacknowledged - session.unacknowledged):
            return True
        left = self._limits.max_streams - session.open_streams
        has = 0 if group is None else group.open
        if has < SHARE * left:
            return False
        kept = self._kept
        left += sum(map(len, kept.values()))
        return has - len(kept.get(tunnel_id, ())) >= SHARE * left

    def _pop_oldest(self) -> Local | None:
        """Take the kept stream that was idle longest out of its pool."""
        for _ in range(2):
            while self._oldest:
                since, local = self._oldest.pop()
                pool = self._kept.get(local.tunnel_id)
                if local.since == since and pool and local in pool:
                    pool.remove(local)
                    return local
            kept = ((local.since, local) for pool in self._kept.values() for local in pool)
            self._oldest = sorted(kept, key=lambda pair: pair[0], reverse=True)
        return None

    def _evict(self, local: Local) -> None:
        """End a kept stream for the place that it takes."""
        if self._evictions_left > 0:
            self._evictions_left -= 1
            local.stream.reset()
        else:
            self.retire(local)

    def _open_stream(self, session: Session, visit: Visit) -> Stream:
        tunnel_id = visit.tunnel_id
        group = self._groups.get(tunnel_id)
        if group is None:
            group = self._groups[tunnel_id] = Group()
        # Alone in the first frame, as the original sends its ids.
        stream = session.open(self._begin(visit), group)
        if self._prompt:
            self._opening[stream] = self.pump.now + OPENING_SECONDS
        return stream

    def open_local(self, session: Session, visit: Visit) -> Local:
        return Local(self, session, self._open_stream(session, visit), visit.tunnel_id)

    def _open_raw(self, session: Session, visit: Visit) -> Stream:
        stream = self._open_stream(session, visit)
        if visit.target.proxy_protocol:
            stream.send(encode_proxy(visit.target.proxy_protocol, visit.visitor, visit.edge))
        return stream

    def keep(self, local: Local, timeout: float | None) -> None:
        """After a complete reply: whoever waits gets it, else the pool."""
        now = self.pump.now
        local.since = now
        local.until = now + (KEEP_SECONDS if timeout is None else min(timeout - CLOSING_MARGIN, KEEP_SECONDS))
        stream = local.stream
        stream.sink = local
        if local.owner is not None:
            before = self._owned.pop((local.tunnel_id, local.owner), None)
            self._owned[(local.tunnel_id, local.owner)] = local
            if before is not None:
                self.retire(before)
            return
        pool = self._kept.get(local.tunnel_id)
        if pool is None:
            pool = self._kept[local.tunnel_id] = []
        pool.append(local)
        if self._lines.count:
            self._hand_over(local, pool)

    def _hand_over(self, local: Local, pool: list[Local]) -> None:
        """Give a stream that just became idle to the first that may use it, or its place to one that wants another."""
        session = local.session
        # Else it is unacknowledged streams that are waited for, or a part: ending this one helps nobody.
        is_full = session.open_streams >= self._limits.max_streams
        own = self._lines.first(local.tunnel_id)
        for first in self._lines.firsts() if is_full else () if own is None else (own,):
            if isinstance(first, LinkExchange) and first.may_use(local):
                pool.pop()
                self._lines.remove(first)
                first.start(local, fresh=False)
                return
            if is_full and not (self._is_shared() and self._crowds(session, first.visit.tunnel_id)):
                pool.pop()
                self._evict(local)
                self.pump.later(self, self._serve_lines)
                return
        if self._crowded:
            self.pump.later(self, self._serve_lines)  # an idle stream is a place that is left

    def retire(self, local: Local) -> None:
        """End a connection that is of no more use: politely, then by RST."""
        stream = local.stream
        if local.session.over:
            return
        stream.sink = local
        local.since = self.pump.now
        self._retiring[local] = None
        stream.send_eof()

    def forget(self, local: Local) -> None:
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

    def enqueue(self, waiting: Waiting, *, first: bool = False) -> None:
        if self._closed is not None:
            raise HopError(Hop.AGENT, 503, "agent-away", "The agent of this tunnel is not connected.", retry_after=1)
        count = self._lines.count
        tunnel_id = waiting.visit.tunnel_id
        if count >= QUEUE_MAX or (self._is_shared() and self._lines.length(tunnel_id) >= SHARE * (QUEUE_MAX - count)):
            raise HopError(
                Hop.AGENT, 503, "agent-busy", "Too many visits wait for the agent of this tunnel.", retry_after=1
            )
        waiting.since = self.pump.now
        self._lines.add(waiting, first=first)

    def left_queue(self, waiting: Waiting) -> None:
        """It gave up."""
        self._lines.remove(waiting)

    def _serve_lines(self) -> None:
        """One of each line in turn, as long as there are places for it."""
        self._crowded = False
        firsts = self._lines.firsts()
        while firsts:
            firsts = [behind for first in firsts if (behind := self._serve(first)) is not None]

    def _serve(self, first: Waiting) -> Waiting | None:
        """Start the first of a line; whoever stands behind it then, or None where it has to go on waiting."""
        session = self.session
        if session is None:
            return None
        visit = first.visit
        local = self._take(visit, first.repeatable) if isinstance(first, LinkExchange) else None
        if local is None and not self.has_place(session, visit.tunnel_id):
            return None
        self._lines.remove(first)
        if isinstance(first, WaitingPipe):
            first.start(self._open_raw(session, visit))
        elif local is not None:
            first.start(local, fresh=False)
        else:
            first.start(self.open_local(session, visit), fresh=True)
        return self._lines.first(visit.tunnel_id)

    def no_place(self) -> HopError:
        """What a visit hears that has waited long enough."""
        if self.session is not None:
            code, message = "agent-busy", "The agent of this tunnel has no place for another visit."
        else:
            code, message = "agent-away", "The agent of this tunnel has no data connection."
        return HopError(Hop.AGENT, 503, code, message, retry_after=1)

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
