"""A whole server in the test's process, on real sockets of loopback and ports that the kernel chooses.

async with running_server(tmp_path) as server:
    async with agent_for(server, http(service.port, subdomain="app")) as agent:
        reply = await server.get("app", "/")
"""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from rustunnel_py.config import Config, load
from rustunnel_py.server import Ready, serve
from rustunnel_py.store.folder import DataFolder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

START_SECONDS = 30.0  # a hang shows as a failure, not as a silent suite


@dataclass(slots=True)
class RunningServer:
    """What a test asks of a server that runs."""

    ready: Ready
    folder: Path
    stopping: trio.Event
    stopped: trio.Event

    @property
    def admin_token(self) -> str:
        return self.ready.admin_token.reveal()

    def host(self, label: str) -> str:
        return f"{label}.{self.ready.domain}"

    def client_context(self) -> ssl.SSLContext:
        """Trusts the server's own authority and nothing else."""
        return ssl.create_default_context(cafile=str(self.folder / "ca.pem"))

    def fixed_ports(self) -> dict[str, object]:
        """The `server` table for a second server in this one's place."""
        ready = self.ready
        return {
            "http_port": ready.http_port,
            "https_port": ready.https_port,
            "control_port": ready.control_port,
        }

    async def connect(self) -> trio.SocketStream:
        """A visitor's connection to the plain HTTP edge."""
        return await trio.open_tcp_stream("127.0.0.1", self.ready.http_port)

    async def connect_tls(self, host: str) -> trio.SSLStream[trio.SocketStream]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.ready.https_port)
        return trio.SSLStream(stream, self.client_context(), server_hostname=host, https_compatible=True)


def test_config(data: Path, **tables: dict[str, object]) -> Config:
    """The defaults with every port 0 and loopback only; `tables` are changes: `limits={"rate_limit_rps": 5}`."""
    flags: dict[str, object] = {
        "server.host": "127.0.0.1",
        "server.http_port": 0,
        "server.https_port": 0,
        "server.control_port": 0,
        "server.dashboard_port": 0,
        "server.drain_seconds": 5.0,
        "limits.tcp_port_range": (0, 0),
    }
    for table, keys in tables.items():
        flags |= {f"{table}.{key}": value for key, value in keys.items()}
    return load(None, {}, flags)


test_config.__test__ = False  # type: ignore[attr-defined]


@asynccontextmanager
async def running_server(
    data: Path, *, pump: str = "auto", **tables: dict[str, object]
) -> AsyncIterator[RunningServer]:
    """A server over the data folder `data`; leaving the context drains and stops it."""
    config = test_config(data, **tables)
    stopping, stopped = trio.Event(), trio.Event()

    async def run(*, task_status: trio.TaskStatus[Ready]) -> None:
        await serve(config, DataFolder(data), stopping, pump_kind=pump, task_status=task_status)  # type: ignore[arg-type]
        stopped.set()

    async with trio.open_nursery() as nursery:
        with trio.fail_after(START_SECONDS):
            ready = await nursery.start(run)
        server = RunningServer(ready, data, stopping, stopped)
        try:
            yield server
        finally:
            stopping.set()
            with trio.CancelScope(shield=True), trio.move_on_after(START_SECONDS):
                await stopped.wait()
            nursery.cancel_scope.cancel()
