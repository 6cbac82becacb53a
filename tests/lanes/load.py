"""A mixed load against a server process: visitors of every kind who check each answer. For `soak`.

Each `once`-function of `Load` is one visit of a kind and gives what came of it: `ok`, `left`, a status. It raises
Wrong where an answer is somebody else's or cannot be, and what sockets raise where it was cut.
"""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import struct
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import trio

from tests.hostile.corpus import CASES
from tests.lanes.mixed import (
    PATTERN,
    Cut,
    Head,
    Reader,
    accept_of,
    body_of,
    frame,
    pattern_digest,
    read_body,
    read_frame,
    read_head,
)

if TYPE_CHECKING:
    import random  # noqa: TID251  (the type of an argument)
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from tests.support.server_process import ServerProcess

HANG_SECONDS = 60.0  # far beyond what any visitor may be made to wait
VIEW_SECONDS = 3.0
BAD_SECONDS = 2.0  # a hostile visitor waits so long for an answer
PAUSE_SECONDS = 0.05  # on average, between two visits of one visitor: the machine is busy and not full
KEPT_REQUESTS = 50  # of one connection
MESSAGES = 20
EVENTS = 10
LEAVES = 0.1  # of visits that may leave in the middle
SIZES = (1_000, 300_000, 3_000_000)

STEADY = ("steady-one", "steady-two")
FLAPPING = ("flap-one", "flap-two")
# What the end of an agent under a visit may come to: a 502, a wait that ends in 503, a cut reply, a reset; and where it
# was ended politely, its name is free until it comes back.
EXPLAINED = frozenset({"ok", "left", "404", "502", "503", "504", "cut"})
UNBROKEN = frozenset({"ok", "left"})

Stream: TypeAlias = "trio.SocketStream | trio.SSLStream[trio.SocketStream]"


class Wrong(Exception):
    """An answer that is somebody else's, or that nothing explains."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of visit: how many visitors do it at a time, and what may come of it."""

    name: str
    visitors: int
    once: Callable[[], Awaitable[str]]
    may: frozenset[str] = UNBROKEN


class Load:
    """`kinds` counts outcomes by kind; `wrong` tells what must not be."""

    def __init__(self, server: ServerProcess, tcp_port: int, rolls: random.Random) -> None:
        self.kinds: dict[str, Counter[str]] = {}
        self.wrong: list[str] = []
        self._server = server
        self._tcp_port = tcp_port
        self._rolls = rolls
        self._numbers = 0
        self._digests = {size: pattern_digest(size) for size in SIZES}
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False
        self._tls.verify_mode = ssl.CERT_NONE

    def all_kinds(self) -> list[Kind]:
        kinds = []
        for hosts, word, visitors, may in ((STEADY, "steady", 2, UNBROKEN), (FLAPPING, "flapping", 1, EXPLAINED)):
            for name, once in (
                ("kept alive", self.kept_alive),
                ("new connection", self.new_connection),
                ("WebSocket", self.websocket),
                ("event stream", self.event_stream),
                ("upload", self.upload),
                ("download", self.download),
            ):

                async def visit(once: Callable[[str], Awaitable[str]] = once, hosts: tuple[str, ...] = hosts) -> str:
                    return await once(self._rolls.choice(hosts))

                kinds.append(Kind(f"{name}, {word}", visitors, visit, may))
        return [
            *kinds,
            Kind("TCP", 2, self.tcp),
            Kind("API", 1, self.api),
            Kind("token", 1, self.token),
            Kind("live view", 2, self.live_view),
            Kind("hostile", 2, self.hostile),
        ]

    async def run(self, kind: Kind, over: trio.Event) -> None:
        """One visitor, until `over`."""
        counter = self.kinds.setdefault(kind.name, Counter())
        while not over.is_set():
            outcome = "hang"
            with trio.move_on_after(HANG_SECONDS):
                try:
                    outcome = await kind.once()
                except Wrong as error:
                    outcome = "wrong"
                    self.wrong.append(f"{kind.name}: {error}")
                except (Cut, OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    outcome = "cut"
            counter[outcome] += 1
            if outcome not in kind.may and outcome != "wrong":
                self.wrong.append(f"{kind.name}: {outcome}")
            await trio.sleep(self._rolls.random() * 2 * PAUSE_SECONDS)

    # visits of tunnels

    async def kept_alive(self, host: str) -> str:
        async with self._visit(host) as stream:
            reader = Reader(stream)
            for _ in range(self._rolls.randrange(1, KEPT_REQUESTS)):
                outcome = await self._tagged(stream, reader, host)
                if outcome != "ok":
                    return outcome
        return "ok"

    async def new_connection(self, host: str) -> str:
        async with self._visit(host) as stream:
            return await self._tagged(stream, Reader(stream), host)

    async def _tagged(self, stream: Stream, reader: Reader, host: str) -> str:
        tag = self._tag()
        lines = self._rolls.choice((1, 1, 5, 400))
        body = body_of(tag, self._rolls.choice((0, 0, 10, 1000)))
        await stream.send_all(
            _request(host, b"/tag/%d/%b" % (lines, tag), b"POST" if body else b"GET", len(body)) + body
        )
        if self._leaves(stream):
            return "left"
        head = await read_head(reader)
        answer = await read_body(reader, head)
        if head.status == 200:
            return _same(answer, body_of(tag, lines))
        if host.startswith(STEADY):
            raise Wrong(f"{'POST' if body else 'GET'} answered {head.first!r}: {answer[-400:]!r}")
        return _failed(head)

    async def websocket(self, host: str) -> str:
        async with self._visit(host) as stream:
            key = b"c2l4dGVlbiBieXRlcyBvaw=="
            await stream.send_all(_request(host, b"/echo", more=_upgrade(key)))
            reader = Reader(stream)
            head = await read_head(reader)
            if head.status != 101:
                return _failed(head)
            _same(head.headers.get(b"sec-websocket-accept", b""), accept_of(key))
            for _ in range(MESSAGES):
                message = body_of(self._tag(), self._rolls.choice((1, 20, 2000)))
                await stream.send_all(frame(message, b"mask"))
                if self._leaves(stream, 0.01):
                    return "left"
                _same((await read_frame(reader))[1], message)
            await stream.send_all(frame(b"\x03\xe8", b"mask", opcode=8))
            await read_frame(reader)
        return "ok"

    async def event_stream(self, host: str) -> str:
        async with self._visit(host) as stream:
            tag = self._tag()
            await stream.send_all(_request(host, b"/events/%d/%b" % (EVENTS, tag)))
            reader = Reader(stream)
            head = await read_head(reader)
            if head.status != 200:
                return _failed(head)
            for number in range(EVENTS):
                event = b"data: %d %b\n\n" % (number, tag)
                # An event is a chunk: it is passed on before the next one is produced.
                _same(await read_chunk(reader), event)
                if self._leaves(stream, 0.05):
                    return "left"
            _same(await read_chunk(reader), b"")
        return "ok"

    async def upload(self, host: str) -> str:
        size = self._rolls.choice(SIZES)
        async with self._visit(host) as stream:
            await stream.send_all(_request(host, b"/", b"PUT", size))
            for part in parts(size):
                await stream.send_all(part)
                if self._leaves(stream, 0.01):
                    return "left"
            reader = Reader(stream)
            head = await read_head(reader)
            answer = await read_body(reader, head)
            return _same(answer, self._digests[size]) if head.status == 200 else _failed(head)

    async def download(self, host: str) -> str:
        size = self._rolls.choice(SIZES)
        async with self._visit(host) as stream:
            await stream.send_all(_request(host, b"/size/%d" % size))
            reader = Reader(stream)
            head = await read_head(reader)
            if head.status != 200:
                return _failed(head)
            if self._leaves(stream):
                return "left"
            digest = hashlib.sha256()
            await read_body(reader, head, digest=digest)
            return _same(digest.hexdigest().encode(), self._digests[size])

    async def tcp(self) -> str:
        async with self._connect(self._tcp_port) as stream:
            assert isinstance(stream, trio.SocketStream)
            sent = body_of(self._tag(), self._rolls.choice((1, 100, 50_000)))
            heard = bytearray()

            async def hear() -> None:
                async for part in stream:
                    heard.extend(part)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                await stream.send_all(b"ECHO\n" + sent)
                await stream.send_eof()
            return _same(bytes(heard), sent)

    # visits of the API

    async def api(self) -> str:
        tunnels = json.loads((await self._ask(b"/api/tunnels"))[1])
        one = self._rolls.choice(tunnels)["tunnel_id"].encode()
        requests = b"/api/tunnels/%b/requests" % one
        for target in (
            b"/api/status",
            b"/metrics",
            b"/api/history?limit=20",
            b"/api/tokens?details=true",
            b"/api/audit",
            b"/api/openapi.json",
            b"/api/docs",
            b"/api/health/ready",
            b"/api/tunnels/nobody",
            requests,
            requests + b"/search?q=tag",
        ):
            status, _ = await self._ask(target)
            # A tunnel of an agent that died meanwhile is gone for the first question and kept for the others.
            if status >= 500:
                raise Wrong(f"{target!r}: {status}")
        return "ok"

    async def token(self) -> str:
        number, secret = await self.make_token()
        status, _ = await self._ask(b"/api/tunnels", token=secret)
        if status != 200:
            raise Wrong(f"a fresh token: {status}")
        await self.delete_token(number)
        status, _ = await self._ask(b"/api/tunnels", token=secret)
        if status != 401:
            raise Wrong(f"a revoked token: {status}")
        return "ok"

    async def make_token(self) -> tuple[str, str]:
        """Its id and itself."""
        wanted = json.dumps({"label": f"soak-{self._tag().decode()}"}).encode()
        status, answer = await self._ask(b"/api/tokens", b"POST", wanted)
        if status != 201:
            raise Wrong(f"no token: {status} {answer!r}")
        made = json.loads(answer)
        return made["id"], made["token"]

    async def delete_token(self, number: str) -> None:
        status, _ = await self._ask(b"/api/tokens/" + number.encode(), b"DELETE")
        if status != 204:
            raise Wrong(f"a token cannot be revoked: {status}")

    async def live_view(self) -> str:
        """Look on for a while, as an event stream or by a WebSocket; then leave, by a reset or not."""
        tunnels = json.loads((await self._ask(b"/api/tunnels"))[1])
        one = next(tunnel for tunnel in tunnels if tunnel["label"].startswith(STEADY[0]))["tunnel_id"].encode()
        by_websocket = self._rolls.random() < 0.5
        more = self._bearer() + (_upgrade(b"c2l4dGVlbiBieXRlcyBvaw==") if by_websocket else b"")
        async with self._connect(self._server.dashboard_port) as stream:
            await stream.send_all(_request("localhost", b"/api/tunnels/%b/requests/live" % one, more=more))
            reader = Reader(stream)
            head = await read_head(reader)
            if head.status != (101 if by_websocket else 200):
                raise Wrong(f"no live view: {head.first!r}")
            seen = 0
            with trio.move_on_after(VIEW_SECONDS):
                while True:
                    await (read_frame(reader) if by_websocket else read_chunk(reader))
                    seen += 1
            if not seen:
                raise Wrong("nothing to see in a live view")
            self._leaves(stream, 0.5)
        return "ok"

    async def hostile(self) -> str:
        """A case of the corpus or noise, at any port; whatever is answered, it is not 500."""
        server = self._server
        raw = self._rolls.choice(CASES).bytes_for(f"{STEADY[0]}.localhost")
        if self._rolls.random() < 0.3:
            raw = self._rolls.randbytes(self._rolls.randrange(1, 2000))
        raw = raw[: self._rolls.choice((len(raw), len(raw), len(raw) // 2, 0))]
        port, tls = self._rolls.choice(
            (
                (server.http_port, False),
                (server.http_port, False),
                (server.https_port, True),
                (server.https_port, False),
                (server.control_port, True),
                (server.control_port, False),
                (server.dashboard_port, False),
                (self._tcp_port, False),
            )
        )
        answer: bytes | bytearray = b""
        try:
            async with self._connect(port, tls=tls) as stream:
                with trio.move_on_after(BAD_SECONDS):
                    for at in range(0, len(raw), 65536):
                        await stream.send_all(raw[at : at + 65536])
                    answer = await stream.receive_some(65536)
                self._leaves(stream, 0.5)
        except (OSError, trio.BrokenResourceError):
            pass
        if answer.startswith(b"HTTP/1.1 500 "):
            raise Wrong(f"{raw[:200]!r}: {answer[:200]!r}")
        return "ok"

    # what they share

    def _tag(self) -> bytes:
        self._numbers += 1
        return b"%016x" % (self._numbers * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)

    def _visit(self, host: str) -> AbstractAsyncContextManager[Stream]:
        tls = self._rolls.random() < 0.5
        port = self._server.https_port if tls else self._server.http_port
        return self._connect(port, tls=tls, host=f"{host}.localhost")

    @asynccontextmanager
    async def _connect(self, port: int, *, tls: bool = False, host: str = "localhost") -> AsyncIterator[Stream]:
        plain = await trio.open_tcp_stream("127.0.0.1", port)
        try:
            if not tls:
                yield plain
                return
            secured = trio.SSLStream(plain, self._tls, server_hostname=host, https_compatible=True)
            await secured.do_handshake()
            yield secured
        finally:
            await trio.aclose_forcefully(plain)

    def _leaves(self, stream: Stream, chance: float = LEAVES / 4) -> bool:
        """Whether this visitor leaves now; half of them by a reset."""
        if self._rolls.random() >= chance:
            return False
        if self._rolls.random() < 0.5:
            plain = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
            plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return True

    def _bearer(self, token: str | None = None) -> bytes:
        return f"Authorization: Bearer {token or self._server.admin_token}\r\n".encode()

    async def _ask(
        self, target: bytes, method: bytes = b"GET", body: bytes = b"", *, token: str | None = None
    ) -> tuple[int, bytes]:
        more = self._bearer(token) + (b"Content-Type: application/json\r\n" if body else b"")
        async with self._connect(self._server.dashboard_port) as stream:
            await stream.send_all(_request("localhost", target, method, len(body), more) + body)
            reader = Reader(stream)
            head = await read_head(reader)
            return head.status, await read_body(reader, head)


def _request(host: str, target: bytes, method: bytes = b"GET", size: int = 0, more: bytes = b"") -> bytes:
    name = host if host == "localhost" else f"{host}.localhost"
    length = b"Content-Length: %d\r\n" % size if size else b""
    return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b%b\r\n" % (method, target, name.encode(), length, more)


def _upgrade(key: bytes) -> bytes:
    return b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n" % key


async def read_chunk(reader: Reader) -> bytes:
    """Of a body in chunks; empty: the end."""
    size = int(await reader.until(b"\r\n"), 16)
    chunk = await reader.exactly(size)
    await reader.exactly(2)
    return chunk


def parts(size: int) -> list[bytes]:
    return [PATTERN[: min(len(PATTERN), size - at)] for at in range(0, size, len(PATTERN))]


def _same(heard: bytes, wanted: bytes) -> str:
    if heard != wanted:
        raise Wrong(f"{wanted[:60]!r} was wanted, {heard[:60]!r} came ({len(heard)} bytes for {len(wanted)})")
    return "ok"


def _failed(head: Head) -> str:
    if head.status in (404, 502, 503, 504):
        return str(head.status)
    raise Wrong(f"answered {head.first!r}")
