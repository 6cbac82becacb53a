"""The recorded agents' control messages, exactly as they were sent, said to a running server: its answers have the
types and fields of the recorded server's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.golden import Line, control_messages
from tests.support.stock_agent import BINARY, ControlEnded
from tests.support.whole_server import WholeServer, whole_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.stock_agent import WebSocket

ANSWERS = {"auth_ok", "auth_error", "tunnel_registered", "tunnel_error", "pong"}
SAID = {"auth", "register_tunnel", "unregister_tunnel", "ping"}
# Recordings of one stock agent that is served; in the others the recorder takes part, or two agents do.
NAMES = ["01-http-idle", "02-no-subdomain", "03-tcp", "04-several-tunnels", "04b-https-protocol"]
NAMES += ["05-upload-download", "06a-wrong-token", "07-local-refused", "08-visitor-leaves", "09a-data-socket-cut"]
NAMES += ["10-control-socket-cut", "12-concurrent"]


def conversations(name: str) -> list[list[Line]]:
    """The control messages of each connection, without what visitors cause and the server's own pings."""
    found: dict[int, list[Line]] = {}
    for line in control_messages(name):
        kind = json.loads(line.json or "{}").get("type")
        if kind in (SAID if line.sender == "agent" else ANSWERS):
            found.setdefault(line.conn, []).append(line)
    return list(found.values())


def said(line: Line, token: str) -> bytes:
    """The recorded bytes, but for the token of this server."""
    text = line.json or ""
    return text.replace('"token":"test-token"', f'"token":{json.dumps(token)}').encode()


async def speak(whole: WholeServer, control: WebSocket, lines: list[Line]) -> None:
    for line in lines:
        if line.sender == "agent":
            await control.send(BINARY, said(line, whole.server.admin_token))
            continue
        recorded = json.loads(line.json or "{}")
        with trio.fail_after(10):
            op, payload = await control.receive()
        answer = json.loads(payload)
        assert op == BINARY
        assert answer["type"] == recorded["type"]
        assert answer.keys() == recorded.keys()
        for key, value in recorded.items():
            assert type(answer[key]) is type(value), key
        if answer["type"] == "tunnel_registered":
            assert answer["request_id"] == recorded["request_id"]
            assert answer["public_url"].partition("://")[0] == recorded["public_url"].partition("://")[0]
        elif answer["type"] == "pong":
            assert answer == recorded


@pytest.mark.parametrize("name", NAMES)
async def test_the_recorded_agent_is_answered_as_it_was(tmp_path: Path, name: str) -> None:
    ports: dict[str, object] = {"tcp_port_range": (31000, 31999)}
    async with whole_server(tmp_path, limits=ports) as whole, whole.serving(1, "bystander") as bystander:
        spoken = conversations(name)
        assert spoken
        for lines in spoken:
            control = await whole.dial("/_control")
            try:
                await speak(whole, control, lines)
            finally:
                await control.drop()
            await whole.until(lambda: len(whole.sessions) == 1)
        assert not bystander.ended.is_set()
        assert not isinstance(bystander.failure, ControlEnded)
