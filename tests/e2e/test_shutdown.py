"""The order of the end: listeners, visits, agents, fronts (P01, P02, P03)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.client.news import Disconnected, GoingAway
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import running_server
from tests.support.services import HttpClient, http_service, tcp_service

if TYPE_CHECKING:
    from pathlib import Path


async def test_P02_a_request_in_flight_ends_well_while_nobody_new_comes_in(tmp_path: Path) -> None:
    asked, answer = trio.Event(), trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        asked.set()
        await answer.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")

    async with (
        tcp_service(slow) as port,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(port, "app"))) as agent,
        await server.connect() as stream,
        await server.connect() as idle,
    ):
        replies = []

        async def visit() -> None:
            replies.append(await HttpClient(stream).request(server.host("app")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(visit)
            await asked.wait()
            server.stopping.set()
            with trio.fail_after(10):
                assert await idle.receive_some(1) == b""  # idle kept-alive connections close at once
                with pytest.raises(OSError):
                    while True:
                        await (await server.connect()).aclose()
                        await trio.lowlevel.checkpoint()
            assert not server.stopped.is_set()
            answer.set()
        assert (replies[0].status, replies[0].body) == (200, b"late")
        assert (replies[0].header("connection") or "").lower() == "close"
        await agent.screen.wait_for(GoingAway)
        with trio.fail_after(10):
            await server.stopped.wait()


async def test_P03_what_does_not_end_is_cut_at_the_deadline_and_looks_cut(tmp_path: Path) -> None:
    asked = trio.Event()

    async def endless(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nevent\r\n")
        asked.set()
        await stream.receive_some(1)

    async with (
        tcp_service(endless) as port,
        running_server(tmp_path, server={"drain_seconds": 0.2}) as server,
        our_agent(agent_config(server, http(port, "app"))),
        await server.connect() as stream,
    ):
        await stream.send_all(f"GET / HTTP/1.1\r\nHost: {server.host('app')}\r\n\r\n".encode())
        received = bytearray()
        with trio.fail_after(10):
            while not received.endswith(b"event\r\n"):
                received += await stream.receive_some(4096)
            server.stopping.set()
            try:
                while part := await stream.receive_some(4096):
                    received += part
            except trio.BrokenResourceError:
                pass
            assert not received.endswith(b"0\r\n\r\n")
            await server.stopped.wait()


async def test_P01_an_idle_server_stops_and_tells_its_agent(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))) as agent,
    ):
        server.stopping.set()
        with trio.fail_after(10):
            await server.stopped.wait()
        await agent.screen.wait_for(GoingAway)
        await agent.screen.wait_for(Disconnected)
