"""The agent against a server played from the wire spec, on real sockets."""

from __future__ import annotations

import trio

from rustunnel_py.client.config import HttpTunnel, TcpTunnel
from rustunnel_py.client.news import Connected, Ready, TunnelUp
from tests.support.agent_under_test import local_echo, running_agent, up
from tests.support.played_server import FIN, RST, played_server

ID = "0a0b0c0d-1111-4222-8333-00000000000{}"
URL = "http://abc.tunnel.test:8080"


async def test_http_tunnel_from_auth_to_the_echo_of_two_requests_on_one_stream() -> None:
    async with local_echo() as echo, played_server() as server:
        tunnel = HttpTunnel(echo.local, "abc", host_header="rewrite", proxy_protocol=1)
        async with running_agent(server, tunnel) as agent:
            control = await server.next_control()
            await control.welcome(features=["raw_data"], data_secret="s3cret", region="eu")
            assert control.auth["token"] == "sesame"
            assert "raw_data" in control.auth["features"]
            assert control.auth["machine"] == "ab" * 16
            assert len(control.auth["instance"]) == 32
            wish = await control.register("t1", URL)
            assert (wish["protocol"], wish["subdomain"], wish["local_addr"]) == ("http", "abc", echo.local.address)
            assert wish["host_header"] == echo.local.address
            assert wish["proxy_protocol"] == 1
            assert "take_over" not in wish
            data = await server.next_data(raw=True)
            assert data.upgrade.path == f"/_data/{control.session_id}"
            assert data.upgrade.headers["x-rustunnel-data-secret"] == "s3cret"
            await agent.screen.until(Ready)
            assert agent.screen.of(Connected) == [Connected(f"127.0.0.1:{server.port}", "eu", True)]
            assert agent.screen.of(TunnelUp) == [TunnelUp("t1", "http", URL, str(echo.local))]

            await control.announce(ID.format(1), "http", tunnel_id="t1")
            await data.open(1, ID.format(1), b"first")
            assert await data.read(1, 5) == b"first"
            await data.write(1, b"second")
            assert await data.read(1, 6) == b"second"
            assert echo.connections == 1


async def test_stream_before_its_announcement_loses_nothing() -> None:
    async with local_echo() as echo, played_server() as server, running_agent(server, TcpTunnel(echo.local)):
        control, data = await up(server, "tcp://tunnel.test:20005")
        await data.open(1, ID.format(1), b"early")
        await data.write(1, b" birds", FIN)
        await trio.testing.wait_all_tasks_blocked()
        assert echo.connections == 0
        await control.announce(ID.format(1), "tcp", tunnel_id="t1")
        assert await data.read(1, 15) == b"early birds|end"
        await data.flagged(1, FIN)
        assert not data.flags[1] & RST
