"""Who keeps which name: two agents with one token, restarts, take-over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.client.failure import NAME_REFUSED
from rustunnel_py.client.news import Ended, Ready, TunnelRefused, TunnelUp
from tests.support.our_agent import OurAgent, agent_config, http, our_agent
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, http_service

if TYPE_CHECKING:
    from pathlib import Path


async def status_at(server: RunningServer, url: str) -> int:
    host = url.removeprefix("http://").partition(":")[0]
    async with await server.connect() as stream:
        return (await HttpClient(stream).request(host)).status


@pytest.mark.parametrize("machines", [("m1", "m1"), ("m1", "m2")])
async def test_two_agents_without_a_wish_keep_two_urls_over_a_restart(
    tmp_path: Path, machines: tuple[str, str]
) -> None:
    async with http_service() as service, trio.open_nursery() as nursery:
        agents: list[OurAgent] = []
        hold_open = trio.Event()

        async def run_agent(server: RunningServer, machine: str) -> None:
            async with our_agent(agent_config(server, http(service.port), machine=machine)) as agent:
                agents.append(agent)
                await hold_open.wait()

        async with running_server(tmp_path) as server:
            ports = server.fixed_ports()
            for machine in machines:
                nursery.start_soon(run_agent, server, machine)
            with trio.fail_after(30):
                while len(agents) < 2:
                    await trio.lowlevel.checkpoint()
            before = [agent.urls for agent in agents]
            assert before[0] != before[1]
            assert [await status_at(server, url) for urls in before for url in urls] == [200, 200]
        async with running_server(tmp_path, server=ports) as server:
            for agent in agents:
                await agent.screen.wait_for(Ready, 2)
            assert [agent.urls for agent in agents] == before
            assert [await status_at(server, url) for urls in before for url in urls] == [200, 200]
            hold_open.set()
            with trio.fail_after(30):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()


async def test_a_second_agent_with_the_same_wish_is_told_and_neither_flaps(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))) as holder,
    ):
        async with our_agent(agent_config(server, http(service.port, "app"), machine="m2"), ready=False) as second:
            refused = await second.screen.wait_for(Ended)
            assert refused.code == NAME_REFUSED
            assert "in use from 127.0.0.1" in refused.why
        assert len(holder.screen.of(Ready)) == 1
        assert await status_at(server, holder.urls[0]) == 200


async def test_take_over_takes_the_name_and_neither_flaps(tmp_path: Path) -> None:
    async with (
        http_service() as old_service,
        http_service() as new_service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(old_service.port, "app"))) as old,
        our_agent(agent_config(server, http(new_service.port, "app", take_over=True), machine="m2")) as new,
    ):
        await old.screen.wait_until(lambda: bool(old.screen.of(TunnelRefused) or old.screen.of(Ended)))
        assert await status_at(server, new.urls[0]) == 200
        assert (len(old_service.seen), len(new_service.seen)) == (0, 1)
        assert len(new.screen.of(Ready)) == 1
        assert len(new.screen.of(TunnelUp)) == 1


async def test_an_agent_that_was_killed_gets_its_name_and_its_id_back(tmp_path: Path) -> None:
    async with http_service() as service, running_server(tmp_path, tunnels={"wait_seconds": 0.1}) as server:
        async with our_agent(agent_config(server, http(service.port, "app"))) as first:
            first_id = first.screen.of(TunnelUp)[0].tunnel_id
            first.kill()
            await first.screen.wait_for(Ended)
        assert await status_at(server, first.urls[0]) == 503
        async with our_agent(agent_config(server, http(service.port, "app"))) as again:
            assert again.screen.of(TunnelUp)[0].tunnel_id == first_id
            assert await status_at(server, again.urls[0]) == 200
