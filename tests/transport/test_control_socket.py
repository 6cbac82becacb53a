"""The control socket: trio-websocket over a connection, and never a close frame to a stock agent."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from rustunnel_py.transport.control_socket import (
    CONTROL_BURST,
    CONTROL_BYTES_A_SECOND,
    CONTROL_MESSAGE_MAX,
    ControlEnded,
    ControlSocket,
    UpgradeRefused,
    open_control,
    serve_control,
)
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.wire.http1 import websocket_accept
from tests.support.pairs import do, pair, spin
from tests.support.poison import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rustunnel_py.transport.tcp import SocketConnection

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
REQUEST = (
    b"GET /_control HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + KEY + b"\r\n\r\n"
)


def frame(opcode: int, payload: bytes = b"") -> bytes:
    assert len(payload) < 126
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


class Agent:
    """A stock agent's end: raw frames in, raw bytes out."""

    def __init__(self, connection: SocketConnection) -> None:
        self.connection = connection
        self.ear = Recorder()
        self.ear.pipe = connection
        connection.sink = self.ear

    def says(self, *frames: bytes) -> None:
        do(self.connection.pump, self.connection, lambda: self.connection.send(b"".join(frames)))

    async def upgraded(self) -> None:
        await self.ear.wait(lambda: b"\r\n\r\n" in self.ear.received)
        head, _, rest = bytes(self.ear.received).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert websocket_accept(KEY) in head
        self.ear.received[:] = rest


@asynccontextmanager
async def served(
    pump_kind: Kind, kind: str = "tcp", came: bytes = REQUEST
) -> AsyncIterator[tuple[Agent, ControlSocket]]:
    """`came`: all that was read when the request's head was whole."""
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        agent = Agent(one)
        stream = ConnectionStream(other, came)
        other._uncredited += len(came)
        async with serve_control(stream) as control:
            await agent.upgraded()
            yield agent, control
        await spin(lambda: other.is_gone)
        assert pump.crashes == 0


async def receive_end(control: ControlSocket) -> ControlEnded:
    with pytest.raises(ControlEnded) as caught:
        while True:
            await control.receive()
    return caught.value


@both_pumps
@both_kinds
async def test_messages_both_ways_and_text_is_ignored(pump_kind: Kind, kind: str) -> None:
    async with served(pump_kind, kind) as (agent, control):
        agent.says(frame(2, b"one"), frame(1, b"W11 text"), frame(9, b"ping"), frame(2, b"two"))
        assert await control.receive() == b"one"
        assert await control.receive() is None
        assert await control.receive() == b"two"
        assert control.ignored == 1
        await control.send(b"answer")
        await agent.ear.wait(lambda: agent.ear.received.endswith(b"answer"))
        assert agent.ear.received == b"\x8a\x04ping\x82\x06answer"


@both_pumps
@pytest.mark.parametrize("padding", [0, 4096 - len(REQUEST) - 10, 6000], ids=["whole", "cut", "behind"])
async def test_frames_that_came_with_the_upgrade_request_are_read(pump_kind: Kind, padding: int) -> None:
    """W15: a client that knows the answer need not wait for it. The head may end anywhere in what is read at once."""
    request = REQUEST[:-2] + b"X-Padding: " + b"p" * padding + b"\r\n\r\n" if padding else REQUEST
    came = request + frame(2, b"one") + frame(2, b"two") + frame(2, b"three")[:4]
    with trio.fail_after(5):
        async with served(pump_kind, came=came) as (agent, control):
            assert await control.receive() == b"one"
            assert await control.receive() == b"two"
            agent.says(frame(2, b"three")[4:], frame(2, b"four"))
            assert await control.receive() == b"three"
            assert await control.receive() == b"four"


@both_pumps
async def test_frames_that_came_with_the_upgrades_answer_are_read(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump, trio.open_nursery() as nursery:
        one, other = pair("tcp", pump)
        server = Agent(other)

        async def answer() -> None:
            await server.ear.wait(lambda: b"\r\n\r\n" in server.ear.received)
            key = bytes(server.ear.received).partition(b"Sec-WebSocket-Key: ")[2].partition(b"\r\n")[0]
            head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            server.says(head + b"Sec-WebSocket-Accept: " + websocket_accept(key) + b"\r\n\r\n\x82\x03one")

        nursery.start_soon(answer)
        async with open_control(ConnectionStream(one), "localhost", "/_control") as control:
            assert await control.receive() == b"one"
            control.drop()


@both_pumps
async def test_an_end_right_behind_the_upgrade_request_is_heard(pump_kind: Kind) -> None:
    with trio.fail_after(5):
        async with served(pump_kind, came=REQUEST + frame(2, b"one") + frame(8)) as (_, control):
            assert await control.receive() == b"one"
            assert (await receive_end(control)).clean


@both_pumps
@both_kinds
async def test_leaving_drops_the_connection_without_a_close_frame(pump_kind: Kind, kind: str) -> None:
    async with served(pump_kind, kind) as (agent, control):
        await control.send(b"last")
    assert b"".join([bytes(agent.ear.received)]).endswith(b"\x82\x04last") or agent.ear.received == b""


@both_pumps
async def test_drop_flushes_and_sends_no_close_frame(pump_kind: Kind) -> None:
    async with served(pump_kind) as (agent, control):
        await control.send(b"last words")
        control.drop()
        await agent.ear.wait_heard("eof")
        assert agent.ear.received == b"\x82\x0alast words"
        assert not (await receive_end(control)).clean
        with pytest.raises(ControlEnded):
            await control.send(b"too late")


@both_pumps
@pytest.mark.parametrize(
    ("how", "clean"),
    [
        (frame(8), True),
        (frame(8, b"\x03\xe8bye"), True),
        (frame(8, b"\x03\xe9"), True),
        (frame(8, b"\x03\xea"), False),
        (frame(2, b"x")[:3], False),
        (b"\x82\x01x", False),  # W01
        (frame(3), False),  # W04
        (frame(1, b"\xff\xfe"), False),  # W10
    ],
    ids=["no code", "1000", "1001", "1002", "cut", "W01", "W04", "W10"],
)
async def test_clean_is_a_close_frame_and_nothing_else(pump_kind: Kind, how: bytes, clean: bool) -> None:
    async with served(pump_kind) as (agent, control):
        agent.says(how)
        do(agent.connection.pump, agent.connection, agent.connection.send_eof)
        assert (await receive_end(control)).clean is clean
        control.drop()
        await agent.ear.wait(lambda: "eof" in agent.ear.heard or "lost" in agent.ear.heard)
        assert b"\x88" not in agent.ear.received


@both_pumps
async def test_a_reset_is_unclean(pump_kind: Kind) -> None:
    async with served(pump_kind) as (agent, control):
        do(agent.connection.pump, agent.connection, agent.connection.reset)
        assert not (await receive_end(control)).clean


@both_pumps
async def test_W09_a_message_past_the_limit_drops_without_a_close_frame(pump_kind: Kind) -> None:
    async with served(pump_kind) as (agent, control):
        piece = b"\x02\xfe\x40\x00" + bytes(4) + bytes(0x4000)
        more = b"\x00" + piece[1:]
        agent.says(piece, more * (CONTROL_MESSAGE_MAX // 0x4000 + 1))
        assert not (await receive_end(control)).clean
        await agent.ear.wait(lambda: "eof" in agent.ear.heard or "lost" in agent.ear.heard)
        assert agent.ear.received == b""


@both_pumps
async def test_close_frames_are_for_those_who_understand_them(pump_kind: Kind) -> None:
    async with served(pump_kind) as (agent, control):
        control.close_frames = True
        with trio.move_on_after(0.05):
            await control.close(1001, "going away")
        await agent.ear.wait(lambda: b"going away" in agent.ear.received)
        assert agent.ear.received.startswith(b"\x88\x0c\x03\xe9")


@both_pumps
@both_kinds
async def test_client_and_server_meet(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump, trio.open_nursery() as nursery:
        one, other = pair(kind, pump)
        client_stream = ConnectionStream(one)
        server_stream = ConnectionStream(other)

        async def serve() -> None:
            async with serve_control(server_stream, headers=((b"X-Region", b"eu"),)) as control:
                with pytest.raises(ControlEnded) as caught:
                    while True:
                        message = await control.receive()
                        assert message is not None
                        await control.send(message + b"!")
                assert caught.value.clean
                assert caught.value.code == 1000

        nursery.start_soon(serve)
        async with open_control(client_stream, "localhost:4040", "/_control") as control:
            await control.send(b"hello")
            assert await control.receive() == b"hello!"
            with trio.move_on_after(5):
                await control.close()


@both_pumps
async def test_a_refused_upgrade_says_its_status(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        for answer, status in (
            (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nnope", 401),
            (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", 503),
            (b"SSH-2.0-OpenSSH\r\n\r\n", 0),
        ):
            one, other = pair("tcp", pump)
            Agent(other).says(answer)
            with pytest.raises(UpgradeRefused) as caught:
                async with open_control(ConnectionStream(one), "localhost", "/_control"):
                    raise AssertionError("it was refused")
            assert caught.value.status == status
        one, other = pair("tcp", pump)
        do(pump, other, other.close)
        with pytest.raises(ControlEnded):
            async with open_control(ConnectionStream(one), "localhost", "/_control"):
                raise AssertionError("it was closed")


@both_pumps
async def test_the_bodys_exception_leaves_as_it_is(pump_kind: Kind) -> None:
    with pytest.raises(KeyError):
        async with served(pump_kind):
            raise KeyError("mine")


async def test_a_flood_is_slowed_down(mock_clock: trio.testing.MockClock) -> None:
    """What comes past the burst waits for the clock; less than that does not."""
    async with served("epoll") as (agent, control):
        message = frame(2, bytes(125))
        count = 2 * CONTROL_BURST // len(message)
        agent.says(message * count)
        got = 0

        async def receive() -> None:
            nonlocal got
            while True:
                await control.receive()
                got += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            before = -1
            while got != before:
                before = got
                for _ in range(2000):
                    await trio.lowlevel.checkpoint()
            assert 0.9 * count / 2 < got < 1.1 * count / 2 + 100
            while got < count:
                mock_clock.jump(4096 / CONTROL_BYTES_A_SECOND)
                for _ in range(100):
                    await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
