"""What carried a visit is freed when it has ended, without the collector (P14).

Objects that know each other are freed by the collector alone, which holds the loop; each connection would leave some.
"""

from __future__ import annotations

import gc
from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.our_agent import agent_config, http, our_agent, tcp
from tests.support.running_server import running_server
from tests.support.services import tcp_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.running_server import RunningServer

VISITS = 20
LOOKS = 50
KEPT = 3  # connections to the local service that stay, and what has not quite ended
CARRIERS = {
    *("Visitor", "Turn", "Visit", "Upload", "LinkExchange", "BodyReader", "Stream", "Local", "Relay"),
    *("TcpConnection", "TlsConnection", "Incoming", "Dial"),
}
HOST = b"Host: app.localhost\r\nConnection: close\r\n"
CHUNKED = b"5\r\nhello\r\n0\r\n\r\n"


def carriers() -> Counter[str]:
    found = (type(one) for one in gc.get_objects())
    return Counter(kind.__name__ for kind in found if kind.__name__ in CARRIERS and "rustunnel_py" in kind.__module__)


async def local(stream: trio.SocketStream) -> None:
    """Answers what the target says, once the request is whole; no more than these requests need."""
    held = b""
    async for part in stream:
        held += part
        head, end, body = held.partition(b"\r\n\r\n")
        if (
            not end
            or (b"chunked" in head and not body.endswith(b"0\r\n\r\n"))
            or (b"Length: 5" in head and len(body) < 5)
        ):
            continue
        held = b""
        if b"/cut" in head:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
            return
        if b"/nothing" in head:
            return
        if b"/chunked" in head:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED)
        elif b"/close" in head:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello")
            return
        else:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def visit(server: RunningServer, port: int | None, raw: bytes, *, tls: bool, stays: bool) -> None:
    """One connection, to its end; with `stays` not before the answer is there."""
    if tls:
        stream: trio.abc.Stream = await server.connect_tls("app.localhost")
    else:
        stream = await trio.open_tcp_stream("127.0.0.1", server.ready.http_port if port is None else port)
    async with stream:
        await stream.send_all(raw)
        if stays:
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("a request", b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("over TLS", b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("with a body", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"),
        ("a chunked one", b"POST /chunked HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED),
        ("answered until the end", b"GET /close HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("cut by the local service", b"GET /cut HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("not answered", b"GET /nothing HTTP/1.1\r\n" + HOST + b"\r\n"),
        ("refused", b"GET / HTTP/1.1\r\nHost: nobody.localhost\r\nConnection: close\r\n\r\n"),
        ("left by its visitor", b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\nhello"),
        ("a TCP visit", b"GET /close HTTP/1.1\r\n\r\n"),
        ("a TCP visit that was left", b"GET / HTTP/1.1\r\n"),
    ],
)
async def test_P14_what_carried_a_visit_is_freed_without_the_collector(
    tmp_path: Path, no_collector: None, kind: str, raw: bytes
) -> None:
    async with (
        tcp_service(local) as port,
        running_server(tmp_path, inspect={"ring_size": 1}, limits={"tcp_port_range": (30000, 30999)}) as server,
        our_agent(agent_config(server, http(port, "app"), tcp(port))) as agent,
    ):
        public = int(agent.urls[1].rpartition(":")[2]) if "TCP" in kind else None
        stays = "left" not in kind
        await visit(server, public, raw, tls="TLS" in kind, stays=stays)
        before = carriers()
        for _ in range(VISITS):
            await visit(server, public, raw, tls="TLS" in kind, stays=stays)
        for _ in range(LOOKS):
            await trio.sleep(0.02)  # until the last has ended at this end, too
            left = carriers() - before
            if max(left.values(), default=0) <= KEPT:
                break
        assert max(left.values(), default=0) <= KEPT, left
