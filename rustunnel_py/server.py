"""The composition root: build the parts, start them in order, stop them in order.

The nesting of the nurseries in `serve` is the order of the shutdown: public listeners stop first, visits get their
time to finish, agents are told, then the fronts close and the store flushes last.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py import logs
from rustunnel_py.agents.door import Door
from rustunnel_py.api.app import build_app
from rustunnel_py.api.serve import ApiServer
from rustunnel_py.certs.authority import Authority
from rustunnel_py.certs.keeper import Keeper
from rustunnel_py.config import Config, database_paths
from rustunnel_py.edges.http import EdgeLimits, HttpEdge
from rustunnel_py.edges.tcp import TcpEdge
from rustunnel_py.errors import ConfigError, RustunnelError, StoreBroken
from rustunnel_py.hub.accounts import Accounts
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.hub.sessions import Sessions
from rustunnel_py.store.database import Store, open_store
from rustunnel_py.store.folder import ApiAddress, DataFolder
from rustunnel_py.transport.front import Front, Route
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import Pump, open_pump
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tls import choose_certificate, server_context

if TYPE_CHECKING:
    import socket

    from rustunnel_py.model.access import Secret
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.http1 import RequestHead

SWEEP_NAMES_SECONDS = 3600.0  # how often names that nobody used for names.remember_days are forgotten

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
    ca_path: Path | None  # None: the certificate is one that systems trust
    admin_token_file: Path | None  # None: the token is a setting
    admin_token: Secret


@dataclass(frozen=True, slots=True)
class _Sockets:
    """Every listener, bound before anything else is built: a taken port leaves nothing behind."""

    http: list[socket.socket]
    https: list[socket.socket]
    control: list[socket.socket]
    dashboard: list[socket.socket]


@contextlib.contextmanager
def _bound(config: Config) -> Iterator[_Sockets]:
    server = config.server
    with contextlib.ExitStack() as stack:

        def open_(host: str, port: int, key: str) -> list[socket.socket]:
            sockets = bind(host, port, key=key)
            for sock in sockets:
                stack.callback(sock.close)
            return sockets

        yield _Sockets(
            http=open_(server.host, server.http_port, "server.http_port"),
            https=open_(server.host, server.https_port, "server.https_port"),
            control=open_(server.host, server.control_port, "server.control_port"),
            dashboard=open_(server.dashboard_host, server.dashboard_port, "server.dashboard_port"),
        )


def _port(sockets: list[socket.socket]) -> int:
    port: int = sockets[0].getsockname()[1]
    return port


async def serve(
    config: Config,
    folder: DataFolder,
    stopping: trio.Event,
    *,
    pump_kind: PumpKind = "auto",
    task_status: trio.TaskStatus[Ready] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a server until `stopping` is set and everything has ended in order. Raises ConfigError, StoreBroken."""
    async with AsyncExitStack() as stack:
        stack.enter_context(folder.lock())
        sockets = stack.enter_context(_bound(config))
        admin_token = config.auth.admin_token or folder.admin_token()
        keeper = Keeper.from_config(config, folder.path)
        store = await stack.enter_async_context(open_store(*database_paths(config.database, folder.path)))
        pump = await stack.enter_async_context(open_pump(pump_kind))
        house = await stack.enter_async_context(trio.open_nursery())  # ends after the fronts
        stack.callback(house.cancel_scope.cancel)
        server = _Server(config, store, pump, keeper, sockets, admin_token, stopping)
        for chore in server.chores():
            house.start_soon(chore)

        fronts = await stack.enter_async_context(trio.open_nursery())
        stack.callback(fronts.cancel_scope.cancel)
        for front in server.fronts(fronts):
            await fronts.start(front.run)

        async with trio.open_nursery() as visits:
            async with trio.open_nursery() as listeners:
                for edge in server.edges():
                    await listeners.start(edge.run, visits)
                ready = server.ready(folder)
                folder.publish_address(ApiAddress(ready.dashboard_url, str(ready.ca_path) if ready.ca_path else None))
                stack.callback(folder.withdraw_address)
                task_status.started(ready)
                await stopping.wait()
                listeners.cancel_scope.cancel()
            visits.cancel_scope.deadline = trio.current_time() + config.server.drain_seconds
        await server.sessions.say_goodbye()
        fronts.cancel_scope.cancel()


class _Server:
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
    ) -> None:
        self._config = config
        self._store = store
        self._pump = pump
        self._keeper = keeper
        self._sockets = sockets
        self._admin_token = admin_token
        self._stopping = stopping
        limits = config.limits
        self._tcp = TcpEdge(pump, config.server.host, ...)
        self.registry = Registry(self._tcp, limits.tcp_port_range, trio.current_time)
        self.registry.places = Places(config.server.domain, _port(sockets.http), _port(sockets.https))
        pump.on_sweep(self.registry.sweep)
