"""Looking at what passed and sending it again: whole servers, real sockets, our agent and the played stock one."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio_websocket import open_websocket_url

from tests.support.curl import Curl, open_curl
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, HttpService, http_service
from tests.support.stock_agent import stock_agent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

AGENTS = pytest.mark.parametrize("kind", ["own", "stock"])


@asynccontextmanager
async def served(server: RunningServer, service: HttpService, kind: str) -> AsyncIterator[None]:
    """A tunnel `app`, of our agent or of the stock one."""
    if kind == "own":
        async with our_agent(agent_config(server, http(service.port, "app"))):
            yield
        return
    async with stock_agent(server.ready.control_port, server.admin_token, tls=server.client_context()) as agent:
        await agent.register("http", service.port, subdomain="app")
        await agent.serve()
        yield


async def visit(server: RunningServer, target: str, **more: Any) -> None:
    async with await server.connect() as stream:
        await HttpClient(stream).request(server.host("app"), target, **more)


async def only_tunnel(ask: Curl) -> str:
    (tunnel,) = await ask.value("/api/tunnels")
    return str(tunnel["tunnel_id"])


@AGENTS
async def test_a_replay_with_an_edited_body_reaches_the_local_service(tmp_path: Path, kind: str) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        served(server, service, kind),
        open_curl(server) as ask,
    ):
        secret = ("Authorization", "Bearer of-the-visitor")
        await visit(server, "/orders?x=1", method="POST", headers=(secret, ("X-Tag", "1")), body=b"old body")
        tunnel = await only_tunnel(ask)
        (old,) = await ask.value(f"/api/tunnels/{tunnel}/requests")
        wish = {
            "send": True,
            "edit": {"path": "/orders?x=2", "headers": {"X-Tag": None}, "body": "a new one"},
            "times": 2,
        }
        answer = await ask.value(f"/api/tunnels/{tunnel}/replay/{old['id']}", method="POST", json_body=json.dumps(wish))
        assert len(service.seen) == 3
        for seen in service.seen[1:]:
            assert (seen.method, seen.target, seen.body) == ("POST", "/orders?x=2", b"a new one")
            assert seen.header("authorization") == secret[1]  # memory has what the visitor sent
            assert seen.header("x-tag") is None
            assert seen.header("content-length") == "9"
        for replay in answer["replays"]:
            new, difference = replay["request"], replay["difference"]
            assert new["replay_of"] == old["id"]
            assert (new["status"], new["request_body"]) == (200, "a new one")
            assert difference["path"] == ["/orders?x=1", "/orders?x=2"]
            assert difference["request_body"]["first_difference"] == 0
            assert (difference["method"], difference["status"]) == (None, None)
            assert ["Authorization", "Bearer [redacted]"] in new["request"]["headers"]
        listed = await ask.value(f"/api/tunnels/{tunnel}/requests")
        made = [replay["request"]["id"] for replay in answer["replays"]]
        assert [one["id"] for one in listed] == [*made[::-1], old["id"]]


@AGENTS
async def test_what_a_har_file_brought_can_be_replayed(tmp_path: Path, kind: str) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        served(server, service, kind),
        open_curl(server) as ask,
    ):
        await visit(server, "/a?b=%20c", method="PUT", headers=(("Content-Type", "text/x"),), body="grüße".encode())
        tunnel = await only_tunnel(ask)
        har = (await ask(f"/api/tunnels/{tunnel}/requests/export")).body.decode()
        made = await ask.value(f"/api/tunnels/{tunnel}/requests/import", 201, method="POST", json_body=har)
        path = f"/api/tunnels/{tunnel}/replay/{made['ids'][0]}"
        (replay,) = (await ask.value(path, method="POST", json_body='{"send": true}'))["replays"]
        assert replay["request"]["replay_of"] == made["ids"][0]
        first, second = service.seen
        assert (second.method, second.target, second.body) == (first.method, first.target, first.body)
        assert second.header("content-type") == "text/x"


async def test_after_a_restart_what_was_redacted_is_asked_for_by_name(tmp_path: Path) -> None:
    async with http_service() as service:
        async with running_server(tmp_path) as server:
            fixed = server.fixed_ports()
            async with our_agent(agent_config(server, http(service.port))), open_curl(server) as ask:
                (before,) = await ask.value("/api/tunnels")
                async with await server.connect() as stream:
                    headers = (("Cookie", "session=hush"), ("X-Plain", "1"))
                    await HttpClient(stream).request(before["label"], "/", headers=headers)
        async with (
            running_server(tmp_path, server=fixed) as server,
            our_agent(agent_config(server, http(service.port))),
            open_curl(server) as ask,
        ):
            tunnel = await only_tunnel(ask)
            assert tunnel == before["tunnel_id"]  # a remembered name keeps its id, with its captures
            (old,) = await ask.value(f"/api/tunnels/{tunnel}/requests")
            path = f"/api/tunnels/{tunnel}/replay/{old['id']}"
            refused = await ask.value(path, 400, method="POST", json_body='{"send": true}')
            assert "cookie" in refused["error"].lower()
            wish = '{"send": true, "edit": {"headers": {"Cookie": "session=again"}}}'
            (replay,) = (await ask.value(path, method="POST", json_body=wish))["replays"]
            assert replay["request"]["status"] == 200
            assert service.seen[-1].header("cookie") == "session=again"
            assert service.seen[-1].header("x-plain") == "1"


async def test_a_live_view_over_the_wire(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        running_server(tmp_path) as server,
        served(server, service, "own"),
        open_curl(server) as ask,
    ):
        tunnel = await only_tunnel(ask)
        url = f"{server.ready.dashboard_url.replace('http', 'ws')}/api/tunnels/{tunnel}/requests/live"
        async with await trio.open_tcp_stream("127.0.0.1", int(url.split(":")[2].partition("/")[0])) as stream:
            await stream.send_all(
                f"GET /api/tunnels/{tunnel}/requests/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 401 ")
        made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "x", "role": "admin"}')
        headers = [(b"Authorization", f"Bearer {made['token']}".encode())]
        with trio.fail_after(20):
            async with open_websocket_url(url, extra_headers=headers) as socket:
                await visit(server, "/seen?by=websocket")
                message = json.loads(await socket.get_message())
                assert (message["event"], message["data"]["path"]) == ("request", "/seen?by=websocket")
                await ask.nothing(f"/api/tokens/{made['id']}", method="DELETE")
                with trio.fail_after(1):
                    assert json.loads(await socket.get_message())["event"] == "end"


async def test_expiry_ends_sessions_and_live_views_within_a_second(tmp_path: Path) -> None:
    async with http_service() as service, running_server(tmp_path) as server, open_curl(server) as ask:
        expires = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
        wish = json.dumps({"label": "short", "expires_at": expires})
        made = await ask.value("/api/tokens", 201, method="POST", json_body=wish)
        async with our_agent(agent_config(server, http(service.port, "app"), token=made["token"])) as agent:
            tunnel = await only_tunnel(ask)
            host, _, port = server.ready.dashboard_url.removeprefix("http://").partition(":")
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(
                    f"GET /api/tunnels/{tunnel}/requests/live HTTP/1.1\r\nHost: localhost\r\n"
                    f"Authorization: Bearer {made['token']}\r\n\r\n".encode()
                )
                heard = b""
                with trio.fail_after(4):
                    while b"event: end" not in heard:
                        heard += await stream.receive_some(65536)
                    while (await ask.value("/api/status"))["active_sessions"]:
                        await trio.lowlevel.checkpoint()
            assert (await ask("/api/tunnels", token=made["token"])).status == 401
            agent.stopping.set()


async def test_access_and_audit_log_are_written_and_hold_no_secret(tmp_path: Path) -> None:
    logging: dict[str, object] = {
        "access_log_path": str(tmp_path / "access.log"),
        "audit_log_path": str(tmp_path / "audit.log"),
    }
    async with http_service() as service, running_server(tmp_path / "data", logging=logging) as server:
        async with served(server, service, "own"):
            await visit(server, '/a"b', headers=(("User-Agent", 'x" \\ y'), ("Referer", "http://r/")))
            async with await server.connect() as stream:
                await HttpClient(stream).request("nobody.localhost", "/wp-login.php")
                await stream.send_all(b"rubbish\r\n\r\n")
                await stream.receive_some(1000)
        token = server.admin_token
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("127.0.0.1 - - [")
    assert '] "GET /a\\x22b HTTP/1.1" 200 ' in lines[0]
    assert lines[0].endswith('"http://r/" "x\\x22 \\x5c y"')
    assert '"GET /wp-login.php HTTP/1.1" 404 - "-" "-"' in lines[1]
    assert '"-" 400 - "-" "-"' in lines[2]
    events = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [event["event"] for event in events] == ["login_accepted", "tunnel_registered"]
    assert all(event["at"].endswith("Z") and event["id"] for event in events)
    assert token not in (tmp_path / "audit.log").read_text()
