"""The page that the REST dialect was written from, played literally: each request in curl's shape, on real sockets.

Every field, type, status and error body of it is looked at; times are ISO 8601 in UTC with Z.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.curl import Curl, open_curl
from tests.support.our_agent import agent_config, http, our_agent, tcp
from tests.support.running_server import RunningServer, running_server
from tests.support.services import HttpClient, echo, http_service, tcp_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z"
PEER = r"127\.0\.0\.1:[0-9]{1,5}"
UNKNOWN = "a1b2c3d4-e5f6-7890-abcd-ef1234567890"

TUNNEL = {
    "tunnel_id": UUID,
    "protocol": "http|tcp",
    "label": r"app\.localhost|[0-9]+",
    "public_url": r"https?://app\.localhost:[0-9]+|tcp://localhost:[0-9]+",
    "connected_since": TIME,
    "request_count": int,
    "client_addr": PEER,
}
REQUEST = {
    "id": UUID,
    "tunnel_id": UUID,
    "conn_id": UUID,
    "method": "GET|POST",
    "path": r"/.*",
    "status": int,
    "request_bytes": int,
    "response_bytes": int,
    "duration_ms": int,
    "captured_at": TIME,
    "request_body": (str, None),
    "response_body": (str, None),
}
TOKEN = {
    "id": UUID,
    "token_hash": "[0-9a-f]{64}",
    "label": ".+",
    "created_at": TIME,
    "last_used_at": (TIME, None),
    "scope": (str, None),
    "tunnel_count": int,
}
ENTRY = {
    "id": UUID,
    "tunnel_id": UUID,
    "protocol": "http|tcp",
    "label": r"app\.localhost|[0-9]+",
    "session_id": UUID,
    "token_id": (UUID, None),
    "token_label": (str, None),
    "registered_at": TIME,
    "unregistered_at": (TIME, None),
}


def fits(value: Any, shape: dict[str, Any]) -> Any:
    """Exactly the page's fields, in its order, each of its type."""
    assert list(value) == list(shape)
    for name, wanted in shape.items():
        assert any(_fits(value[name], one) for one in (wanted if isinstance(wanted, tuple) else (wanted,))), name
    return value


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is None:
        return value is None
    if isinstance(wanted, str):
        return isinstance(value, str) and re.fullmatch(wanted, value) is not None
    return type(value) is wanted


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with running_server(tmp_path, limits={"tcp_port_range": (29100, 29140)}) as server:
        yield server


@pytest.fixture
async def ask(server: RunningServer) -> AsyncIterator[Curl]:
    async with open_curl(server) as curl:
        yield curl


async def test_authentication(ask: Curl) -> None:
    for target in ("/api/tunnels", "/api/tokens", "/api/history", f"/api/tunnels/{UNKNOWN}/requests"):
        await ask.error(target, 401, "missing token", token=None)
        await ask.error(target, 401, "invalid token", token="977ebf87-88f3-4af0-9ead-0426a3d00ecd")
    assert await ask.value("/api/status", token=None) == {"ok": True, "active_sessions": 0, "active_tunnels": 0}


async def test_tunnels(server: RunningServer, ask: Curl) -> None:
    async with (
        http_service() as service,
        tcp_service(echo) as port,
        our_agent(agent_config(server, http(service.port, "app"), tcp(port))),
    ):
        assert await ask.value("/api/status", token=None) == {"ok": True, "active_sessions": 1, "active_tunnels": 2}
        tunnels = [fits(tunnel, TUNNEL) for tunnel in await ask.value("/api/tunnels")]
        assert {tunnel["protocol"] for tunnel in tunnels} == {"http", "tcp"}
        for tunnel in tunnels:
            assert fits(await ask.value(f"/api/tunnels/{tunnel['tunnel_id']}"), TUNNEL) == tunnel
        await ask.error(f"/api/tunnels/{UNKNOWN}", 404, "tunnel not found")
        await ask.nothing(f"/api/tunnels/{tunnels[0]['tunnel_id']}", method="DELETE")
        await ask.error(f"/api/tunnels/{tunnels[0]['tunnel_id']}", 404, "tunnel not found")
        await ask.error(f"/api/tunnels/{tunnels[0]['tunnel_id']}", 404, "invalid tunnel id", method="DELETE")
        await ask.error("/api/tunnels/not-a-uuid", 404, "invalid tunnel id", method="DELETE")


async def test_captured_requests_and_replay(server: RunningServer, ask: Curl) -> None:
    async with http_service() as service:
        async with our_agent(agent_config(server, http(service.port, "app"))), await server.connect() as stream:
            visitor = HttpClient(stream)
            await visitor.request(server.host("app"), "/api/users?page=1")
            await visitor.request(server.host("app"), "/post", method="POST", body=b'{"a": 1}')
            (tunnel,) = await ask.value("/api/tunnels")
            assert tunnel["request_count"] == 2
            await check_requests(ask, tunnel["tunnel_id"])
        with trio.fail_after(10):  # the last of them is stored soon after the tunnel's end
            await check_requests(ask, tunnel["tunnel_id"])
    await ask.error(f"/api/tunnels/{UNKNOWN}/requests", 404, "tunnel not found")


async def test_a_tunnel_that_ended_without_a_request_has_none(server: RunningServer, ask: Curl) -> None:
    made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci"}')
    other = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "other"}')
    async with tcp_service(echo) as port, our_agent(agent_config(server, tcp(port), token=made["token"])):
        (tunnel,) = await ask.value("/api/tunnels")
    target = f"/api/tunnels/{tunnel['tunnel_id']}/requests"
    assert await ask.value(target) == []
    assert await ask.value(target, token=made["token"]) == []
    await ask.error(target, 404, "tunnel not found", token=other["token"])
    await ask.error(f"/api/tunnels/{tunnel['tunnel_id']}", 404, "tunnel not found")


async def check_requests(ask: Curl, tunnel_id: str) -> None:
    path = f"/api/tunnels/{tunnel_id}/requests"
    newest, oldest = [fits(request, REQUEST) for request in await ask.value(path)]
    assert (newest["method"], newest["path"], newest["status"]) == ("POST", "/post", 200)
    assert (newest["request_bytes"], newest["request_body"]) == (8, '{"a": 1}')
    assert (oldest["method"], oldest["path"]) == ("GET", "/api/users?page=1")
    assert (oldest["request_bytes"], oldest["request_body"]) == (0, None)
    assert newest["tunnel_id"] == oldest["tunnel_id"] == tunnel_id
    assert newest["conn_id"] == oldest["conn_id"]  # one connection brought both
    assert [request["id"] for request in await ask.value(f"{path}?limit=1")] == [newest["id"]]
    assert [request["id"] for request in await ask.value(f"{path}?limit=20")] == [newest["id"], oldest["id"]]
    replay = f"/api/tunnels/{tunnel_id}/replay"
    assert fits(await ask.value(f"{replay}/{newest['id']}", method="POST"), REQUEST) == newest
    await ask.error(f"{replay}/{UNKNOWN}", 404, "request not found", method="POST")


async def test_a_request_of_another_tunnel(server: RunningServer, ask: Curl) -> None:
    async with (
        http_service() as service,
        our_agent(agent_config(server, http(service.port, "app"), http(service.port, "other"))),
        await server.connect() as stream,
    ):
        await HttpClient(stream).request(server.host("app"), "/")
        ids = {tunnel["label"]: tunnel["tunnel_id"] for tunnel in await ask.value("/api/tunnels")}
        (request,) = await ask.value(f"/api/tunnels/{ids['app.localhost']}/requests")
        target = f"/api/tunnels/{ids['other.localhost']}/replay/{request['id']}"
        await ask.error(target, 404, "request does not belong to this tunnel", method="POST")


async def test_tokens(ask: Curl) -> None:
    assert await ask.value("/api/tokens") == []
    made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci-deploy"}')
    fits(made, {"id": UUID, "label": "ci-deploy", "token": UUID})
    scoped = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci-2", "scope": "app-*,x"}')
    null = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci-3", "scope": null}')
    first, second, third = [fits(token, TOKEN) for token in await ask.value("/api/tokens")]
    assert first["token_hash"] == hashlib.sha256(made["token"].encode()).hexdigest()
    assert (first["label"], first["last_used_at"], first["scope"], first["tunnel_count"]) == (
        "ci-deploy",
        None,
        None,
        0,
    )
    assert (second["id"], second["scope"], third["scope"]) == (scoped["id"], "app-*,x", None)
    assert await ask.value("/api/tunnels", token=made["token"]) == []
    used = next(token for token in await ask.value("/api/tokens") if token["id"] == made["id"])
    assert re.fullmatch(TIME, used["last_used_at"])
    for kind in (made, scoped, null):
        await ask.nothing(f"/api/tokens/{kind['id']}", method="DELETE")
    await ask.error(f"/api/tokens/{made['id']}", 404, "token not found", method="DELETE")
    await ask.error("/api/tunnels", 401, "invalid token", token=made["token"])


async def test_a_deleted_token_disconnects_its_client(server: RunningServer, ask: Curl) -> None:
    made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci"}')
    async with (
        http_service() as service,
        our_agent(agent_config(server, http(service.port, "app"), token=made["token"])),
    ):
        (token,) = await ask.value("/api/tokens")
        assert token["tunnel_count"] == 1
        await ask.nothing(f"/api/tokens/{made['id']}", method="DELETE")
        assert await ask.value("/api/tunnels") == []
        with trio.fail_after(1):
            while (await ask.value("/api/status"))["active_sessions"]:
                await trio.lowlevel.checkpoint()


async def test_history(server: RunningServer, ask: Curl) -> None:
    made = await ask.value("/api/tokens", 201, method="POST", json_body='{"label": "ci-deploy"}')
    async with http_service() as service, tcp_service(echo) as port:
        async with our_agent(agent_config(server, http(service.port, "app"), tcp(port), token=made["token"])):
            open_ones = await ask.value("/api/history")
            assert [entry["unregistered_at"] for entry in open_ones["entries"]] == [None, None]
            public = {entry["session_id"] for entry in open_ones["entries"]}
        async with our_agent(agent_config(server, http(service.port, "app"), machine="m2")):
            pass
    page = await ask.value("/api/history")
    assert list(page) == ["total", "entries"]
    assert page["total"] == 3
    newest, *older = [fits(entry, ENTRY) for entry in page["entries"]]
    assert (newest["token_id"], newest["token_label"]) == (None, None)
    assert [(entry["token_id"], entry["token_label"]) for entry in older] == [(made["id"], "ci-deploy")] * 2
    assert {entry["session_id"] for entry in older} == public
    assert all(entry["unregistered_at"] for entry in page["entries"])
    web = await ask.value("/api/history?protocol=http&limit=1&offset=1")
    assert (web["total"], [entry["id"] for entry in web["entries"]]) == (
        2,
        [older[0]["id"]] if older[0]["protocol"] == "http" else [older[1]["id"]],
    )
    assert (await ask.value("/api/history?protocol=tcp"))["total"] == 1
    assert (await ask.value("/api/history?limit=25&offset=50"))["entries"] == []
