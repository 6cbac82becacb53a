"""The played stock agent against a whole server, over TLS: the wire spec's session from start to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, Reply, echo, http_service, pattern, tcp_service
from tests.support.stock_agent import SessionFailed, StockAgent, stock_agent

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path


def agent_of(server: RunningServer, token: str | None = None) -> AbstractAsyncContextManager[StockAgent]:
    return stock_agent(server.ready.control_port, token or server.admin_token, tls=server.client_context())


async def get(server: RunningServer, label: str, target: str = "/") -> Reply:
    stream = await server.connect()
    async with stream:
        return await HttpClient(stream).request(server.host(label), target)


async def test_a_whole_session_of_the_stock_agent(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        tcp_service(echo) as echoing,
        running_server(tmp_path, limits={"tcp_port_range": (30000, 30999)}) as server,
    ):
        async with agent_of(server) as agent:
            web = await agent.register("http", service.port, subdomain="demo")
            tcp = await agent.register("tcp", echoing)
            assert web.public_url == f"http://demo.localhost:{server.ready.http_port}"
            assert tcp.public_url == f"tcp://localhost:{tcp.assigned_port}"
            await agent.serve()
            for _ in range(3):
                assert (await get(server, "demo", "/hello")).status == 200
            assert service.connections == 1  # a kept stream
            assert (await get(server, "demo", "/size/1000000")).body == pattern(1_000_000)
            assert tcp.assigned_port is not None
            async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as visitor:
                await visitor.send_all(b"echo this")
                await visitor.send_eof()
                received = bytearray()
                async for part in visitor:
                    received += part
            assert received == b"echo this"

            await agent.drop_data()
            assert (await get(server, "demo", "/after")).status == 200
            assert agent.data_opened == 2

            await agent.ping(42)
            assert (await agent.wait_heard("pong"))["timestamp"] == 42
            await agent.unregister(tcp)
            await agent.ping(43)
            await agent.wait_heard("pong", 2)  # frames are taken in order: the port is closed by now
            with pytest.raises(OSError, match="connect"):
                await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port)
            assert (await get(server, "demo")).status == 200
            assert agent.violations == []
            await agent.drop_control()

        async with agent_of(server) as agent:
            again = await agent.register("http", service.port, subdomain="demo")
            assert again.id == web.id
            await agent.serve()
            assert (await get(server, "demo", "/again")).status == 200
            await agent.close()
        assert agent.violations == []


async def test_a_wrong_token_is_final_and_a_taken_name_is_not(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        with pytest.raises(SessionFailed, match="auth error") as wrong:
            async with agent_of(server, "no such token"):
                pass
        assert wrong.value.final
        async with agent_of(server) as first, agent_of(server) as second:
            await first.register("http", 1, subdomain="demo")
            with pytest.raises(SessionFailed, match="in use") as taken:
                await second.register("http", 1, subdomain="demo")
            assert not taken.value.final


async def test_the_stop_of_the_server_leaves_the_agent_a_way_back(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:

        async def stay(server: RunningServer, *, task_status: trio.TaskStatus[StockAgent]) -> None:
            async with agent_of(server) as agent:
                await agent.register("http", 1, subdomain="demo")
                await agent.serve()
                agent._reconnect_data = False
                task_status.started(agent)
                await trio.sleep_forever()

        async with running_server(tmp_path) as server:
            agent: StockAgent = await nursery.start(stay, server)
        with trio.fail_after(10):
            await agent.ended.wait()
        assert agent.failure is not None
        assert not agent.failure.final
        assert agent.violations == []  # no close frame, no go-away
        nursery.cancel_scope.cancel()
