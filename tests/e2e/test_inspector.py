"""Captures and replays through a whole server and our own agent, on real sockets."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

import rustunnel_py.server
from rustunnel_py.hub.inspector import Inspector
from rustunnel_py.hub.replay import Edit
from rustunnel_py.model.access import Caller, Role
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import running_server
from tests.support.services import HttpClient, http_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

ADMIN = Caller("admin", Role.ADMIN)


@asynccontextmanager
async def caught(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[Inspector]]:
    """The inspectors of the servers that are started meanwhile: these tests ask what no route shows."""
    made: list[Inspector] = []

    def make(*arguments: object, **named: object) -> Inspector:
        made.append(Inspector(*arguments, **named))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(rustunnel_py.server, "Inspector", make)
    yield made


async def test_a_post_is_captured_and_sent_again_with_another_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        caught(monkeypatch) as inspectors,
        http_service() as service,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        visitor = HttpClient(stream)
        reply = await visitor.request(
            server.host("app"), "/login?a=1", method="POST", body=b"first", headers=(("Authorization", "Bearer x"),)
        )
        inspector = inspectors[0]
        (tunnel_id,) = inspector._rings.by_tunnel
        original = (await inspector.recent(ADMIN, tunnel_id))[0]
        assert (original.method, original.path, original.status) == ("POST", "/login?a=1", reply.status)
        assert original.request_body == b"first"
        assert original.response_bytes == len(reply.body)
        assert (b"Authorization", b"Bearer [redacted]") in original.request_headers
        with trio.fail_after(10):
            (result,) = await inspector.replay(ADMIN, tunnel_id, original.id, Edit(body=b"second, longer"))
        assert [seen.body for seen in service.seen] == [b"first", b"second, longer"]
        assert service.seen[1].header("authorization") == "Bearer x"
        assert service.seen[1].header("x-forwarded-for") == "127.0.0.1"
        assert (result.capture.origin, result.capture.status) == (original.id, 200)
        assert result.capture.agent_ms is not None


async def test_what_was_captured_is_there_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with caught(monkeypatch) as inspectors, http_service() as service:
        async with (
            running_server(tmp_path) as server,
            our_agent(agent_config(server, http(service.port, "app"))),
            await server.connect() as stream,
        ):
            await HttpClient(stream).request(server.host("app"), "/kept", headers=(("Cookie", "a=planted-secret"),))
            (tunnel_id,) = inspectors[0]._rings.by_tunnel
        async with running_server(tmp_path):
            assert [one.path for one in await inspectors[1].recent(ADMIN, tunnel_id)] == ["/kept"]
        for file in tmp_path.rglob("*.db*"):
            assert b"planted-secret" not in file.read_bytes()


async def test_the_inspector_can_be_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        caught(monkeypatch) as inspectors,
        http_service() as service,
        running_server(tmp_path, inspect={"enabled": False}) as server,
        our_agent(agent_config(server, http(service.port, "app"))),
        await server.connect() as stream,
    ):
        assert (await HttpClient(stream).request(server.host("app"), "/")).status == 200
        assert inspectors[0].status().in_memory == 0
