"""The edge on real sockets and both pumps: listeners, TLS, limits, the drain, the end; nothing is left behind."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from rustunnel_py.edges.http import EdgeLimits, HttpEdge, ParkingLimits
from rustunnel_py.hub.registry import Places, Registry
from rustunnel_py.model.tunnel import HttpHost, Peer, Protocol
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import Pump, open_pump
from tests.support.fake_link import OK, FakeLink
from tests.support.pairs import client_tls, server_tls
from tests.support.visitor_rig import HOST, NoPorts, get, post

if TYPE_CHECKING:
    from trio.testing import MockClock

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.http1 import RequestHead

NAMES = (HOST, "other.example.test", "example.test")
KINDS: list[Literal["epoll", "portable", "instrument"]] = ["epoll", "portable"]


class Soon(list[Callable[[], None]]):
    """What a fake link has due is played by the pump."""

    def __init__(self, pump: Pump) -> None:
        super().__init__()
        self._pump = pump

    def append(self, function: Callable[[], None]) -> None:
        self._pump.later(self, function)

    def crashed(self, error: Exception) -> None:
        raise error


@dataclass
class House:
    pump: Pump
    edge: HttpEdge
    link: FakeLink
    registry: Registry
    port: int
    listeners: trio.Nursery
    visits: trio.Nursery
    streams: list[trio.abc.Stream] = field(default_factory=list)

    async def connect(self, *, server_name: str | None = None) -> trio.abc.Stream:
        stream: trio.abc.Stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        if self.edge.shared.scheme == "https":
            context = client_tls(*NAMES)
            # Before 3.12 Python takes an end without close_notify for a proper one, unless told otherwise.
            context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
            context.check_hostname = server_name is not None
            stream = trio.SSLStream(stream, context, server_hostname=server_name)
        self.streams.append(stream)
        return stream

    async def ask(self, raw: bytes, stream: trio.abc.Stream | None = None) -> tuple[bytes, trio.abc.Stream]:
        """Send one request and read one reply with a length."""
        stream = stream or await self.connect()
        await stream.send_all(raw)
        return await read_reply(stream), stream


async def read_reply(stream: trio.abc.Stream) -> bytes:
    reply = b""
    while b"\r\n\r\n" not in reply:
        data = await stream.receive_some(65536)
        if not data:
            return reply
        reply += data
    head, _, body = reply.partition(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
    while len(body) < size:
        data = await stream.receive_some(65536)
        if not data:
            break
        body += data
    return head + b"\r\n\r\n" + body


async def read_all(stream: trio.abc.Stream) -> bytes:
    data = b""
    while chunk := await stream.receive_some(65536):
        data += chunk
    return data


async def hold_nursery(task_status: trio.TaskStatus[trio.Nursery]) -> None:
    async with trio.open_nursery() as nursery:
        task_status.started(nursery)
        await trio.sleep_forever()


@asynccontextmanager
async def house(
    *,
    kind: Literal["auto", "epoll", "portable", "instrument"] = "auto",
    tls: bool = False,
    limits: EdgeLimits | None = None,
    take_control: Callable[[Connection, RequestHead, bytes], bool] | None = None,
) -> AsyncIterator[House]:
    """A running edge, laid out as the server lays it out; at its end nothing may be left."""
    context: ssl.SSLContext | None = server_tls(*NAMES) if tls else None
    async with open_pump(kind) as pump:
        registry = Registry(NoPorts(), (20000, 20099), trio.current_time)
        registry.places = Places("example.test", 80, 443)
        link = FakeLink(answer=OK)
        link.due = Soon(pump)
        registry.create(HttpHost(HOST), "owner", Protocol.HTTP).links.add(link)
        edge = HttpEdge(
            pump,
            registry,
            listeners=bind("127.0.0.1", 0, key="test"),
            scheme="https" if tls else "http",
            context=context,
            limits=limits,
            parking=ParkingLimits(),
            take_control=take_control,
        )
        with trio.fail_after(30):
            async with trio.open_nursery() as outer:
                # Not around the test's own body, which goes on after they are cancelled.
                visits: trio.Nursery = await outer.start(hold_nursery)
                listeners: trio.Nursery = await outer.start(hold_nursery)
                (address,) = await listeners.start(edge.run, visits)
                assert isinstance(address, Peer)
                this = House(pump, edge, link, registry, address.port, listeners, visits)
                try:
                    yield this
                finally:
                    for stream in this.streams:
                        await trio.aclose_forcefully(stream)
                    listeners.cancel_scope.cancel()
                    await spin(lambda: not visits.child_tasks)
                    visits.cancel_scope.cancel()
            await spin(lambda: edge.census.now == 0)
        assert edge.visitors == 0
        assert pump.crashes == 0


async def spin(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tls", [False, True])
async def test_requests_on_one_connection(kind: Literal["epoll", "portable", "instrument"], tls: bool) -> None:
    async with house(kind=kind, tls=tls) as this:
        reply, stream = await this.ask(get("/1"))
        assert reply == OK
        reply, _ = await this.ask(post(b"x" * 100_000, target="/2"), stream)
        assert reply == OK
        assert [exchange.request.target for exchange in this.link.exchanges] == [b"/1", b"/2"]
        assert len(this.link.exchanges[1].body) == 100_000
        assert this.link.exchanges[0].visit.visitor.ip == "127.0.0.1"
        assert this.link.exchanges[0].visit.edge.port == this.port
        assert this.edge.census.now == 1


async def test_a_large_reply_arrives_whole() -> None:
    async with house() as this:
        body = bytes(range(256)) * 8192
        this.link.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        reply, _ = await this.ask(get())
        assert reply.partition(b"\r\n\r\n")[2] == body


async def test_H45_sni_of_another_tunnel_is_421() -> None:
    async with house(tls=True) as this:
        this.registry.create(HttpHost("other.example.test"), "owner", Protocol.HTTP)
        reply, _ = await this.ask(get(), await this.connect(server_name="other.example.test"))
        assert reply.startswith(b"HTTP/1.1 421 ")
        for name in (HOST, "example.test"):
            reply, _ = await this.ask(get(), await this.connect(server_name=name))
            assert reply == OK


async def test_S03_S04_the_wrong_protocol_is_ended_and_costs_nothing_else() -> None:
    async with house(tls=True) as this:
        stream = await trio.open_tcp_stream("127.0.0.1", this.port)
        this.streams.append(stream)
        await stream.send_all(get())
        assert b"HTTP" not in await read_all(stream)
        assert (await this.ask(get()))[0] == OK
    async with house() as this:
        hello = await this.connect()
        await hello.send_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n\n")
        assert (await read_all(hello)).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("limits", [EdgeLimits(connections=2), EdgeLimits(connections_per_source=2)])
@pytest.mark.parametrize("tls", [False, True])
async def test_T09_connections_at_the_limit(limits: EdgeLimits, tls: bool) -> None:
    async with house(limits=limits, tls=tls) as this:
        for _ in range(2):
            assert (await this.ask(get()))[0] == OK
        refused = await this.connect()
        if tls:
            with pytest.raises(trio.BrokenResourceError):
                await this.ask(get(), refused)
        else:
            reply = await read_all(refused)
            assert reply.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nRetry-After: 5\r\n" in reply
        assert sum(this.edge.census.refusals.values()) == 1
        await trio.aclose_forcefully(this.streams[0])
        await spin(lambda: this.edge.census.now == 1)
        assert (await this.ask(get()))[0] == OK


async def test_F04_the_drain_ends_idle_connections_and_waits_for_the_others() -> None:
    async with house() as this:
        this.link.answer = None
        idle, fresh = await this.connect(), await this.connect()
        await idle.send_all(get("/idle"))
        await spin(lambda: len(this.link.exchanges) == 1)
        this.pump.call(this.link.due, lambda: this.link.exchanges[0].reply(OK))  # type: ignore[arg-type]
        assert await read_reply(idle) == OK
        busy = await this.connect()
        await busy.send_all(get("/busy"))
        await spin(lambda: len(this.link.exchanges) == 2)
        this.listeners.cancel_scope.cancel()
        assert await read_all(idle) == b""
        assert await read_all(fresh) == b""
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", this.port)
        this.pump.call(this.link.due, lambda: this.link.exchanges[1].reply(OK))  # type: ignore[arg-type]
        assert (await read_all(busy)).endswith(b"Connection: close\r\n\r\nok")
        await spin(lambda: not this.visits.child_tasks)


async def test_P03_what_is_left_at_the_end_of_the_grace_is_cut() -> None:
    async with house() as this:
        this.link.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"
        stream = await this.connect()
        await stream.send_all(get())
        seen = b""
        while not seen.endswith(b"half"):
            seen += await stream.receive_some(1000)
        this.listeners.cancel_scope.cancel()
        this.visits.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1000)
        assert this.link.exchanges[0].was_reset


async def test_P03_over_tls_a_cut_has_no_close_notify() -> None:
    async with house(tls=True) as this:
        this.link.answer = b"HTTP/1.0 200 OK\r\n\r\nhalf"
        stream = await this.connect()
        await stream.send_all(b"GET / HTTP/1.0\r\nHost: app.example.test\r\n\r\n")
        seen = b""
        while not seen.endswith(b"half"):
            seen += await stream.receive_some(1000)
        this.listeners.cancel_scope.cancel()
        this.visits.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some(1000)


async def test_a_parked_visitor_is_served_on_real_sockets() -> None:
    async with house() as this:
        tunnel = this.registry.find_host(HOST)
        assert tunnel is not None
        tunnel.links.remove(this.link, trio.current_time())
        stream = await this.connect()
        await stream.send_all(get())
        await spin(lambda: this.edge.census.parked == 1)
        tunnel.links.add(this.link)
        assert await read_reply(stream) == OK
        await spin(lambda: this.edge.census.parked == 0)


async def test_H64_a_visitor_that_resets_is_gone_and_its_exchange_is_reset() -> None:
    async with house() as this:
        this.link.answer = None
        stream = await trio.open_tcp_stream("127.0.0.1", this.port)
        await stream.send_all(get())
        await spin(lambda: len(this.link.exchanges) == 1)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(stream)
        await spin(lambda: this.edge.census.now == 0)
        assert this.link.exchanges[0].was_reset


async def test_S09_handshakes_per_source_are_limited() -> None:
    async with house(tls=True, limits=EdgeLimits(handshakes_per_second_per_source=1e-6)) as this:
        assert (await this.ask(get()))[0] == OK
        with pytest.raises(trio.BrokenResourceError):
            await this.ask(get())
        assert this.edge.census.now == 1


async def test_P01_a_handshake_that_is_not_done_does_not_hold_the_drain(mock_clock: MockClock) -> None:
    async with house(tls=True) as this:
        stream = await trio.open_tcp_stream("127.0.0.1", this.port)
        this.streams.append(stream)
        await spin(lambda: this.edge.census.now == 1)
        this.listeners.cancel_scope.cancel()
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
        assert this.visits.child_tasks == set()


async def test_H51_an_early_answer_is_not_lost_to_a_reset() -> None:
    async with house(limits=EdgeLimits(body_max_bytes=10)) as this:
        stream = await this.connect()
        await stream.send_all(post(b"x" * 60_000))
        reply = await read_reply(stream)
        assert reply.startswith(b"HTTP/1.1 413 ")
        await stream.send_all(b"x" * 10_000)
        assert await stream.receive_some(1) == b""


class Echo:
    """Who takes control connections: echoes what it gets."""

    def __init__(self, connection: Connection, held: bytes) -> None:
        self.connection = connection
        self.taken = held
        connection.sink = self
        connection.credit(len(held))
        connection.send(b"mine")

    def data(self, data: memoryview) -> None:
        self.connection.send(data)
        self.connection.credit(len(data))

    def eof(self) -> None:
        self.connection.close()

    def room(self) -> None: ...

    def lost(self, error: Exception) -> None: ...

    def expired(self) -> None:
        self.connection.close()  # there was no deadline


def take_with_echo(connection: Connection, head: RequestHead, held: bytes) -> bool:
    if head.target == b"/_control":
        Echo(connection, held)
    return head.target == b"/_control"


async def test_agents_are_handed_over_and_the_drain_does_not_wait_for_them() -> None:
    echoes: list[Echo] = []

    def take_control(connection: Connection, head: RequestHead, held: bytes) -> bool:
        if head.target != b"/_control":
            return False
        echoes.append(Echo(connection, held))
        return True

    async with house(tls=True, take_control=take_control) as this:
        reply, _ = await this.ask(get("/", host="example.test"))
        assert reply.startswith(b"HTTP/1.1 200 ")
        stream = await this.connect()
        await stream.send_all(get("/_control", host="example.test"))
        assert await stream.receive_some(100) == b"mine"
        this.listeners.cancel_scope.cancel()
        await spin(lambda: not this.visits.child_tasks)
        await stream.send_all(b"still here")
        assert await stream.receive_some(100) == b"still here"
        assert echoes[0].taken == get("/_control", host="example.test")
        await trio.aclose_forcefully(stream)
        await spin(lambda: this.edge.census.now == 0)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("tls", [False, True])
async def test_no_deadline_of_a_visitor_s_ends_what_was_handed_over(
    mock_clock: MockClock, tls: bool, kept: bool
) -> None:
    limits = EdgeLimits(header_seconds=2.0, idle_seconds=3.0)
    async with house(tls=tls, take_control=take_with_echo, limits=limits) as this:
        stream = await this.connect()
        if kept:
            assert await this.ask(get(), stream) == (OK, stream)
        reply, idle = await this.ask(get())
        assert reply == OK
        await stream.send_all(get("/_control", host="example.test"))
        assert await stream.receive_some(100) == b"mine"
        for _ in range(8):
            mock_clock.jump(1)
            await stream.send_all(b"still here")
            assert await stream.receive_some(100) == b"still here"
        assert await idle.receive_some(1) == b""  # sweeps did run
        assert (this.edge.census.now, this.edge.visitors) == (1, 0)


async def test_H65_silent_connections_are_swept(mock_clock: MockClock) -> None:
    async with house(limits=EdgeLimits(header_seconds=5.0)) as this:
        stream = await this.connect()
        await spin(lambda: this.edge.census.now == 1)
        mock_clock.jump(6)
        assert await stream.receive_some(1) == b""
        await spin(lambda: this.edge.census.now == 0)
