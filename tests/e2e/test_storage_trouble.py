"""A disk that stops taking anything, under a whole server: what that costs, and whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from tests.support.curl import Curl, open_curl
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.read_only import turned_read_only
from tests.support.running_server import running_server
from tests.support.services import HttpClient, http_service

if TYPE_CHECKING:
    from pathlib import Path

WAIT_SECONDS = 20.0  # a hang shows as a failure


async def until_lossy(ask: Curl, value: int) -> None:
    with trio.fail_after(WAIT_SECONDS):
        while True:
            if b"rustunnel_captures_lossy %d.0\n" % value in (await ask("/metrics")).body:
                return
            await trio.sleep(0.05)


async def test_D02_turned_read_only_while_running_stops_no_tunnel_and_recovers_by_itself(tmp_path: Path) -> None:
    databases = tmp_path / "main.db", tmp_path / "captured.db"
    async with (
        running_server(tmp_path) as server,
        http_service() as service,
        open_curl(server) as ask,
        await server.connect() as stream,
        our_agent(agent_config(server, http(service.port, "app"))),
    ):
        visitor = HttpClient(stream)
        made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "before"}')
        with turned_read_only(*databases):
            for number in range(5):
                assert (await visitor.request(server.host("app"), f"/ill/{number}")).status == 200
            # an agent that comes now gets its tunnel
            async with our_agent(agent_config(server, http(service.port, "late"), machine="m2")):
                assert (await visitor.request(server.host("late"), "/")).status == 200
            said = "the server cannot store anything just now; try again later"
            await ask.error("/api/tokens", 503, said, method="POST", json_body='{"label": "ill"}')
            await ask.error(f"/api/tokens/{made['id']}", 503, said, method="DELETE")
            assert [token["label"] for token in await ask.value("/api/tokens")] == ["before"]
            labels = {tunnel["label"]: tunnel["tunnel_id"] for tunnel in await ask.value("/api/tunnels")}
            requests = await ask.value(f"/api/tunnels/{labels['app.localhost']}/requests")
            assert [request["path"] for request in requests] == [f"/ill/{number}" for number in (4, 3, 2, 1, 0)]
            one = f"/api/tunnels/{labels['app.localhost']}/requests/{requests[0]['id']}"
            await ask.error(one + "/pin", 503, said, method="PUT")
            await until_lossy(ask, 1)  # the writer has met it
        await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "after"}')
        await until_lossy(ask, 0)
        await ask.nothing(one + "/pin", method="PUT")
        history = await ask.value("/api/history")
        assert sorted(entry["label"] for entry in history["entries"]) == ["app.localhost", "late.localhost"]
        assert all(entry["unregistered_at"] for entry in history["entries"] if entry["label"] == "late.localhost")
    async with running_server(tmp_path) as server, open_curl(server) as ask:
        assert [token["label"] for token in await ask.value("/api/tokens")] == ["before", "after"]
        requests = await ask.value(f"/api/tunnels/{labels['app.localhost']}/requests")
        assert [request["path"] for request in requests] == [f"/ill/{number}" for number in (4, 3, 2, 1, 0)]
