"""Who really came: both families on every listener, PROXY headers in and out, trusted proxies (T12, T16, H59)."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.client import login as logging_in
from rustunnel_py.client.config import Pin, ServerAddress
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.server import greeting
from rustunnel_py.wire import proxy
from tests.support.our_agent import agent_config, http, our_agent, tcp
from tests.support.running_server import running_server
from tests.support.services import HttpClient, Reply, http_service, tcp_service
from tests.support.stock_agent import stock_agent
from tests.support.whole_server import read_to_end, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.running_server import RunningServer

EDGE = Peer("203.0.113.1", 443)
VISITOR = Peer("198.51.100.9", 4711)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@needs_ipv6
async def test_T12_every_listener_answers_both_families_and_tells_them_apart(tmp_path: Path) -> None:
    hosts = {"host": "::", "dashboard_host": "::", "dashboard_plain": True}
    async with (
        http_service() as service,
        tcp_service(lambda stream: stream.send_all(b"banner")) as banner,
        running_server(tmp_path, server=hosts, limits={"tcp_port_range": (31000, 31999)}) as server,
        our_agent(agent_config(server, http(service.port, "app"), tcp(banner))) as agent,
    ):
        tcp_port = int(agent.urls[1].rpartition(":")[2])
        ready = server.ready
        dashboard_port = int(ready.dashboard_url.rpartition(":")[2])
        for ip in ("127.0.0.1", "::1"):
            async with await trio.open_tcp_stream(ip, ready.http_port) as stream:
                assert (await HttpClient(stream).request(server.host("app"))).status == 200
            assert service.seen[-1].header("x-forwarded-for") == ip
            raw = await trio.open_tcp_stream(ip, ready.https_port)
            name = server.host("app")
            async with trio.SSLStream(
                raw, server.client_context(), server_hostname=name, https_compatible=True
            ) as secure:
                assert (await HttpClient(secure).request(name)).status == 200
            assert service.seen[-1].header("x-forwarded-for") == ip
            async with await trio.open_tcp_stream(ip, dashboard_port) as stream:
                reply = await HttpClient(stream).request(f"localhost:{dashboard_port}", "/api/status")
                assert reply.status == 200
            async with await trio.open_tcp_stream(ip, tcp_port) as stream:
                assert await read_to_end(stream) == b"banner"
            config = agent_config(server, http(service.port, f"by-{ip.count(':')}"))
            login = replace(config.login, server=ServerAddress(ip, ready.control_port))
            async with our_agent(replace(config, login=login, machine=ip)):
                pass


# PROXY headers


@asynccontextmanager
async def introduced(port: int, visitor: Peer = VISITOR, version: int = 2) -> AsyncIterator[trio.SocketStream]:
    """A connection that a proxy made for `visitor`."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(proxy.encode(version, visitor, EDGE))
        yield stream


async def ask(server: RunningServer, visitor: Peer, version: int = 2) -> Reply:
    async with introduced(server.ready.http_port, visitor, version) as stream:
        return await HttpClient(stream).request(server.host("app"))


BY_LOOPBACK: dict[str, object] = {"proxy_protocol_from": ("127.0.0.0/8",), "proxy_protocol_on": ("http", "https")}


@pytest.mark.parametrize("version", [1, 2])
async def test_T16_the_visitor_of_a_header_is_the_visitor_everywhere(tmp_path: Path, version: int) -> None:
    first = []

    async def service(stream: trio.SocketStream) -> None:
        received = bytearray()
        while b"\r\n\r\n" not in received[20:]:
            received += await stream.receive_some(4096)
        first.append(bytes(received))
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with (
        http_service() as plain,
        tcp_service(service) as port,
        running_server(tmp_path, server=BY_LOOPBACK) as server,
        our_agent(agent_config(server, http(plain.port, "app"), http(port, "told", proxy_protocol=1))),
    ):
        assert (await ask(server, VISITOR, version)).status == 200
        assert plain.seen[0].header("x-forwarded-for") == VISITOR.ip
        assert plain.seen[0].header("forwarded") is not None
        async with introduced(server.ready.http_port, VISITOR, version) as stream:
            assert (await HttpClient(stream).request(server.host("told"))).status == 200
        assert first[0].startswith(b"PROXY TCP4 198.51.100.9 ")
        # Before TLS:
        async with introduced(server.ready.https_port, VISITOR, version) as raw:
            name = server.host("app")
            context = server.client_context()
            secure = trio.SSLStream(raw, context, server_hostname=name, https_compatible=True)
            assert (await HttpClient(secure).request(name)).status == 200
        assert plain.seen[-1].header("x-forwarded-for") == VISITOR.ip
        assert plain.seen[-1].header("x-forwarded-proto") == "https"


async def test_T12_ipv6_counts_by_64_and_a_mapped_address_is_the_ipv4_one(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path, server=BY_LOOPBACK, limits={"ip_rate_limit_rps": 1e-6}) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
    ):
        assert (await ask(server, Peer("2001:db8:1:2::1", 1))).status == 200
        assert (await ask(server, Peer("2001:db8:1:2:ffff::9", 1))).status == 429
        assert (await ask(server, Peer("2001:db8:1:3::1", 1))).status == 200
        assert (await ask(server, Peer("192.0.2.7", 1))).status == 200
        assert (await ask(server, Peer("::ffff:192.0.2.7", 1))).status == 429
        assert (await ask(server, Peer("192.0.2.8", 1))).status == 200
        assert service.seen[-1].header("x-forwarded-for") == "192.0.2.8"


async def test_T16_a_header_from_somebody_else_is_a_bad_request(tmp_path: Path) -> None:
    elsewhere: dict[str, object] = {"proxy_protocol_from": ("10.0.0.0/8",)}
    async with whole_server(tmp_path, server=elsewhere) as whole:
        sent = proxy.encode(1, VISITOR, EDGE) + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        assert (await whole.ask_raw(sent)).startswith(b"HTTP/1.1 400 ")


async def test_T16_on_a_tcp_tunnel_a_header_is_data_unless_it_is_turned_on(tmp_path: Path) -> None:
    seen = []

    async def service(stream: trio.SocketStream) -> None:
        seen.append(await read_to_end(stream))

    for on, told in ((("http", "https"), b"PROXY TCP4 198.51.100.9"), (("tcp",), b"hello")):
        table: dict[str, object] = {"proxy_protocol_from": ("127.0.0.1",), "proxy_protocol_on": on}
        async with (
            tcp_service(service) as port,
            running_server(tmp_path / on[0], server=table, limits={"tcp_port_range": (32000, 32999)}) as server,
            our_agent(agent_config(server, tcp(port))) as agent,
        ):
            tcp_port = int(agent.urls[0].rpartition(":")[2])
            async with introduced(tcp_port, version=1) as stream:
                await stream.send_all(b"hello")
                await stream.send_eof()
                assert await read_to_end(stream) == b""
        assert seen[-1].startswith(told)
        assert seen[-1].endswith(b"hello")


async def test_T09_a_trusted_proxy_is_not_one_visitor_but_its_visitors_are_limited(tmp_path: Path) -> None:
    limits: dict[str, object] = {"max_connections_per_ip": 2, "ip_rate_limit_rps": 1e-6}
    async with (
        http_service() as service,
        running_server(tmp_path, server={"trusted_proxies": ("127.0.0.0/8",)}, limits=limits) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        trio.open_nursery() as nursery,
    ):
        answers: list[int] = []
        done = trio.Event()

        async def visit(ip: str) -> None:
            async with await server.connect() as stream:
                headers = (("X-Forwarded-For", ip),)
                answers.append((await HttpClient(stream).request(server.host("app"), headers=headers)).status)
                if len(answers) == 6:
                    done.set()
                await done.wait()  # all are open at a time

        for number in range(5):
            nursery.start_soon(visit, f"192.0.2.{number}")
        nursery.start_soon(visit, "192.0.2.0")
        with trio.fail_after(10):
            await done.wait()
        assert sorted(answers) == [200, 200, 200, 200, 200, 429]


# one port, and unencrypted


async def test_agents_come_by_the_https_edge_under_the_bare_domain(tmp_path: Path) -> None:
    async with http_service() as service, whole_server(tmp_path) as whole:
        server = whole.server
        config = agent_config(server, http(service.port, "ours"))
        login = await logging_in.login(
            ServerAddress("localhost", server.ready.https_port),
            config.login.token,
            tmp_path / "login.toml",
            pin=Pin(server.ready.pin),
        )
        async with (
            our_agent(replace(config, login=login)),
            stock_agent(server.ready.https_port, server.admin_token, tls=server.client_context()) as stock,
        ):
            await stock.register("http", service.port, subdomain="stock")
            await stock.serve()
            assert (await whole.get("ours")).status == 200
            assert (await whole.get("stock")).status == 200
            assert stock.violations == []


PLAIN: dict[str, object] = {"control_plain": True, "trusted_proxies": ("127.0.0.0/8",)}


@pytest.mark.parametrize("port", ["http_port", "control_port"])
async def test_agents_come_unencrypted_by_a_trusted_proxy(tmp_path: Path, port: str) -> None:
    async with http_service() as service, whole_server(tmp_path, server=PLAIN) as whole:
        server = whole.server
        async with stock_agent(getattr(server.ready, port), server.admin_token) as stock:
            await stock.register("http", service.port, subdomain="stock")
            await stock.serve()
            assert (await whole.get("stock")).status == 200


async def test_behind_a_proxy_the_greeting_tells_what_is_seen_from_outside(tmp_path: Path) -> None:
    table = {**PLAIN, "public_http_port": 80, "public_https_port": 443}
    async with running_server(tmp_path, server=table) as server:
        lines = greeting(server.ready, "rustunnel-py", terminal=False)
        assert lines[0] == "tunnels    http://NAME.localhost:80  https://NAME.localhost:443"
        assert lines[1] == "agents     localhost:443 by the proxy that encrypts"
        assert "login localhost:443 <" in lines[-1]
        assert "--pin" not in lines[-1]


async def test_without_control_plain_the_http_edge_takes_no_agents(tmp_path: Path) -> None:
    async with whole_server(tmp_path, server={"trusted_proxies": ("127.0.0.0/8",)}) as whole:
        upgrade = (
            b"GET /_control HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        stream = await whole.server.connect()
        async with stream:
            await stream.send_all(upgrade)
            assert b" 101 " not in (await stream.receive_some(4096))[:15]


async def test_control_plain_is_for_loopback_and_trusted_proxies_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rustunnel_py.entry.peer_of", lambda _: Peer("198.51.100.9", 1))
    async with whole_server(tmp_path, server=PLAIN) as whole:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", whole.server.ready.control_port) as stream:
                assert await read_to_end(stream, 5) == b""
        except OSError:
            pass  # the reset was faster than the connect
        async with await whole.server.connect() as stream:
            await stream.send_all(
                b"GET /_control HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            assert b" 101 " not in (await stream.receive_some(4096))[:15]


async def test_the_agents_address_behind_a_proxy_is_the_one_that_the_proxy_tells(tmp_path: Path) -> None:
    async with whole_server(tmp_path, server=PLAIN) as whole:
        upgrade = (
            b"GET /_control HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 192.0.2.66, 198.51.100.9\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        stream = await trio.open_tcp_stream("127.0.0.1", whole.server.ready.control_port)
        async with stream:
            await stream.send_all(upgrade)
            await whole.until(lambda: len(whole.parts._door._strangers) == 1)
            (connection,) = whole.parts._door._strangers
            assert connection.peer.ip == "198.51.100.9"


async def test_http_is_redirected_where_that_is_asked_for(tmp_path: Path) -> None:
    table: dict[str, object] = {"redirect_https": True, "public_https_port": 443}
    async with (
        http_service() as service,
        running_server(tmp_path, server=table) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        reply = await visitor.request(server.host("app"), "/a?b=c", method="POST", body=b"x")
        assert (reply.status, reply.header("location")) == (308, f"https://{server.host('app')}/a?b=c")
        assert service.seen == []
        # The domain itself may be remembered for https; names of tunnels are their owners'.
        for name, strict in (("localhost", "max-age=31536000"), (server.host("app"), None)):
            async with await server.connect_tls(name) as secure:
                reply = await HttpClient(secure).request(name)
                assert (reply.status, reply.header("strict-transport-security")) == (200, strict)
