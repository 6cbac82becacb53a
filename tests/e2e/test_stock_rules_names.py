"""Section 7 of the agent protocol: names, ports, URLs and limits, with a stock agent on a whole server."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.services import HttpClient, Reply, http_service, tcp_service
from tests.support.stock_agent import SessionFailed, StockAgent
from tests.support.whole_server import WholeServer, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path) as whole:
        yield whole


def three_free_ports() -> int:
    """The first of three neighbours, below the range that the kernel takes its own choices from."""
    start = 20_200 + os.getpid() % 1000 * 10
    for first in range(start, start + 2000, 3):
        with contextlib.ExitStack() as stack:
            try:
                for port in (first, first + 1, first + 2):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


async def refusal(agent: StockAgent, name: str | None, protocol: str = "http") -> str:
    with pytest.raises(SessionFailed) as failed:
        await agent.register(protocol, 1, subdomain=name)
    assert not failed.value.final
    return str(failed.value).removeprefix("tunnel error: ")


async def test_7_C12_labels_have_3_to_63_letters_digits_and_hyphens(whole: WholeServer) -> None:
    bad = ("", "a", "ab", "a" * 64, "-abc", "abc-", "a.b", "a_b", "*", "a b", "\N{GRINNING FACE}abc", "abc.", "a\0bcd")
    async with whole.agent() as agent:
        for name in bad:
            assert "3 to 63" in await refusal(agent, name)
        for name in ("abc", "a" * 63, "123", "a-b", "a--b"):
            tunnel = await agent.register("http", 1, subdomain=name)
            assert tunnel.public_url.startswith(f"http://{name}.localhost:")


async def test_7_names_are_compared_in_lower_case(whole: WholeServer) -> None:
    """The original serves `abc` and `ABC` as two tunnels."""
    async with http_service() as service, whole.agent() as agent, whole.agent() as other:
        tunnel = await agent.register("http", service.port, subdomain="DeMo")
        assert tunnel.public_url.startswith("http://demo.localhost:")
        assert "in use" in await refusal(other, "demo")
        assert "in use" in await refusal(other, "DEMO")
        await agent.serve()
        assert (await whole.get("DEMO")).status == 200


async def test_7_C12_reserved_labels_are_for_admins(tmp_path: Path) -> None:
    reserved = ("www", "api", "admin")
    async with whole_server(tmp_path, names={"reserved": reserved}) as whole:
        token, _ = await whole.new_token("one")
        async with whole.agent(token) as agent, whole.agent() as admin:
            for name in (*reserved, "WWW"):
                assert "reserved" in await refusal(agent, name)
            await admin.register("http", 1, subdomain="www")


async def test_7_without_a_wish_a_random_label(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        labels = set()
        for _ in range(5):
            url = (await agent.register("http", 1)).public_url
            label = url.removeprefix("http://").partition(".")[0]
            assert re.fullmatch("[a-z0-9-]{3,63}", label)
            labels.add(label)
        assert len(labels) == 5


async def test_7_C13_of_many_agents_at_one_instant_exactly_one_wins(whole: WholeServer) -> None:
    won: list[str] = []
    lost: list[str] = []
    token = [(await whole.new_token(str(number)))[0] for number in range(8)]
    ready, done = trio.Event(), trio.Event()

    async def claim(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with whole.agent(token[number]) as agent:
            task_status.started()
            await ready.wait()
            for name in ("one", "two", "three"):
                try:
                    won.append((await agent.register("http", 1, subdomain=name)).public_url)
                except SessionFailed as failed:
                    lost.append(str(failed))
            await done.wait()

    async with trio.open_nursery() as nursery:
        for number in range(8):
            await nursery.start(claim, number)
        ready.set()
        await whole.until(lambda: len(won) + len(lost) == 24)
        done.set()
    assert len(won) == len(set(won)) == 3
    assert all("in use" in text for text in lost)


async def test_7_C14_a_dead_holder_of_the_same_owner_loses_its_name(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rustunnel_py.hub import claims

    monkeypatch.setattr(claims, "ANSWER_SECONDS", 0.2)
    async with whole.serving(1) as holder, whole.agent() as claimant:
        assert "in use from 127.0.0.1" in await refusal(claimant, "demo")
        holder.freeze()
        tunnel = await claimant.register("http", 1, subdomain="demo")
        assert tunnel.id == holder.tunnels[0].id
        holder.thaw()
        holder._reconnect_data = False
        with trio.fail_after(5):
            await holder.ended.wait()
        assert holder.violations == []


@pytest.mark.parametrize(
    "local_addr",
    [
        "http://x/y",
        "169.254.169.254:80",
        "x" * 10_000,
        "a\r\nHost: b",
        "",
        "\x1b[31m",
        "localhost:99999",
        "\ud83d\ude00",
    ],
    ids=["url", "metadata", "10 kB", "CRLF", "empty", "escape", "port", "emoji"],
)
async def test_7_C17_the_local_address_is_for_display_only(whole: WholeServer, local_addr: str) -> None:
    async with http_service() as service, whole.agent() as agent:
        tunnel = await agent.register("http", service.port, subdomain="demo")
        await agent.unregister(tunnel)
        text = local_addr.encode("utf-16", "surrogatepass").decode("utf-16")
        await agent._say(type="register_tunnel", request_id="1", protocol="http", subdomain="demo", local_addr=text)
        answer = await agent._only_answer(("tunnel_registered",))
        tunnel.id = answer["tunnel_id"]
        agent.tunnels.append(tunnel)
        await agent.serve()
        assert (await whole.get("demo")).status == 200
        seen = service.seen[-1]
        assert seen.header("host") == "demo.localhost"
        assert all(text not in value for _, value in seen.headers if text)


async def test_7_public_urls_can_be_pasted(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path, limits={"tcp_port_range": (31000, 31999)}) as whole,
        whole.agent() as agent,
    ):
        ready = whole.server.ready
        http = await agent.register("http", service.port, subdomain="one")
        https = await agent.register("https", service.port, subdomain="two")
        tcp = await agent.register("tcp", service.port)
        assert http.public_url == f"http://one.localhost:{ready.http_port}"
        assert https.public_url == f"https://two.localhost:{ready.https_port}"
        assert tcp.public_url == f"tcp://localhost:{tcp.assigned_port}"
        assert (http.assigned_port, https.assigned_port) == (None, None)
        assert tcp.assigned_port is not None
        assert 31000 <= tcp.assigned_port <= 31999
        await agent.serve()
        async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as stream:
            assert (await HttpClient(stream).request("anything")).status == 200


async def test_7_a_range_that_is_used_up_is_a_tunnel_error(tmp_path: Path) -> None:
    first = three_free_ports()
    async with (
        whole_server(tmp_path, limits={"tcp_port_range": (first, first + 2)}) as whole,
        whole.agent() as agent,
    ):
        ports = [(await agent.register("tcp", 1)).assigned_port for _ in range(3)]
        assert set(ports) == {first, first + 1, first + 2}
        assert "in use" in await refusal(agent, None, "tcp")
        await agent.unregister(agent.tunnels[1])
        assert (await agent.register("tcp", 1)).assigned_port == ports[1]


async def test_7_tcp_and_udp_can_be_turned_off(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        assert "turned off" in await refusal(agent, None, "tcp")
        assert "udp" in await refusal(agent, None, "udp")
        assert "p2p" in await refusal(agent, None, "p2p")
        await agent.register("http", 1)


async def test_7_C11_tunnels_per_session(tmp_path: Path) -> None:
    async with whole_server(tmp_path, limits={"max_tunnels_per_session": 3}) as whole, whole.agent() as agent:
        for _ in range(3):
            await agent.register("http", 1)
        assert "3 tunnels" in await refusal(agent, None)
        await agent.unregister(agent.tunnels[0])
        await agent.register("http", 1)


async def test_7_requests_per_second_of_a_tunnel_are_429(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path, limits={"rate_limit_rps": 1}) as whole,
        whole.serving(service.port),
        whole.serving(service.port, "other"),
    ):
        statuses = [(await whole.get("demo")).status for _ in range(20)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
        assert (await whole.get("other")).status == 200
        assert len(service.seen) < 20


async def test_7_requests_per_second_of_a_source_are_429(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path, limits={"ip_rate_limit_rps": 1}) as whole,
        whole.serving(service.port),
        whole.serving(service.port, "other"),
    ):
        statuses = [(await whole.get("demo")).status for _ in range(20)]
        assert statuses[0] == 200
        reply = await whole.get("other")
        assert reply.status == 429
        assert reply.header("retry-after") is not None


async def test_7_connections_of_a_tunnel_are_503(tmp_path: Path) -> None:
    async with (
        tcp_service(silent) as port,
        whole_server(tmp_path, limits={"max_connections_per_tunnel": 2}) as whole,
        whole.serving(port) as agent,
    ):
        flying = [await whole.server.connect() for _ in range(2)]
        for visitor in flying:
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
        await whole.until(lambda: agent.local_connections == 2)
        assert (await whole.get("demo")).status == 503
        for visitor in flying:
            await visitor.aclose()


async def test_7_a_longer_body_is_413_and_reaches_nobody(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path, limits={"request_body_max_bytes": 1000}) as whole,
        whole.serving(service.port),
    ):
        assert (await whole.get("demo", method="POST", body=b"x" * 1000)).status == 200
        assert (await whole.get("demo", method="POST", body=b"x" * 1001)).status == 413
        assert len(service.seen) == 1

        chunked = b"POST / HTTP/1.1\r\nHost: demo.localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        answer = await whole.ask_raw(chunked + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert len(service.seen) == 1  # cut, never completed


async def test_7_no_such_tunnel_is_404(whole: WholeServer) -> None:
    async with whole.serving(1):
        assert (await whole.get("nobody")).status == 404


async def test_7_an_agent_that_goes_away_in_the_middle_is_a_502(whole: WholeServer) -> None:
    async with tcp_service(silent) as port, whole.serving(port) as agent, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def visit() -> None:
            replies.append(await whole.get("demo"))

        nursery.start_soon(visit)
        await agent.wait_heard("new_connection")
        await agent.drop_control()
        await whole.until(lambda: replies)
        assert replies[0].status == 502


async def test_7_an_agent_that_is_too_slow_is_a_504(whole: WholeServer) -> None:
    async with tcp_service(silent) as port, whole.serving(port) as agent, trio.open_nursery() as nursery:
        replies: list[Reply] = []

        async def visit() -> None:
            replies.append(await whole.get("demo"))

        nursery.start_soon(visit)
        link = whole.shell(agent).link
        await whole.until(lambda: link.unanswered)
        whole.call(lambda: link.sweep(whole.pump.now + 301))
        await whole.until(lambda: replies)
        assert replies[0].status == 504
