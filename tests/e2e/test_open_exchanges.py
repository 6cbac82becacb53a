"""Exchanges that go on are seen before they end: a WebSocket, an event stream, a long poll."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.curl import Curl, open_curl
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import RunningServer, running_server
from tests.support.services import tcp_service
from tests.support.websocket_service import TEXT, close, frame, handshake, websocket_echo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WAIT_SECONDS = 20.0  # a hang shows as a failure
SECRET = "correct-horse-battery-staple"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: first\n\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path) as server:
        yield server


@pytest.fixture
async def ask(server: RunningServer) -> AsyncIterator[Curl]:
    async with open_curl(server) as curl:
        yield curl


async def until(ask: Curl, target: str, fits: Any) -> Any:
    """What the API answers, once that fits."""
    with trio.fail_after(WAIT_SECONDS):
        while True:
            found = await ask.value(target)
            if fits(found):
                return found
            await trio.sleep(0.01)


async def only_tunnel(ask: Curl) -> str:
    (tunnel,) = await ask.value("/api/tunnels")
    return f"/api/tunnels/{tunnel['tunnel_id']}/requests"


async def test_a_websocket_is_seen_with_its_messages_while_it_is_open(server: RunningServer, ask: Curl) -> None:
    async with tcp_service(websocket_echo) as port, our_agent(agent_config(server, http(port, "app"))):
        path = await only_tunnel(ask)
        assert await ask.value(f"{path}/open") == []
        stream = await server.connect()
        async with stream:
            await stream.send_all(handshake(server.host("app"), f"Authorization: Bearer {SECRET}", target="/ws?a=1"))
            await stream.send_all(frame(TEXT, b"hello") + frame(TEXT, b'{"password": "%b"}' % SECRET.encode()))
            (shown,) = await until(ask, f"{path}/open", lambda found: found and found[0]["messages_to_visitor"] == 2)
            assert await ask.value(path) == []  # the list of the page has what has ended
            assert (shown["method"], shown["path"], shown["status"]) == ("GET", "/ws?a=1", 101)
            assert (shown["kind"], shown["messages_to_service"]) == ("websocket", 2)
            assert shown["request_bytes"] > 0
            assert shown["response_bytes"] > 0
            reply = await ask(f"{path}/{shown['id']}")
            assert SECRET.encode() not in reply.body
            record = await ask.value(f"{path}/{shown['id']}")
            assert record["open"]
            assert len(record["messages"]) == 4
            first = record["messages"][0]
            assert (first["direction"], first["content"]) == ("to_service", "hello")
            for action, method in (("/pin", "PUT"), ("", "DELETE")):
                await ask.error(f"{path}/{shown['id']}{action}", 404, "request not found", method=method)
            replay = path.replace("/requests", f"/replay/{shown['id']}")
            said = "the request has not ended yet"
            await ask.error(replay, 409, said, method="POST", json_body='{"send": true}')
            await stream.send_all(close())
            while await stream.receive_some(65536):
                pass
        (ended,) = await until(ask, path, len)
        assert ended["id"] == shown["id"]
        assert await ask.value(f"{path}/open") == []
        assert not (await ask.value(f"{path}/{shown['id']}"))["open"]


async def test_streams_and_polls_are_seen_newest_first_and_only_by_those_who_may(
    server: RunningServer, ask: Curl
) -> None:
    go_on = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some(65536)
        if b"GET /events" in head:
            await stream.send_all(EVENTS)
        await go_on.wait()

    made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "other"}')
    async with tcp_service(serve) as port, our_agent(agent_config(server, http(port, "app"))):
        path = await only_tunnel(ask)
        request = f" HTTP/1.1\r\nHost: {server.host('app')}\r\n\r\n".encode()
        async with await server.connect() as events, await server.connect() as poll:
            await events.send_all(b"GET /events" + request)
            await until(ask, f"{path}/open", lambda found: found and found[0]["messages_to_visitor"] == 1)
            await poll.send_all(b"GET /poll" + request)
            newest, oldest = await until(ask, f"{path}/open", lambda found: len(found) == 2)
            assert (newest["path"], newest["status"], newest["kind"]) == ("/poll", None, "http")
            assert (oldest["path"], oldest["status"], oldest["kind"]) == ("/events", 200, "events")
            assert [one["path"] for one in await ask.value(f"{path}/open?limit=1")] == ["/poll"]
            assert (await ask.value(f"{path}/{newest['id']}"))["status"] == 0
            await ask.error(f"{path}/open", 404, "tunnel not found", token=made["token"])
            await ask.error(f"{path}/{newest['id']}", 404, "tunnel not found", token=made["token"])
            go_on.set()
            await until(ask, f"{path}/open", lambda found: not found)
            assert {one["path"] for one in await ask.value(path)} == {"/events", "/poll"}
