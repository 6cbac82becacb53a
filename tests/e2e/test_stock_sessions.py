"""Whole sessions of the played stock agent that are interrupted: sockets cut, servers restarted, names kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.agents import rustunnel
from tests.support import stock_agent as played
from tests.support.running_server import running_server
from tests.support.services import HttpClient, Reply, echo, http_service, pattern, tcp_service
from tests.support.stock_agent import SessionFailed, stock_agent
from tests.support.whole_server import read_to_end, whole_server

if TYPE_CHECKING:
    from pathlib import Path

PORTS: dict[str, object] = {"tcp_port_range": (31000, 31999)}


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


async def test_the_data_socket_is_cut_in_mid_session(tmp_path: Path) -> None:
    """Recording 09a: in flight fails at once, addresses stay, the next data socket is a fresh yamux session."""
    async with (
        http_service() as service,
        tcp_service(silent) as slow,
        tcp_service(echo) as echoing,
        whole_server(tmp_path, limits=PORTS) as whole,
        whole.agent() as agent,
    ):
        web = await agent.register("http", slow, subdomain="demo")
        tcp = await agent.register("tcp", echoing)
        await agent.serve()
        first = await agent.wait_data(1)
        assert tcp.assigned_port is not None
        replies: list[Reply] = []
        async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as joined:
            await joined.send_all(b"before")
            assert await joined.receive_some(6) == b"before"
            async with trio.open_nursery() as nursery:

                async def visit() -> None:
                    replies.append(await whole.get("demo"))

                nursery.start_soon(visit)
                await agent.wait_heard("new_connection", 2)
                web.local = ("127.0.0.1", service.port)
                await agent.drop_data()
                with trio.fail_after(5):
                    assert await read_to_end(joined) == b""  # by a reset
        assert [reply.status for reply in replies] == [502]
        assert b"agent-lost" in replies[0].body
        assert (await whole.get("demo", "/after")).status == 200
        second = await agent.wait_data(2)
        assert second is not first
        assert min(second.streams) == 1
        async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as again:
            await again.send_all(b"after")
            assert await again.receive_some(5) == b"after"
        assert not agent.ended.is_set()
        assert agent.violations == []


async def test_a_reply_that_the_cut_interrupts_looks_cut(tmp_path: Path) -> None:
    async with http_service() as service, whole_server(tmp_path) as whole, whole.serving(service.port) as agent:
        stream = await whole.server.connect()
        async with stream:
            await stream.send_all(b"GET /size/50000000 HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
            received = len(await stream.receive_some(65536))
            await agent.drop_data()
            with trio.fail_after(10):
                received += len(await read_to_end(stream))
        assert received < 50_000_000
        assert (await whole.get("demo", "/size/1000")).body == pattern(1000)
        assert agent.data_opened == 2


async def test_visitors_of_the_gap_between_two_data_sockets_are_served_by_the_second(tmp_path: Path) -> None:
    async with http_service() as service, whole_server(tmp_path) as whole, whole.serving(service.port) as agent:
        for cut in range(3):
            await agent.drop_data()
            statuses: list[int] = []

            async def visit(statuses: list[int] = statuses) -> None:
                statuses.append((await whole.get("demo")).status)

            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(visit)
            assert statuses == [200] * 10
            assert agent.data_opened == cut + 2
        assert agent.violations == []


async def test_an_agent_whose_data_socket_does_not_come_back_starts_again_under_the_same_name(tmp_path: Path) -> None:
    """Recording 09b: five tries fail, it drops control and registers anew."""
    async with http_service() as service, whole_server(tmp_path) as whole:
        async with whole.serving(service.port) as agent:
            before = whole.tunnel("demo")
            shell = whole.shell(agent)
            real = agent._open

            async def refused(path: str) -> played.WebSocket:
                raise OSError("the network is down")

            agent._open = refused  # type: ignore[method-assign]
            await agent.drop_data()
            with trio.fail_after(10):
                await agent.ended.wait()
            agent._open = real  # type: ignore[method-assign]
            await shell._over.wait()
            held = whole.tunnel("demo")
            assert held is before
            assert held is not None
            assert held.held_until is not None
        async with whole.serving(service.port):
            assert whole.tunnel("demo") is before
            assert (await whole.get("demo")).status == 200


async def test_heartbeats_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.05)
    monkeypatch.setattr(played, "PING_SECONDS", 0.05)
    async with http_service() as service, whole_server(tmp_path) as whole, whole.agent(heartbeats=True) as agent:
        await agent.register("http", service.port, subdomain="demo")
        await agent.serve()
        with trio.fail_after(10):
            await agent.wait_heard("ping", 4)
            await agent.wait_heard("pong", 4)
        trunk = whole.shell(agent)._trunk
        assert trunk is not None
        for ahead in (20, 40, 60):  # the data socket's own, by WebSocket pings
            answered = trunk.received
            whole.call(lambda ahead=ahead: trunk.sweep(whole.pump.now + ahead))  # type: ignore[misc]
            await whole.until(lambda answered=answered: trunk.received > answered)  # type: ignore[misc]
            await whole.until(lambda: trunk._heard)
        assert (await whole.get("demo")).status == 200
        assert not agent.ended.is_set()
        assert agent.data_opened == 1
        assert agent.violations == []


async def test_W19_a_frozen_agent_loses_its_session_and_finds_its_name_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recording 18, with shorter times."""
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.1)
    monkeypatch.setattr(rustunnel, "PONG_SECONDS", 0.1)
    async with http_service() as service, whole_server(tmp_path) as whole:
        async with whole.serving(service.port) as agent:
            before = whole.tunnel("demo")
            agent.freeze()
            await whole.until(lambda: len(whole.sessions) == 0)
            held = whole.tunnel("demo")
            assert held is not None
            assert held.held_until is not None
            agent.thaw()
            with trio.fail_after(10):
                await agent.ended.wait()
            assert agent.failure is not None
            assert not agent.failure.final
            assert agent.violations == []
        async with whole.serving(service.port):
            assert whole.tunnel("demo") is before


async def test_two_stock_agents_with_one_token_keep_their_own_names(tmp_path: Path) -> None:
    async with (
        http_service() as one,
        http_service() as two,
        whole_server(tmp_path) as whole,
        whole.serving(one.port, "one") as first,
        whole.serving(two.port, "two") as second,
    ):
        await whole.get("one", "/a")
        await whole.get("two", "/b")
        await first.drop_data()
        await whole.get("two", "/c")
        await whole.get("one", "/d")
        assert [seen.target for seen in one.seen] == ["/a", "/d"]
        assert [seen.target for seen in two.seen] == ["/b", "/c"]
        async with whole.agent() as third:
            with pytest.raises(SessionFailed, match="in use from"):
                await third.register("http", one.port, subdomain="two")
        assert not first.ended.is_set()
        assert not second.ended.is_set()
        assert first.violations == second.violations == []


async def test_two_stock_agents_without_a_wish_have_two_names(tmp_path: Path) -> None:
    async with http_service() as service, whole_server(tmp_path) as whole:
        async with whole.agent() as first, whole.agent() as second:
            one = await first.register("http", service.port)
            await first.serve()
            two = await second.register("http", service.port)
            await second.serve()
            assert one.public_url != two.public_url
            urls = {one.public_url, two.public_url}
        async with whole.agent() as first, whole.agent() as second:
            again = [await agent.register("http", service.port) for agent in (first, second)]
            assert {tunnel.public_url for tunnel in again} == urls  # they may swap: they do not say who they are


async def test_several_tunnels_of_one_agent_all_lead_to_its_first_service(tmp_path: Path) -> None:
    """Recording 04: the agent's own limit, which no server can mend."""
    async with http_service() as one, http_service() as two, whole_server(tmp_path) as whole, whole.agent() as agent:
        await agent.register("http", one.port, subdomain="one")
        await agent.register("https", two.port, subdomain="two")
        await agent.serve()
        assert (await whole.get("one", "/a")).status == 200
        assert (await whole.get("two", "/b")).status == 200
        assert [seen.target for seen in one.seen] == ["/a", "/b"]
        assert two.seen == []


async def test_unregistered_tunnels_end_one_by_one_and_the_session_stays(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        tcp_service(echo) as echoing,
        whole_server(tmp_path, limits=PORTS) as whole,
        whole.agent() as agent,
    ):
        tunnels = [
            await agent.register("http", service.port, subdomain="demo"),
            await agent.register("https", service.port, subdomain="other"),
            await agent.register("tcp", echoing),
        ]
        await agent.serve()
        for number, tunnel in enumerate(tunnels):
            await agent.unregister(tunnel)
            await agent.ping(number)
            await agent.wait_heard("pong", number + 1)
            _, listed = await whole.api("GET", "/api/tunnels")
            assert {one["tunnel_id"] for one in listed} == {one.id for one in tunnels[number + 1 :]}
        assert (await whole.get("demo")).status == 404
        assert not agent.ended.is_set()
        assert agent.violations == []


async def test_a_server_that_restarts_gives_a_wished_and_a_random_name_back(tmp_path: Path) -> None:
    token = ""
    urls: list[list[str]] = []
    table: dict[str, object] = {}
    async with http_service() as service:
        for _ in range(2):
            async with running_server(tmp_path, server=table, limits=PORTS) as server:
                token = server.admin_token
                table = server.fixed_ports()
                async with stock_agent(server.ready.control_port, token, tls=server.client_context()) as agent:
                    kinds = (("http", "demo"), ("http", None), ("tcp", None))
                    made = [await agent.register(kind, service.port, subdomain=name) for kind, name in kinds]
                    await agent.serve()
                    label = made[1].public_url.removeprefix("http://").partition(".")[0]
                    stream = await server.connect()
                    async with stream:
                        assert (await HttpClient(stream).request(server.host(label))).status == 200
                    urls.append([tunnel.public_url for tunnel in made])
    assert urls[0] == urls[1]


async def test_20_visitors_with_20_requests_each_get_no_crossed_answer(tmp_path: Path) -> None:
    async with http_service() as service, whole_server(tmp_path) as whole, whole.serving(service.port) as agent:

        async def visit(number: int) -> None:
            stream = await whole.server.connect()
            async with stream:
                client = HttpClient(stream)
                for turn in range(20):
                    tag = f"{number}-{turn}"
                    reply = await client.request("demo.localhost", f"/{tag}", headers=(("X-Tag", tag),))
                    assert reply.header("x-tag") == tag
                    assert reply.body.startswith(f"GET /{tag} ".encode())

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(visit, number)
        assert agent.local_connections <= 20  # streams are kept and used again
        assert agent.violations == []


@pytest.mark.parametrize("pump", ["epoll", "portable"])
async def test_both_pumps_serve_a_stock_agent(tmp_path: Path, pump: str) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path, pump=pump) as whole,
        whole.serving(service.port) as agent,
    ):
        assert (await whole.get("demo", "/size/300000")).body == pattern(300_000)
        reply = await whole.get("demo", "/", method="POST", body=pattern(300_000))
        assert reply.body.startswith(b"POST / 300000 ")
        await agent.drop_data()
        assert (await whole.get("demo")).status == 200
        assert agent.violations == []


async def test_ctrl_c_ends_the_session_and_frees_its_names_at_once(tmp_path: Path) -> None:
    async with whole_server(tmp_path, limits=PORTS) as whole:
        async with whole.leaves_nothing(), whole.serving(1) as agent:
            await agent.close()
            await whole.until(lambda: whole.tunnel("demo") is None)
        assert (await whole.get("demo")).status == 404
