"""The rs-tunnel CLI, played: the same calls in the same order, with the headers of its HTTP client in their order.

async with played_cli(server) as cli:
    await cli.login(approve=...)
    up = await cli.up(port)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import h11
import trio

from tests.support.rs_tunnel_contract import (
    check_created,
    check_error,
    check_heartbeat,
    check_list,
    check_ok,
    check_pair,
    check_started,
    check_status,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

ANSWER_SECONDS = 20.0  # a hang shows as a failure

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ApiReply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json; charset=utf-8"
        return json.loads(self.body)


@dataclass(slots=True)
class ApiClient:
    """Sends request heads as they are given, over connections that it keeps as long as the server does."""

    host: str
    port: int
    _stream: trio.SocketStream | None = None
    opened: int = 0

    async def send(self, method: str, path: str, headers: Sequence[Header], body: bytes = b"") -> ApiReply:
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        with trio.fail_after(ANSWER_SECONDS):
            for fresh in (False, True):
                if self._stream is None:
                    self._stream = await trio.open_tcp_stream(self.host, self.port)
                    self.opened += 1
                    fresh = True
                try:
                    await self._stream.send_all("\r\n".join(lines).encode() + body)
                    return await self._read(self._stream, method)
                except (trio.BrokenResourceError, EOFError):
                    await self.close()
                    if fresh:
                        raise
        raise AssertionError("not reached")

    async def _read(self, stream: trio.SocketStream, method: str) -> ApiReply:
        machine = h11.Connection(h11.CLIENT)
        machine.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        machine.send(h11.EndOfMessage())
        head: h11.Response | None = None
        body = b""
        while True:
            event = machine.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some(65536)
                if not data and head is None:
                    raise EOFError
                machine.receive_data(data)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
        assert head is not None
        reply = ApiReply(head.status_code, {k.decode(): v.decode() for k, v in head.headers}, bytes(body))
        if reply.headers.get("connection") == "close":
            await self.close()
        return reply

    async def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()


@dataclass
class Up:
    """A tunnel as the CLI holds it while `up` runs."""

    id: str
    hostname: str
    cloudflared_token: str
    run_token: str
    interval: int


@dataclass
class PlayedCli:
    """`headers` are those that it puts on every call (recorded)."""

    api: ApiClient
    access: str = ""
    refresh_token: str = ""
    profile: dict[str, str] = field(default_factory=dict)

    def headers(self, token: str | None, body: bytes | None, *, post: bool) -> list[Header]:
        return [
            ("host", f"127.0.0.1:{self.api.port}"),
            ("connection", "keep-alive"),
            *([("Authorization", f"Bearer {token}")] if token else []),
            *([("Content-Type", "application/json")] if body is not None else []),
            ("accept", "*/*"),
            ("accept-language", "*"),
            ("sec-fetch-mode", "cors"),
            ("user-agent", "node"),
            ("accept-encoding", "gzip, deflate"),
            *([("content-length", str(len(body or b"")))] if post else []),
        ]

    async def call(self, method: str, path: str, token: str | None = None, body: object = None) -> ApiReply:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        return await self.api.send(
            method, path, self.headers(token, data, post=method == "POST"), b"" if data is None else data
        )

    async def user_call(self, method: str, path: str, body: object = None) -> ApiReply:
        """With the one retry after a 401 that gets a new pair."""
        reply = await self.call(method, path, self.access, body)
        if reply.status == 401:
            check_error(reply.json)
            renewed = await self.call("POST", "/v1/auth/refresh", None, {"refreshToken": self.refresh_token})
            if renewed.status == 200:
                self._keep(renewed.json)
                return await self.call(method, path, self.access, body)
        return reply

    def _keep(self, pair: Any) -> None:
        check_pair(pair)
        self.access, self.refresh_token, self.profile = pair["accessToken"], pair["refreshToken"], pair["profile"]

    async def login(self, email: str, approve: Callable[[str], Any]) -> None:
        """`approve(url)` is what the person does; the status is asked before and after it."""
        verifier = secrets.token_urlsafe(64)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        reply = await self.call("POST", "/v1/auth/slack/start", None, {"email": email, "codeChallenge": challenge})
        assert reply.status == 200, reply
        check_started(reply.json)
        state = reply.json["state"]
        assert (await self._status(state)) == {"status": "pending"}
        await approve(reply.json["authorizeUrl"])
        answer = await self._status(state)
        assert answer["status"] == "authorized"
        body = {"loginCode": answer["loginCode"], "codeVerifier": verifier}
        pair = await self.call("POST", "/v1/auth/exchange", None, body)
        assert pair.status == 200, pair
        self._keep(pair.json)

    async def _status(self, state: str) -> Any:
        reply = await self.call("POST", "/v1/auth/slack/status", None, {"state": state})
        assert reply.status == 200, reply
        check_status(reply.json)
        return reply.json

    async def up(self, port: int, slug: str | None = None) -> Up:
        body: dict[str, object] = {"port": port} | ({} if slug is None else {"requestedSlug": slug})
        reply = await self.user_call("POST", "/v1/tunnels", body)
        assert reply.status == 200, reply
        check_created(reply.json)
        made = reply.json
        return Up(
            made["tunnelId"],
            made["hostname"],
            made["cloudflaredToken"],
            made["tunnelRunToken"],
            made["heartbeatIntervalSec"],
        )

    async def heartbeat(self, up: Up) -> ApiReply:
        reply = await self.call("POST", f"/v1/tunnels/{up.id}/heartbeat", up.run_token)
        (check_heartbeat if reply.status == 200 else check_error)(reply.json)
        return reply

    async def ingest(self, up: Up, body: object) -> ApiReply:
        reply = await self.call("POST", f"/v1/tunnels/{up.id}/telemetry", up.run_token, body)
        (check_ok if reply.status == 200 else check_error)(reply.json)
        return reply

    async def stop(self, id_or_host: str) -> ApiReply:
        reply = await self.user_call("DELETE", f"/v1/tunnels/{quote(id_or_host, safe='')}")
        (check_ok if reply.status == 200 else check_error)(reply.json)
        return reply

    async def list(self) -> Any:
        reply = await self.user_call("GET", "/v1/tunnels")
        assert reply.status == 200, reply
        check_list(reply.json)
        return reply.json

    async def logout(self) -> None:
        reply = await self.call("POST", "/v1/auth/logout", self.access, {"refreshToken": self.refresh_token})
        assert reply.status == 200, reply
        check_ok(reply.json)

    async def doctor(self) -> bool:
        reply = await self.call("GET", "/healthz")
        return 200 <= reply.status < 300

    async def approve(self, url: str, token: str) -> None:
        """What a browser does with the page at `url`."""
        parts = urlsplit(url)
        host = ("Host", parts.netloc)
        page = await self.api.send("GET", f"{parts.path}?{parts.query}", [host])
        assert page.status == 200, page
        fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.body.decode()))
        form = urlencode(
            {name: unescape(value) for name, value in fields.items()} | {"token": token, "answer": "approve"}
        )
        answer = await self.api.send(
            "POST",
            "/v1/auth/approve",
            [
                host,
                ("Origin", f"http://{parts.netloc}"),
                ("Sec-Fetch-Site", "same-origin"),
                ("Cookie", page.headers["set-cookie"].partition(";")[0]),
                ("Content-Type", "application/x-www-form-urlencoded"),
                ("Content-Length", str(len(form))),
            ],
            form.encode(),
        )
        assert answer.status == 200, answer


@asynccontextmanager
async def played_cli(url: str) -> AsyncIterator[PlayedCli]:
    """A CLI whose base URL is `url`, not logged in."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    cli = PlayedCli(ApiClient(parts.hostname, parts.port))
    try:
        yield cli
    finally:
        with trio.CancelScope(shield=True):
            await cli.api.close()
