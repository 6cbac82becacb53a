"""HTTP through a whole server and our own agent, on real sockets."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import running_server
from tests.support.services import HttpClient, Reply, http_service, pattern

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

MEBIBYTE = 1024 * 1024
PUMPS = pytest.mark.parametrize("pump", ["epoll", "portable"])


@PUMPS
async def test_requests_reach_the_local_service_and_keep_one_stream(tmp_path: Path, pump: str) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path, pump=pump) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        for number in range(5):
            reply = await visitor.request(
                server.host("app"), f"/page/{number}?q=%20", headers=(("X-Tag", str(number)),)
            )
            assert (reply.status, reply.header("x-tag")) == (200, str(number))
        assert [seen.target for seen in service.seen] == [f"/page/{number}?q=%20" for number in range(5)]
        assert service.connections == 1
        first = service.seen[0]
        assert first.header("host") == server.host("app")
        assert first.header("x-forwarded-for") == "127.0.0.1"
        assert first.header("x-forwarded-proto") == "http"


async def test_a_post_with_a_length_and_a_chunked_one_arrive_whole(tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for size in (1, 70_000, 3):
            yield pattern(size)

    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        assert (await visitor.request(server.host("app"), method="POST", body=pattern(300_000))).status == 200
        assert (await visitor.request(server.host("app"), method="POST", body=parts())).status == 200
        assert service.seen[0].body == pattern(300_000)
        assert service.seen[0].header("content-length") == "300000"
        assert service.seen[1].body == pattern(1) + pattern(70_000) + pattern(3)
        assert service.seen[1].header("transfer-encoding") == "chunked"


async def test_https_by_the_servers_own_authority(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect_tls(server.host("app")) as stream,
    ):
        reply = await HttpClient(stream).request(server.host("app"), "/secure")
        assert reply.status == 200
        assert service.seen[0].header("x-forwarded-proto") == "https"


@pytest.mark.slow
@PUMPS
async def test_200_megabytes_each_way_arrive_with_equal_hash(tmp_path: Path, pump: str) -> None:
    size = 200 * MEBIBYTE if pump == "epoll" else 20 * MEBIBYTE
    block = pattern(MEBIBYTE)
    expected = hashlib.sha256()

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(size // MEBIBYTE):
            expected.update(block)
            yield block

    async with (
        http_service(keep_bodies=False) as service,
        running_server(tmp_path, pump=pump) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        reply = await visitor.request(server.host("app"), "/up", method="PUT", body=parts())
        assert reply.status == 200
        assert (service.seen[0].body_size, service.seen[0].body_sha256) == (size, expected.hexdigest())
        down = await visitor.request(server.host("app"), f"/size/{size}", keep_body=False)
        sent = hashlib.sha256()
        for start in range(0, size, 65536):
            sent.update(pattern(min(65536, size - start)))
        assert down.body.decode() == sent.hexdigest()


@pytest.mark.slow
async def test_20_visitors_with_50_requests_each_get_no_crossed_answer(tmp_path: Path) -> None:
    async def visit(number: int) -> None:
        async with await server.connect() as stream:
            visitor = HttpClient(stream)
            for turn in range(50):
                tag = f"{number}-{turn}"
                body = tag.encode() * (turn % 7)
                method = "POST" if body else "GET"
                reply = await visitor.request(
                    server.host("app"), f"/{tag}", method=method, headers=(("X-Tag", tag),), body=body
                )
                digest = hashlib.sha256(body).hexdigest()
                assert reply.header("x-tag") == tag
                assert reply.body == f"{method} /{tag} {len(body)} {digest}\n".encode()

    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
    ):
        async with trio.open_nursery() as visitors:
            for number in range(20):
                visitors.start_soon(visit, number)
        assert len(service.seen) == 1000
        assert service.connections <= 20


async def test_two_http_tunnels_of_one_agent_reach_their_own_services(tmp_path: Path) -> None:
    async with (
        http_service() as one,
        http_service() as two,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(one.port, "one"), http(two.port, "two"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        await visitor.request(server.host("one"), "/for-one")
        await visitor.request(server.host("two"), "/for-two")
        assert [seen.target for seen in one.seen] == ["/for-one"]
        assert [seen.target for seen in two.seen] == ["/for-two"]


async def test_what_has_no_tunnel_and_what_does_not_answer(tmp_path: Path) -> None:
    async def ask(host: str) -> Reply:
        async with await server.connect() as stream:
            return await HttpClient(stream).request(host, headers=(("Accept", "application/json"),))

    async with (
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(1, "dead"))),  # nothing listens on port 1 of loopback
    ):
        assert (await ask(server.host("nobody"))).status == 404
        refused = await ask(server.host("dead"))
        assert refused.status == 502
        assert b"local service" in refused.body


async def test_a_rewritten_host_reaches_the_local_service(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app", host_header="rewrite"))),
        await server.connect() as stream,
    ):
        await HttpClient(stream).request(server.host("app"))
        assert service.seen[0].header("host") == f"127.0.0.1:{service.port}"
        assert service.seen[0].header("x-forwarded-host") == server.host("app")
