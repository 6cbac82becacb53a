"""The shell against a played stock agent on real sockets (plain, TLS is the front's business): wire spec 1 to 4."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import Closed, Hop, Reset
from tests.support.agents_house import AgentsHouse, agents_house
from tests.support.services import http_service, tcp_service
from tests.support.stock_agent import ControlEnded, SessionFailed, StockAgent, stock_agent

if TYPE_CHECKING:
    from tests.support.agents_house import WaitingTurn


def failure(turn: WaitingTurn) -> tuple[Hop, int, str]:
    assert turn.error is not None
    return turn.error.hop, turn.error.status, turn.error.code


async def ok(house: AgentsHouse, label: str) -> None:
    turn = await house.request(label).over()
    assert turn.events[-1] == "end", turn.error
    assert turn.reply is not None
    assert turn.reply.status == 200


async def test_a_session_registers_and_serves_http() -> None:
    async with agents_house() as house, http_service() as service, stock_agent(house.port, "ann") as agent:
        assert agent.server_version == "0.7.0"
        tunnel = await agent.register("http", service.port, subdomain="Demo")
        assert (tunnel.public_url, tunnel.assigned_port) == ("http://demo.test", None)
        await agent.serve()
        for _ in range(3):
            await ok(house, "demo")
        assert service.connections == 1  # one kept stream
        assert agent.violations == []
        assert [frame["type"] for frame in agent.heard] == ["auth_ok", "tunnel_registered", "new_connection"]
        assert set(agent.heard[0]) == {"type", "session_id", "server_version"}
        assert set(agent.heard[1]) == {"type", "request_id", "tunnel_id", "public_url", "assigned_port"}
        assert agent.heard[2]["client_addr"] == "192.0.2.1:4444"
        assert agent.heard[2]["protocol"] == "http"


async def test_a_visitor_between_registration_and_data_socket_waits() -> None:
    async with agents_house() as house, http_service() as service, stock_agent(house.port, "ann") as agent:
        await agent.register("http", service.port, subdomain="demo")
        turn = house.request("demo")
        await trio.testing.wait_all_tasks_blocked()
        # Nothing may come before the next registration's answer.
        await agent.register("http", service.port, subdomain="other")
        assert not turn.done.is_set()
        await agent.serve()
        await turn.over()
        assert turn.events[-1] == "end"
        assert agent.violations == []


async def test_the_data_socket_drops_and_comes_back_while_tunnels_stay() -> None:
    async with agents_house() as house, tcp_service(trio.sleep_forever_with) as port:  # type: ignore[attr-defined]
        pass
