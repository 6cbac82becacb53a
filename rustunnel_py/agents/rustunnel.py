"""One rustunnel agent: its control socket, its data sockets as they come and go, its heartbeats.

The stock agent is strict, so what is sent when is decided in one place, the outbox (wire spec sections 2 and 3):

* Between `register_tunnel` and its answer nothing else leaves; it is held and follows the answer. Nor is the agent
  disturbed before its first data socket: a stock one may be about to register another tunnel.
* Never a WebSocket ping or close frame; the JSON `ping` does that work, and a stock session ends by dropping TCP.
* The letters "auth" only in `auth_error`: a stock agent that reads them elsewhere gives up for good.

The control socket is the session: when it ends, for whatever reason, the data socket goes and `Sessions.leave` is
called, once. A close frame of the agent's is the clean end of its tunnels, everything else is not.
"""

from __future__ import annotations

import math
import re
import secrets
import time
import uuid
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.agents.rustunnel_link import FIRST_BYTE_SECONDS, RustunnelLink
from rustunnel_py.errors import BadCredentials, Closed, ControlError, Denied, Expired, LinkLost, Reset, StoreError
from rustunnel_py.hub.sessions import Introduction, Wish
from rustunnel_py.model.access import Secret
from rustunnel_py.model.bucket import Bucket
from rustunnel_py.model.tunnel import Protocol, TcpPort
from rustunnel_py.model.visit import LocalTarget
from rustunnel_py.transport.control_socket import ControlEnded, serve_control
from rustunnel_py.transport.trunk import SocketTrunk
from rustunnel_py.transport.websocket_trunk import WebSocketTrunk
from rustunnel_py.wire import control as wire
from rustunnel_py.wire import stream_head
from rustunnel_py.wire.stream_head import StreamHead
from rustunnel_py.wire.yamux import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.hub.registry import Registry, TellVisit, Tunnel
    from rustunnel_py.hub.sessions import Session, Sessions
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.control_socket import ControlSocket
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.stream import ConnectionStream

AUTH_SECONDS = 5.0  # from the upgrade to a whole `auth`
JUDGE_SECONDS = 8.0  # for our answer to it: the agent waits 10 s
PING_SECONDS = 30.0
PONG_SECONDS = 10.0
SETTLE_SECONDS = 10.0  # a stock agent without a data socket that asked for nothing so long waits for no answer of ours
SEND_SECONDS = 20.0  # one message that the agent does not take
OUTBOX_MAX = 2000  # messages due; a full set of 400 streams is announced at once, a few times over
FRAMES_PER_SECOND = 100.0  # in the long run; a busy agent sends a ping each 30 s
FRAMES_BURST = 500.0
REGISTRATIONS_PER_SECOND = 5.0
REGISTRATIONS_BURST = 60.0  # all tunnels of one session at its start (limits.max_tunnels_per_session is 50)
VISITS_KEPT = 64  # for the agent's screen, between two batches; older ones are left out
VISITS_SECONDS = 0.25  # between two batches
LEAVE_SECONDS = 5.0  # to free addresses in the store once the agent is gone
TEXT_MAX = 256  # local addresses, versions, machine ids: longer ones are cut, they are shown and used as keys

# Streams of our own agents may grow: bulk then waits for fewer round trips. What a visitor that stops reading leaves of
# a window stays in our memory, so growth is bounded for a session.
LIMITS = Limits(grown_window=1024 * 1024, growth=16 * 1024 * 1024)
# For a thousand tunnels or slow exchanges of one agent. Each costs it a descriptor, so it says whether it has so many.
MANY_LIMITS = replace(LIMITS, max_streams=wire.MANY_STREAMS_MAX * 4 // 5)
STOCK_LIMITS = Limits(error_is_final=False)

FEATURES = (wire.RAW_DATA, wire.STREAM_HEADS, wire.MANY_STREAMS)

_HEADER_VALUE = re.compile(r"[!-~]{1,256}")
_FINAL_FOR_STOCK = re.compile("au(?=th)", re.IGNORECASE)
_ZERO_WIDTH_SPACE = "\u200b"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Greeting:
    """What `auth_ok` tells our own agents about this server. `https`: with a publicly trusted certificate."""

    region: str = "default"
    https: bool = False


class RustunnelAgent:
    """Implements `hub.sessions.Agent`. Made when its token was accepted; `run` is its life."""

    def __init__(
        self,
        pump: Pump,
        sessions: Sessions,
        registry: Registry,
        session: Session,
        control: ControlSocket,
        *,
        features: tuple[str, ...] | None,
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
    ) -> None:
        self.session = session
        self.is_stock = features is None
        self.raw = features is not None and wire.RAW_DATA in features
        self.ignored = 0  # frames that were none of our business
        self.link = RustunnelLink(
            pump,
            self._name_stream if features is not None and wire.STREAM_HEADS in features else self._announce,
            prompt=not self.is_stock,
            first_byte_seconds=first_byte_seconds,
            data_lost=self._data_lost,
            is_shared=lambda: len(session.tunnels) > 1,
            limits=STOCK_LIMITS if features is None else MANY_LIMITS if wire.MANY_STREAMS in features else LIMITS,
        )
        self._pump = pump
        self._sessions = sessions
        self._registry = registry
        self._control = control
        self._trunk: SocketTrunk | None = None
        self._had_data = False
        self._answered_at = trio.current_time()  # the latest answer that a stock agent waited for
        self._outbox: deque[bytes] = deque()
        self._due = trio.Event()  # something may be in the outbox that may leave
        self._flushed = trio.Event()
        self._settled = trio.Event()  # a registration was answered, or the first data socket came
        self._sending = trio.Lock()
        self._pong = trio.Event()
        self._visits: deque[tuple[str, bytes, bytes, int, float, str]] = deque(maxlen=VISITS_KEPT)
        self._visited = trio.Event()
        self._scope = trio.CancelScope()
        self._why: LinkLost | None = None
        self._over = trio.Event()

    def __repr__(self) -> str:
        kind = "stock" if self.is_stock else "own"
        return f"<RustunnelAgent {kind} {self.session!r}>"

    # its life

    async def run(self, welcome: wire.AuthOk) -> None:
        """Until the control socket ends or `end` was called. Never raises for what the agent does."""
        clean = False
        try:
            with self._scope:
                await self._send(wire.encode(welcome))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send_outbox)
                    nursery.start_soon(self._beat)
                    if not self.is_stock:
                        nursery.start_soon(self._send_visits)
                    try:
                        await self._listen()
                    except ControlEnded as ended:
                        clean = ended.clean
                        self._why = self._why or Reset(str(ended))
                    nursery.cancel_scope.cancel()
        finally:
            await self._leave(clean)

    async def _leave(self, clean: bool) -> None:
        """Addresses first, so that no visitor is led to a link that is closing."""
        why = self._why or Closed("the server stops")
        with trio.CancelScope(shield=True):
            try:
                with trio.move_on_after(LEAVE_SECONDS):
                    await self._sessions.leave(self.session, clean=clean)
            finally:
                self._pump.call(self.link, lambda: self._close_data(why))
                self._over.set()
        log.debug("agent's control socket ended", session=self.session.public_id, why=str(why), clean=clean)

    def _close_data(self, why: LinkLost) -> None:
        trunk, self._trunk = self._trunk, None
        self.link.close(why)
        if trunk is not None:
            trunk.close()

    # hub.sessions.Agent

    async def answers(self, within: float) -> bool:
        """Whether a ping is answered in time; an agent that may not be pinged now counts as alive."""
        if self._is_delicate:
            return True
        return await self._ping(within)

    def end(self, why: LinkLost) -> None:
        """Drop both sockets; the rest follows from that."""
        self._why = self._why or why
        self._scope.cancel()

    async def say_goodbye(self) -> None:
        """Flush what is due, tell our own agent that it may come back, and drop both sockets."""
        if not self.is_stock:
            self._say(wire.GoingAway(reason="the server stops"))
        self._flushed = trio.Event()
        self._due.set()
        try:
            await self._flushed.wait()
        finally:
            self.end(Closed("the server stops"))
        await self._over.wait()

    def forget_tunnel(self, tunnel_id: str) -> None:
        self._pump.call(self.link, lambda: self.link.forget_tunnel(tunnel_id))

    def tell_visit(self, tunnel_id: str) -> TellVisit | None:
        """Where a tunnel's visits are told; None for agents that show none."""
        if self.is_stock:
            return None
        visits = self._visits

        def tell(method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str, cut: bool) -> None:
            if not visits:
                self._visited.set()
            visits.append((tunnel_id, method, target, status, milliseconds, visit_id))

        return tell

    # data sockets

    def attach_data(self, connection: Connection, bytes_read: bytes) -> None:
        """A data socket was upgraded; the newest one counts. In a callback of the pump's."""
        if self._over.is_set():
            connection.abort()
            return
        old, self._trunk = self._trunk, None
        if self.raw:
            trunk = SocketTrunk(self._pump, connection, bytes_read)
        else:
            trunk = WebSocketTrunk(self._pump, connection, bytes_read, server_side=True)
        self.link.attach(trunk)
        self._trunk = trunk
        if old is not None:
            old.abort()
        self._had_data = True
        self._settled.set()
        self._due.set()

    def _data_lost(self, error: LinkLost) -> None:
        """The yamux session ended by itself; its last words are flushed."""
        trunk, self._trunk = self._trunk, None
        if trunk is not None:
            trunk.close()
        log.debug("data socket lost", session=self.session.public_id, why=str(error))

    # what is said

    @property
    def _is_delicate(self) -> bool:
        """A frame that nobody asked for would fail the agent's session now."""
        if self.session.registering:
            return True
        settled = self._had_data or trio.current_time() - self._answered_at >= SETTLE_SECONDS
        return self.is_stock and not settled

    def _announce(self, visit: Visit) -> bytes:
        """A stream begins with an id, and the control socket says what it is for."""
        conn_id = uuid.UUID(bytes=secrets.token_bytes(16), version=4)
        self._say(
            wire.NewConnection(
                conn_id=str(conn_id),
                client_addr=str(visit.visitor),
                protocol=visit.kind.value,
                tunnel_id=None if self.is_stock else visit.tunnel_id,
            )
        )
        return conn_id.bytes

    def _name_stream(self, visit: Visit) -> bytes:
        """A stream says itself what it is for."""
        return stream_head.encode(StreamHead(visit.tunnel_id, str(visit.visitor)))

    def _say(self, frame: wire.ServerFrame) -> None:
        """To be sent as soon as it may. An agent that takes nothing while much is due is given up."""
        if len(self._outbox) >= OUTBOX_MAX:
            self.end(Expired("the agent does not take what is due on its control socket"))
            return
        self._outbox.append(wire.encode(frame))
        self._due.set()

    async def _send_outbox(self) -> None:
        while True:
            await self._due.wait()
            self._due = trio.Event()
            while self._outbox and not self.session.registering:
                async with self._sending:
                    if self._outbox and not self.session.registering:
                        await self._send(self._outbox.popleft())
            if not self._outbox:
                self._flushed.set()

    async def _send(self, message: bytes) -> None:
        with trio.move_on_after(SEND_SECONDS) as scope:
            try:
                await self._control.send(message)
            except ControlEnded:
                return  # the listener hears of it, too
        if scope.cancelled_caught:
            self.end(Expired(f"the agent took nothing on its control socket for {SEND_SECONDS:g} s"))

    async def _answer(self, frame: wire.ServerFrame) -> None:
        """The answer to a registration; what was held follows it."""
        async with self._sending:
            await self._send(wire.encode(frame))
        self.session.registering = False
        self._answered_at = trio.current_time()
        self._settled.set()
        self._due.set()

    async def _send_visits(self) -> None:
        while True:
            await self._visited.wait()
            self._visited = trio.Event()
            lines = tuple(_line(*visit) for visit in self._visits)
            self._visits.clear()
            if lines:
                self._say(wire.Visits(visits=lines))
            await trio.sleep(VISITS_SECONDS)

    # heartbeats

    async def _beat(self) -> None:
        while True:
            await trio.sleep(PING_SECONDS)
            while self._is_delicate:
                self._settled = trio.Event()
                with trio.move_on_after(SETTLE_SECONDS):
                    await self._settled.wait()
            if not await self._ping(PONG_SECONDS):
                self.end(Expired(f"no answer to a ping within {PONG_SECONDS:g} s"))

    async def _ping(self, within: float) -> bool:
        pong = self._pong
        self._say(wire.Ping(timestamp=time.time_ns() // 1_000_000))
        with trio.move_on_after(within):
            await pong.wait()
            return True
        return False

    # what is heard

    async def _listen(self) -> None:
        frames = Bucket(FRAMES_PER_SECOND, trio.current_time(), FRAMES_BURST)
        registrations = Bucket(REGISTRATIONS_PER_SECOND, trio.current_time(), REGISTRATIONS_BURST)
        while True:
            message = await self._control.receive()
            self.session.heard_at = datetime.now(UTC)
            wait = frames.take(trio.current_time())
            if wait:
                await trio.sleep(wait)  # a flood is read no faster: TCP holds the rest back
            if message is None:
                self._ignore(ControlError("a text message"))
                continue
            try:
                frame = wire.decode_from_agent(message)
            except wire.BadFields as error:
                if error.type == "register_tunnel" and error.request_id is not None:
                    await self._refuse(error.request_id, f"{error.field}: {error.reason}")
                else:
                    self._ignore(error)
                continue
            except wire.BadFrame as error:
                self.end(Reset(f"a malformed frame: {error}"))
                return
            except ControlError as error:
                self._ignore(error)  # peers of different versions meet here
                continue
            if isinstance(frame, wire.RegisterTunnel):
                self.session.registering = True
                wait = registrations.take(trio.current_time())
                if wait:
                    await trio.sleep(wait)
                await self._register(frame)
            elif not await self._take(frame):
                return

    def _ignore(self, why: ControlError) -> None:
        """A message that costs nothing but itself (wire spec section 1)."""
        self.ignored += 1
        log.debug("a control message was ignored", session=self.session.public_id, why=str(why))

    async def _take(self, frame: wire.AgentFrame) -> bool:
        """Any frame but a registration. False ends the session."""
        match frame:
            case wire.Ping(timestamp=timestamp):
                self._say(wire.Pong(timestamp=timestamp))
            case wire.Pong():
                pong, self._pong = self._pong, trio.Event()
                pong.set()
            case wire.UnregisterTunnel(tunnel_id=tunnel_id):
                if not await self._sessions.unregister(self.session, tunnel_id):
                    self.ignored += 1
            case wire.P2pConnect(request_id=request_id):
                self._say(wire.P2pError(request_id=request_id, message="p2p is not served by this server yet"))
            case wire.Auth():
                self.end(Reset("a second auth"))
                return False
            case _:
                self.ignored += 1  # health, p2p details, data_stream_open: nothing here waits for them
        return True

    async def _register(self, frame: wire.RegisterTunnel) -> None:
        try:
            tunnel = await self._sessions.register(self.session, _wish(frame))
        except Denied as error:
            await self._refuse(frame.request_id, str(error))
        except StoreError:
            await self._refuse(frame.request_id, "the server could not store this registration; try again")
        else:
            await self._answer(self._registered(frame.request_id, tunnel))

    async def _refuse(self, request_id: str, reason: str) -> None:
        if self.is_stock:
            reason = _FINAL_FOR_STOCK.sub(lambda match: match[0] + _ZERO_WIDTH_SPACE, reason)
        await self._answer(wire.TunnelError(request_id=request_id, message=reason))

    def _registered(self, request_id: str, tunnel: Tunnel) -> wire.TunnelRegistered:
        address = tunnel.address
        return wire.TunnelRegistered(
            request_id=request_id,
            tunnel_id=tunnel.id,
            public_url=self._registry.public_url(tunnel),
            assigned_port=address.port if isinstance(address, TcpPort) else None,
        )


async def serve_agent(
    pump: Pump,
    sessions: Sessions,
    registry: Registry,
    stream: ConnectionStream,
    peer: Peer,
    greeting: Greeting,
    *,
    admitted: Callable[[], object],
    first_byte_seconds: float = FIRST_BYTE_SECONDS,
) -> None:
    """A control connection whose upgrade was judged and put back into `stream`, from the 101 to its end.

    `admitted` is called when its token was accepted.
    """
    try:
        async with _admitted(sessions, stream, peer) as (control, auth, session):
            features = auth.features
            agent = RustunnelAgent(
                pump, sessions, registry, session, control, features=features, first_byte_seconds=first_byte_seconds
            )
            session.agent = agent
            control.close_frames = features is not None
            admitted()
            await agent.run(_auth_ok(session, features, greeting))
    except ControlEnded:
        pass


@asynccontextmanager
async def _admitted(
    sessions: Sessions, stream: ConnectionStream, peer: Peer
) -> AsyncIterator[tuple[ControlSocket, wire.Auth, Session]]:
    """The control socket of an agent whose token is good. Others are answered, if at all, and dropped: ControlEnded."""
    deadline = trio.CancelScope(deadline=trio.current_time() + AUTH_SECONDS)
    with deadline:
        async with serve_control(stream) as control:
            auth = await _first_frame(control)
            deadline.deadline = trio.current_time() + JUDGE_SECONDS
            session = await _authenticated(sessions, control, auth, peer)
            deadline.deadline = math.inf
            yield control, auth, session
    if deadline.cancelled_caught:
        raise ControlEnded(None, clean=False)


async def _first_frame(control: ControlSocket) -> wire.Auth:
    message = await control.receive()
    try:
        frame = wire.decode_from_agent(message or b"")
    except ControlError as error:
        log.debug("no auth", why=str(error))
        raise ControlEnded(None, clean=False) from None
    if not isinstance(frame, wire.Auth):
        await control.send(wire.encode(wire.AuthError(message="expected an auth frame")))
        raise ControlEnded(None, clean=False)
    return frame


async def _authenticated(sessions: Sessions, control: ControlSocket, auth: wire.Auth, peer: Peer) -> Session:
    introduction = Introduction(
        token=Secret(auth.token),
        client_version=auth.client_version[:TEXT_MAX],
        peer=peer,
        features=auth.features or (),
        machine=_cut(auth.machine),
        instance=_cut(auth.instance),
    )
    try:
        return await sessions.authenticate(introduction)
    except BadCredentials as error:
        await control.send(wire.encode(wire.AuthError(message=str(error))))
    except StoreError:
        pass  # without an answer it tries again
    raise ControlEnded(None, clean=False)


def _auth_ok(session: Session, features: tuple[str, ...] | None, greeting: Greeting) -> wire.AuthOk:
    if features is None:
        return wire.AuthOk(session_id=session.id, server_version=wire.PROTOCOL_LEVEL)
    return wire.AuthOk(
        session_id=session.id,
        server_version=wire.PROTOCOL_LEVEL,
        features=FEATURES,
        data_secret=session.data_secret,
        region=greeting.region,
        https=greeting.https,
    )


def _wish(frame: wire.RegisterTunnel) -> Wish:
    return Wish(
        protocol=Protocol(frame.protocol),
        subdomain=frame.subdomain,
        port=frame.port,
        local_addr=frame.local_addr[:TEXT_MAX],
        take_over=frame.take_over,
        target=LocalTarget(_host_header(frame), frame.proxy_protocol),
        grouped=frame.group_key_hash is not None,
    )


def _host_header(frame: wire.RegisterTunnel) -> bytes | None:
    """What the local service is to see as Host: None for the visitor's, "rewrite" for its own address."""
    value = frame.host_header
    if value is None:
        return None
    if value == "rewrite":
        value = frame.local_addr.rpartition("://")[2]
    if _HEADER_VALUE.fullmatch(value) is None:
        raise Denied("host_header cannot be sent: 1 to 256 visible ASCII characters")
    return value.encode("ascii")


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:TEXT_MAX]


def _line(
    tunnel_id: str, method: bytes, target: bytes, status: int, milliseconds: float, visit_id: str
) -> wire.VisitLine:
    return wire.VisitLine(
        tunnel_id=tunnel_id,
        method=method.decode("latin-1"),
        path=target[:TEXT_MAX].decode("latin-1"),
        status=status,
        ms=round(milliseconds, 1),
        capture_id=visit_id,
    )
