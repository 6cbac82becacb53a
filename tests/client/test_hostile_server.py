"""A server that is somebody else, breaks the wire, or has vanished: the agent stays bounded and says why."""

from __future__ import annotations

import gc
import socket
import threading
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from rustunnel_py.client import local
from rustunnel_py.client.config import CaFile, HttpTunnel, LocalAddress, Pin, SystemTrust, TcpTunnel
from rustunnel_py.client.local import ANNOUNCED_MAX, Serving
from rustunnel_py.client.news import Connected, DataLost, Disconnected, Ended, Ready, TunnelUp
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.wire import stream_head
from rustunnel_py.wire.control import MANY_STREAMS_MAX, STREAM_HEADS
from rustunnel_py.wire.stream_head import StreamHead
from tests.support.agent_under_test import Heard, local_echo, running_agent, up
from tests.support.played_server import (
    SYN,
    Upgrade,
    make_identity,
    played_server,
    read_websocket,
    websocket_frame,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.played_server import PlayedControl, PlayedData

ID = "0a0b0c0d-1111-4222-8333-00000000000{}"
URL = "http://abc.tunnel.test:8080"
NOWHERE = TcpTunnel(LocalAddress("localhost", 1))


async def test_C22_another_key_than_the_pinned_one_is_refused_before_anything_is_sent() -> None:
    other = make_identity()
    async with played_server() as server, running_agent(server, NOWHERE, trust=Pin(other.pin)) as agent:
        assert await agent.wait() == 3
        why = agent.screen.of(Ended)[0].why
        assert server.identity.pin in why
        await wait_all_tasks_blocked()
        assert server.connections == 1
        assert server.early == []
        assert server.application_bytes == 0


async def test_C22_a_certificate_that_the_system_does_not_trust_is_refused_by_default() -> None:
    async with played_server() as server, running_agent(server, NOWHERE, trust=SystemTrust()) as agent:
        assert await agent.wait() == 3
        assert "not trusted" in agent.screen.of(Ended)[0].why
        assert server.early == []


async def test_C22_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    async with played_server(make_identity("elsewhere.test")) as server:
        ca.write_bytes(server.identity.certificate)
        async with running_agent(server, NOWHERE, trust=CaFile(ca), host="localhost") as agent:
            assert await agent.wait() == 3
            assert "localhost" in agent.screen.of(Ended)[0].why


async def test_authorities_from_a_file_are_enough(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    async with played_server() as server:
        ca.write_bytes(server.identity.certificate)
        async with running_agent(server, NOWHERE, trust=CaFile(ca), host="localhost"):
            await (await server.next_control()).expect("auth")


async def test_a_strange_key_after_a_good_session_is_tried_again() -> None:
    identity = make_identity()
    async with played_server(identity) as server:
        port = server.port
        async with running_agent(server, NOWHERE) as agent:
            await up(server, "tcp://tunnel.test:20005")
            await agent.screen.until(Ready)
            server.replace(make_identity())  # a network's login page in the server's place
            lost = await agent.screen.until(Disconnected, 2)
            assert "another key" in lost.why
            server.replace(identity)
            assert server.port == port
            await up(server, "tcp://tunnel.test:20005")


async def test_C22_a_redirect_is_never_followed() -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        upgrade = await server.next_upgrade()
        await upgrade.refuse(302, b"Location: https://127.0.0.1:1/_control\r\n")
        assert "302" in (await agent.screen.until(Disconnected)).why
        control = await server.next_control()
        await control.welcome()
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        await (await server.next_data_upgrade()).refuse(302, b"Location: https://127.0.0.1:1/\r\n")
        assert "302" in (await agent.screen.until(DataLost)).why


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "http://x\x1b]8;;evil\x07",
        "http://a b/",
        "http://x/\u202egnp",
        "http://[::1",
        "http://" + "x" * 5000,
    ],
)
async def test_C22_a_public_url_that_is_none_is_shown_escaped_and_as_such(url: str) -> None:
    async with played_server() as server, running_agent(server, HttpTunnel(LocalAddress("localhost", 1))) as agent:
        control = await server.next_control()
        await control.welcome()
        await control.register("t1", url)
        shown = await agent.screen.until(TunnelUp)
        assert shown.public_url.startswith("(no usable address: ")
        assert shown.public_url.isprintable()
        assert len(shown.public_url) < 600


async def test_C22_a_message_of_a_gibibyte_ends_the_session_without_being_kept() -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        control, _ = await up(server, "tcp://tunnel.test:20005")
        await agent.screen.until(Ready)
        gc.collect()
        tracemalloc.start()
        try:
            head = websocket_frame(2, b"")[:1] + b"\x7f" + (2**30).to_bytes(8)
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await control.send_raw(head)
                while True:
                    await control.send_raw(bytes(16384))
            await agent.screen.until(Disconnected)
            assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
        finally:
            tracemalloc.stop()


async def test_C22_announcements_without_streams_are_bounded() -> None:
    async with open_pump() as pump:
        serving = Serving(pump, Heard(), show_visitors=True)
        for number in range(100_000):
            serving.announce(number.to_bytes(16), "http", None, "203.0.113.9:1")
        assert serving.announced == ANNOUNCED_MAX
        serving.sweep(pump.now + local.DIAL_SECONDS + 1)
        assert serving.announced == 0
        serving.close()


async def test_C22_a_flood_of_announcements_and_of_streams_leaves_the_session_alive() -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control, data = await up(server, "tcp://tunnel.test:20005")
        for number in range(2000):
            await control.announce(str(trio.testing.__name__) + str(number), "tcp")  # no uuids
        flood = MANY_STREAMS_MAX + 10
        for number in range(flood):  # nobody announces these; beyond the bound they are refused at once
            await data.open(2 * number + 1, f"ffffffff-0000-4000-8000-{number:012x}")
        await data.flagged(2 * flood - 1, 8)
        await data.send(0, 8, 1, 0)
        await control.announce(ID.format(1), "tcp")
        await data.open(2 * flood + 1, ID.format(1), b"alive")
        assert await data.read(2 * flood + 1, 5) == b"alive"


@asynccontextmanager
async def with_heads(agent_to: LocalAddress) -> AsyncIterator[tuple[PlayedControl, PlayedData]]:
    """A server that names streams in their heads, and an agent with one TCP tunnel, called t1."""
    async with played_server() as server, running_agent(server, TcpTunnel(agent_to)):
        control = await server.next_control()
        await control.welcome(features=["raw_data", STREAM_HEADS], data_secret="data-secret")
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        yield control, await server.next_data(raw=True)


async def test_a_stream_that_says_what_it_is_for_is_joined_without_an_announcement() -> None:
    async with local_echo() as echo, with_heads(echo.local) as (control, data):
        head = stream_head.encode(StreamHead("t1", "203.0.113.9:1"))
        assert STREAM_HEADS in control.auth["features"]
        await data.write(1, head + b"at once", SYN)
        assert await data.read(1, 7) == b"at once"
        for place in range(len(head)):  # byte by byte
            await data.write(3, head[place : place + 1], 0 if place else SYN)
        await data.write(3, b"in pieces")
        assert await data.read(3, 9) == b"in pieces"


@pytest.mark.parametrize(
    "bad",
    [
        stream_head.encode(StreamHead("t2", "203.0.113.9:1")),
        b"\0\2[]",
        b"\xff\xff",
        b"\0\5" + b"\xff" * 5,
    ],
)
async def test_C22_a_stream_whose_head_is_wrong_is_reset_and_costs_nothing_else(bad: bytes) -> None:
    async with local_echo() as echo, with_heads(echo.local) as (_, data):
        await data.write(1, bad + b"rest", SYN)
        await data.flagged(1, 8)
        assert echo.connections == 0
        await data.write(3, stream_head.encode(StreamHead("t1", "203.0.113.9:1")) + b"alive", SYN)
        assert await data.read(3, 5) == b"alive"


async def test_W02_a_masked_frame_on_the_control_socket_ends_the_session() -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        control, _ = await up(server, "tcp://tunnel.test:20005")
        await control.send_raw(websocket_frame(2, b'{"type":"ping","timestamp":1}', mask=b"abcd"))
        await agent.screen.until(Disconnected)
        await up(server, "tcp://tunnel.test:20005")


async def test_W02_a_masked_frame_on_the_data_socket_is_told_1002() -> None:
    async with played_server() as server, running_agent(server, NOWHERE, websocket=True) as agent:
        control = await server.next_control()
        await control.welcome()
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        upgrade: Upgrade = await server.next_data_upgrade()
        await upgrade.accept()
        await upgrade.source.send(websocket_frame(2, b"\0" * 12, mask=b"abcd"))
        while True:
            opcode, payload = await read_websocket(upgrade.source)
            if opcode == 8:
                break
        assert payload[:2] == (1002).to_bytes(2)
        await agent.screen.until(DataLost)
        await server.next_data(raw=False)
        assert not agent.screen.of(Disconnected)


async def test_a_yamux_violation_on_the_data_socket_costs_that_socket_only() -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        _, data = await up(server, "tcp://tunnel.test:20005")
        await data.send_raw(b"\x01" + bytes(11))
        await data.until(lambda: data.ended)
        assert any(frame.type == 3 and frame.length == 1 for frame in data.frames)
        await server.next_data(raw=True)
        assert not agent.screen.of(Disconnected)


async def jump(clock: MockClock, seconds: int) -> None:
    for _ in range(seconds):
        await wait_all_tasks_blocked(0.005)
        clock.jump(1.0)
    await wait_all_tasks_blocked(0.005)


@pytest.mark.parametrize("raw", [True, False])
async def test_W19_a_silent_data_socket_is_noticed_within_15_seconds(mock_clock: MockClock, raw: bool) -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)) as agent:
        control = await server.next_control()
        await control.welcome(features=["raw_data"] if raw else [])
        await control.register("t1", "tcp://tunnel.test:20005", 20005)
        silent = await server.next_data_upgrade()
        await silent.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.receive)  # answers the agent's pings
            await agent.screen.until(Ready)
            await jump(mock_clock, 15)
            await agent.screen.until(DataLost)
            await server.next_data(raw=raw)
            assert not agent.screen.of(Disconnected)
            nursery.cancel_scope.cancel()


async def test_W19_a_silent_server_is_noticed_within_15_seconds(mock_clock: MockClock) -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        await up(server, "tcp://tunnel.test:20005")
        await agent.screen.until(Ready)
        await jump(mock_clock, 15)
        assert "did not answer" in (await agent.screen.until(Disconnected)).why


async def test_an_idle_session_that_is_answered_lives(mock_clock: MockClock) -> None:
    async with played_server() as server, running_agent(server, NOWHERE) as agent:
        control, _ = await up(server, "tcp://tunnel.test:20005")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.receive)
            await jump(mock_clock, 60)
            assert not agent.screen.of(Disconnected)
            assert not agent.screen.of(DataLost)
            nursery.cancel_scope.cancel()


async def test_a_stream_that_is_never_announced_is_reset_in_time(mock_clock: MockClock) -> None:
    async with played_server() as server, running_agent(server, NOWHERE):
        control, data = await up(server, "tcp://tunnel.test:20005")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.receive)
            await data.open(1, ID.format(1))
            await jump(mock_clock, 12)
            await data.flagged(1, 8)
            nursery.cancel_scope.cancel()


async def test_P12_a_dead_resolver_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    asked = threading.Event()

    def never(*args: object, **more: object) -> list[object]:
        asked.set()
        release.wait()
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        async with local_echo() as echo, played_server() as server:
            tunnels = TcpTunnel(LocalAddress("db.internal", 5432)), HttpTunnel(echo.local)
            async with running_agent(server, *tunnels):
                control, data = await up(server, "tcp://tunnel.test:20005", URL)
                await control.announce(ID.format(1), "tcp")
                await data.open(1, ID.format(1))
                await trio.to_thread.run_sync(asked.wait)
                await control.announce(ID.format(2), "http")
                await data.open(3, ID.format(2), b"served meanwhile")
                assert await data.read(3, 16) == b"served meanwhile"
                await data.send(0, 8, 1, 0)
                await control.announce(ID.format(3), "tcp")
                await data.open(5, ID.format(3))
                release.set()
                await data.flagged(5, 8)
    finally:
        release.set()


async def test_P12_a_server_name_that_never_resolves_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    asked = threading.Event()

    def never(*args: object, **more: object) -> list[object]:
        asked.set()
        release.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        async with played_server() as server, running_agent(server, NOWHERE, host="tunnel.test") as agent:
            while not asked.is_set():
                await trio.lowlevel.checkpoint()
            assert await agent.stop() == 0
    finally:
        release.set()


async def test_C17_nothing_that_the_server_says_chooses_a_destination() -> None:
    async with (
        local_echo() as secret,
        local_echo() as echo,
        played_server() as server,
        running_agent(server, HttpTunnel(echo.local)) as agent,
    ):
        control, data = await up(server, URL)
        more = {"tunnel_id": "t1", "local_addr": secret.local.address, "target": secret.local.address}
        await control.announce(ID.format(1), "http", **more)
        await data.open(1, ID.format(1), b"x")
        assert await data.read(1, 1) == b"x"
        assert (secret.connections, echo.connections) == (0, 1)
        assert agent.screen.of(Connected)
