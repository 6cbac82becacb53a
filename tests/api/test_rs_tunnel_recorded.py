"""What the real CLI sent, sent again to a whole server: every run in which all its calls succeeded.

The calls go out in order, each with its recorded header list; what varies (tokens, ids, names) is bound to this
server's own values, as the README of the recordings says. An answer must be what the recorded run shows the CLI to
take: a success of the strict shape of its route.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.support.golden import DATA
from tests.support.rs_tunnel_cli import ApiClient, PlayedCli
from tests.support.rs_tunnel_contract import (
    check_created,
    check_heartbeat,
    check_list,
    check_ok,
    check_pair,
    check_started,
    check_status,
)
from tests.support.running_server import running_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RECORDINGS = sorted(path.stem for path in (DATA / "rs-tunnel").glob("*.jsonl"))

SHAPES: list[tuple[str, Callable[[Any], None]]] = [
    (r"GET /healthz", check_ok),
    (r"POST /v1/auth/slack/start", check_started),
    (r"POST /v1/auth/slack/status", check_status),
    (r"POST /v1/auth/(exchange|refresh)", check_pair),
    (r"POST /v1/auth/logout", check_ok),
    (r"GET /v1/tunnels", check_list),
    (r"POST /v1/tunnels", check_created),
    (r"DELETE /v1/tunnels/[^/]+", check_ok),
    (r"POST /v1/tunnels/[^/]+/heartbeat", check_heartbeat),
    (r"POST /v1/tunnels/[^/]+/telemetry", check_ok),
]


class Message(msgspec.Struct, frozen=True):
    headers: list[tuple[str, str]] = []
    body: str = ""
    method: str = ""
    path: str = ""
    status: int = 0


class Call(msgspec.Struct, frozen=True):
    kind: str
    run: int = 1
    request: Message | None = None
    response: Message | None = None


def successful_runs(name: str) -> list[list[tuple[Message, Message]]]:
    """The calls of each run whose recorded answers were all successes."""
    runs: dict[int, list[Call]] = {}
    for line in (DATA / "rs-tunnel" / f"{name}.jsonl").read_bytes().splitlines():
        call = msgspec.json.decode(line, type=Call)
        if call.kind == "http":
            runs.setdefault(call.run, []).append(call)
    found = []
    for calls in runs.values():
        pairs = [(call.request, call.response) for call in calls if call.request and call.response]
        if len(pairs) == len(calls) and all(200 <= response.status < 300 for _, response in pairs):
            found.append(pairs)
    return found


class Replay:
    """Sends recorded calls; `bound` are recorded values and what stands for them here."""

    def __init__(self, cli: PlayedCli, admin_token: str, domain: str) -> None:
        self.cli = cli
        self.admin_token = admin_token
        self.domain = domain
        self.bound: dict[str, str] = {}
        self.authorize_url = ""

    async def send(self, request: Message, recorded: Message) -> None:
        await self._prepare(request, recorded)
        body = self._here(request.body).encode()
        headers = [
            (name, str(len(body)) if name == "content-length" else self._here(value)) for name, value in request.headers
        ]
        reply = await self.cli.api.send(request.method, self._here(request.path), headers, body)
        what = f"{request.method} {request.path}"
        assert reply.status == 200, (what, reply)
        check = next(check for pattern, check in SHAPES if re.fullmatch(pattern, what))
        check(reply.json)
        if recorded.body and reply.json:
            self._bind(_decoded(recorded.body), reply.json)
        if "authorizeUrl" in reply.json:
            self.authorize_url = reply.json["authorizeUrl"]

    def _here(self, text: str) -> str:
        for theirs in sorted(self.bound, key=len, reverse=True):
            text = text.replace(theirs, self.bound[theirs])
        return text

    def _bind(self, theirs: Any, ours: Any) -> None:
        """The values of equal keys."""
        if isinstance(theirs, dict) and isinstance(ours, dict):
            for key in theirs.keys() & ours.keys() - {"status", "email", "authorizeUrl"}:
                self._bind(theirs[key], ours[key])
        elif isinstance(theirs, str) and isinstance(ours, str) and len(theirs) > 8:
            self.bound[theirs] = ours

    async def _prepare(self, request: Message, recorded: Message) -> None:
        """What an unrecorded command did before: a login, a tunnel; and what the person did meanwhile."""
        text = f"{request.path} {request.headers} {request.body}"
        for number in sorted(set(re.findall(r"fake-(?:access|refresh)-token-(\d+)", text))):
            if f"fake-access-token-{number}" not in self.bound:
                await self.cli.login("dev@example.com", lambda url: self.cli.approve(url, self.admin_token))
                self.bound[f"fake-access-token-{number}"] = self.cli.access
                self.bound[f"fake-refresh-token-{number}"] = self.cli.refresh_token
        # A session that the recorder wrote by hand: any text that the server takes is a good access token.
        for name, value in request.headers:
            token = value.removeprefix("Bearer ")
            if name == "Authorization" and token not in self.bound:
                self.bound[token] = self.admin_token
        named = re.fullmatch(r"/v1/tunnels/([^/]+)", request.path)
        if named is not None and named[1] not in self.bound:
            self.cli.access = self.cli.access or self.admin_token
            up = await self.cli.up(3000)
            self.bound[named[1]] = up.hostname if "." in named[1] else up.id
        if '"authorized"' in recorded.body:
            await self.cli.approve(self.authorize_url, self.admin_token)


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None


@pytest.mark.parametrize("name", [name for name in RECORDINGS if successful_runs(name)])
async def test_the_calls_of_successful_runs(tmp_path: Path, name: str) -> None:
    for number, run in enumerate(successful_runs(name)):
        async with running_server(tmp_path / str(number)) as server:
            url = server.ready.dashboard_url
            cli = PlayedCli(ApiClient("127.0.0.1", int(url.rpartition(":")[2])))
            replay = Replay(cli, server.admin_token, server.ready.domain)
            for request, recorded in run:
                await replay.send(request, recorded)
            await cli.api.close()


def test_most_runs_are_replayed() -> None:
    runs = {name: len(successful_runs(name)) for name in RECORDINGS}
    assert sum(runs.values()) >= 60
    assert all(runs.values())
