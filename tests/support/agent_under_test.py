"""Our agent against a played server, with the news that its screen got."""

from __future__ import annotations

import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from rustunnel_py.client.agent import run_agent
from rustunnel_py.client.config import AgentConfig, LocalAddress, Login, Options, Pin, ServerAddress, Trust, Tunnel
from rustunnel_py.model.access import Secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.client.news import News
    from tests.support.played_server import PlayedControl, PlayedData, PlayedServer

N = TypeVar("N")

HUNG_SECONDS = 30.0


class Heard:
    """A screen that keeps what it is shown."""

    def __init__(self) -> None:
        self.news: list[News] = []
        self._changed = trio.Event()

    def show(self, news: News) -> None:
        self.news.append(news)
        self._changed.set()

    def close(self) -> None: ...

    def of(self, kind: type[N]) -> list[N]:
        return [news for news in self.news if isinstance(news, kind)]

    async def until(self, kind: type[N], count: int = 1) -> N:
        """The `count`th news of its kind, when it is there."""
        while len(self.of(kind)) < count:
            self._changed = trio.Event()
            await self._changed.wait()
        return self.of(kind)[count - 1]


class RunningAgent:
    def __init__(self, screen: Heard) -> None:
        self.screen = screen
        self.stopping = trio.Event()
        self.ended = trio.Event()
        self.code: int | None = None

    async def stop(self) -> int:
        self.stopping.set()
        return await self.wait()

    async def wait(self) -> int:
        await self.ended.wait()
        assert self.code is not None
        return self.code


@asynccontextmanager
async def running_agent(
    server: PlayedServer,
    *tunnels: Tunnel,
    websocket: bool = False,
    trust: Trust | None = None,
    host: str = "127.0.0.1",
    dice: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[RunningAgent]:
    """The agent, from its first connect to the end of the block; without jitter, unless there is a `dice`."""
    login = Login(ServerAddress(host, server.port), Secret("sesame"), trust or Pin(server.identity.pin))
    config = AgentConfig(login, tunnels, Options(websocket=websocket), machine="ab" * 16)
    agent = RunningAgent(Heard())

    async def run() -> None:
        agent.code = await run_agent(config, agent.screen, stopping=agent.stopping, dice=dice)
        agent.ended.set()

    done = threading.Event()

    async def watch() -> None:
        # By a thread and not by trio's clock, which tests let jump.
        finished = await trio.to_thread.run_sync(done.wait, HUNG_SECONDS, abandon_on_cancel=True)
        assert finished, f"it hangs; the news were {agent.screen.news}"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        nursery.start_soon(watch)
        try:
            yield agent
        finally:
            done.set()
            nursery.cancel_scope.cancel()


async def up(
    server: PlayedServer, *urls: str, raw: bool = True, answer_pings: bool = True
) -> tuple[PlayedControl, PlayedData]:
    """Accept the agent, grant it what it asks for, and have its data socket. Tunnels are called t1, t2, …"""
    control = await server.next_control()
    control.answer_pings = answer_pings
    await control.welcome(features=["raw_data"] if raw else [], data_secret="data-secret")
    for index, url in enumerate(urls):
        port = int(url.rpartition(":")[2]) if url.startswith("tcp://") else None
        await control.register(f"t{index + 1}", url, port)
    return control, await server.next_data(raw=raw, answer_pings=answer_pings)


class LocalEcho:
    """A local service that gives back what it gets, and counts its connections."""

    def __init__(self, local: LocalAddress) -> None:
        self.local = local
        self.connections = 0
        self.open = 0
        self._changed = trio.Event()

    async def serve(self, stream: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with stream:
                async for data in stream:
                    await stream.send_all(data)
                if isinstance(stream, trio.abc.HalfCloseableStream):
                    await stream.send_all(b"|end")
                    await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open -= 1
            self._changed.set()

    async def all_closed(self) -> None:
        while self.open:
            self._changed = trio.Event()
            await self._changed.wait()


@asynccontextmanager
async def local_echo(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> AsyncIterator[LocalEcho]:
    family = trio.socket.AF_INET6 if ":" in host else trio.socket.AF_INET
    async with trio.open_nursery() as nursery:
        with trio.socket.socket(family) as listener:
            await listener.bind((host, 0))
            listener.listen(64)
            echo = LocalEcho(LocalAddress(host, listener.getsockname()[1]))

            async def accept() -> None:
                while True:
                    accepted, _ = await listener.accept()
                    stream = trio.SocketStream(accepted)
                    if context is None:
                        nursery.start_soon(echo.serve, stream)
                    else:
                        nursery.start_soon(echo.serve, trio.SSLStream(stream, context, server_side=True))

            nursery.start_soon(accept)
            yield echo
            nursery.cancel_scope.cancel()


async def closed_port() -> int:
    """A port on loopback where nobody listens."""
    with trio.socket.socket() as probe:
        await probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
