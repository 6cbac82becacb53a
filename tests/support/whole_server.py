"""A running server with its inside in view: what a test on real sockets must count, or hurry along.

async with whole_server(tmp_path) as whole:
    async with whole.agent() as agent, whole.leaves_nothing(): ...
"""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from rustunnel_py import server as composition
from rustunnel_py.agents.rustunnel import RustunnelAgent
from rustunnel_py.model.tunnel import HttpHost
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, Reply
from tests.support.stock_agent import StockAgent, WebSocket, stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.hub.sessions import Session, Sessions
    from rustunnel_py.transport.pump import Pump

WAIT_SECONDS = 20.0  # a hang shows as a failure
MONTHS = 1e8  # seconds ahead: every hold and deadline of the registry is over


@dataclass
class Balance:
    """What a scenario may not leave behind, as readable names and counts."""

    tasks: Counter[str]
    descriptors: Counter[str]
    addresses: list[str]
    tcp_ports: list[int]
    sessions: int
    strangers: int
    connections: int
    sweeps: int
    waiting: int


@dataclass
class WholeServer:
    server: RunningServer
    parts: Any  # server._Parts, private to the composition root
    expected_crashes: int = 0  # what a test made its handlers raise on purpose

    @property
    def pump(self) -> Pump:
        pump: Pump = self.parts._pump
        return pump

    @property
    def registry(self) -> Registry:
        registry: Registry = self.parts.registry
        return registry

    @property
    def sessions(self) -> Sessions:
        sessions: Sessions = self.parts.sessions
        return sessions

    # agents

    def agent(self, token: str | None = None, *, heartbeats: bool = False) -> AbstractAsyncContextManager[StockAgent]:
        return stock_agent(
            self.server.ready.control_port,
            token or self.server.admin_token,
            tls=self.server.client_context(),
            heartbeats=heartbeats,
        )

    @asynccontextmanager
    async def serving(
        self, port: int, label: str = "demo", *, protocol: str = "http", token: str | None = None
    ) -> AsyncIterator[StockAgent]:
        """An agent with one tunnel and its data socket."""
        async with self.agent(token) as agent:
            await agent.register(protocol, port, subdomain=None if protocol == "tcp" else label)
            await agent.serve()
            yield agent

    async def dial(self, path: str) -> WebSocket:
        """An upgraded connection of a client that has said nothing yet. Raises Refused."""
        control_port = self.server.ready.control_port
        quiet = StockAgent(control_port, "", self.server.client_context(), "localhost", heartbeats=False)
        return await quiet._open(path)

    async def raw_tls(self) -> trio.SSLStream[trio.SocketStream]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.server.ready.control_port)
        wrapped = trio.SSLStream(stream, self.server.client_context(), server_hostname="localhost")
        await wrapped.do_handshake()
        return wrapped

    def session(self, agent: StockAgent) -> Session:
        session = self.sessions.find(agent.session_id)
        assert session is not None
        return session

    def shell(self, agent: StockAgent) -> RustunnelAgent:
        shell = self.session(agent).agent
        assert isinstance(shell, RustunnelAgent)
        return shell

    def tunnel(self, label: str) -> Tunnel | None:
        return self.registry.find(HttpHost(self.server.host(label)))

    # visitors

    async def get(self, label: str, target: str = "/", **more: Any) -> Reply:
        stream = await self.server.connect()
        async with stream:
            return await HttpClient(stream).request(self.server.host(label), target, **more)

    async def ask_raw(self, raw: bytes) -> bytes:
        """Bytes to the HTTP edge; everything that comes back until it ends."""
        stream = await self.server.connect()
        async with stream:
            await stream.send_all(raw)
            return await read_to_end(stream)

    # the API

    async def api(self, method: str, path: str, token: str | None = None, body: object = None) -> tuple[int, Any]:
        """Status and JSON of one API call, by the admin unless a token is given."""
        address = self.server.ready.dashboard_url.partition("://")[2]
        host, _, port = address.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        headers = [("Authorization", f"Bearer {token or self.server.admin_token}")]
        content = b"" if body is None else json.dumps(body).encode()
        if content:
            headers.append(("Content-Type", "application/json"))
        async with stream:
            reply = await HttpClient(stream).request(address, path, method=method, headers=tuple(headers), body=content)
        return reply.status, json.loads(reply.body) if reply.body else None

    async def new_token(self, label: str) -> tuple[str, str]:
        """An API token's secret and its id."""
        status, made = await self.api("POST", "/api/tokens", body={"label": label})
        assert status == 201, made
        return made["token"], made["id"]

    # the whole

    async def until(self, condition: Callable[[], object]) -> None:
        """Let the server work until it holds."""
        with trio.fail_after(WAIT_SECONDS):
            while not condition():
                await trio.testing.wait_all_tasks_blocked(0.001)

    def call(self, function: Callable[[], object]) -> None:
        """Touch a machine as the server's own tasks do."""
        self.pump.call(self, function)

    def crashed(self, error: Exception) -> None:
        raise error

    def forget_held(self) -> None:
        """The holds of all addresses are over."""
        self.call(lambda: self.registry.sweep(trio.current_time() + MONTHS))

    def balance(self) -> Balance:
        registry = self.registry
        return Balance(
            tasks=Counter(task.name for task in _tasks()),
            descriptors=_descriptors(),
            addresses=sorted(str(address) for address in registry._by_address),
            tcp_ports=sorted(self.parts._tcp._ports),
            sessions=len(self.sessions),
            strangers=len(self.parts._door._strangers),
            connections=len(self.pump._all()),  # type: ignore[attr-defined]
            sweeps=len(self.pump._sweeps),  # type: ignore[attr-defined]
            waiting=self.parts._tcp.census.parked,
        )

    @asynccontextmanager
    async def leaves_nothing(self) -> AsyncIterator[None]:
        """What runs within must leave the server as it was: tasks, descriptors, names, ports, sessions."""
        before = self.balance()
        yield
        after = before
        with trio.move_on_after(WAIT_SECONDS):
            while True:
                self.forget_held()
                await trio.testing.wait_all_tasks_blocked(0.005)
                after = self.balance()
                if after == before:
                    break
        assert after == before, _differences(before, after)
        assert self.pump.crashes == self.expected_crashes


def _differences(before: Balance, after: Balance) -> str:
    lines = []
    for name in Balance.__dataclass_fields__:
        was, now = getattr(before, name), getattr(after, name)
        if isinstance(was, Counter):
            was, now = was - now, now - was
        if was != now:
            lines.append(f"{name}: was {was}, left {now}")
    return "; ".join(lines)


def _tasks() -> list[trio.lowlevel.Task]:
    found: list[trio.lowlevel.Task] = []
    root = trio.lowlevel.current_root_task()
    todo = [root] if root is not None else []
    while todo:
        task = todo.pop()
        found.append(task)
        for nursery in task.child_nurseries:
            todo += nursery.child_tasks
    return found


def _descriptors() -> Counter[str]:
    """Open descriptors by kind; empty where the system does not show them."""
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return Counter()
    kinds: Counter[str] = Counter()
    for number in numbers:
        try:
            kinds[os.readlink(f"/proc/self/fd/{number}").partition(":")[0]] += 1
        except OSError:
            pass  # the listing's own
    return kinds


async def read_to_end(stream: trio.abc.ReceiveStream, seconds: float = WAIT_SECONDS) -> bytes:
    """Everything until the peer ends it, cleanly or not."""
    received = bytearray()
    with trio.fail_after(seconds):
        try:
            async for part in stream:
                received += part
        except trio.BrokenResourceError:
            pass
    return bytes(received)


@asynccontextmanager
async def whole_server(data: Path, *, pump: str = "auto", **tables: dict[str, object]) -> AsyncIterator[WholeServer]:
    """`running_server`, with the parts that it was wired of. No handler of it may have crashed at the end."""
    made: list[Any] = []

    class Kept(composition._Parts):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composition, "_Parts", Kept)
        async with running_server(data, pump=pump, **tables) as server:
            whole = WholeServer(server, made[0])
            yield whole
    assert whole.pump.crashes == whole.expected_crashes
