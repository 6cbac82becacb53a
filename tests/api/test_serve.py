from __future__ import annotations

import json
import re
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import pytest
import trio
from quart import Response, request, websocket
from quart_trio import QuartTrio

from rustunnel_py.api import app as app_module
from rustunnel_py.api import serve
from rustunnel_py.api.serve import ApiServer
from rustunnel_py.model.tunnel import Peer
from tests.support.api import ADMIN_TOKEN, ApiBench, api_bench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from quart import Quart
    from trio.testing import MockClock

    from rustunnel_py.api.serve import Introduce
    from rustunnel_py.wire.http1 import Headers

PEER = Peer("192.0.2.1", 1234)
LOCAL = Peer("127.0.0.1", 4041)


@dataclass(slots=True)
class Served:
    """An ApiServer behind a plain listener on loopback."""

    port: int
    server: ApiServer
    nursery: trio.Nursery

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(self, *requests: bytes) -> bytes:
        """Everything that comes back on one connection, until it is closed."""
        stream = await self.connect()
        async with stream:
            for each in requests:
                await stream.send_all(each)
            received = b""
            with trio.fail_after(10):
                while data := await stream.receive_some():
                    received += data
            return received


@asynccontextmanager
async def serving(app: Quart, *introduce: Introduce) -> AsyncIterator[Served]:
    server = ApiServer(app, *introduce)
    async with trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            await server.serve_connection(stream, scheme="http", peer=PEER, local=LOCAL)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")  # noqa: TID251
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        port = listeners[0].socket.getsockname()[1]
        yield Served(port, server, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[ApiBench]:
    async with api_bench(tmp_path) as bench:
        yield bench


@pytest.fixture
async def served(bench: ApiBench) -> AsyncIterator[Served]:
    async with serving(bench.app) as served:
        yield served
        assert served.server.crashes == 0


def a_request(line: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode() + body


BEARER = f"Authorization: Bearer {ADMIN_TOKEN}"
CLOSE = "Connection: close"


def the_reply(received: bytes, method: str = "GET") -> tuple[h11.Response, bytes]:
    """The one reply in what was received, and its body."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(received)
    client.receive_data(b"")
    response, body = None, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
    assert response is not None
    return response, body


async def test_a_request_and_its_answer(served: Served) -> None:
    received = await served.ask(a_request("GET /api/status", CLOSE))
    response, body = the_reply(received)
    assert response.status_code == 200
    assert json.loads(body) == {"ok": True, "active_sessions": 0, "active_tunnels": 0}
    headers = dict(response.headers)
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"cache-control"] == b"no-store"
    assert b"server" not in headers
    assert b"date" in headers


async def test_several_requests_on_one_connection(served: Served) -> None:
    one = a_request("GET /api/status")
    received = await served.ask(one, one, a_request("HEAD /api/status"), a_request("GET /api/status", CLOSE))
    assert received.count(b"HTTP/1.1 200") == 4
    assert received.count(b'{"ok":true') == 3


async def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    received = await served.ask(
        a_request("GET /api/status") + a_request("GET /nothing") + a_request("GET /api/tunnels", BEARER, CLOSE)
    )
    assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"404", b"200"]


async def test_deleting_answers_204_without_a_body(served: Served) -> None:
    created = await served.ask(
        a_request(
            "POST /api/tokens",
            BEARER,
            CLOSE,
            "Content-Type: application/json",
            "Content-Length: 14",
            body=b'{"label": "x"}',
        )
    )
    response, body = the_reply(created)
    assert response.status_code == 201
    token_id = json.loads(body)["id"]
    received = await served.ask(a_request(f"DELETE /api/tokens/{token_id}", BEARER, CLOSE))
    response, body = the_reply(received)
    assert (response.status_code, body) == (204, b"")
    assert not {b"content-length", b"content-type", b"transfer-encoding"} & {name for name, _ in response.headers}


async def test_a_chunked_body(served: Served) -> None:
    received = await served.ask(
        a_request("POST /api/tokens", BEARER, CLOSE, "Content-Type: application/json", "Transfer-Encoding: chunked"),
        b'7\r\n{"label\r\n',
        b'7\r\n": "x"}\r\n0\r\n\r\n',
    )
    assert the_reply(received)[0].status_code == 201


@pytest.mark.parametrize("target", ["/%2e%2e/api/status", "*", "http://evil/api/status", "/x%00y"])
async def test_odd_targets_find_nothing(served: Served, target: str) -> None:
    response, body = the_reply(await served.ask(a_request(f"GET {target}", CLOSE)))
    if target.startswith("http:"):
        assert response.status_code == 200  # absolute form: the path counts, and the status is for everybody
    else:
        assert (response.status_code, json.loads(body)) == (404, {"error": "not found"})


@pytest.mark.parametrize("host", ["[::1", "evil.example", "a b"])
async def test_A14_a_foreign_host_name(served: Served, host: str) -> None:
    received = await served.ask(f"GET /api/tunnels HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    response, body = the_reply(received)
    assert response.status_code in (400, 421)
    assert "error" in json.loads(body)


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx" + b"y" * 100_000 + b"\r\n\r\n",
        b"POST /api/tokens HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 64 + b"\r\n\r\n",
        b"\x00" * 20_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_http_gets_json_too(served: Served, garbage: bytes) -> None:
    response, body = the_reply(await served.ask(garbage))
    assert 400 <= response.status_code < 500
    assert list(json.loads(body)) == ["error"]


async def test_h2c_is_not_spoken(served: Served) -> None:
    received = await served.ask(
        a_request("GET /api/status", "Connection: upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAAA"),
        a_request("GET /api/status", CLOSE),
    )
    assert received.count(b"HTTP/1.1 200") == 2
    assert b"101" not in received.split(b"\r\n")[0]


async def test_A04_a_body_too_long_is_refused_before_it_ends(served: Served) -> None:
    stream = await served.connect()
    async with stream:
        await stream.send_all(
            a_request("POST /api/tokens", BEARER, "Content-Type: application/json", "Content-Length: 1073741824")
        )
        await stream.send_all(b"x" * 200_000)
        received = b""
        with trio.fail_after(10):
            while data := await stream.receive_some():
                received += data
    assert the_reply(received)[0].status_code == 413


async def test_A04_a_chunked_body_without_end(served: Served) -> None:
    stream = await served.connect()
    async with stream, trio.open_nursery() as nursery:
        await stream.send_all(
            a_request("POST /api/tokens", BEARER, "Content-Type: application/json", "Transfer-Encoding: chunked")
        )

        async def send_for_ever() -> None:
            try:
                while True:
                    await stream.send_all(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
            except trio.BrokenResourceError:
                pass

        nursery.start_soon(send_for_ever)
        received = b""
        with trio.fail_after(20):
            try:
                while data := await stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                pass
        nursery.cancel_scope.cancel()
    assert received.startswith(b"HTTP/1.1 413")


async def test_A04_a_body_that_comes_too_slowly(served: Served, mock_clock: MockClock) -> None:
    stream = await served.connect()
    async with stream:
        await stream.send_all(
            a_request("POST /api/tokens", BEARER, "Content-Type: application/json", "Content-Length: 10", body=b"{")
        )
        await until_busy(served)
        mock_clock.jump(app_module.BODY_SECONDS + 1)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 408")


async def until_busy(served: Served) -> None:
    """Until the server has read what was sent: it has a task for the connection and one for the request."""
    before = -1
    while before != (now := trio.lowlevel.current_statistics().tasks_living):
        before = now
        for _ in range(50):
            await trio.lowlevel.checkpoint()
            await trio.to_thread.run_sync(lambda: None)


async def whole_answer(stream: trio.SocketStream) -> bytes:
    """To the end of the status object."""
    received = b""
    while not received.endswith(b"}"):
        received += await stream.receive_some()
    assert received.startswith(b"HTTP/1.1 200")
    return received


@pytest.mark.parametrize("sent", [b"", b"GET /api/sta"])
async def test_a_head_that_does_not_come(served: Served, mock_clock: MockClock, sent: bytes) -> None:
    stream = await served.connect()
    async with stream:
        await stream.send_all(sent or b"")
        await until_busy(served)
        mock_clock.jump(serve.HEAD_SECONDS + 1)
        assert await stream.receive_some() == b""


async def test_an_idle_connection_is_closed(served: Served, mock_clock: MockClock) -> None:
    stream = await served.connect()
    async with stream:
        await stream.send_all(a_request("GET /api/status"))
        assert await whole_answer(stream)
        await until_busy(served)
        mock_clock.jump(serve.IDLE_SECONDS - 1)
        await stream.send_all(a_request("GET /api/status"))
        assert await whole_answer(stream)
        await until_busy(served)
        mock_clock.jump(serve.IDLE_SECONDS + 1)
        assert await stream.receive_some() == b""


async def test_a_client_that_ends_its_side_still_gets_the_answer(served: Served) -> None:
    for _ in range(20):
        stream = await served.connect()
        async with stream:
            await stream.send_all(a_request("GET /api/status"))
            await stream.send_eof()
            received = b""
            with trio.fail_after(10):
                while data := await stream.receive_some():
                    received += data
        assert the_reply(received)[0].status_code == 200


def trouble_app() -> Quart:
    """Routes that behave badly, and one that never ends."""
    app = QuartTrio("trouble", static_folder=None)

    @app.get("/events")
    async def events() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            while True:
                yield b"data: " + b"x" * 65_536 + b"\n\n"

        response = Response(stream(), content_type="text/event-stream")
        response.timeout = None
        return response

    @app.get("/wait")
    async def wait() -> str:
        await trio.Event().wait()
        return ""

    @app.get("/who")
    async def who() -> str:
        return f"{request.scope['client']} {request.scope['server']} {request.scheme}"

    @app.get("/short")
    async def short() -> Response:
        async def stream() -> AsyncIterator[bytes]:
            yield b"x"

        return Response(stream(), headers={"Content-Length": "5"})

    @app.websocket("/echo")
    async def echo() -> None:
        if "X-Number" in websocket.headers:
            await websocket.send(f"{websocket.scope['client']} {websocket.scheme}")
        while True:
            await websocket.send(await websocket.receive())

    return app


async def test_scheme_and_addresses_are_passed_on() -> None:
    async with serving(trouble_app()) as served:
        _, body = the_reply(await served.ask(a_request("GET /who", CLOSE)))
    assert body == b"('192.0.2.1', 1234) ('127.0.0.1', 4041) http"


def _as_numbered(headers: Headers, peer: Peer, scheme: str) -> tuple[Peer, str]:
    """The caller of X-Number; without one the socket's."""
    number = dict(headers).get(b"x-number")
    return (peer, scheme) if number is None else (Peer(f"198.51.100.{int(number)}", 0), "https")


async def test_each_request_has_a_caller_of_its_own() -> None:
    async with serving(trouble_app(), _as_numbered) as served:
        received = await served.ask(
            a_request("GET /who", "X-Number: 7"),
            a_request("GET /who"),
            a_request("GET /who", "X-Number: 8", CLOSE),
        )
    assert re.findall(rb"\('([\d.]+)', \d+\) \('127.0.0.1', 4041\) (https?)", received) == [
        (b"198.51.100.7", b"https"),
        (b"192.0.2.1", b"http"),
        (b"198.51.100.8", b"https"),
    ]


async def test_a_caller_that_cannot_be_told_crashes_its_own_request_only() -> None:
    async with serving(trouble_app(), _as_numbered) as served:
        response, _ = the_reply(await served.ask(a_request("GET /who", "X-Number: seven", CLOSE)))
        assert response.status_code == 500
        assert served.server.crashes == 1
        assert b" http" in await served.ask(a_request("GET /who", CLOSE))


async def stuck(served: Served) -> trio.SocketStream:
    """A client of the event stream that never reads."""
    sock = trio.socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await sock.connect(("127.0.0.1", served.port))
    stream = trio.SocketStream(sock)
    await stream.send_all(a_request("GET /events"))
    return stream


async def test_an_event_stream_that_nobody_reads_does_not_hold_the_process_up() -> None:
    async with serving(trouble_app()) as served:
        streams = [await stuck(served) for _ in range(3)]
        await until_busy(served)
        with trio.fail_after(2):  # far below SEND_SECONDS
            served.nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint_if_cancelled()
    for stream in streams:
        await stream.aclose()


async def test_an_event_stream_that_nobody_reads_is_dropped(mock_clock: MockClock) -> None:
    async with serving(trouble_app()) as served:
        stream = await stuck(served)
        await until_busy(served)
        mock_clock.jump(serve.SEND_SECONDS + 1)
        await until_busy(served)
        mock_clock.jump(serve.CLOSE_SECONDS + 1)
        with trio.move_on_after(1000):
            try:
                while await stream.receive_some(1 << 20):
                    pass
            except trio.BrokenResourceError:
                pass
        await stream.aclose()
        assert served.server.crashes == 0


async def test_an_event_stream_whose_client_leaves_ends() -> None:
    async with serving(trouble_app()) as served:
        stream = await served.connect()
        await stream.send_all(a_request("GET /events"))
        assert await stream.receive_some()
        tasks = trio.lowlevel.current_statistics().tasks_living
        await trio.aclose_forcefully(stream)
        with trio.fail_after(10):
            while trio.lowlevel.current_statistics().tasks_living >= tasks:
                await trio.lowlevel.checkpoint()
        assert served.server.crashes == 0


async def test_cancelling_ends_a_request_that_waits() -> None:
    async with serving(trouble_app()) as served:
        stream = await served.connect()
        await stream.send_all(a_request("GET /wait"))
        await until_busy(served)
        served.nursery.cancel_scope.cancel()
    assert await stream.receive_some() == b""
    await stream.aclose()


async def test_a_crash_ends_its_own_connection_only() -> None:
    async with serving(trouble_app()) as served:
        await served.ask(a_request("GET /short", CLOSE))
        assert served.server.crashes == 1
        assert b"200" in await served.ask(a_request("GET /who", CLOSE))


UPGRADE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


async def test_a_websocket_has_its_caller_too() -> None:
    async with serving(trouble_app(), _as_numbered) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(a_request("GET /echo", "X-Number: 9", *UPGRADE))
            received = b""
            while b"wss" not in received:
                received += await stream.receive_some()
            assert received.endswith(b"('198.51.100.9', 0) wss")


async def test_a_websocket() -> None:
    async with serving(trouble_app()) as served:
        stream = await served.connect()
        async with stream:
            await stream.send_all(a_request("GET /echo", *UPGRADE))
            head = await stream.receive_some()
            assert head.startswith(b"HTTP/1.1 101")
            assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
            await stream.send_all(b"\x81\x82\x00\x00\x00\x00hi")
            assert await stream.receive_some() == b"\x81\x02hi"
        await until_busy(served)
        assert served.server.crashes == 0


async def test_what_comes_before_a_websocket_is_accepted_is_no_crash() -> None:
    """Hypercorn refuses it, while the app refuses the request itself."""
    async with serving(trouble_app()) as served:
        for _ in range(20):
            async with await served.connect() as stream:
                await stream.send_all(a_request("GET /nothing", *UPGRADE) + b"\x81\x80\x00\x00\x00\x00")
                with trio.fail_after(60):
                    received = b"".join([part async for part in stream])
                assert received.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ")), received
        await until_busy(served)
        assert served.server.crashes == 0


async def test_over_memory_streams_a_byte_at_a_time(bench: ApiBench) -> None:
    server = ApiServer(bench.app)
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:

        async def handle() -> None:
            await server.serve_connection(theirs, scheme="https", peer=PEER, local=LOCAL)

        nursery.start_soon(handle)
        for byte in a_request("GET /api/status", CLOSE):
            await ours.send_all(bytes([byte]))
        received = b""
        while data := await ours.receive_some():
            received += data
        await ours.aclose()
    assert the_reply(received)[0].status_code == 200
    assert server.crashes == 0
