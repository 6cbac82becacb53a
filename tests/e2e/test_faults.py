"""Faults in a whole server with our own agent at the other end of a wire that is cut: what each costs, and whom."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.transport.trunk import SocketTrunk
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.services import HttpClient, http_service, pattern, tcp_service
from tests.support.whole_server import WholeServer, whole_server
from tests.support.wire import Wire, wire_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.our_agent import OurAgent

IN_FLIGHT = 100
LENGTH = 100_000


@dataclass
class Bench:
    whole: WholeServer
    wire: Wire
    agent: OurAgent
    arrived: trio.MemoryReceiveChannel[str]
    go_on: trio.Event


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """A local service that begins some answers, keeps others back, and waits for `go_on`."""
    come, arrived = trio.open_memory_channel[str](1000)
    go_on = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        while True:
            head = bytearray()
            while b"\r\n\r\n" not in head:
                part = await stream.receive_some(65536)
                if not part:
                    return
                head += part
            target = head.split(b" ")[1].decode()
            begun = target.startswith("/begun")
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LENGTH + pattern(LENGTH)
            if begun:
                await stream.send_all(answer[:5000])
            if target != "/quick":
                come.send_nowait(target)
                await go_on.wait()
            await stream.send_all(answer[5000 if begun else 0 :])

    async with (
        tcp_service(serve) as port,
        whole_server(tmp_path) as whole,
        wire_to(whole.server) as (far, wire),
        our_agent(agent_config(far, http(port, "app"))) as agent,
    ):
        yield Bench(whole, wire, agent, arrived, go_on)


@pytest.mark.parametrize("how", ["rst", "fin", "blackhole"])
async def test_F05_the_loss_of_the_data_socket_ends_what_is_in_flight_and_nothing_else(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 100 requests has an end of its own: a 502, or a beginning that looks cut. None looks whole."""
    if how == "blackhole":  # noticed after 10 s and 5 s for an answer; here the clocks are hurried
        monkeypatch.setattr(SocketTrunk, "ping_seconds", 2.0)
        monkeypatch.setattr(SocketTrunk, "answer_seconds", 2.0)
    answers: dict[str, bytes] = {}

    async with bench(tmp_path) as this:
        host = this.whole.server.host("app")

        async def visit(target: str) -> None:
            async with await this.whole.server.connect() as visitor:
                await visitor.send_all(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
                received = bytearray()
                try:
                    while part := await visitor.receive_some(65536):
                        received += part
                        if b" 502 " in received[:20] and received.endswith(b"\n"):
                            break
                except trio.BrokenResourceError:
                    pass
                answers[target] = bytes(received)

        with trio.fail_after(25):
            async with trio.open_nursery() as nursery:
                for number in range(IN_FLIGHT):
                    nursery.start_soon(visit, f"/{'begun' if number % 2 else 'kept'}/{number}")
                for _ in range(IN_FLIGHT):
                    await this.arrived.receive()
                await this.whole.until(lambda: _begun(this.whole) == IN_FLIGHT // 2)
                data = this.wire.strands[1]
                {"rst": data.reset, "fin": data.close, "blackhole": data.freeze}[how]()
        assert len(answers) == IN_FLIGHT
        for target, answer in answers.items():
            if target.startswith("/begun"):
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n"), target
                assert len(answer) < LENGTH, target
            else:
                assert answer.startswith(b"HTTP/1.1 502 "), target
        this.go_on.set()
        reply = await this.whole.get("app", "/quick")  # over the next data socket, waited for
        assert (reply.status, len(reply.body)) == (200, LENGTH)
        assert this.whole.tunnel("app") is not None


def _begun(whole: WholeServer) -> int:
    edges = whole.parts._http_edges
    found = 0
    for edge in edges:
        for visitor, _ in edge._connections.values():
            turn = None if visitor is None else visitor.turn
            found += turn is not None and turn.output > 0
    return found


async def test_F05_F08_requests_that_come_during_five_cuts_in_a_row_are_all_served(tmp_path: Path) -> None:
    """Both sockets are cut, five times; who comes while the agent is away waits and is served."""
    async with bench(tmp_path) as this:
        for _ in range(5):
            for strand in this.wire.strands[-2:]:
                strand.reset()
            tunnel = this.whole.tunnel("app")
            assert tunnel is not None
            await this.whole.until(lambda tunnel=tunnel: not len(tunnel.links))  # type: ignore[misc]
            reply = await this.whole.get("app", "/quick")
            assert (reply.status, len(reply.body)) == (200, LENGTH)
        assert this.agent.urls == [f"http://app.localhost:{this.whole.server.ready.http_port}"]


async def test_F07_readers_that_stopped_cost_their_window_and_slow_nobody(tmp_path: Path) -> None:
    """Ten visitors of one agent ask for 10 MB and read nothing; fifty others get theirs whole meanwhile."""
    async with (
        http_service() as service,
        whole_server(tmp_path) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
    ):
        host = whole.server.host("app")
        stalled = [await whole.server.connect() for _ in range(10)]
        for visitor in stalled:
            await visitor.send_all(f"GET /size/10000000 HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        await whole.until(lambda: len(service.seen) == 10)
        sizes: list[int] = []

        async def visit() -> None:
            async with await whole.server.connect() as visitor:
                reply = await HttpClient(visitor).request(host, "/size/300000")
                sizes.append(len(reply.body))

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(visit)
        assert sizes == [300_000] * 50
        for visitor in stalled:
            await trio.aclose_forcefully(visitor)


async def test_T10_no_port_left_towards_the_local_service_costs_that_visit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import socket

    connect = socket.socket.connect_ex
    left = [1]

    def exhausted(sock: socket.socket, address: tuple[object, ...]) -> int:
        if address[1] == service.port and left[0]:
            left[0] -= 1
            return errno.EADDRNOTAVAIL
        return connect(sock, address)

    monkeypatch.setattr(socket.socket, "connect_ex", exhausted)
    async with (
        http_service() as service,
        whole_server(tmp_path, limits={"tcp_port_range": (0, 0)}) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
    ):
        refused = await whole.get("app")
        assert refused.status == 502
        assert b"local service" in refused.body
        assert (await whole.get("app")).status == 200
