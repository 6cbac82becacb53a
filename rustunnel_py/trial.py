"""`try`: a server and an agent in one process, on loopback, over a folder that goes away with it.

visitor -> server -> agent -> local service, or the demo page
"""

from __future__ import annotations

import contextlib
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import trio

from rustunnel_py import logs
from rustunnel_py.client.agent import run_agent
from rustunnel_py.client.config import (
    AgentConfig,
    HttpTunnel,
    LocalAddress,
    Login,
    Pin,
    ServerAddress,
    check_tunnel,
    parse_local,
)
from rustunnel_py.client.demo import serve_demo
from rustunnel_py.client.news import News, Note, TunnelUp
from rustunnel_py.client.screen import open_screen
from rustunnel_py.errors import PortInUse
from rustunnel_py.server import Ready, serve
from rustunnel_py.store.folder import DataFolder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.client.screen import Screen
    from rustunnel_py.config import Config


def run_trial(config: Config, data: Path | None, *, local: str | None, subdomain: str | None, as_json: bool) -> int:
    """Run until Ctrl-C; gives the exit code. Raises ConfigError. `data` None: a folder that is removed afterwards."""
    service = None if local is None else parse_local(local, "PORT")
    wish = HttpTunnel(service or LocalAddress("127.0.0.1", 1), subdomain)
    check_tunnel(wish, "tunnel")  # before anything is started
    logs.set_up(msgspec.structs.replace(config.logging, level="warning"))  # the screen has the terminal
    with _folder(data) as folder, open_screen(json=as_json) as screen:
        return trio.run(_try, config, folder, service, subdomain, screen)


@contextlib.contextmanager
def _folder(data: Path | None) -> Iterator[DataFolder]:
    if data is not None:
        yield DataFolder(data)
        return
    with tempfile.TemporaryDirectory(prefix="rustunnel-py-try-") as temporary:
        yield DataFolder(Path(temporary))


async def _try(
    config: Config, folder: DataFolder, service: LocalAddress | None, subdomain: str | None, screen: Screen
) -> int:
    asked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey_signals, asked, nursery.cancel_scope)
        stopping, stopped = trio.Event(), trio.Event()
        ready = await start_on_free_ports(nursery, config, folder, stopping, stopped)
        if service is None:
            service = await nursery.start(serve_demo)
        agent = AgentConfig(
            login=Login(ServerAddress("127.0.0.1", ready.control_port), ready.admin_token, Pin(ready.pin)),
            tunnels=(HttpTunnel(service, subdomain),),
        )
        code = await run_agent(agent, _Pointing(screen, ready.http_port), stopping=asked)
        stopping.set()
        await stopped.wait()
        nursery.cancel_scope.cancel()
    return code


async def start_on_free_ports(
    nursery: trio.Nursery, config: Config, folder: DataFolder, stopping: trio.Event, stopped: trio.Event
) -> Ready:
    """A server on the ports of `config`, or on free ones in place of those that are taken."""

    async def run(config: Config, *, task_status: trio.TaskStatus[Ready]) -> None:
        await serve(config, folder, stopping, task_status=task_status)
        stopped.set()

    while True:
        try:
            ready: Ready = await nursery.start(run, config)
        except PortInUse as taken:
            name = taken.key.partition(".")[2]
            if getattr(config.server, name, 0) == 0:  # not one of the ports; or the system has none free
                raise
            server = msgspec.structs.replace(config.server, **{name: 0})
            config = msgspec.structs.replace(config, server=server)
        else:
            return ready


async def _obey_signals(asked: trio.Event, scope: trio.CancelScope) -> None:
    """The first asks for a polite end, the second ends at once."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            if asked.is_set():
                scope.cancel()
                return
            asked.set()


class _Pointing:
    """A screen that also tells how tools reach the tunnel whose resolver does not know `*.localhost`."""

    def __init__(self, screen: Screen, http_port: int) -> None:
        self._screen = screen
        self._http_port = http_port

    def show(self, news: News) -> None:
        self._screen.show(news)
        if isinstance(news, TunnelUp):
            host = news.public_url.partition("://")[2].partition("/")[0]
            self._screen.show(Note(f"or: curl -H 'Host: {host}' http://127.0.0.1:{self._http_port}/"))

    def close(self) -> None:
        self._screen.close()
