"""Our own agent in the test's process, against a `RunningServer`."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from rustunnel_py.client.agent import run_agent
from rustunnel_py.client.config import (
    AgentConfig,
    CaFile,
    HttpTunnel,
    LocalAddress,
    Login,
    Options,
    ServerAddress,
    TcpTunnel,
    Tunnel,
)
from rustunnel_py.client.news import Ended, News, Ready, TunnelUp
from rustunnel_py.model.access import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.running_server import RunningServer

WAIT_SECONDS = 30.0

NewsType = TypeVar("NewsType", bound=News)


class RecordingScreen:
    """Keeps all news, and wakes whoever waits for some of it."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self._more = trio.Event()

    def show(self, news: News) -> None:
        self.news.append(news)
        self._more.set()
        self._more = trio.Event()

    def close(self) -> None: ...

    def of(self, kind: type[NewsType]) -> list[NewsType]:
        return [news for news in self.news if isinstance(news, kind)]

    async def wait_for(self, kind: type[NewsType], count: int = 1) -> NewsType:
        """The `count`-th piece of news of that kind."""
        with trio.fail_after(WAIT_SECONDS):
            while len(self.of(kind)) < count:
                await self._more.wait()
        return self.of(kind)[count - 1]

    async def wait_until(self, holds: Callable[[], bool]) -> None:
        with trio.fail_after(WAIT_SECONDS):
            while not holds():
                await self._more.wait()


class OurAgent:
    def __init__(self) -> None:
        self.screen = RecordingScreen()
        self.stopping = trio.Event()
        self.exit_code: int | None = None
        self.cancel_scope = trio.CancelScope()

    @property
    def urls(self) -> list[str]:
        """The public URLs in the order of registration, the latest session's only."""
        ups = self.screen.of(TunnelUp)
        latest = {up.local + up.protocol: up.public_url for up in ups}
        return list(latest.values())

    def kill(self) -> None:
        """End without a word, as a crash does: sockets close, nothing is unregistered."""
        self.cancel_scope.cancel()


def http(port: int, subdomain: str | None = None, **more: object) -> HttpTunnel:
    return HttpTunnel(LocalAddress("127.0.0.1", port), subdomain, **more)  # type: ignore[arg-type]


def tcp(port: int, wish: int | None = None, **more: object) -> TcpTunnel:
    return TcpTunnel(LocalAddress("127.0.0.1", port), wish, **more)  # type: ignore[arg-type]


def agent_config(
    server: RunningServer,
    *tunnels: Tunnel,
    token: str | None = None,
    machine: str = "m1",
    options: Options | None = None,
) -> AgentConfig:
    login = Login(
        ServerAddress("localhost", server.ready.control_port),
        Secret(token or server.admin_token),
        CaFile(server.folder / "ca.pem"),
    )
    return AgentConfig(login, tunnels, options or Options(), machine=machine)


@asynccontextmanager
async def our_agent(config: AgentConfig, *, ready: bool = True) -> AsyncIterator[OurAgent]:
    """Run an agent; with `ready`, from when its tunnels serve. It ends politely with the context."""
    agent = OurAgent()
    ended = trio.Event()

    async def run() -> None:
        with agent.cancel_scope:
            agent.exit_code = await run_agent(config, agent.screen, stopping=agent.stopping)
        ended.set()
        agent.screen.show(Ended(agent.exit_code if agent.exit_code is not None else -1, "the task ended"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        if ready:
            await agent.screen.wait_until(lambda: bool(agent.screen.of(Ready) or agent.screen.of(Ended)))
            assert not agent.screen.of(Ended), agent.screen.news
        try:
            yield agent
        finally:
            agent.stopping.set()
            with trio.CancelScope(shield=True), trio.move_on_after(WAIT_SECONDS):
                await ended.wait()
            nursery.cancel_scope.cancel()
