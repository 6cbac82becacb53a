"""Section 4 of the agent protocol: each rule that binds the server, on a whole one, by the frames that it sends."""

from __future__ import annotations

import socket
import struct
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio
import trio.testing

from tests.support.services import HttpClient, Reply, echo, http_service, pattern, tcp_service
from tests.support.stock_agent import (
    ACK,
    BINARY,
    CLOSE,
    FIN,
    PING,
    RST,
    SYN,
    WINDOW,
    Y_DATA,
    Y_GO_AWAY,
    Y_PING,
    Y_WINDOW,
    StockAgent,
    WebSocket,
)
from tests.support.whole_server import WholeServer, read_to_end, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

PORTS: dict[str, object] = {"tcp_port_range": (31000, 31999)}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def silent(stream: trio.SocketStream) -> None:
    """A local service that takes everything and never answers."""
    while await stream.receive_some(65536):
        pass


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path, limits=PORTS) as whole:
        yield whole


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    length: int
    payload: bytes = b""


class RawData:
    """The data socket of an agent that is played frame by frame."""

    def __init__(self, agent: StockAgent, websocket: WebSocket) -> None:
        self.agent = agent
        self.websocket = websocket
        self._kept = bytearray()

    async def frame(self) -> Frame:
        """The next yamux frame. Raises EOFError at the end, ConnectionError with the code of a close frame."""
        while True:
            if len(self._kept) >= 12:
                version, kind, flags, ident, length = struct.unpack_from(">BBHII", self._kept)
                assert version == 0
                size = length if kind == Y_DATA else 0
                if len(self._kept) >= 12 + size:
                    payload = bytes(self._kept[12 : 12 + size])
                    del self._kept[: 12 + size]
                    return Frame(kind, flags, ident, length, payload)
            op, payload = await self.websocket.receive()
            if op == CLOSE:
                raise ConnectionError(int.from_bytes(payload[:2], "big"))
            if op == BINARY:
                self._kept += payload

    async def next(self, kind: int, condition: Callable[[Frame], object] = lambda frame: True) -> Frame:
        """The next frame of a kind; others are passed over."""
        with trio.fail_after(10):
            while True:
                frame = await self.frame()
                if frame.kind == kind and condition(frame):
                    return frame

    async def opened(self) -> Frame:
        return await self.next(Y_DATA, lambda frame: frame.flags & SYN)

    async def say(self, kind: int, flags: int, ident: int, length: int, payload: bytes = b"") -> None:
        await self.websocket.send(BINARY, struct.pack(">BBHII", 0, kind, flags, ident, length))
        if payload:
            await self.websocket.send(BINARY, payload)

    async def data(self, ident: int, payload: bytes, flags: int = 0) -> None:
        await self.say(Y_DATA, flags, ident, len(payload), payload)

    async def ended(self) -> tuple[list[Frame], int | None]:
        """Everything up to the end, and the code of a close frame."""
        frames: list[Frame] = []
        with trio.fail_after(10):
            while True:
                try:
                    frames.append(await self.frame())
                except EOFError:
                    return frames, None
                except ConnectionError as closed:
                    return frames, closed.args[0]


@asynccontextmanager
async def raw_data(whole: WholeServer, *protocols: str) -> AsyncIterator[RawData]:
    """An agent with tunnels named after their protocols, whose data socket the test speaks for."""
    async with whole.agent() as agent:
        for protocol in protocols or ("http",):
            await agent.register(protocol, 1, subdomain=None if protocol == "tcp" else protocol)
        assert agent.nursery is not None
        agent.nursery.start_soon(agent._run_control)
        data = RawData(agent, await agent._open(f"/_data/{agent.session_id}"))
        try:
            yield data
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await data.websocket.drop()


async def ask(whole: WholeServer, label: str, replies: list[Reply], target: str = "/") -> None:
    replies.append(await whole.get(label, target))


async def leave(visitor: trio.SocketStream) -> None:
    """By a RST: a FIN alone may be a visitor that still waits for its answer."""
    visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await trio.aclose_forcefully(visitor)


# opening


async def test_4_a_ping_goes_out_at_the_start_and_nothing_waits_for_its_answer(whole: WholeServer) -> None:
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        first = await data.frame()
        assert (first.kind, first.flags, first.stream) == (Y_PING, SYN, 0)
        nursery.start_soon(ask, whole, "http", replies)
        stream = (await data.opened()).stream
        await data.data(stream, OK, ACK)
    assert replies[0].body == b"hello"


async def test_4_pings_of_the_agent_are_answered_with_their_value(whole: WholeServer) -> None:
    async with raw_data(whole) as data:
        for value in (0, 7, 0xFFFFFFFF):
            await data.say(Y_PING, SYN, 0, value)
            assert await data.next(Y_PING, lambda frame: frame.flags & ACK) == Frame(Y_PING, ACK, 0, value)


async def test_4_streams_have_odd_ids_from_1_and_begin_with_the_16_bytes_of_the_announced_id(
    whole: WholeServer,
) -> None:
    replies: list[Reply] = []
    async with raw_data(whole, "http", "tcp") as data, trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(ask, whole, "http", replies)
            opening = await data.opened()
            assert opening.stream == 2 * number + 1
            assert opening.flags == SYN
            assert opening.length == 16
            announced = await data.agent.wait_heard("new_connection", number + 1)
            assert announced["conn_id"] == str(uuid.UUID(bytes=opening.payload))
            assert announced["protocol"] == "http"
            request = await data.next(Y_DATA)
            assert request.payload.startswith(b"GET / HTTP/1.1\r\n")
        for stream in (1, 3, 5):
            await data.data(stream, OK, ACK)
        await whole.until(lambda: len(replies) == 3)
        public = data.agent.tunnels[1].assigned_port
        assert public is not None
        async with await trio.open_tcp_stream("127.0.0.1", public):
            opening = await data.opened()
            assert (opening.stream, opening.length) == (7, 16)
            assert (await data.agent.wait_heard("new_connection", 4))["protocol"] == "tcp"
    assert [reply.status for reply in replies] == [200] * 3


async def test_4_the_agent_needs_no_control_frame_in_time_and_control_no_stream(whole: WholeServer) -> None:
    """The two sockets are not ordered: an agent that reads its control socket late is served all the same."""
    async with http_service() as service, whole.serving(service.port) as agent:
        real = agent._take_control
        gate = trio.Event()

        async def late(frame: dict[str, object]) -> None:
            await gate.wait()
            await real(frame)

        agent._take_control = late  # type: ignore[method-assign]
        replies: list[Reply] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, whole, "demo", replies)
            await whole.until(lambda: agent.data is not None and agent.data.streams)
            gate.set()
        assert replies[0].status == 200


async def test_4_a_kept_stream_carries_request_after_request(whole: WholeServer) -> None:
    async with http_service() as service, whole.serving(service.port) as agent:
        for number in range(10):
            assert (await whole.get("demo", f"/{number}")).status == 200
        assert service.connections == 1
        assert len([frame for frame in agent.heard if frame["type"] == "new_connection"]) == 1


# windows and frames


async def test_4_never_past_the_window(whole: WholeServer) -> None:
    head = b"POST / HTTP/1.1\r\nHost: http.localhost\r\nContent-Length: 1000000\r\n\r\n"
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        visitor = await whole.server.connect()

        async def upload() -> None:
            await visitor.send_all(head + pattern(1_000_000))

        nursery.start_soon(upload)
        opening = await data.opened()
        stream, got = opening.stream, opening.length
        while got < WINDOW:
            frame = await data.next(Y_DATA)
            got += frame.length
        assert got == WINDOW  # to the byte, and no byte more:
        with trio.move_on_after(0.2):
            await data.next(Y_DATA)
            raise AssertionError("data past the window")
        await data.say(Y_WINDOW, ACK, stream, 5)
        assert (await data.next(Y_DATA)).length == 5
        await data.say(Y_WINDOW, 0, stream, 2_000_000)  # a window may grow far past 256 KiB
        got += 5
        while got < 1_000_000:
            got += (await data.next(Y_DATA)).length
        await data.data(stream, OK)
        assert (await visitor.receive_some(4096)).endswith(b"hello")
        await visitor.aclose()


async def test_4_credit_is_given_for_what_the_visitor_took_and_no_more(whole: WholeServer) -> None:
    async with raw_data(whole, "tcp") as data:
        public = data.agent.tunnels[0].assigned_port
        assert public is not None
        visitor = socket.socket()
        visitor.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # so that little disappears in the kernel
        visitor.setblocking(False)
        trio_socket = trio.socket.from_stdlib_socket(visitor)
        await trio_socket.connect(("127.0.0.1", public))
        stream = (await data.opened()).stream
        sent = credit = 0
        piece = pattern(8192)
        flags = ACK
        quiet = trio.CancelScope()
        while not quiet.cancelled_caught:  # fill every window there is
            while sent - credit + len(piece) <= WINDOW:
                await data.data(stream, piece, flags)
                flags = 0
                sent += len(piece)
            with trio.move_on_after(1.0) as quiet:
                credit += (await data.next(Y_WINDOW)).length
        assert sent - credit > WINDOW - len(piece)  # the visitor reads nothing, so the agent is stopped
        assert sent < 8 << 20
        received = 0
        with trio.fail_after(20):
            while received < sent:
                received += len(await trio_socket.recv(65536))
        trio_socket.close()


async def test_4_message_boundaries_mean_nothing(whole: WholeServer) -> None:
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        nursery.start_soon(ask, whole, "http", replies)
        stream = (await data.opened()).stream
        raw = struct.pack(">BBHII", 0, Y_DATA, ACK, stream, len(OK)) + OK
        raw += struct.pack(">BBHII", 0, Y_DATA, FIN, stream, 0)
        for at in range(len(raw)):
            await data.websocket.send(BINARY, raw[at : at + 1])
    assert replies[0].body == b"hello"


async def test_4_a_large_message_of_many_frames_is_taken(whole: WholeServer) -> None:
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        nursery.start_soon(ask, whole, "http", replies)
        stream = (await data.opened()).stream
        body = b"".join(struct.pack(">BBHII", 0, Y_DATA, ACK, stream, 100) + bytes(100) for _ in range(2000))
        await data.data(stream, b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n", ACK)
        await data.websocket.send(BINARY, body)
    assert len(replies[0].body) == 200_000


# ends


async def test_4_a_half_close_passes_both_ways(whole: WholeServer) -> None:
    """Recording 03."""
    heard = bytearray()

    async def count_then_talk(stream: trio.SocketStream) -> None:
        async for part in stream:
            heard.extend(part)
        await stream.send_all(pattern(500_000))
        await stream.send_eof()

    async def talk_then_count(stream: trio.SocketStream) -> None:
        await stream.send_all(b"first")
        await stream.send_eof()
        async for part in stream:
            heard.extend(part)

    for service in (count_then_talk, talk_then_count):
        heard.clear()
        async with tcp_service(service) as port, whole.serving(port, protocol="tcp") as agent:
            public = agent.tunnels[0].assigned_port
            assert public is not None
            async with await trio.open_tcp_stream("127.0.0.1", public) as visitor:
                if service is count_then_talk:
                    await visitor.send_all(pattern(300_000))
                    await visitor.send_eof()
                    assert await read_to_end(visitor) == pattern(500_000)
                else:
                    assert await read_to_end(visitor) == b"first"
                    await visitor.send_all(pattern(300_000))
                    await visitor.send_eof()
                await whole.until(lambda: bytes(heard) == pattern(300_000))
            await whole.until(lambda agent=agent: agent.data is not None and not agent.data.streams)  # type: ignore[misc]
            assert agent.violations == []
            await agent.close()


async def test_4_a_refused_local_service_is_a_502_and_a_reset_on_tcp(whole: WholeServer) -> None:
    """Recording 07: the agent resets the stream by a data frame with RST and no ACK."""
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        tcp = await agent.register("tcp", 1)
        await agent.serve()
        for method, body in (("GET", b""), ("POST", b"x" * 1000)):
            reply = await whole.get("demo", method=method, body=body)
            assert reply.status == 502
            assert b"local-service-refused" in reply.body
        assert tcp.assigned_port is not None
        async with await trio.open_tcp_stream("127.0.0.1", tcp.assigned_port) as visitor:
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await visitor.receive_some(1)
        assert not agent.ended.is_set()
        assert agent.data_opened == 1


@pytest.mark.parametrize("leaves", ["close", "reset"])
@pytest.mark.parametrize("edge", ["http", "https", "tcp"])
async def test_4_a_visitor_that_leaves_is_a_reset_of_its_stream(whole: WholeServer, edge: str, leaves: str) -> None:
    """Recording 08: by a FIN alone the agent would keep the stream and its local connection for ever."""
    freed = trio.Event()

    async def flood(stream: trio.SocketStream) -> None:
        try:
            if edge != "tcp":
                await stream.receive_some(4096)
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            while True:
                await stream.send_all(bytes(65536))
        finally:
            freed.set()

    async with tcp_service(flood) as port, whole.agent() as agent:
        tunnel = await agent.register(edge, port, subdomain=None if edge == "tcp" else "demo")
        await agent.serve()
        public = {
            "http": whole.server.ready.http_port,
            "https": whole.server.ready.https_port,
            "tcp": tunnel.assigned_port,
        }[edge]
        assert public is not None
        below = await trio.open_tcp_stream("127.0.0.1", public)
        visitor: trio.abc.Stream = below
        if edge == "https":
            visitor = await _tls(whole, below)
        if edge != "tcp":
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
        await visitor.receive_some(100)
        if leaves == "reset":
            await leave(below)
        else:
            await trio.aclose_forcefully(below)
        with trio.fail_after(10):
            await freed.wait()
        assert agent.data is not None
        await whole.until(lambda: agent.data is not None and agent.data.resets == [1])
        assert agent.data.streams == {}
        assert agent.violations == []


async def _tls(whole: WholeServer, below: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
    stream = trio.SSLStream(below, whole.server.client_context(), server_hostname="demo.localhost")
    await stream.do_handshake()
    return stream


async def test_4_a_stream_that_the_agent_never_serves_has_a_deadline(whole: WholeServer) -> None:
    """An agent without a tunnel of that protocol leaves it open and silent."""
    async with http_service() as service, whole.serving(service.port) as agent:
        tunnel = agent.tunnels.pop()
        replies: list[Reply] = []
        link = whole.shell(agent).link
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, whole, "demo", replies)
            await whole.until(lambda: len(link.unanswered) == 1 and agent.data is not None and agent.data.streams)
            whole.call(lambda: link.sweep(whole.pump.now + 301))
        assert replies[0].status == 504
        await whole.until(lambda: agent.data is not None and not agent.data.streams)  # it was reset
        agent.tunnels.append(tunnel)
        assert (await whole.get("demo")).status == 200


# how many


async def test_4_256_unacknowledged_streams_block_nobody_else_least_of_all_heartbeats(whole: WholeServer) -> None:
    async with (
        tcp_service(silent) as slow,
        http_service() as service,
        whole.serving(slow, "slow") as agent,
        whole.serving(service.port, "other") as other,
    ):
        visitors = [await whole.server.connect() for _ in range(300)]
        for visitor in visitors:
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
        link = whole.shell(agent).link
        await whole.until(lambda: agent.local_connections == 256 and link.waiting == 44)
        assert (await whole.get("other")).status == 200
        await agent.ping(5)
        with trio.fail_after(5):
            assert (await agent.wait_heard("pong"))["timestamp"] == 5
        assert await whole.shell(agent).answers(5.0)
        assert agent.most_unacknowledged == 256
        for visitor in visitors:
            await leave(visitor)
        await whole.until(lambda: agent.data is not None and not agent.data.streams and link.waiting == 0)
        agent.tunnels[0].local = ("127.0.0.1", service.port)
        assert (await whole.get("slow")).status == 200
        assert agent.violations == other.violations == []


async def test_4_400_open_streams_and_the_rest_waits_for_a_place(whole: WholeServer) -> None:
    async def begin(stream: trio.SocketStream) -> None:
        await stream.receive_some(4096)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await trio.sleep_forever()

    async with tcp_service(begin) as slow, whole.serving(slow, "slow") as agent:
        visitors = [await whole.server.connect() for _ in range(410)]
        for visitor in visitors:
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: slow.localhost\r\n\r\n")
        link = whole.shell(agent).link
        await whole.until(lambda: agent.local_connections == 400 and link.waiting == 10)
        await agent.ping(5)
        with trio.fail_after(5):
            await agent.wait_heard("pong")
        for visitor in visitors[:20]:
            await leave(visitor)
        await whole.until(lambda: link.waiting == 0)
        assert agent.most_streams == 400
        for visitor in visitors[20:]:
            await leave(visitor)
        await whole.until(lambda: agent.data is not None and not agent.data.streams)
        assert agent.violations == []


# what goes wrong on the data socket


async def test_4_Y13_a_go_away_of_a_stock_agent_for_an_error_is_not_the_end(whole: WholeServer) -> None:
    """It complains so about an unexpected pong and goes on: so do we, with old streams and with new ones."""
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        nursery.start_soon(ask, whole, "http", replies)
        first = (await data.opened()).stream
        await data.say(Y_GO_AWAY, 0, 0, 1)
        link = whole.shell(data.agent).link
        await whole.until(lambda: link.session is not None and link.session.peer_code == 1)
        nursery.start_soon(ask, whole, "http", replies)
        second = (await data.opened()).stream
        for stream in (first, second):
            await data.data(stream, OK, ACK)
        await whole.until(lambda: len(replies) == 2)
        assert link.connected
    assert [reply.body for reply in replies] == [b"hello", b"hello"]


@pytest.mark.parametrize("code", [0, 2])
async def test_4_after_another_go_away_what_is_open_ends_well_and_new_visits_wait_for_the_next_data_socket(
    whole: WholeServer, code: int
) -> None:
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        nursery.start_soon(ask, whole, "http", replies)
        kept = (await data.opened()).stream
        await data.data(kept, OK, ACK)
        await whole.until(lambda: len(replies) == 1)  # the stream is idle, and kept
        visitor = await whole.server.connect()
        client = HttpClient(visitor)

        async def flying() -> None:
            replies.append(await client.request("http.localhost", "/flying"))

        nursery.start_soon(flying)
        await data.next(Y_DATA, lambda frame: b"/flying" in frame.payload)
        await data.say(Y_GO_AWAY, 0, 0, code)
        link = whole.shell(data.agent).link
        await whole.until(lambda: link.session is not None and link.session.goes_away)
        nursery.start_soon(ask, whole, "http", replies, "/new")
        await whole.until(lambda: link.waiting == 1)
        await data.data(kept, OK)
        await whole.until(lambda: len(replies) == 2)
        assert (await data.next(Y_DATA)).flags & FIN  # of no more use: it is not kept
        await data.say(Y_DATA, FIN, kept, 0)
        await data.ended()
        assert not link.connected
        again = RawData(data.agent, await data.agent._open(f"/_data/{data.agent.session_id}"))
        await again.data((await again.opened()).stream, OK, ACK)
        await whole.until(lambda: len(replies) == 3)
        await again.websocket.drop()
        await visitor.aclose()
    assert [reply.status for reply in replies] == [200, 200, 200]


VIOLATIONS = {
    "Y04 version 1": struct.pack(">BBHII", 1, 0, 0, 1, 0),
    "Y05 type 9": struct.pack(">BBHII", 0, 9, 0, 1, 0),
    "Y06 SYN with an odd id": struct.pack(">BBHII", 0, Y_DATA, SYN, 99, 0),
    "Y09 past the window": struct.pack(">BBHII", 0, Y_DATA, ACK, 1, WINDOW + 1),
    "Y10 a length of 4 GiB": struct.pack(">BBHII", 0, Y_DATA, ACK, 1, 0xFFFFFFFF),
    "Y11 credit past 32 bits": struct.pack(">BBHII", 0, Y_WINDOW, ACK, 1, 0xFFFFFFFF) * 2,
    "Y12 SYN on stream 0": struct.pack(">BBHII", 0, Y_DATA, SYN, 0, 0),
    "Y24 everything at once": struct.pack(">BBHII", 0, Y_DATA, SYN | ACK | FIN | RST, 1, 0),
}


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_4_a_violation_costs_its_own_data_socket_and_what_flew_on_it(whole: WholeServer, case: str) -> None:
    async with http_service() as service, whole.serving(service.port, "other") as other:
        replies: list[Reply] = []
        async with raw_data(whole) as data, trio.open_nursery() as nursery:
            nursery.start_soon(ask, whole, "http", replies)
            assert (await data.opened()).stream == 1
            await data.websocket.send(BINARY, VIOLATIONS[case])
            frames, code = await data.ended()
            assert frames[-1] == Frame(Y_GO_AWAY, 0, 0, 1)
            assert code is None
            await whole.until(lambda: replies)
            assert replies[0].status == 502
            assert not data.agent.ended.is_set()
            again = RawData(data.agent, await data.agent._open(f"/_data/{data.agent.session_id}"))
            nursery.start_soon(ask, whole, "http", replies)
            await again.data((await again.opened()).stream, OK, ACK)
            await whole.until(lambda: len(replies) == 2)
            await again.websocket.drop()
        assert replies[1].body == b"hello"
        assert (await whole.get("other")).status == 200
        assert other.violations == []


async def test_4_frames_of_no_stream_cost_nothing(whole: WholeServer) -> None:
    replies: list[Reply] = []
    async with raw_data(whole) as data, trio.open_nursery() as nursery:
        await data.say(Y_DATA, RST, 77, 0)  # Y15
        await data.say(Y_WINDOW, 0, 79, 5)
        await data.data(81, b"for nobody")  # Y08
        assert await data.next(Y_DATA, lambda frame: frame.flags & RST) == Frame(Y_DATA, RST, 81, 0)
        await data.say(Y_PING, ACK, 0, 12345)  # Y17
        await data.say(Y_DATA, SYN, 2, 0)  # Y06: an even id is refused
        assert (await data.next(Y_DATA, lambda frame: frame.flags & RST)).stream == 2
        nursery.start_soon(ask, whole, "http", replies)
        await data.data((await data.opened()).stream, OK, ACK)
    assert replies[0].body == b"hello"


async def test_4_Y29_a_socket_that_dies_within_a_frame_cuts_its_visits(whole: WholeServer) -> None:
    async with raw_data(whole) as data:
        visitor = await whole.server.connect()
        async with visitor:
            await visitor.send_all(b"GET / HTTP/1.1\r\nHost: http.localhost\r\n\r\n")
            stream = (await data.opened()).stream
            await data.data(stream, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", ACK)
            await data.websocket.send(BINARY, struct.pack(">BBHII", 0, Y_DATA, 0, stream, 100) + b"half")
            await data.websocket.drop()
            received = await read_to_end(visitor, 5)
        assert b"hello" in received
        assert not received.endswith(b"0\r\n\r\n")  # never a clean end


async def test_4_websocket_pings_of_the_agent_are_answered(whole: WholeServer) -> None:
    async with raw_data(whole) as data:
        await data.websocket.send(PING, b"are you there")
        with trio.fail_after(5):
            while True:
                op, payload = await data.websocket.receive()
                if op == 10:
                    break
        assert payload == b"are you there"


async def test_4_a_silent_tcp_stream_may_stay_silent(whole: WholeServer) -> None:
    """Nobody has said anything yet: no deadline may end it."""
    async with tcp_service(echo) as port, whole.serving(port, protocol="tcp") as agent:
        public = agent.tunnels[0].assigned_port
        assert public is not None
        async with await trio.open_tcp_stream("127.0.0.1", public) as visitor:
            link = whole.shell(agent).link
            await whole.until(lambda: agent.local_connections == 1)
            whole.call(lambda: link.sweep(whole.pump.now + 3600))
            await visitor.send_all(b"after an hour")
            with trio.fail_after(5):
                assert await visitor.receive_some(100) == b"after an hour"
