"""The TCP edge over a real registry: a played link, then the stock agent at the other end of real sockets."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, ClassVar

import pytest
import trio
import trio.testing

from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.edges.tcp import TcpEdge
from rustunnel_py.errors import Hop, HopError, Reset, Unavailable
from rustunnel_py.hub.gate import PASS, Answer, Delay, Gate, NeedBody, Pass, Slow
from rustunnel_py.hub.registry import Registry
from rustunnel_py.model.tunnel import Peer, Protocol, TcpPort
from rustunnel_py.model.visit import Carries
from rustunnel_py.transport.pump import Pump, open_pump
from tests.support.agents_house import agents_house
from tests.support.muxpair import Hearing
from tests.support.services import echo, pattern, tcp_service
from tests.support.stock_agent import SessionFailed, StockTunnel, stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.hub.gate import Verdict
    from rustunnel_py.hub.registry import Tunnel
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import RequestHead
    from rustunnel_py.wire.sink import Buffer, Sink

RST = struct.pack("ii", 1, 0)


class FakePipe:
    """The local service's side; what was sent is kept, `sink` is called by the test."""

    def __init__(self) -> None:
        self.sink: Sink = Hearing()
        self.sent = bytearray()
        self.credited = 0
        self.eof = False
        self.was_reset = False
        self.roomy = True

    def send(self, data: Buffer) -> bool:
        self.sent += data
        return self.roomy

    def send_eof(self) -> None:
        self.eof = True

    def credit(self, size: int) -> None:
        self.credited += size

    def reset(self) -> None:
        self.was_reset = True


class FakeLink:
    """Opens pipes, or refuses."""

    def __init__(self, refusal: HopError | None = None) -> None:
        self.carries = Carries("fake")
        self.pipes: list[FakePipe] = []
        self.visits: list[Visit] = []
        self.refusal = refusal

    def exchange(self, visit: Visit, head: RequestHead, sink: object) -> object:
        raise NotImplementedError

    def open(self, visit: Visit) -> FakePipe:
        if self.refusal is not None:
            raise self.refusal
        self.visits.append(visit)
        self.pipes.append(FakePipe())
        return self.pipes[-1]


class Bench:
    def __init__(self, pump: Pump, edge: TcpEdge) -> None:
        self.pump = pump
        self.edge = edge
        self.registry = Registry(edge, (1, 65535), trio.current_time)
        self.link = FakeLink()

    def tunnel(self, *, served: bool = True, gate: Gate | None = None) -> Tunnel:
        """A tunnel on a port that the kernel has free just now."""
        for _ in range(20):
            probe = socket.socket()
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
            probe.close()
            try:
                tunnel = self.registry.create(TcpPort(port), "ann", Protocol.TCP)
            except Unavailable:
                continue
            tunnel.gate = gate
            if served:
                self.serve(tunnel)
            return tunnel
        raise AssertionError("no free port")

    def serve(self, tunnel: Tunnel) -> None:
        self.registry.serve(tunnel, None, self.link, Peer("192.0.2.9", 1))  # type: ignore[arg-type]

    async def visitor(self, tunnel: Tunnel) -> trio.SocketStream:
        assert isinstance(tunnel.address, TcpPort)
        return await trio.open_tcp_stream("127.0.0.1", tunnel.address.port)

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(10):
            while not condition():
                await trio.lowlevel.checkpoint()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_pump() as pump, trio.open_nursery() as visits:
        edge = TcpEdge(pump, "127.0.0.1", parking=ParkingLimits(wait_seconds=1000))
        async with trio.open_nursery() as listeners:
            await listeners.start(edge.run, visits)
            yield Bench(pump, edge)
            listeners.cancel_scope.cancel()
        visits.cancel_scope.cancel()
    assert pump.crashes == 0


async def turned_away(bench: Bench, tunnel: Tunnel) -> None:
    """A visitor of it is reset, perhaps before its `connect` returned."""
    try:
        visitor = await bench.visitor(tunnel)
    except OSError:
        return
    async with visitor:
        assert await ended(visitor) in ("reset", "fin")


async def ended(stream: trio.SocketStream) -> str:
    """How the server ended this visitor's connection."""
    with trio.fail_after(10):
        try:
            data = await stream.receive_some(1)
        except trio.BrokenResourceError:
            return "reset"
    assert not data
    return "fin"


async def test_T06_a_visit_is_joined_before_the_visitor_says_anything(bench: Bench) -> None:
    tunnel = bench.tunnel()
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: bench.link.pipes)
        pipe = bench.link.pipes[0]
        bench.pump.call(bench.edge, lambda: pipe.sink.data(memoryview(b"220 banner\r\n")))
        assert await visitor.receive_some(100) == b"220 banner\r\n"
        await visitor.send_all(b"EHLO\r\n")
        await bench.until(lambda: pipe.sent == b"EHLO\r\n")
        visit = bench.link.visits[0]
        assert (visit.tunnel_id, visit.kind.value, visit.visitor.ip) == (tunnel.id, "tcp", "127.0.0.1")
        assert TcpPort(visit.edge.port) == tunnel.address
        assert len(visit.id) == 32
        assert tunnel.requests == 1
        await visitor.send_eof()
        await bench.until(lambda: pipe.eof)
        bench.pump.call(bench.edge, lambda: pipe.sink.eof())
        assert await ended(visitor) == "fin"
        await bench.until(lambda: bench.edge.visitors == 0)
    assert bench.edge.census.now == 0


async def test_T03_a_reset_arrives_as_a_reset_on_either_side(bench: Bench) -> None:
    tunnel = bench.tunnel()
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: bench.link.pipes)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    await bench.until(lambda: bench.link.pipes[0].was_reset)
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: len(bench.link.pipes) == 2)
        pipe = bench.link.pipes[1]
        bench.pump.call(bench.edge, lambda: pipe.sink.lost(Reset("cut")))
        assert await ended(visitor) == "reset"


async def test_a_visit_that_cannot_be_served_is_reset(bench: Bench) -> None:
    bench.link.refusal = HopError(Hop.AGENT, 503, "agent-busy", "")
    await turned_away(bench, bench.tunnel())
    await bench.until(lambda: bench.edge.census.refusals == {"agent-busy": 1})


async def test_a_visitor_waits_for_the_returning_agent_and_loses_nothing(bench: Bench) -> None:
    tunnel = bench.tunnel(served=False)
    async with await bench.visitor(tunnel) as visitor:
        await visitor.send_all(b"hello ")
        await bench.until(lambda: bench.edge.census.parked == 1)
        await visitor.send_all(b"there")
        await visitor.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.01)
        bench.serve(tunnel)
        await bench.until(lambda: bench.link.pipes and bench.link.pipes[0].eof)
        pipe = bench.link.pipes[0]
        assert pipe.sent == b"hello there"
        bench.pump.call(bench.edge, lambda: pipe.sink.data(memoryview(b"bye")))
        assert await visitor.receive_some(10) == b"bye"


async def test_a_parked_visitor_that_leaves_is_forgotten(bench: Bench) -> None:
    tunnel = bench.tunnel(served=False)
    visitor = await bench.visitor(tunnel)
    await bench.until(lambda: bench.edge.census.parked == 1)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    await visitor.aclose()
    await bench.until(lambda: bench.edge.census.parked == 0)
    bench.serve(tunnel)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert bench.link.pipes == []


async def test_a_parked_visitor_is_reset_when_the_tunnel_ends(bench: Bench) -> None:
    tunnel = bench.tunnel(served=False)
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: bench.edge.census.parked == 1)
        bench.registry.release(tunnel)
        assert await ended(visitor) == "reset"


async def test_T08_ports_taken_released_and_taken_again(bench: Bench) -> None:
    tunnel = bench.tunnel()
    assert isinstance(tunnel.address, TcpPort)
    other = TcpEdge(bench.pump, "127.0.0.1")
    with pytest.raises(Unavailable, match="by another program"):
        Registry(other, (1, 65535), trio.current_time).create(tunnel.address, "bob", Protocol.TCP)
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: bench.link.pipes)
        bench.registry.release(tunnel)
        with pytest.raises(OSError, match="connect"):
            await bench.visitor(tunnel)
        # The visit under way goes on, and the port is free at once.
        again = bench.registry.create(tunnel.address, "ann", Protocol.TCP)
        bench.serve(again)
        await visitor.send_all(b"x")
        await bench.until(lambda: bench.link.pipes[0].sent == b"x")
        async with await bench.visitor(again) as second:
            await second.send_all(b"y")
            await bench.until(lambda: len(bench.link.pipes) == 2 and bench.link.pipes[1].sent == b"y")
    bench.registry.release(again)
    low = tunnel.address.port
    bench.registry._tcp_range = (low, low)
    blocker = socket.socket()
    blocker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    blocker.bind(("127.0.0.1", low))
    blocker.listen()
    with pytest.raises(Unavailable) as exhausted:
        bench.registry.create_tcp("ann")
    assert exhausted.value.code == "exhausted"
    blocker.close()


async def test_T09_connections_are_bounded(bench: Bench) -> None:
    bench.edge.census = Census(EdgeLimits(connections=3, connections_per_source=2))
    tunnel = bench.tunnel()

    async def leave(visitor: trio.SocketStream) -> None:
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        await visitor.aclose()

    first, second = await bench.visitor(tunnel), await bench.visitor(tunnel)
    await bench.until(lambda: bench.edge.visitors == 2)
    await turned_away(bench, tunnel)
    assert sum(bench.edge.census.refusals.values()) == 1
    await leave(first)
    await bench.until(lambda: bench.edge.visitors == 1)
    fourth = await bench.visitor(tunnel)
    await bench.until(lambda: bench.edge.visitors == 2)
    await leave(second)
    await leave(fourth)
    await bench.until(lambda: bench.edge.census.now == 0)


class Bouncer:
    """A policy that says what a test wants, and counts."""

    holds: ClassVar[bool] = True

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.judged = 0
        self.left = 0

    def judge(self, tunnel: Tunnel, visit: Visit, head: RequestHead | None) -> Verdict:
        assert head is None
        self.judged += 1
        return self.verdict

    def leave(self, visit: Visit) -> None:
        self.left += 1


@pytest.mark.parametrize(
    "verdict",
    [PASS, Pass(), Delay(0.01), Slow(lambda: PASS), NeedBody(10, lambda body: PASS)],
    ids=["pass", "changes", "delay", "slow", "body"],
)
async def test_a_gate_that_lets_a_visit_in_hears_when_it_left(bench: Bench, verdict: Verdict) -> None:
    bouncer = Bouncer(verdict)
    tunnel = bench.tunnel(gate=Gate([bouncer]))
    async with await bench.visitor(tunnel) as visitor:
        await bench.until(lambda: bench.link.pipes)
        assert (bouncer.judged, bouncer.left) == (1, 0)
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    await bench.until(lambda: bouncer.left == 1)


@pytest.mark.parametrize(
    "verdict",
    [
        Answer(HopError(Hop.EDGE, 503, "too-many-visits", "")),
        Slow(lambda: Answer(HopError(Hop.EDGE, 403, "no", ""))),
    ],
    ids=["at once", "late"],
)
async def test_a_gate_that_refuses_a_visit_resets_it(bench: Bench, verdict: Verdict) -> None:
    bouncer = Bouncer(verdict)
    await turned_away(bench, bench.tunnel(gate=Gate([bouncer])))
    assert bench.link.pipes == []
    assert sum(bench.edge.census.refusals.values()) == 1


async def test_who_leaves_while_a_policy_thinks_gives_back_what_was_taken(bench: Bench) -> None:
    bouncer = Bouncer(Delay(1000))
    visitor = await bench.visitor(bench.tunnel(gate=Gate([bouncer])))
    await bench.until(lambda: bouncer.judged)
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    await visitor.aclose()
    await bench.until(lambda: bouncer.left == 1)


async def test_the_drain_waits_for_visits_and_then_cuts_both_sides() -> None:
    async with open_pump() as pump, trio.open_nursery() as outer:
        edge = TcpEdge(pump, "127.0.0.1")
        bench = Bench(pump, edge)
        drained = trio.Event()
        stop = trio.Event()

        async def life(*, task_status: trio.TaskStatus[None]) -> None:
            async with trio.open_nursery() as visits:
                async with trio.open_nursery() as listeners:
                    await listeners.start(edge.run, visits)
                    task_status.started()
                    await stop.wait()
                    listeners.cancel_scope.cancel()
                drained.set()
                visits.cancel_scope.deadline = trio.current_time() + 0.2
            assert edge.visitors == 0

        await outer.start(life)
        tunnel = bench.tunnel()
        short, long = await bench.visitor(tunnel), await bench.visitor(tunnel)
        await bench.until(lambda: len(bench.link.pipes) == 2)
        stop.set()
        await drained.wait()
        with pytest.raises(OSError, match="connect"):
            await bench.visitor(tunnel)
        bench.registry.create(TcpPort(1), "ann", Protocol.TCP)  # a late registration listens nowhere, and harms nobody
        await short.send_eof()
        await bench.until(lambda: any(pipe.eof for pipe in bench.link.pipes))
        done = next(pipe for pipe in bench.link.pipes if pipe.eof)
        pump.call(edge, lambda: done.sink.eof())
        assert await ended(short) == "fin"
        assert await ended(long) == "reset"
        cut = next(pipe for pipe in bench.link.pipes if pipe is not done)
        await bench.until(lambda: cut.was_reset)
        await short.aclose()
        await long.aclose()
    assert pump.crashes == 0


# the whole way, with the stock agent


async def test_T01_T02_half_close_survives_both_ways() -> None:
    payload = pattern(2_000_000)

    async def after_eof(stream: trio.SocketStream) -> None:
        assert await stream.receive_some(10) == b"go"
        assert await stream.receive_some(10) == b""
        await stream.send_all(payload)

    got = bytearray()
    heard_all = trio.Event()

    async def before(stream: trio.SocketStream) -> None:
        await stream.send_all(b"welcome")
        await stream.send_eof()
        while data := await stream.receive_some(65536):
            got.extend(data)
        heard_all.set()

    async with (
        agents_house(tcp_range=(30000, 30999)) as house,
        tcp_service(after_eof) as one,
        tcp_service(before) as two,
        stock_agent(house.port, "ann") as agent,
    ):
        port = (await agent.register("tcp", one)).assigned_port
        assert port is not None
        await agent.serve()
        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            await visitor.send_all(b"go")
            await visitor.send_eof()
            received = bytearray()
            async for part in visitor:
                received += part
        assert received == payload
        agent.tunnels[0].local = ("127.0.0.1", two)
        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            assert await visitor.receive_some(10) == b"welcome"
            assert await visitor.receive_some(10) == b""
            await visitor.send_all(payload)
            await visitor.send_eof()
            with trio.fail_after(10):
                await heard_all.wait()
        assert got == payload
        assert agent.violations == []
        await house.until(lambda: agent.data is not None and not agent.data.streams)
        assert [frame["protocol"] for frame in agent.heard if frame["type"] == "new_connection"] == ["tcp"] * 2


async def test_a_refused_local_service_resets_the_visitor_and_the_port_is_held_while_the_agent_is_away() -> None:
    async with agents_house(tcp_range=(30000, 30999)) as house, tcp_service(echo) as service:
        async with stock_agent(house.port, "ann") as agent:
            tunnel = await agent.register("tcp", 1)
            port = tunnel.assigned_port
            assert port is not None
            assert tunnel.public_url == f"tcp://test:{port}"
            await agent.serve()
            async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
                assert await ended(visitor) == "reset"
            await agent.drop_control()
            await house.until(lambda: len(house.sessions) == 0)
        async with await trio.open_tcp_stream("127.0.0.1", port) as visitor:
            await visitor.send_all(b"are you there")
            async with stock_agent(house.port, "ann") as agent:
                with pytest.raises(SessionFailed):
                    await agent.register("http", 1, subdomain="-")
                await agent._say(
                    type="register_tunnel", request_id="r", protocol="tcp", port=port, local_addr="localhost:1"
                )
                await agent._only_answer(("tunnel_registered",))
                agent.tunnels.append(StockTunnel(tunnel.id, "tcp", "", port, ("127.0.0.1", service)))
                await agent.serve()
                assert await visitor.receive_some(100) == b"are you there"
