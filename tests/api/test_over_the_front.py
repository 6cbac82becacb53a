"""The API as the server runs it: a front on the pump, connections as streams."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from rustunnel_py.api.serve import ApiServer
from rustunnel_py.transport.front import Front
from rustunnel_py.transport.listen import bind
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.stream import ConnectionStream
from tests.support.api import ADMIN_TOKEN, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Literal

    from quart import Quart

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.http1 import RequestHead

KINDS = ("epoll", "portable")
REQUEST = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\n\r\n"
LAST = b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def fronted(app: Quart, kind: Literal["epoll", "portable"]) -> AsyncIterator[tuple[int, trio.Nursery]]:
    """The port, and the nursery of all connections."""
    server = ApiServer(app)
    sockets = bind("127.0.0.1", 0, key="test")
    async with open_pump(kind) as pump, trio.open_nursery() as nursery:

        def take(connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
            stream = ConnectionStream(connection, put_back=bytes_read)
            nursery.start_soon(
                partial(server.serve_connection, stream, scheme="http", peer=connection.peer, local=connection.local)
            )

        front = Front(pump, sockets, (), context=None, name="dashboard", otherwise=take)
        await nursery.start(front.run)
        yield sockets[0].getsockname()[1], nursery
        nursery.cancel_scope.cancel()
    assert server.crashes == 0
    assert pump.crashes == 0


async def read_all(stream: trio.SocketStream) -> bytes:
    received = b""
    with trio.fail_after(10):
        while data := await stream.receive_some():
            received += data
    return received


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_one_after_another(tmp_path: Path, kind: Literal["epoll", "portable"]) -> None:
    async with api_bench(tmp_path) as bench, fronted(bench.app, kind) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(REQUEST + REQUEST[:10])
        await stream.send_all(REQUEST[10:])
        await stream.send_all(LAST)
        assert (await read_all(stream)).count(b'{"ok":true') == 3
        await stream.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_A04_the_refusal_of_a_long_body_arrives(tmp_path: Path, kind: Literal["epoll", "portable"]) -> None:
    head = (
        f"POST /api/tokens HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 300000\r\nConnection: close\r\n\r\n"
    ).encode()
    async with api_bench(tmp_path) as bench, fronted(bench.app, kind) as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(head + b"x" * 300_000)
        assert (await read_all(stream)).startswith(b"HTTP/1.1 413")
        await stream.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_A07_head_of_a_live_view_ends(tmp_path: Path, kind: Literal["epoll", "portable"]) -> None:
    async with api_bench(tmp_path) as bench, fronted(bench.app, kind) as (port, _):
        _, caller = await bench.token("agent")
        tunnel = bench.http("app", caller)
        head = (
            f"HEAD /api/tunnels/{tunnel.id}/requests/live HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {ADMIN_TOKEN}\r\n\r\n"
        ).encode()
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(head + LAST)
        received = await read_all(stream)
        assert b"content-type: text/event-stream\r\n" in received
        assert received.endswith(b'{"ok":true,"active_sessions":0,"active_tunnels":1}')
        await stream.aclose()


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
async def test_A20_a_second_slash_in_front_is_another_path(tmp_path: Path, method: str) -> None:
    async with api_bench(tmp_path) as bench, fronted(bench.app, "epoll") as (port, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        for path in ("//api/status", "//api/tokens", "//v1/tunnels"):
            await stream.send_all(REQUEST.replace(b"GET /api/status", f"{method} {path}".encode()))
        await stream.send_all(LAST)
        received = await read_all(stream)
        assert received.count(b"HTTP/1.1 404 ") == 3
        await stream.aclose()


def events_app() -> Quart:
    app = QuartTrio("events", static_folder=None)

    @app.get("/events")
    async def events() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            while True:
                yield b"data: " + b"x" * 65_536 + b"\n\n"

        response = Response(stream(), content_type="text/event-stream")
        response.timeout = None
        return response

    return app


@pytest.mark.parametrize("kind", KINDS)
async def test_an_event_stream_that_nobody_reads_does_not_hold_the_process_up(
    kind: Literal["epoll", "portable"],
) -> None:
    with trio.fail_after(10):  # below SEND_SECONDS
        async with fronted(events_app(), kind) as (port, nursery):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await stream.receive_some(100)
            while trio.lowlevel.current_statistics().tasks_runnable > 1:  # until it is stuck: only this task can run
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await stream.aclose()
