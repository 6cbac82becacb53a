"""The API of a running server, asked as `curl` asks."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from tests.support.services import HttpClient, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.running_server import RunningServer


class Curl:
    """What `curl` sends, over one connection."""

    def __init__(self, stream: trio.SocketStream, host: str, token: str | None) -> None:
        self._client = HttpClient(stream)
        self._host = host
        self._token = token

    async def __call__(
        self, target: str, *, method: str = "GET", token: str | None = "", json_body: str | None = None
    ) -> Reply:
        headers = [("User-Agent", "curl/8.5.0"), ("Accept", "*/*")]
        token = self._token if token == "" else token
        if token is not None:
            headers.append(("Authorization", f"Bearer {token}"))
        if json_body is not None:
            headers.append(("Content-Type", "application/json"))
        return await self._client.request(
            self._host, target, method=method, headers=tuple(headers), body=(json_body or "").encode()
        )

    async def value(self, target: str, status: int = 200, **more: Any) -> Any:
        reply = await self(target, **more)
        assert reply.status == status, reply.body
        assert reply.header("content-type") == "application/json"
        return json.loads(reply.body)

    async def nothing(self, target: str, **more: Any) -> None:
        reply = await self(target, **more)
        assert (reply.status, reply.body) == (204, b"")

    async def error(self, target: str, status: int, message: str, **more: Any) -> None:
        assert await self.value(target, status, **more) == {"error": message}


@asynccontextmanager
async def open_curl(server: RunningServer) -> AsyncIterator[Curl]:
    """With the admin token, over one connection."""
    host, _, port = server.ready.dashboard_url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        yield Curl(stream, f"localhost:{port}", server.admin_token)
