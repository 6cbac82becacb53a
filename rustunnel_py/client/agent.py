"""The agent program: connect, register, serve, and come back for as long as the process lives.

`run_agent` is the whole of it. Final are: a refused token, a server that is not the expected one at the first
contact, a name refused at its first registration. Everything else is a line on the screen and another try.
"""

from __future__ import annotations

import secrets
import signal
from typing import TYPE_CHECKING

import trio

from rustunnel_py import __version__
from rustunnel_py.client.backoff import Backoff
from rustunnel_py.client.config import HttpTunnel
from rustunnel_py.client.failure import ENDED, FAILED, AgentFailure, Unreachable, Untrusted
from rustunnel_py.client.local import LocalService, Resolver
from rustunnel_py.client.names import Wish
from rustunnel_py.client.news import Connecting, Disconnected, Ended
from rustunnel_py.client.reach import Reach, pin_of
from rustunnel_py.client.session import AgentSession, authenticate, reach_control
from rustunnel_py.transport.descriptors import descriptor_ceiling, raise_descriptor_limit
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.wire import control as wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.client.config import AgentConfig, LocalAddress, Login, ServerAddress, Trust
    from rustunnel_py.client.screen import Screen
    from rustunnel_py.model.access import Secret
    from rustunnel_py.transport.pump import Pump, PumpKind
    from rustunnel_py.transport.tls import TlsConnection

CLOSE_SECONDS = 2.0  # for the server's answer to a close frame
GOOD_SECONDS = 5.0  # a session that served so long resets the back-off

_dice = secrets.SystemRandom().random


async def run_agent(
    config: AgentConfig,
    screen: Screen,
    *,
    stopping: trio.Event | None = None,
    dice: Callable[[], float] = _dice,
    pump_kind: PumpKind = "auto",
) -> int:
    """Serve the tunnels of `config` until told to stop; gives the exit code (`failure.py`).

    `stopping` None: SIGINT and SIGTERM end it politely, a second one at once. Else the caller sets the event and
    handles signals. `dice` gives the jitter: a number from 0 to below 1.
    """
    code = FAILED
    raise_descriptor_limit()  # each stream has a connection to a local service
    async with trio.open_nursery() as nursery:
        if stopping is None:
            stopping = trio.Event()
            nursery.start_soon(_obey_signals, stopping, nursery.cancel_scope)
        async with open_pump(pump_kind) as pump, trio.open_nursery() as resolving:
            code = await Agent(config, screen, pump, resolving, dice).run(stopping)
            resolving.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return code


async def _obey_signals(stopping: trio.Event, scope: trio.CancelScope) -> None:
    names = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")  # the last two exist on one kind of system each
    wanted = [getattr(signal, name) for name in names if hasattr(signal, name)]
    wanted = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    with trio.open_signal_receiver(*wanted) as signals:
        async for _ in signals:
            if stopping.is_set():
                scope.cancel()
                return
            stopping.set()


class Agent:
    """The tries and sessions of one process."""

    def __init__(
        self, config: AgentConfig, screen: Screen, pump: Pump, nursery: trio.Nursery, dice: Callable[[], float]
    ) -> None:
        self._config = config
        self._screen = screen
        self._pump = pump
        self._dice = dice
        self._resolver = Resolver()
        self._instance = secrets.token_hex(16)
        self._backoff = Backoff(dice)
        self._known = False  # the server was the expected one, and took the token, at least once
        services: dict[tuple[LocalAddress, bool], LocalService] = {}
        self._wishes: list[Wish] = []
        for tunnel in config.tunnels:
            insecure = isinstance(tunnel, HttpTunnel) and tunnel.local_insecure
            key = tunnel.local, insecure
            if key not in services:
                services[key] = LocalService(pump, nursery, self._resolver, tunnel.local, insecure=insecure)
            self._wishes.append(Wish(tunnel, services[key]))

    async def run(self, stopping: trio.Event) -> int:
        try:
            reach = Reach(self._pump, self._resolver, self._config.login.server, self._config.login.trust)
            await self._run_until(stopping, reach)
        except AgentFailure as failure:
            self._screen.show(Ended(failure.exit_code, str(failure)))
            return failure.exit_code
        self._screen.show(Ended(ENDED, "as asked"))
        return ENDED

    async def _run_until(self, stopping: trio.Event, reach: Reach) -> None:
        attempt = 0
        while not stopping.is_set():
            attempt += 1
            self._screen.show(Connecting(str(self._config.login.server), attempt))
            stay = _Stay()
            try:
                await self._stay(reach, stopping, stay)
                return
            except AgentFailure as failure:
                if self._is_final(failure):
                    raise
                why = str(failure)
            session = stay.session
            if session is not None and session.served:
                attempt = 0
                if trio.current_time() - stay.began >= GOOD_SECONDS:
                    self._backoff.reset()
            going_away = session is not None and session.going_away
            seconds = self._backoff.soon() if going_away else self._backoff.pause()
            self._screen.show(Disconnected(why, round(seconds, 1)))
            with trio.move_on_after(seconds):
                await stopping.wait()

    def _is_final(self, failure: AgentFailure) -> bool:
        """A stranger in the server's place is final at first contact; later it may be a network's login page."""
        match failure:
            case Untrusted():
                return not self._known
            case Unreachable():
                return False
            case _:
                return True

    async def _stay(self, reach: Reach, stopping: trio.Event, stay: _Stay) -> None:
        """Connect, authenticate and serve until `stopping`. Raises AgentFailure."""
        failure: AgentFailure | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay.cancel_unless_begun, stopping, nursery.cancel_scope)
            try:
                async with reach_control(reach) as control:
                    welcome = await authenticate(control, self._hello())
                    self._known = True
                    stay.session = session = AgentSession(
                        self._config, self._wishes, reach, control, welcome, self._pump, self._screen, self._dice
                    )
                    await session.run(stopping)
            except AgentFailure as caught:
                failure = caught
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _hello(self) -> wire.Auth:
        return hello(
            self._config.login.token,
            machine=self._config.machine,
            instance=self._instance,
            raw_data=not self._config.options.websocket,
        )


class _Stay:
    """What is known of one try after it."""

    def __init__(self) -> None:
        self.began = trio.current_time()
        self.session: AgentSession | None = None

    async def cancel_unless_begun(self, stopping: trio.Event, scope: trio.CancelScope) -> None:
        """Before the session begins there is nobody to say goodbye to; from then on it does so itself."""
        await stopping.wait()
        if self.session is None:
            scope.cancel()


def hello(token: Secret, *, machine: str | None, instance: str | None, raw_data: bool) -> wire.Auth:
    """The first frame of our agent."""
    return wire.Auth(
        token=token.reveal(),
        client_version=__version__,
        features=_features(raw_data),
        machine=machine,
        instance=instance,
    )


def _features(raw_data: bool) -> tuple[str, ...]:
    features = [wire.RAW_DATA] if raw_data else []
    features += ["visits", "going_away", wire.STREAM_HEADS]
    if descriptor_ceiling() >= wire.MANY_STREAMS_MAX:
        features.append(wire.MANY_STREAMS)
    return tuple(features)


async def try_token(login: Login, *, machine: str | None = None) -> None:
    """Show the token to the server and leave. Raises TokenRefused, Untrusted or Unreachable."""
    async with open_pump() as pump:
        failure: AgentFailure | None = None
        try:
            async with reach_control(Reach(pump, Resolver(), login.server, login.trust)) as control:
                await authenticate(control, hello(login.token, machine=machine, instance=None, raw_data=True))
                with trio.move_on_after(CLOSE_SECONDS):
                    await control.close()
        except AgentFailure as caught:
            failure = caught
    if failure is not None:
        raise failure


async def look_at(server: ServerAddress, trust: Trust | None) -> str:
    """The pin of the key that the server has, judged by `trust` (None: by nobody). Nothing is said to it.

    Raises Untrusted or Unreachable.
    """
    async with open_pump() as pump:
        failure: AgentFailure | None = None
        shown: str | None = None
        try:
            shown = await Reach(pump, Resolver(), server, trust).connect(_read_pin)
        except AgentFailure as caught:
            failure = caught
    if failure is not None:
        raise failure
    if shown is None:
        raise Untrusted(f"{server} showed no certificate")
    return shown


def _read_pin(connection: TlsConnection) -> str | None:
    shown = pin_of(connection)
    connection.close()
    return shown
