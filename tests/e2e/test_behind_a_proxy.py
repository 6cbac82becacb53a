"""The configurations of docs/behind-a-proxy.md, with a real nginx and a real Caddy in front (point by point)."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli
import trio

from rustunnel_py.client.config import CaFile, ServerAddress
from rustunnel_py.client.news import Joined
from tests.support.certificates import make_pair
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.proxy import STREAM_MODULE, block, caddy_command, nginx_command, running_proxy
from tests.support.running_server import running_server
from tests.support.services import HttpClient, http_service, pattern, tcp_service
from tests.support.stock_agent import stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.running_server import RunningServer

DOMAIN = "t.example.com"
MEBIBYTE = 1024 * 1024


def needs(*programs: str | Path) -> pytest.MarkDecorator:
    missing = [str(one) for one in programs if shutil.which(one) is None and not Path(one).exists()]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (Debian has them)")


LAYOUTS = [
    pytest.param("nginx", "decrypts", "server", marks=needs("nginx")),
    pytest.param("caddy", "decrypts", "server", marks=needs("caddy")),
    pytest.param("nginx", "passes", "passes", marks=needs("nginx", STREAM_MODULE)),
    pytest.param("caddy", "encrypts", "encrypts", marks=needs("caddy")),
]
pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.parametrize(("proxy", "layout", "table"), LAYOUTS)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Proxied:
    """A server and the proxy in front of it; everything here goes to the proxy's port."""

    def __init__(self, server: RunningServer, port: int, authority: Path) -> None:
        self.server = server
        self.port = port
        self.authority = authority

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    @asynccontextmanager
    async def visitor(self, label: str) -> AsyncIterator[HttpClient]:
        raw = await trio.open_tcp_stream("127.0.0.1", self.port)
        name = f"{label}.{DOMAIN}" if label else DOMAIN
        async with trio.SSLStream(raw, self.context(), server_hostname=name, https_compatible=True) as stream:
            yield HttpClient(stream)


def adapted(text: str, folder: Path, server: RunningServer, port: int) -> str:
    """A configuration of the page with this test's ports and files."""
    ready = server.ready
    text = text.replace("127.0.0.1:8080", f"127.0.0.1:{ready.http_port}")
    text = text.replace("127.0.0.1:8443", f"127.0.0.1:{ready.https_port}")
    text = text.replace("/etc/ssl/t.example.com", str(folder / "proxy")).replace(
        "/var/lib/rustunnel/ca.pem", str(server.folder / "ca.pem")
    )
    text = re.sub(r"listen \[::\]:443.*\n", "", text)
    # The name that this test's agents can resolve.
    text = text.replace("t.example.com:443, ", "localhost:443, t.example.com:443, ")
    return re.sub(r"\b443\b", str(port), text.replace("listen 443", f"listen 127.0.0.1:{port}"))


@asynccontextmanager
async def proxied(tmp_path: Path, proxy: str, layout: str, table: str) -> AsyncIterator[Proxied]:
    """The server that the page's TOML asks for, behind the proxy that its block asks for."""
    folder = tmp_path / "proxy-files"
    folder.mkdir()
    pem, key = make_pair([DOMAIN, f"*.{DOMAIN}", "localhost"])
    (folder / "proxy.pem").write_bytes(pem)
    (folder / "proxy.key").write_bytes(key)
    settings = tomli.loads(block("toml", table))
    port = free_port()
    settings["server"]["public_https_port"] = port
    settings["server"] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in settings["server"].items()
    }
    data = tmp_path / "data"
    async with running_server(data, **settings) as server:
        text = adapted(block(proxy, layout), folder, server, port)
        if proxy == "caddy":
            command = caddy_command(folder, text)
        elif layout == "passes":
            command = nginx_command(folder, stream=text)
        else:
            command = nginx_command(folder, http=text)
        async with running_proxy(command, folder, port):
            yield Proxied(server, port, data / "ca.pem" if layout == "passes" else folder / "proxy.pem")


@asynccontextmanager
async def agents_tunnel(place: Proxied, port: int, label: str) -> AsyncIterator[None]:
    """Our agent, logged in at the proxy's address."""
    config = agent_config(place.server, http(port, label))
    login = replace(config.login, server=ServerAddress("localhost", place.port), trust=CaFile(place.authority))
    async with our_agent(replace(config, login=login)) as agent:
        assert agent.urls == [f"https://{label}.{DOMAIN}:{place.port}"] or agent.urls[0].startswith("http://")
        assert not agent.screen.of(Joined)
        yield


async def test_requests_uploads_and_downloads_by_our_agent(tmp_path: Path, proxy: str, layout: str, table: str) -> None:
    async with http_service() as service, proxied(tmp_path, proxy, layout, table) as place:
        async with agents_tunnel(place, service.port, "app"), place.visitor("app") as visitor:
            reply = await visitor.request(
                f"app.{DOMAIN}:{place.port}",
                "/a%2Fb/../c?q=%20",
                headers=(("X-Forwarded-For", "192.0.2.66"), ("X-Forwarded-Proto", "gopher")),
            )
            assert reply.status == 200
            seen = service.seen[0]
            assert seen.target == "/a%2Fb/../c?q=%20"
            assert seen.header("host") == f"app.{DOMAIN}:{place.port}"
            assert seen.header("x-forwarded-for") == "127.0.0.1"  # the visitor's, not what he claims
            assert seen.header("x-forwarded-proto") == "https"
            size = 5 * MEBIBYTE
            up = await visitor.request(f"app.{DOMAIN}:{place.port}", "/up", method="PUT", body=pattern(size))
            assert (up.status, service.seen[1].body_size) == (200, size)
            down = await visitor.request(f"app.{DOMAIN}:{place.port}", f"/size/{size}")
            assert down.body == pattern(size)
        async with place.visitor("") as visitor:
            assert (await visitor.request(f"{DOMAIN}:{place.port}")).status == 200


async def test_the_visitors_real_address_arrives(tmp_path: Path, proxy: str, layout: str, table: str) -> None:
    """From another loopback address, so that it differs from the proxy's own."""
    async with (
        http_service() as service,
        proxied(tmp_path, proxy, layout, table) as place,
        agents_tunnel(place, service.port, "app"),
    ):
        raw = await trio.open_tcp_stream("127.0.0.1", place.port, local_address="127.9.9.9")
        stream = trio.SSLStream(raw, place.context(), server_hostname=f"app.{DOMAIN}", https_compatible=True)
        async with stream:
            assert (await HttpClient(stream).request(f"app.{DOMAIN}")).status == 200
        assert service.seen[0].header("x-forwarded-for") == "127.9.9.9"
        assert service.seen[0].header("x-real-ip") == "127.9.9.9"


async def test_events_arrive_one_by_one_and_upgrades_flow(tmp_path: Path, proxy: str, layout: str, table: str) -> None:
    go_on = trio.Event()

    async def serve(stream: trio.SocketStream) -> None:
        head = await stream.receive_some(4096)
        if b"websocket" in head:
            await stream.send_all(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            while data := await stream.receive_some(4096):
                await stream.send_all(data)
            return
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nfirst\n\r\n"
        )
        await go_on.wait()
        await stream.send_all(b"7\r\nsecond\n\r\n0\r\n\r\n")

    async with (
        tcp_service(serve) as port,
        proxied(tmp_path, proxy, layout, table) as place,
        agents_tunnel(place, port, "app"),
    ):
        async with place.visitor("app") as visitor:
            await visitor.stream.send_all(f"GET /events HTTP/1.1\r\nHost: app.{DOMAIN}\r\n\r\n".encode())
            received = bytearray()
            with trio.fail_after(10):
                while b"first\n" not in received:
                    received += await visitor.stream.receive_some(4096)
                go_on.set()
                while b"second\n" not in received:
                    received += await visitor.stream.receive_some(4096)
        async with place.visitor("app") as visitor:
            await visitor.stream.send_all(
                f"GET /socket HTTP/1.1\r\nHost: app.{DOMAIN}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            received = bytearray()
            with trio.fail_after(10):
                while b"\r\n\r\n" not in received:
                    received += await visitor.stream.receive_some(4096)
                assert received.startswith(b"HTTP/1.1 101 ")
                for number in range(5):
                    await visitor.stream.send_all(b"tick%d" % number)
                    received = bytearray()
                    while len(received) < 5:
                        received += await visitor.stream.receive_some(4096)
                    assert received == b"tick%d" % number


async def test_a_stock_agent_comes_the_same_way(tmp_path: Path, proxy: str, layout: str, table: str) -> None:
    async with (
        http_service() as service,
        proxied(tmp_path, proxy, layout, table) as place,
        stock_agent(place.port, place.server.admin_token, tls=place.context()) as agent,
    ):
        await agent.register("http", service.port, subdomain="stock")
        await agent.serve()
        async with place.visitor("stock") as visitor:
            for _ in range(3):
                assert (await visitor.request(f"stock.{DOMAIN}")).status == 200
            size = 2 * MEBIBYTE
            assert (await visitor.request(f"stock.{DOMAIN}", f"/size/{size}")).body == pattern(size)
        assert agent.violations == []
