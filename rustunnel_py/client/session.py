"""One session with the server: authenticate, register, serve streams, keep both sockets alive, leave.

A handful of trio tasks around the control socket; whatever carries a visitor's bytes is machines on the pump
(`data.py`, `local.py`). The first task that finds a reason ends the session with it.
"""

from __future__ import annotations

import math
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from rustunnel_py.client.config import HttpTunnel
from rustunnel_py.client.data import open_data
from rustunnel_py.client.failure import AgentFailure, NameRefused, TokenRefused, Unreachable
from rustunnel_py.client.local import VISITOR_MAX, Served, Serving
from rustunnel_py.client.names import other_scheme, usable
from rustunnel_py.client.news import (
    Connected,
    DataLost,
    GoingAway,
    Latency,
    Note,
    Ready,
    TunnelRefused,
    TunnelUp,
    Visited,
)
from rustunnel_py.errors import ControlError
from rustunnel_py.model.text import escape
from rustunnel_py.transport.control_socket import ControlEnded, ControlSocket, UpgradeRefused, open_control
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.wire import control as wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from rustunnel_py.client.config import AgentConfig
    from rustunnel_py.client.names import Wish
    from rustunnel_py.client.reach import Reach
    from rustunnel_py.client.screen import Screen
    from rustunnel_py.transport.pump import Pump

CONTROL_PATH = "/_control"
OPEN_SECONDS = 15.0  # to reach the server and have its 101
ANSWER_SECONDS = 10.0  # for `auth` and for each `register_tunnel`: what the wire spec gives the server
PING_SECONDS = 10.0
PONG_SECONDS = 5.0  # together: a server that is gone is noticed within 15 s (W19)
LEAVE_SECONDS = 2.0  # for the polite end, all of it
REASK_SECONDS = 5.0  # between two tries for a name that was refused after a reconnect
REOPEN_SECONDS = 0.2  # before the data socket is opened again; grows with every try that fails
DATA_TRIES = 5  # then the whole session is begun anew
DATA_LIVED_SECONDS = 5.0  # a data socket that ended sooner counts as a failed try: no tight circle
VISITS_MAX = 200  # of one batch that are shown
SHOWN_URL = 512
SHOWN_PATH = 512


@asynccontextmanager
async def reach_control(reach: Reach) -> AsyncIterator[ControlSocket]:
    """A control socket to the server; dropped at the end. Raises Unreachable, Untrusted or TokenRefused."""
    server = reach.server
    with trio.CancelScope(deadline=trio.current_time() + OPEN_SECONDS) as opening:
        stream = await reach.connect(ConnectionStream)
        try:
            async with open_control(stream, str(server), CONTROL_PATH) as control:
                opening.deadline = math.inf
                yield control
        except UpgradeRefused as refused:
            if refused.status == 401:  # what makes a stock agent give up as well
                raise TokenRefused(f"{server} refused the connection (401)") from refused
            raise Unreachable(f"{server}: {refused}") from refused
        except ControlEnded as ended:
            raise Unreachable(f"{server}: {ended}") from ended
    if opening.cancelled_caught:
        raise Unreachable(f"{server} did not open the control connection within {OPEN_SECONDS:.0f} s")


async def authenticate(control: ControlSocket, hello: wire.Auth) -> wire.AuthOk:
    """Say who we are and wait for the verdict. Raises TokenRefused or Unreachable.

    Nothing but the verdict counts here: whatever else a server says before it is ignored.
    """
    with trio.move_on_after(ANSWER_SECONDS):
        await control.send(wire.encode(hello))
        while True:
            frame = decode(await control.receive())
            match frame:
                case wire.AuthOk():
                    return frame
                case wire.AuthError(message=message):
                    raise TokenRefused(f"the server refused the token: {escape(message)}")
                case wire.Ping(timestamp=timestamp):
                    await control.send(wire.encode(wire.Pong(timestamp=timestamp)))
    raise Unreachable(f"the server did not answer the token within {ANSWER_SECONDS:.0f} s")


def decode(message: bytes | None) -> wire.ServerFrame | None:
    """A frame, or None for what is ignored: text, no JSON, types and fields of a newer server (C05)."""
    if message is None:
        return None
    try:
        return wire.decode_from_server(message)
    except ControlError:
        return None


class AgentSession:
    """One stay on the server. `served` tells whether every tunnel was up and the data socket open at some time."""

    def __init__(
        self,
        config: AgentConfig,
        wishes: Sequence[Wish],
        reach: Reach,
        control: ControlSocket,
        welcome: wire.AuthOk,
        pump: Pump,
        screen: Screen,
        dice: Callable[[], float],
    ) -> None:
        self.served = False
        self.going_away = False
        self.ignored = 0  # frames that meant nothing to us
        self._config = config
        self._wishes = wishes
        self._reach = reach
        self._control = control
        self._welcome = welcome
        self._pump = pump
        self._screen = screen
        self._dice = dice
        features = welcome.features or ()
        self._raw = wire.RAW_DATA in features and not config.options.websocket
        self._https = bool(welcome.https)
        self._serving = Serving(
            pump, screen, show_visitors=welcome.features is None, stream_heads=wire.STREAM_HEADS in features
        )
        self._answers: dict[str, _Answer] = {}
        self._scope = trio.CancelScope()
        self._failure: AgentFailure | None = None
        self._leaving = False
        self._last_heard = 0.0
        self._pinged = (0, 0.0)  # timestamp as sent, and when

    async def run(self, stopping: trio.Event) -> None:
        """Until `stopping`, then leave politely. Raises AgentFailure where something else ended it."""
        server = str(self._config.login.server)
        region = None if self._welcome.region is None else escape(self._welcome.region)
        self._screen.show(Connected(server, region, self._raw))
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                for task in (self._read, self._work, self._beat):
                    nursery.start_soon(self._guarded, task)
                await stopping.wait()
                await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            self._pump.call(self._serving, self._serving.close)
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except AgentFailure as failure:
            self._fail(failure)
        except ControlEnded as ended:
            self._fail(Unreachable(_farewell(ended)))

    def _fail(self, failure: AgentFailure) -> None:
        """The first reason counts. While we leave, the end of the control socket is what we wait for."""
        if self._leaving:
            return
        if self._failure is None and not self._scope.cancel_called:
            self._failure = failure
        self._scope.cancel()

    async def _leave(self) -> None:
        """A clean end: the addresses are free at once. Bounded, whatever the server does."""
        self._leaving = True
        with trio.move_on_after(LEAVE_SECONDS):
            try:
                for tunnel_id in self._serving.tunnel_ids():
                    await self._send(wire.UnregisterTunnel(tunnel_id=tunnel_id))
                await self._control.close()
            except ControlEnded:
                pass  # it left first

    async def _send(self, frame: wire.AgentFrame) -> None:
        await self._control.send(wire.encode(frame))

    # what the server says

    async def _read(self) -> None:
        while True:
            message = await self._control.receive()
            self._last_heard = trio.current_time()
            frame = decode(message)
            if frame is None:
                self.ignored += 1
            else:
                await self._take(frame)

    async def _take(self, frame: wire.ServerFrame) -> None:
        match frame:
            case wire.NewConnection():
                self._announce(frame)
            case wire.Ping(timestamp=timestamp):
                await self._send(wire.Pong(timestamp=timestamp))
            case wire.Pong(timestamp=timestamp):
                sent, at = self._pinged
                if timestamp == sent:
                    self._screen.show(Latency(round((trio.current_time() - at) * 1000, 1)))
            case wire.TunnelRegistered(request_id=request_id) | wire.TunnelError(request_id=request_id):
                answer = self._answers.pop(request_id, None)
                if answer is None:
                    self.ignored += 1
                else:
                    answer.give(frame)
            case wire.Visits(visits=visits):
                self._show_visits(visits)
            case wire.GoingAway():
                self.going_away = True
                self._screen.show(GoingAway())
            case _:  # peer-to-peer, a second verdict: nothing that we asked for
                self.ignored += 1

    def _announce(self, frame: wire.NewConnection) -> None:
        try:
            conn_id = uuid.UUID(frame.conn_id).bytes
        except ValueError:
            self.ignored += 1
            return
        serving = self._serving
        visitor = escape(frame.client_addr, VISITOR_MAX)
        self._pump.call(serving, lambda: serving.announce(conn_id, frame.protocol, frame.tunnel_id, visitor))

    def _show_visits(self, visits: Sequence[wire.VisitLine]) -> None:
        for visit in visits[:VISITS_MAX]:
            tunnel_id = None if visit.tunnel_id is None else escape(visit.tunnel_id, 64)
            capture = None if visit.capture_id is None else escape(visit.capture_id, 64)
            self._screen.show(
                Visited(
                    tunnel_id,
                    escape(visit.method, 32),
                    escape(visit.path, SHOWN_PATH),
                    visit.status,
                    visit.ms,
                    capture,
                )
            )

    # heartbeat

    async def _beat(self) -> None:
        """A ping at once, for the latency, then one every ten seconds. Any frame is a sign of life."""
        while True:
            at = trio.current_time()
            stamp = int(time.time() * 1000)
            self._pinged = (stamp, at)
            with trio.move_on_after(PONG_SECONDS):
                await self._send(wire.Ping(timestamp=stamp))
                await trio.sleep_forever()
            if self._last_heard < at:
                raise Unreachable(f"the server did not answer within {PONG_SECONDS:.0f} s")
            await trio.sleep(PING_SECONDS - PONG_SECONDS)

    # registering

    async def _work(self) -> None:
        again = [wish for wish in self._wishes if not await self._register(wish)]
        async with trio.open_nursery() as nursery:
            if again:
                nursery.start_soon(self._guarded, lambda: self._ask_again(again))
            await self._guarded(self._keep_data)

    async def _register(self, wish: Wish) -> bool:
        """Ask for one tunnel. False: the server has another holder for it just now, and had us there before."""
        request_id = str(uuid.uuid4())
        answer = self._answers[request_id] = _Answer()
        frame = None
        with trio.move_on_after(ANSWER_SECONDS):
            await self._send(wish.frame(request_id, https=self._https))
            frame = await answer.wait()
        local = str(wish.tunnel.local)
        if isinstance(frame, wire.TunnelRegistered):
            wish.given(frame)
            self._serving.add(Served(frame.tunnel_id, wish.tunnel, wish.service))
            self._show_tunnel(frame, wish, local)
            return True
        self._answers.pop(request_id, None)
        if frame is None:
            raise Unreachable(f"the server did not answer the registration within {ANSWER_SECONDS:.0f} s")
        message = escape(frame.message)
        if not wish.served_once:
            raise NameRefused(f"no tunnel for {local}: {message}{_advice(wish, message)}")
        self._screen.show(TunnelRefused(local, wish.shown, message))
        if wish.refused():
            self._screen.show(Note(f"the former address of {local} is gone; asking for another"))
        return False

    def _show_tunnel(self, frame: wire.TunnelRegistered, wish: Wish, local: str) -> None:
        protocol = "http" if isinstance(wish.tunnel, HttpTunnel) else "tcp"
        url = escape(frame.public_url, SHOWN_URL)
        also = None
        if usable(frame.public_url):
            also = other_scheme(frame.public_url) if self._https else None
        else:
            url = f"(no usable address: {url})"
        self._screen.show(TunnelUp(escape(frame.tunnel_id, 64), protocol, url, local, also))

    async def _ask_again(self, wishes: list[Wish]) -> None:
        while wishes:
            await trio.sleep(REASK_SECONDS * (0.5 + self._dice()))
            wishes = [wish for wish in wishes if not await self._register(wish)]

    # the data socket

    async def _keep_data(self) -> None:
        """Keep one data socket open. When only it drops, the tunnels stay and it is opened again."""
        failed = 0
        why = ""
        while True:
            opened_at = trio.current_time()
            try:
                data = await open_data(self._reach, self._pump, self._serving, self._welcome, raw=self._raw)
            except Unreachable as failure:
                why = str(failure)
            else:
                self.served = True
                self._screen.show(Ready())
                why = await data.run()
                if trio.current_time() - opened_at >= DATA_LIVED_SECONDS:
                    failed = 0
            failed += 1
            if failed > DATA_TRIES:
                raise Unreachable(f"the data connection cannot be kept: {why}")
            # Where the server is gone the control socket says so first; then this line would say nothing new.
            await trio.sleep(REOPEN_SECONDS * failed * (0.5 + self._dice()))
            self._screen.show(DataLost(why))


class _Answer:
    """A place for the answer to one registration."""

    def __init__(self) -> None:
        self._frame: wire.TunnelRegistered | wire.TunnelError | None = None
        self._came = trio.Event()

    def give(self, frame: wire.TunnelRegistered | wire.TunnelError) -> None:
        self._frame = frame
        self._came.set()

    async def wait(self) -> wire.TunnelRegistered | wire.TunnelError | None:
        await self._came.wait()
        return self._frame


def _farewell(ended: ControlEnded) -> str:
    if ended.clean:
        return f"the server closed the session (code {ended.code})"
    return "the connection to the server was lost"


def _advice(wish: Wish, message: str) -> str:
    if wish.tunnel.take_over or not any(word in message.lower() for word in ("in use", "taken", "held")):
        return ""
    return "; --take-over takes it from another agent of yours, or choose another"
