"""What comes back by itself: the agent after a cut, the tunnel after a restart of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from rustunnel_py.client.news import Disconnected, Ready
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import running_server
from tests.support.services import HttpClient, http_service

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_server_restarts_and_the_agent_is_back_under_the_same_url(tmp_path: Path) -> None:
    async with http_service() as service, trio.open_nursery() as nursery:
        end_agent = trio.Event()
        async with running_server(tmp_path) as server:
            ports = server.fixed_ports()
            config = agent_config(server, http(service.port, "app"))

            async def run(*, task_status: trio.TaskStatus[object]) -> None:
                async with our_agent(config) as agent:
                    task_status.started(agent)
                    await end_agent.wait()

            agent = await nursery.start(run)
        await agent.screen.wait_for(Disconnected)
        async with running_server(tmp_path, server=ports) as server:
            await agent.screen.wait_for(Ready, 2)
            async with await server.connect() as stream:
                assert (await HttpClient(stream).request(server.host("app"))).status == 200
            end_agent.set()
            with trio.fail_after(30):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
        assert agent.exit_code == 0
