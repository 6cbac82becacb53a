"""Local services for tests: HTTP by a small script of answers, TCP echo; and a plain HTTP client.

Each is a trio task on a kernel-chosen loopback port and keeps what it saw.
"""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

PATTERN = bytes((i * 31 + (i >> 8)) & 255 for i in range(65536))


@dataclass(slots=True)
class SeenRequest:
    """One request as the local service got it."""

    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    body_size: int
    body_sha256: str

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


@dataclass(slots=True)
class HttpService:
    """An HTTP/1.1 service by h11. `/size/N` answers N pattern bytes; everything else tells what it got."""

    port: int
    seen: list[SeenRequest] = field(default_factory=list)
    connections: int = 0
    keep_bodies: bool = True


async def _serve_http(service: HttpService, stream: trio.SocketStream) -> None:
    service.connections += 1
    number = service.connections
    connection = h11.Connection(h11.SERVER)

    async def next_event() -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await stream.send_all(connection.send(go_on) or b"")
                connection.receive_data(await stream.receive_some(65536))
                continue
            return event

    async with stream:
        while True:
            try:
                request = await next_event()
                if not isinstance(request, h11.Request):
                    return
                digest, size, body = hashlib.sha256(), 0, bytearray()
                while isinstance(event := await next_event(), h11.Data):
                    digest.update(event.data)
                    size += len(event.data)
                    if service.keep_bodies:
                        body += event.data
                if not isinstance(event, h11.EndOfMessage):
                    return
            except (h11.RemoteProtocolError, trio.BrokenResourceError):
                return
            seen = SeenRequest(
                number,
                request.method.decode(),
                request.target.decode(),
                [(name.decode(), value.decode("latin-1")) for name, value in request.headers],
                bytes(body),
                size,
                digest.hexdigest(),
            )
            service.seen.append(seen)
            try:
                await _answer(connection, stream, seen)
            except trio.BrokenResourceError:
                return
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()


async def _answer(connection: h11.Connection, stream: trio.SocketStream, seen: SeenRequest) -> None:
    if seen.target.startswith("/size/"):
        size = int(seen.target.removeprefix("/size/"))
        head = h11.Response(status_code=200, headers=[("Content-Length", str(size))])
        await stream.send_all(connection.send(head) or b"")
        for start in range(0, size, len(PATTERN)):
            part = PATTERN[: min(len(PATTERN), size - start)]
            await stream.send_all(connection.send(h11.Data(data=part)) or b"")
        await stream.send_all(connection.send(h11.EndOfMessage()) or b"")
        return
    text = f"{seen.method} {seen.target} {seen.body_size} {seen.body_sha256}\n".encode()
    head = h11.Response(
        status_code=200,
        headers=[("Content-Length", str(len(text))), ("X-Tag", seen.header("x-tag") or "")],
    )
    data = connection.send(head) or b""
    data += connection.send(h11.Data(data=text if seen.method != "HEAD" else b"")) or b""
    data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)


def pattern(size: int) -> bytes:
    """What `/size/N` answers."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


@asynccontextmanager
async def tcp_service(handler: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A loopback TCP service; yields its port."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")  # noqa: TID251  (a test's own peer)
        port: int = listeners[0].socket.getsockname()[1]

        async def guarded(stream: trio.SocketStream) -> None:
            try:
                async with stream:
                    await handler(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        nursery.start_soon(trio.serve_listeners, guarded, listeners)
        yield port
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def http_service(*, keep_bodies: bool = True) -> AsyncIterator[HttpService]:
    service = HttpService(0, keep_bodies=keep_bodies)
    async with tcp_service(lambda stream: _serve_http(service, stream)) as port:
        service.port = port
        yield service


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes; then end this direction too."""
    while data := await stream.receive_some(65536):
        await stream.send_all(data)
    await stream.send_eof()


@dataclass(slots=True)
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    informational: list[int] = field(default_factory=list)
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class HttpClient:
    """A visitor: one connection, one request after another, judged by h11."""

    def __init__(self, stream: trio.abc.HalfCloseableStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self._connection = h11.Connection(h11.CLIENT)

    async def request(
        self,
        host: str,
        target: str = "/",
        *,
        method: str = "GET",
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | AsyncIterator[bytes] = b"",
        keep_body: bool = True,
    ) -> Reply:
        """Send one request (chunked where `body` is an iterator) and read its whole reply."""
        connection = self._connection
        if connection.our_state is h11.DONE:
            connection.start_next_cycle()
        framing: tuple[tuple[str, str], ...] = ()
        if not isinstance(body, bytes):
            framing = (("Transfer-Encoding", "chunked"),)
        elif body:
            framing = (("Content-Length", str(len(body))),)
        request = h11.Request(method=method, target=target, headers=[("Host", host), *headers, *framing])
        reply = Reply(0, [], b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, request, body)
            await self._receive(reply, keep_body)
        return reply

    async def _send(self, request: h11.Request, body: bytes | AsyncIterator[bytes]) -> None:
        send = self._connection.send
        await self.stream.send_all(send(request) or b"")
        if isinstance(body, bytes):
            if body:
                await self.stream.send_all(send(h11.Data(data=body)) or b"")
        else:
            async for part in body:
                await self.stream.send_all(send(h11.Data(data=part)) or b"")
        await self.stream.send_all(send(h11.EndOfMessage()) or b"")

    async def _receive(self, reply: Reply, keep_body: bool) -> None:
        body = bytearray()
        digest = hashlib.sha256()
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                self._connection.receive_data(bytes(await self.stream.receive_some(65536)))
            elif isinstance(event, h11.InformationalResponse):
                reply.informational.append(event.status_code)
            elif isinstance(event, h11.Response):
                reply.status = event.status_code
                reply.headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers.raw_items()]
            elif isinstance(event, h11.Data):
                digest.update(event.data)
                if keep_body:
                    body += event.data
            elif isinstance(event, h11.EndOfMessage):
                reply.trailers = [(n.decode(), v.decode("latin-1")) for n, v in event.headers.raw_items()]
                break
            else:
                raise AssertionError(f"unexpected {event!r}")
        reply.body = bytes(body) if keep_body else digest.hexdigest().encode()
