"""The composition root: build the parts, start them in order, stop them in order.

The nesting of the nurseries in `serve` is the order of the shutdown: public listeners stop first, visits get their
time to finish, agents are told, then the fronts close and the store flushes last.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
import signal
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import structlog
import trio

from rustunnel_py import config as configuration
from rustunnel_py import logs
from rustunnel_py.agents.door import Door
from rustunnel_py.api.app import build_app
from rustunnel_py.api.rs_tunnel import RsTunnel
from rustunnel_py.api.serve import ApiServer
from rustunnel_py.certs.keeper import Keeper
from rustunnel_py.config import database_paths
from rustunnel_py.edges.access_log import AccessLog
from rustunnel_py.edges.http import HttpEdge
from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.edges.tcp import TcpEdge
from rustunnel_py.entry import AgentsEntry, callers_of
from rustunnel_py.errors import StoreError
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.audit import Audit
from rustunnel_py.hub.inspector import Inspector
from rustunnel_py.hub.leases import Leases
from rustunnel_py.hub.logins import Logins
from rustunnel_py.hub.metrics import Metrics
from rustunnel_py.hub.policies import gate_for
from rustunnel_py.hub.policies.settings import PolicySettings
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.retention import Retention
from rustunnel_py.hub.sessions import Sessions
from rustunnel_py.hub.telemetry import Telemetry
from rustunnel_py.memory import collect_when_quiet, give_large_blocks_back, spare_start_up
from rustunnel_py.model.networks import Networks
from rustunnel_py.store.captures import Captures
from rustunnel_py.store.folder import ApiAddress, DataFolder
from rustunnel_py.store.line_file import LineFile
from rustunnel_py.store.store import open_store
from rustunnel_py.transport.descriptors import descriptor_ceiling, raise_descriptor_limit
from rustunnel_py.transport.front import Front
from rustunnel_py.transport.listen import Intake, bind
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tls import choose_certificate, server_context
from rustunnel_py.watchdog import CrashLog, log_what_the_interpreter_ignores, watched_loop

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from rustunnel_py.config import Config
    from rustunnel_py.model.access import Secret
    from rustunnel_py.store.store import Store
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump, PumpKind
    from rustunnel_py.wire.http1 import RequestHead

SWEEP_NAMES_SECONDS = 3600.0  # how often names that nobody used for names.remember_days are forgotten

# How long the loop waits for a thread that computes (large captures are redacted in one) before it gets the interpreter
# back. Python's own 5 ms come again at each system call of the loop.
SWITCH_SECONDS = 0.0005

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a started server listens and how to trust it; ports are the real ones, also where 0 was asked for."""

    domain: str
    http_port: int
    https_port: int
    control_port: int
    dashboard_url: str
    pin: str
    publicly_trusted: bool
    ca_path: Path | None  # None: the certificate is not of this server's own authority
    admin_token: Secret
    admin_token_file: Path | None  # None: the token is a setting
    public_http_port: int  # as visitors see it: a proxy may stand in front
    public_https_port: int
    control_plain: bool  # the control port speaks no TLS: agents come by the proxy


@dataclass(frozen=True, slots=True)
class _Sockets:
    """Every listener of fixed place, bound before anything else is built: a taken port leaves nothing behind."""

    http: list[socket.socket]
    https: list[socket.socket]
    control: list[socket.socket]
    dashboard: list[socket.socket]


class _Edge(Protocol):
    async def run(self, visits: trio.Nursery, *, task_status: trio.TaskStatus[object]) -> None: ...


async def serve(
    config: Config,
    folder: DataFolder,
    stopping: trio.Event,
    *,
    pump_kind: PumpKind = "auto",
    hangups: trio.MemoryReceiveChannel[None] | None = None,
    task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until `stopping` is set and everything has ended in order. Raises ConfigError, StoreError.

    Each item of `hangups` makes it load its certificates again.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(folder.lock())
        sockets = stack.enter_context(_bound(config))
        admin_token = config.auth.admin_token or folder.admin_token()
        keeper = Keeper.from_config(config, folder.path)
        store = await stack.enter_async_context(open_store(*database_paths(config.database, folder.path)))
        pump = await stack.enter_async_context(open_pump(pump_kind))
        pump.on_crash = CrashLog()
        async with trio.open_nursery() as chores, trio.open_nursery() as fronts:
            parts = _Parts(config, store, pump, keeper, sockets, admin_token, stopping, fronts)
            await parts.load()
            for chore in parts.chores():
                chores.start_soon(chore)
            for front in parts.fronts():
                await fronts.start(front.run)
            async with trio.open_nursery() as visits:
                async with trio.open_nursery() as listeners:
                    for edge in parts.edges():
                        await listeners.start(edge.run, visits)
                    ready = parts.ready(folder)

                    def publish(url: str = ready.dashboard_url) -> None:
                        folder.publish_address(ApiAddress(url, keeper.pin))

                    publish()
                    stack.callback(folder.withdraw_address)
                    if keeper.has_files:
                        chores.start_soon(keeper.watch, publish)
                    if hangups is not None:
                        chores.start_soon(_renew_at_hangups, keeper, hangups, publish, parts.line_files)
                    task_status.started(ready)
                    await stopping.wait()
                    listeners.cancel_scope.cancel()  # nobody new comes in
                visits.cancel_scope.deadline = trio.current_time() + config.server.drain_seconds
            await parts.sessions.say_goodbye()
            fronts.cancel_scope.cancel()
            chores.cancel_scope.cancel()


async def _renew_at_hangups(
    keeper: Keeper,
    hangups: trio.MemoryReceiveChannel[None],
    renewed: Callable[[], None],
    line_files: Sequence[LineFile],
) -> None:
    async for _ in hangups:
        for lines in line_files:
            await lines.reopen()
        if await keeper.renew():
            renewed()


@contextlib.contextmanager
def _bound(config: Config) -> Iterator[_Sockets]:
    server = config.server
    with contextlib.ExitStack() as stack:

        def listen(host: str, port: int, key: str) -> list[socket.socket]:
            sockets = bind(host, port, key=key)
            for sock in sockets:
                stack.callback(sock.close)
            return sockets

        yield _Sockets(
            http=listen(server.host, server.http_port, "server.http_port"),
            https=listen(server.host, server.https_port, "server.https_port"),
            control=listen(server.host, server.control_port, "server.control_port"),
            dashboard=listen(server.dashboard_host, server.dashboard_port, "server.dashboard_port"),
        )


def _port(sockets: list[socket.socket]) -> int:
    port: int = sockets[0].getsockname()[1]
    return port


class _Parts:
    """The parts of one server, wired."""

    def __init__(
        self,
        config: Config,
        store: Store,
        pump: Pump,
        keeper: Keeper,
        sockets: _Sockets,
        admin_token: Secret,
        stopping: trio.Event,
        fronts: trio.Nursery,
    ) -> None:
        self._config = config
        self._store = store
        self._pump = pump
        self._keeper = keeper
        self._sockets = sockets
        self._admin_token = admin_token
        self._context = server_context()
        choose_certificate(self._context, keeper.choose)
        self.line_files: list[LineFile] = []
        access_file = self._line_file("logging.access_log_path", config.logging.access_log_path)
        style = config.logging.access_log_format
        self._access = None if access_file is None else AccessLog(access_file.write, style)
        history = config.history
        self._retention = Retention(
            store.tunnel_log,
            store.audit,
            keep_days=history.keep_days,
            keep_rows=history.keep_rows,
            audit_keep_days=history.audit_keep_days,
        )
        limits = config.limits
        self._census = Census(EdgeLimits.from_config(limits), ParkingLimits.from_config(config.tunnels))
        self._introducers = configuration.networks("server.proxy_protocol_from", config.server.proxy_protocol_from)
        self._ceiling = descriptor_ceiling()
        self._intakes: dict[str, Intake] = {}
        policies = PolicySettings(limits.rate_limit_rps, limits.max_connections_per_tunnel)
        self._tcp = TcpEdge(
            pump,
            config.server.host,
            census=self._census,
            intake=self._intake("tcp", self._ceiling),
            access=self._access,
        )
        self.registry = Registry(
            self._tcp, limits.tcp_port_range, trio.current_time, new_gate=lambda: gate_for(policies)
        )
        self.registry.places = Places(
            config.server.domain,
            config.server.public_http_port or _port(sockets.http),
            config.server.public_https_port or _port(sockets.https),
        )
        pump.on_sweep(self.registry.sweep)
        self.inspector = Inspector(
            config.inspect, self.registry, pump, Captures(store.captured), owner_of=store.tunnel_log.owner_of
        )
        self.audit = Audit(store.audit, self._line_file("logging.audit_log_path", config.logging.audit_log_path))
        self.accounts = Accounts(store, admin_token, config.auth.require_auth, note=self.audit.note)
        self.accounts.on_ended(self.inspector.end_views)
        self.sessions = Sessions(
            self.registry,
            self.accounts,
            store.names,
            store.tunnel_log,
            reserved=config.names.reserved,
            max_tunnels=limits.max_tunnels_per_session,
            hold_seconds=config.tunnels.hold_seconds,
            clock=trio.current_time,
            note=self.audit.note,
        )
        self.metrics = Metrics(self.registry, self.sessions)
        self._door = Door(
            pump,
            self.sessions,
            self.registry,
            fronts,
            region=config.region.id,
            # Who comes by a proxy that encrypts sees its certificate, not ours.
            https=keeper.publicly_trusted or config.server.control_plain,
            first_byte_seconds=self._census.limits.answer_seconds,
        )
        trusted = configuration.networks("server.trusted_proxies", config.server.trusted_proxies)
        self._trusted = trusted
        self._agents = AgentsEntry(self._door, trusted, self._introducers)
        self.leases = Leases(
            store.leases,
            self.registry,
            self.sessions,
            self.accounts,
            store.names,
            store.tunnel_log,
            reserved=config.names.reserved,
            max_active=limits.max_leases_per_user,
            note=self.audit.note,
        )
        self.logins = Logins(store.logins, self.accounts, note=self.audit.note)
        region = config.region.id
        self.telemetry = Telemetry(store.telemetry, self.registry, region=None if region == "default" else region)
        self.leases.on_ended(self.telemetry.forget)
        self.sessions.on_attached(self.telemetry.watch)
        control = f"{config.server.domain}:{_port(sockets.control)}"
        app = build_app(
            registry=self.registry,
            sessions=self.sessions,
            accounts=self.accounts,
            tunnel_log=store.tunnel_log,
            domain=config.server.domain,
            dashboard_origin=config.server.dashboard_origin,
            is_stopping=stopping.is_set,
            rs_tunnel_parts=RsTunnel(
                self.leases, self.logins, self.telemetry, lambda: (control, keeper.pin), self.audit.note
            ),
            audit=self.audit,
            inspector=self.inspector,
            metrics=self.metrics,
            metrics_public=config.metrics.public,
        )
        self._api = ApiServer(app, callers_of(trusted))
        self._fronts_nursery = fronts
        self._http_edges = [
            self._http_edge("http", self._sockets.http, None),
            self._http_edge("https", self._sockets.https, self._context),
        ]
        for edge in self._http_edges:
            self.inspector.on_look(edge.under_way)
        self._add_metrics()

    def _line_file(self, key: str, path: str | None) -> LineFile | None:
        if path is None:
            return None
        made = LineFile(Path(path), key)
        self.line_files.append(made)
        return made

    def _add_metrics(self) -> None:
        metrics, pump, store = self.metrics, self._pump, self._store
        metrics.add("counter", "rustunnel_crashes", "Callbacks that raised.", lambda: pump.crashes)
        metrics.add("counter", "rustunnel_api_crashes", "API connections that raised.", lambda: self._api.crashes)
        intakes, keeper = self._intakes, self._keeper
        metrics.add_by(
            "listener",
            "counter",
            "rustunnel_accept_pauses",
            "How often nobody was let in for want of descriptors or memory.",
            lambda: {name: intake.pauses for name, intake in intakes.items()},
        )
        metrics.add_by(
            "listener",
            "counter",
            "rustunnel_unintroduced",
            "Connections of proxies that ended for want of a PROXY header.",
            lambda: {name: intake.unintroduced for name, intake in intakes.items()},
        )
        metrics.add("counter", "rustunnel_certificate_loads", "Certificates loaded again.", lambda: keeper.reloads)
        metrics.add("counter", "rustunnel_certificate_failures", "... that could not be.", lambda: keeper.failures)
        metrics.add("counter", "rustunnel_agents_refused", "Upgrades refused.", lambda: self._door.refused)
        census = self._census
        metrics.add_by(
            "code",
            "counter",
            "rustunnel_refusals",
            "Connections and visits that an edge refused, answered or ended by itself.",
            lambda: dict(census.refusals),
        )
        metrics.add("gauge", "rustunnel_sources", "Addresses (IPv6: /64) with a connection.", lambda: census.sources)
        metrics.add("gauge", "rustunnel_parked", "Visitors that wait for an agent or a policy.", lambda: census.parked)
        metrics.add_by("edge", "gauge", "rustunnel_connections", "Visitors' connections.", self._connections)
        metrics.add_by(
            "log",
            "counter",
            "rustunnel_dropped_rows",
            "Events that a slow disk cost.",
            lambda: {"tunnels": store.tunnel_log.dropped, "audit": store.audit.dropped},
        )
        metrics.add_by(
            "log",
            "gauge",
            "rustunnel_waiting_rows",
            "Events that wait for the disk.",
            lambda: {"tunnels": store.tunnel_log.waiting, "audit": store.audit.waiting},
        )

        inspector = self.inspector.status
        metrics.add(
            "counter",
            "rustunnel_captures_not_stored",
            "Captures that were overwritten before they were stored.",
            lambda: inspector().not_stored,
        )
        metrics.add("gauge", "rustunnel_captures_waiting", "Captures not stored yet.", lambda: inspector().waiting)
        metrics.add("gauge", "rustunnel_captures_bytes", "Memory of captures.", lambda: inspector().bytes_in_memory)
        metrics.add("gauge", "rustunnel_captures_lossy", "1: the store takes none.", lambda: inspector().lossy)

    def _connections(self) -> dict[str, float]:
        edges = {edge.shared.scheme: float(edge.visitors) for edge in self._http_edges}
        return {**edges, "tcp": self._tcp.visitors}

    async def load(self) -> None:
        """What the store remembers of leases and logins, before anybody can ask."""
        await self.inspector.start()
        await self.leases.load()
        await self.logins.load()

    def chores(self) -> list[Callable[[], Awaitable[None]]]:
        """What runs beside everything until the very end."""
        return [
            self._store.tunnel_log.run,
            self.accounts.run,
            self._forget_names,
            self.inspector.run,
            self._store.audit.run,
            *(lines.run for lines in self.line_files),
            self.metrics.run,
            self._retention.run,
            self.leases.run,
            self.logins.run,
            self.telemetry.run,
        ]

    async def _forget_names(self) -> None:
        days = timedelta(days=self._config.names.remember_days)
        while True:
            try:
                await self._store.names.forget_unused(datetime.now(UTC) - days)
            except StoreError as error:
                log.warning("unused names could not be forgotten", error=str(error))
            await trio.sleep(SWEEP_NAMES_SECONDS)

    def fronts(self) -> list[Front]:
        """The agents' port and the dashboard's."""
        server = self._config.server
        control = Front(
            self._pump,
            self._sockets.control,
            self._agents.routes,
            context=None if server.control_plain else self._context,
            name="control",
            accepted=self._agents.may_be_plain if server.control_plain else None,
            intake=self._intake("control"),
            handshakes=self._census.handshakes,
        )
        dashboard = Front(
            self._pump,
            self._sockets.dashboard,
            (),
            context=self._context if server.dashboard_tls else None,
            name="dashboard",
            otherwise=self._serve_api,
        )
        return [control, dashboard]

    def _serve_api(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        stream = ConnectionStream(connection, put_back=bytes_read)
        scheme = "https" if self._config.server.dashboard_tls else "http"
        serve_connection = partial(
            self._api.serve_connection, stream, scheme=scheme, peer=connection.peer, local=connection.local
        )
        self._fronts_nursery.start_soon(serve_connection)

    def edges(self) -> list[_Edge]:
        return [*self._http_edges, self._tcp]

    def _intake(self, listener: Literal["http", "https", "control", "tcp"], ceiling: float = math.inf) -> Intake:
        introduced = listener in self._config.server.proxy_protocol_on
        made = self._intakes[listener] = Intake(self._introducers if introduced else Networks(), ceiling)
        return made

    def _is_always_https(self) -> bool:
        """Whether browsers may be told to use https:// for the domain: they would on every port of it."""
        server, places = self._config.server, self.registry.places
        plain_dashboard = server.dashboard_plain and not server.dashboard_tls
        return server.redirect_https and places.https_port == 443 and not plain_dashboard

    def _http_edge(
        self, scheme: Literal["http", "https"], listeners: list[socket.socket], context: ssl.SSLContext | None
    ) -> HttpEdge:
        server = self._config.server
        take_control = None
        if context is not None:
            take_control = self._agents.take
        elif server.control_plain:
            take_control = self._agents.take_plain
        return HttpEdge(
            self._pump,
            self.registry,
            listeners=listeners,
            scheme=scheme,
            context=context,
            census=self._census,
            take_control=take_control,
            redirect_port=self.registry.places.https_port if server.redirect_https and context is None else None,
            trusted_proxies=tuple(self._trusted),
            intake=self._intake(scheme, self._ceiling),
            always_https=context is not None and self._is_always_https(),
            watch=self.inspector.watch if self._config.inspect.enabled else None,
            access=self._access,
        )

    def ready(self, folder: DataFolder) -> Ready:
        server, keeper = self._config.server, self._keeper
        host = "127.0.0.1" if server.dashboard_host in ("0.0.0.0", "::") else server.dashboard_host
        shown = f"[{host}]" if ":" in host else host
        scheme = "https" if server.dashboard_tls else "http"
        return Ready(
            domain=server.domain,
            http_port=_port(self._sockets.http),
            https_port=_port(self._sockets.https),
            control_port=_port(self._sockets.control),
            dashboard_url=f"{scheme}://{shown}:{_port(self._sockets.dashboard)}",
            pin=keeper.pin,
            publicly_trusted=keeper.publicly_trusted,
            ca_path=keeper.ca_path,
            admin_token=self._admin_token,
            admin_token_file=None if self._config.auth.admin_token else folder.admin_token_file,
            public_http_port=self.registry.places.http_port,
            public_https_port=self.registry.places.https_port,
            control_plain=server.control_plain,
        )


def serve_command(config: Config, data: Path, *, executable: str, pump_kind: PumpKind = "auto") -> int:
    """`rustunnel-py serve`: run until a signal, print what a person can act on; gives the exit code."""
    logs.occupy_standard_descriptors()
    os.umask(0o077)
    raise_descriptor_limit()
    give_large_blocks_back()
    sys.setswitchinterval(SWITCH_SECONDS)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # nothing to do, and no reason to die (P06)
    with logs.background_log(config.logging):
        log_what_the_interpreter_ignores()
        return trio.run(_serve_until_signal, config, DataFolder(data), executable, pump_kind)


async def _serve_until_signal(config: Config, folder: DataFolder, executable: str, pump_kind: PumpKind) -> int:
    stopping, ended = trio.Event(), trio.Event()
    hangup, hangups = trio.open_memory_channel[None](1)

    async def run(*, task_status: trio.TaskStatus[Ready]) -> None:
        await serve(config, folder, stopping, pump_kind=pump_kind, hangups=hangups, task_status=task_status)
        ended.set()
        nursery.cancel_scope.cancel()

    async with watched_loop(), trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, stopping, hangup, nursery.cancel_scope)
        ready: Ready = await nursery.start(run)
        spare_start_up()
        nursery.start_soon(collect_when_quiet)
        terminal = sys.stdout is not None and sys.stdout.isatty()
        say = partial(logs.say, greeting(ready, executable, terminal=terminal))
        await trio.to_thread.run_sync(say, abandon_on_cancel=True)  # an output that nobody reads holds nothing up
    return 0 if ended.is_set() else 1


async def _obey_signals(stopping: trio.Event, hangup: trio.MemorySendChannel[None], scope: trio.CancelScope) -> None:
    """The first of SIGTERM and SIGINT drains, the second ends everything at once; SIGHUP loads certificates again."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    if sys.platform != "win32":
        numbers.append(signal.SIGHUP)
    with trio.open_signal_receiver(*numbers) as signals:
        async for number in signals:
            name = signal.Signals(number).name
            if name == "SIGHUP":
                with contextlib.suppress(trio.WouldBlock):  # one is on its way already
                    hangup.send_nowait(None)
            elif stopping.is_set():
                log.warning("ending at once", signal=name)
                scope.cancel()
                return
            else:
                log.info("stopping", signal=name)
                stopping.set()


def greeting(ready: Ready, executable: str, *, terminal: bool) -> list[str]:
    """The lines that `serve` prints: where it listens, and what to type in another shell.

    The admin token itself is shown on a terminal only.
    """
    agents = f"{ready.domain}:{ready.public_https_port if ready.control_plain else ready.control_port}"
    login = f"{executable} login {agents}"
    if not ready.publicly_trusted and not ready.control_plain:  # a proxy that encrypts shows a certificate of its own
        login += f" --pin {ready.pin}"
    if ready.admin_token_file is not None:
        login += f" < {shlex.quote(str(ready.admin_token_file))}"
    token = ready.admin_token.reveal() if terminal else ready.admin_token_file or "as configured (auth.admin_token)"
    lines = [
        f"tunnels    http://NAME.{ready.domain}:{ready.public_http_port}  "
        f"https://NAME.{ready.domain}:{ready.public_https_port}",
        f"agents     {agents}" + (" by the proxy that encrypts" if ready.control_plain else ""),
        f"API        {ready.dashboard_url}/api/status",
        f"admin token  {token}",
    ]
    if ready.ca_path is not None:
        lines.append(f"authority  {ready.ca_path}")
    return [*lines, "In another shell:", f"  {login} && {executable} http 3000"]
