"""What streams through a whole server and our own agent, on real sockets: both ways at once, early ends, slow ends.

The local services here are plain TCP handlers that write their bytes themselves, so that a test decides when.
"""

from __future__ import annotations

import dataclasses
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.edges.limits import EdgeLimits
from tests.support.our_agent import agent_config, http, our_agent
from tests.support.services import HttpClient, http_service, tcp_service
from tests.support.whole_server import WholeServer, read_to_end, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

WAIT_SECONDS = 20.0
RST = struct.pack("ii", 1, 0)


class Lines:
    """Reads a stream to a marker and keeps what follows."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self._stream = stream
        self._held = bytearray()

    async def until(self, marker: bytes) -> bytes:
        with trio.fail_after(WAIT_SECONDS):
            while marker not in self._held:
                part = await self._stream.receive_some(65536)
                assert part, f"ended before {marker!r}: {bytes(self._held)!r}"
                self._held += part
        end = self._held.index(marker) + len(marker)
        taken = bytes(self._held[:end])
        del self._held[:end]
        return taken


@asynccontextmanager
async def serving(
    tmp_path: Path,
    handler: Callable[[trio.SocketStream], Awaitable[None]],
    *,
    pump: str = "auto",
    **tables: dict[str, object],
) -> AsyncIterator[WholeServer]:
    """A server, our agent, and `handler` as the local service of `app`."""
    async with (
        tcp_service(handler) as port,
        whole_server(tmp_path, pump=pump, **tables) as whole,
        our_agent(agent_config(whole.server, http(port, "app"))),
    ):
        yield whole


async def connect(whole: WholeServer, scheme: str = "http") -> trio.SocketStream | trio.SSLStream[trio.SocketStream]:
    return await (whole.server.connect() if scheme == "http" else whole.server.connect_tls(whole.server.host("app")))


def ask(whole: WholeServer, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    head = [f"{method} / HTTP/{version}", f"Host: {whole.server.host('app')}", *lines]
    return "".join(f"{line}\r\n" for line in head).encode() + b"\r\n"


# each piece at once

REPLIES: dict[str, tuple[str, Callable[[bytes], bytes], bytes]] = {
    "chunked": ("Transfer-Encoding: chunked", lambda data: b"%x\r\n%b\r\n" % (len(data), data), b"0\r\n\r\n"),
    "until the end": ("Connection: close", lambda data: data, b""),
    "with a length": (f"Content-Length: {10 * len('data: 0') + 20}", lambda data: data, b""),
}


@pytest.mark.parametrize("pump", ["epoll", "portable"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("framing", REPLIES)
async def test_each_event_arrives_before_the_next_is_produced(
    tmp_path: Path, framing: str, scheme: str, pump: str
) -> None:
    line, wrap, end = REPLIES[framing]
    arrived, wait = trio.open_memory_channel[int](0)

    async def produce(stream: trio.SocketStream) -> None:
        await Lines(stream).until(b"\r\n\r\n")
        await stream.send_all(f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{line}\r\n\r\n".encode())
        for number in range(10):
            await stream.send_all(wrap(b"data: %d\n\n" % number))
            assert await wait.receive() == number  # nothing more is written until the visitor has it
        await stream.send_all(end)

    async with serving(tmp_path, produce, pump=pump) as whole, await connect(whole, scheme) as visitor:
        await visitor.send_all(ask(whole, "Accept: text/event-stream"))
        lines = Lines(visitor)
        assert b"text/event-stream" in await lines.until(b"\r\n\r\n")
        for number in range(10):
            assert (await lines.until(b"\n\n")).endswith(b"data: %d\n\n" % number)
            await arrived.send(number)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_each_piece_of_an_upload_arrives_before_the_next_is_sent(tmp_path: Path, scheme: str) -> None:
    arrived, wait = trio.open_memory_channel[int](0)

    async def consume(stream: trio.SocketStream) -> None:
        lines = Lines(stream)
        assert b"Transfer-Encoding: chunked" in await lines.until(b"\r\n\r\n")
        for number in range(10):
            await lines.until(b"piece %d" % number)
            await arrived.send(number)
        await lines.until(b"0\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    async with serving(tmp_path, consume) as whole, await connect(whole, scheme) as visitor:
        await visitor.send_all(ask(whole, "Transfer-Encoding: chunked", method="POST"))
        for number in range(10):
            await visitor.send_all(b"7\r\npiece %d\r\n" % number)
            with trio.fail_after(WAIT_SECONDS):
                assert await wait.receive() == number
        await visitor.send_all(b"0\r\n\r\n")
        assert (await Lines(visitor).until(b"done")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_both_directions_stream_at_once(tmp_path: Path) -> None:
    """A reply that began is no reason to stop the upload, nor the other way round."""

    async def parrot(stream: trio.SocketStream) -> None:
        lines = Lines(stream)
        await lines.until(b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(20):
            await lines.until(b"word %02d\r\n" % number)
            await stream.send_all(b"7\r\necho %02d\r\n" % number)
        await lines.until(b"0\r\n\r\n")
        await stream.send_all(b"0\r\n\r\n")

    async with serving(tmp_path, parrot) as whole, await connect(whole) as visitor:
        await visitor.send_all(ask(whole, "Transfer-Encoding: chunked", method="POST"))
        lines = Lines(visitor)
        for number in range(20):
            await visitor.send_all(b"7\r\nword %02d\r\n" % number)
            await lines.until(b"echo %02d" % number)
        await visitor.send_all(b"0\r\n\r\n")
        await lines.until(b"0\r\n\r\n")


async def test_H46_the_local_service_decides_on_100_continue(tmp_path: Path) -> None:
    answers = iter([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno"])
    heads: list[bytes] = []

    async def decide(stream: trio.SocketStream) -> None:
        lines = Lines(stream)
        heads.append(await lines.until(b"\r\n\r\n"))
        answer = next(answers)
        await stream.send_all(answer)
        if b" 100 " in answer:
            await lines.until(b"body")
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with serving(tmp_path, decide) as whole:
        request = ask(whole, "Content-Length: 4", "Expect: 100-continue", method="PUT")
        async with await connect(whole) as visitor:
            lines = Lines(visitor)
            await visitor.send_all(request)
            assert await lines.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await visitor.send_all(b"body")
            assert (await lines.until(b"ok")).startswith(b"HTTP/1.1 200 OK\r\n")
        async with await connect(whole) as visitor:
            await visitor.send_all(request)
            refused = await read_to_end(visitor)
            assert refused.startswith(b"HTTP/1.1 417 ")
            assert refused.endswith(b"Connection: close\r\n\r\nno")
        assert all(b"\r\nExpect: 100-continue\r\n" in head for head in heads)


async def test_H46_H50_early_hints_pass_before_the_answer(tmp_path: Path) -> None:
    arrived = trio.Event()

    async def hint(stream: trio.SocketStream) -> None:
        await Lines(stream).until(b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n")
        await arrived.wait()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with serving(tmp_path, hint) as whole, await connect(whole) as visitor:
        lines = Lines(visitor)
        await visitor.send_all(ask(whole))
        assert await lines.until(b"\r\n\r\n") == b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        arrived.set()
        await lines.until(b"ok")


async def test_H47_a_thousand_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
        await connect(whole) as visitor,
    ):
        request = f"GET /{{}} HTTP/1.1\r\nHost: {whole.server.host('app')}\r\n\r\n"

        async def send() -> None:
            await visitor.send_all("".join(request.format(number) for number in range(1000)).encode())
            await visitor.send_all(b"BAD\r\n\r\n")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            answers = await read_to_end(visitor)
        assert [seen.target for seen in service.seen] == [f"/{number}" for number in range(1000)]
        assert answers.count(b"HTTP/1.1 200 ") == 1000
        at = [answers.index(b"GET /%d " % number) for number in range(1000)]
        assert at == sorted(at)
        assert b"HTTP/1.1 400 " in answers[at[-1] :]


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS"])
async def test_H48_a_body_arrives_whatever_the_method(tmp_path: Path, method: str) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
        await connect(whole) as visitor,
    ):
        reply = await HttpClient(visitor).request(whole.server.host("app"), "/", method=method, body=b"odd but legal")
        assert reply.status == 200
        assert (service.seen[0].method, service.seen[0].body) == (method, b"odd but legal")


# answers before the upload ends

FULL = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4000\r\n\r\n" + b"n" * 4000


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("then", ["reads on", "closes", "resets"])
async def test_H51_an_answer_before_the_upload_ends_is_not_lost(tmp_path: Path, then: str, scheme: str) -> None:
    """The visitor reads nothing until it has sent what it can: what it gets then must be the whole answer."""
    answered = trio.Event()

    async def forbid(stream: trio.SocketStream) -> None:
        await Lines(stream).until(b"first bytes")
        await stream.send_all(FULL)
        answered.set()
        if then == "reads on":
            while await stream.receive_some(65536):
                pass
        elif then == "resets":
            await trio.testing.wait_all_tasks_blocked(0.01)  # the answer has left
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)

    async with serving(tmp_path, forbid) as whole:
        visitor = await connect(whole, scheme)
        await visitor.send_all(ask(whole, "Content-Length: 100000000", method="POST") + b"first bytes")
        await answered.wait()
        with trio.move_on_after(WAIT_SECONDS) as patience:
            try:
                for _ in range(100):
                    with trio.move_on_after(0.2):
                        await visitor.send_all(b"x" * 65536)
                        continue
                    break
            except trio.BrokenResourceError:
                pass
        assert not patience.cancelled_caught
        answer = await read_to_end(visitor)
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert answer.endswith(b"n" * 4000)
        await trio.aclose_forcefully(visitor)


# ends at every byte


@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_H64_ends_at_every_byte_leave_nothing(tmp_path: Path, how: str) -> None:
    async with (
        http_service() as service,
        whole_server(tmp_path) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
    ):
        raw = ask(whole, "Content-Length: 10", method="POST") + b"0123456789"
        await (await connect(whole)).aclose()
        async with whole.leaves_nothing():
            for end in range(0, len(raw) + 1, 3):
                visitor = await whole.server.connect()
                await visitor.send_all(raw[:end])
                if how == "rst":
                    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                    await visitor.aclose()
                else:
                    await visitor.send_eof()
                    answer = await read_to_end(visitor)
                    if end == len(raw):
                        assert answer.startswith(b"HTTP/1.1 200 ")
                    elif end >= len(raw) - 10:
                        assert answer.startswith(b"HTTP/1.1 400 ")
                    await visitor.aclose()
        assert all(seen.body == b"0123456789" for seen in service.seen)


# slow ones


async def test_H65_F12_each_slow_visitor_is_gone_within_its_limit_and_others_never_notice(tmp_path: Path) -> None:
    limits: dict[str, object] = {"header_seconds": 1.0, "idle_seconds": 1.0, "handshake_seconds": 1.0}

    async with (
        http_service() as service,
        whole_server(tmp_path, limits=limits) as whole,
        our_agent(agent_config(whole.server, http(service.port, "app"))),
    ):
        stack = AsyncExitStack()
        ends: dict[str, bytes] = {}

        async def slow(name: str, port: int, drip: bytes) -> None:
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            stack.push_async_callback(stream.aclose)

            async def send() -> None:
                try:
                    for byte in drip:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.2)  # the drip itself
                except trio.BrokenResourceError:
                    pass

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                ends[name] = await read_to_end(stream, 8.0)
                nursery.cancel_scope.cancel()

        async with stack:
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    ready = whole.server.ready
                    nursery.start_soon(slow, "silent", ready.http_port, b"")
                    nursery.start_soon(slow, "head", ready.http_port, ask(whole))
                    nursery.start_soon(
                        slow, "hello", ready.https_port, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc" + bytes(100)
                    )
                    nursery.start_soon(slow, "silent tls", ready.https_port, b"")
                    for _ in range(20):
                        reply = await whole.get("app")
                        assert reply.status == 200
        assert ends["silent"] == b""
        assert ends["head"].startswith(b"HTTP/1.1 408 ")
        assert ends["silent tls"] == b""
        assert not ends["hello"].startswith(b"HTTP")


@pytest.mark.slow
async def test_H65_F12_who_reads_too_slowly_is_cut_off_and_who_reads_slowly_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the kernel says was acknowledged, on real sockets, with small windows so that it soon matters."""

    async def endless(stream: trio.SocketStream) -> None:
        await Lines(stream).until(b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            await stream.send_all(b"x" * 65536)

    async def visitor(bytes_a_second: int, seconds: float) -> bool:
        """Whether it was still served after so long."""
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(("127.0.0.1", whole.server.ready.http_port))
            sock.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock.dup()))
        async with stream:
            await stream.send_all(ask(whole))
            until = trio.current_time() + seconds
            while trio.current_time() < until:
                await trio.sleep(0.5)
                try:
                    if bytes_a_second:
                        await stream.receive_some(bytes_a_second // 2)
                except trio.BrokenResourceError:
                    return False
            with trio.move_on_after(2):  # a reset shows behind what had arrived before it
                try:
                    while await stream.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    return False
            return True

    from_config = EdgeLimits.from_config
    monkeypatch.setattr(
        EdgeLimits, "from_config", lambda limits: dataclasses.replace(from_config(limits), send_window_seconds=2.0)
    )
    async with serving(tmp_path, endless) as whole:
        kept: dict[str, bool] = {}

        async def note(name: str, rate: int) -> None:
            kept[name] = await visitor(rate, 6.0)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, "good", 16_384)
            nursery.start_soon(note, "drip", 10)
            nursery.start_soon(note, "never", 0)
        assert kept == {"good": True, "drip": False, "never": False}
        assert whole.parts._census.refusals["slow-reader"] == 2
