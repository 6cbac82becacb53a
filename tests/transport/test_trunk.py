"""Trunks: a mux's bytes on a connection, raw and in WebSocket messages. Rows W01-W14, W17, W19, Y23."""

from __future__ import annotations

import itertools
import os
import struct
from typing import TYPE_CHECKING, Literal

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import Expired, Reset
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.tcp import HIGH_WATER, READ_AHEAD
from rustunnel_py.transport.trunk import SocketTrunk
from rustunnel_py.transport.websocket_trunk import FRAGMENTS_MAX, MESSAGE_MAX, PINGS_A_SECOND, WebSocketTrunk
from tests.support.pairs import do, pair, spin, tcp_pair
from tests.support.poison import Poisoned, Recorder

if TYPE_CHECKING:
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import SocketConnection

Kind = Literal["epoll", "portable", "instrument"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable", "instrument"])
both_kinds = pytest.mark.parametrize("kind", ["tcp", "tls"])
PATTERN = bytes(range(256)) * 4096


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A client's frame (RFC 6455 §5.2)."""
    first = bytes((0x80 * fin | rsv << 4 | opcode,))
    mask = 0x80 * masked
    size = len(payload)
    if size < 126:
        head = first + bytes((mask | size,))
    elif size < 0x10000:
        head = first + bytes((mask | 126,)) + struct.pack(">H", size)
    else:
        head = first + bytes((mask | 127,)) + struct.pack(">Q", size)
    if not masked:
        return head + payload
    key = b"\x11\x22\x33\x44"
    return head + key + bytes(byte ^ key[at % 4] for at, byte in enumerate(payload))


def messages(raw: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of unmasked whole frames."""
    found = []
    while raw:
        size, at = raw[1] & 0x7F, 2
        if size == 126:
            size, at = struct.unpack(">H", raw[2:4])[0], 4
        elif size == 127:
            size, at = struct.unpack(">Q", raw[2:10])[0], 10
        found.append((raw[0] & 15, raw[at : at + size]))
        raw = raw[at + size :]
    return found


class Server:
    """A WebSocketTrunk on the server's side, its mux (a recorder) and the raw agent's connection."""

    def __init__(self, pump: Pump, early: bytes = b"") -> None:
        self.pump = pump
        self.agent, connection = tcp_pair(pump)
        self.connection: SocketConnection = connection
        self.agent_ear = Recorder()
        self.agent_ear.pipe = self.agent
        self.agent.sink = self.agent_ear
        self.trunk = WebSocketTrunk(pump, connection, early, server_side=True)
        self.mux = Recorder()
        self.mux.pipe = self.trunk
        self.trunk.sink = Poisoned(self.mux)

    def says(self, *frames: bytes) -> None:
        do(self.pump, self.agent, lambda: self.agent.send(b"".join(frames)))

    async def closed_with(self) -> int:
        """The code of the close frame that the agent gets before the end."""
        await self.agent_ear.wait_heard("eof")
        opcode, payload = messages(bytes(self.agent_ear.received))[-1]
        assert opcode == 8
        return int(struct.unpack(">H", payload[:2])[0]) if payload else 1005


@both_pumps
@both_kinds
async def test_raw_bytes_both_ways_with_what_was_read_before(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        ear = Recorder()
        one.sink, ear.pipe = ear, one
        trunk = SocketTrunk(pump, other, b"early ")
        other._uncredited += 6
        mux = Recorder()
        mux.pipe, trunk.sink = trunk, mux
        do(pump, one, lambda: one.send(b"and late"))
        assert await mux.wait_received(14) == b"early and late"
        assert trunk.received == 14
        assert other._uncredited == 0
        do(pump, other, lambda: trunk.send(PATTERN))
        assert await ear.wait_received(len(PATTERN)) == PATTERN
        assert trunk.sent == len(PATTERN)
        do(pump, other, trunk.close)
        await ear.wait_heard("eof")
        assert mux.heard == ["data"]


@both_pumps
async def test_W19_silence_on_raw_bytes_is_noticed_within_15_s(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = tcp_pair(pump)
        ear = Recorder()
        one.sink, ear.pipe = ear, one
        trunk = SocketTrunk(pump, other)
        mux = Recorder()
        trunk.sink = mux
        pings: list[int] = []
        start = pump.now
        trunk.keep_alive(pings.append)
        for second in range(1, 11):
            trunk.sweep(start + second)
        assert pings == [1]
        do(pump, one, lambda: one.send(b"anything"))
        await mux.wait_received(8)
        for second in range(11, 21):
            trunk.sweep(start + second)
        assert pings == [1, 2]
        for second in range(21, 25):
            trunk.sweep(start + second)
        assert mux.heard == ["data"]
        trunk.sweep(start + 25)
        assert isinstance(mux.errors[0], Expired)
        await ear.wait_heard("lost")


@both_pumps
async def test_W19_websocket_pings_every_20_s_with_10_s_to_answer(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        server = Server(pump)
        start = pump.now

        def unused(value: int) -> None:
            raise AssertionError("the WebSocket has its own ping")

        server.trunk.keep_alive(unused)
        for second in range(1, 21):
            server.trunk.sweep(start + second)
        await server.agent_ear.wait_received(6)
        assert messages(bytes(server.agent_ear.received)) == [(9, struct.pack(">I", 1))]
        server.says(frame(10, struct.pack(">I", 1)))
        await spin(lambda: server.trunk._heard)
        for second in range(21, 41):
            server.trunk.sweep(start + second)
        server.trunk.sweep(start + 49)
        assert server.mux.heard == []
        server.trunk.sweep(start + 50)
        assert isinstance(server.mux.errors[0], Expired)
        assert pump.crashes == 0


@both_pumps
@both_kinds
async def test_two_websocket_trunks_carry_bytes_both_ways(pump_kind: Kind, kind: str) -> None:
    async with open_pump(pump_kind) as pump:
        one, other = pair(kind, pump)
        client = WebSocketTrunk(pump, one, server_side=False)
        server = WebSocketTrunk(pump, other, server_side=True)
        client_mux, server_mux = Recorder(), Recorder()
        client_mux.pipe, server_mux.pipe = client, server
        client.sink, server.sink = Poisoned(client_mux), Poisoned(server_mux)
        sent = PATTERN * 4

        def send_in_odd_pieces(trunk: WebSocketTrunk) -> None:
            at = 0
            for size in itertools.cycle((12, 16384, 1, 12, 70_000)):
                if at >= len(sent):
                    break
                trunk.send(sent[at : at + size])
                at += size

        do(pump, one, lambda: send_in_odd_pieces(client))
        do(pump, other, lambda: send_in_odd_pieces(server))
        assert await server_mux.wait_received(len(sent)) == sent
        assert await client_mux.wait_received(len(sent)) == sent
        await spin(lambda: one._uncredited == 0 and other._uncredited == 0)
        assert client.sent == server.received == len(sent)
        do(pump, one, lambda: client.close(1000))
        await server_mux.wait_heard("lost")
        assert "1000" in str(server_mux.errors[0])


@both_pumps
async def test_outgoing_bytes_of_a_pass_are_one_message_of_at_most_256_KiB(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        server = Server(pump)

        def send_small() -> None:
            for _ in range(100):
                server.trunk.send(b"0123456789")

        do(pump, server.connection, send_small)
        await server.agent_ear.wait_received(1004)
        assert messages(bytes(server.agent_ear.received)) == [(2, b"0123456789" * 100)]
        server.agent_ear.received.clear()
        do(pump, server.connection, lambda: server.trunk.send(PATTERN), lambda: server.trunk.send(b"end"))
        await server.agent_ear.wait(lambda: server.agent_ear.received.endswith(b"end"))
        found = messages(bytes(server.agent_ear.received))
        assert b"".join(payload for _, payload in found) == PATTERN + b"end"
        assert max(len(payload) for _, payload in found) <= MESSAGE_MAX


@both_pumps
async def test_back_pressure_reaches_the_mux_and_room_comes(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        server = Server(pump)
        server.agent_ear.credits = False
        answers: list[bool] = []

        def fill() -> None:
            while not answers or answers[-1]:
                answers.append(server.trunk.send(bytes(64 * 1024)))

        do(pump, server.connection, fill)
        while "room" in server.mux.heard or not server.connection._blocked:
            server.mux.heard.clear()
            answers.clear()
            do(pump, server.connection, fill)
            for _ in range(30):
                await trio.lowlevel.checkpoint()
        assert answers[-1] is False
        assert len(server.connection._out) + len(server.trunk._pending) < 2 * HIGH_WATER
        server.agent_ear.credits = True
        do(pump, server.agent, lambda: server.agent.credit(len(server.agent_ear.received)))
        await server.mux.wait_heard("room")


@both_pumps
async def test_credit_withheld_by_the_mux_stops_reading_but_frames_in_the_making_do_not(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        server = Server(pump)
        # One frame larger than the connection's read-ahead must come through.
        big = os.urandom(3 * READ_AHEAD)
        whole = b"\x82\xff" + struct.pack(">Q", len(big)) + bytes(4) + big
        server.says(whole)
        assert await server.mux.wait_received(len(big)) == big
        server.mux.credits = False
        for _ in range(8):
            server.says(frame(2, bytes(READ_AHEAD // 4)))
        await spin(lambda: server.connection._paused)
        received = len(server.mux.received)
        server.mux.credits = True
        do(pump, server.connection, lambda: server.trunk.credit(received - len(big)))
        await server.mux.wait_received(len(big) + 2 * READ_AHEAD)


async def test_Y23_W17_boundaries_and_segments_mean_nothing() -> None:
    async with open_pump() as pump:
        server = Server(pump, early=frame(2, b"ear")[:3])
        server.connection._uncredited += 3
        raw = (
            frame(2, b"ear")[3:]
            + frame(2, b"ly", fin=False)
            + frame(9, b"?")
            + frame(0, b"", fin=False)
            + frame(0, b"!")
        )
        for index in range(len(raw)):
            server.agent.push(raw[index : index + 1])
            await trio.lowlevel.checkpoint()
        assert await server.mux.wait_received(6) == b"early!"
        server.says(*(frame(2, bytes((n % 256,))) for n in range(10_000)))
        await server.mux.wait_received(10_006)
        assert server.mux.received[6:] == bytes(n % 256 for n in range(10_000))
        await server.agent_ear.wait_received(3)
        assert messages(bytes(server.agent_ear.received)) == [(10, b"?")]
        await spin(lambda: server.connection._uncredited == 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_any_messages_in_any_segments_are_one_stream(payloads: list[bytes], cuts: list[int]) -> None:
    async def run() -> None:
        async with open_pump() as pump:
            server = Server(pump)
            raw = b"".join(frame(2, payload) for payload in payloads)
            at = 0
            for cut in itertools.cycle(cuts):
                if at >= len(raw):
                    break
                server.agent.push(raw[at : at + cut])
                at += cut
                await trio.lowlevel.checkpoint()
            whole = b"".join(payloads)
            assert await server.mux.wait_received(len(whole)) == whole

    trio.run(run)


VIOLATIONS = {
    "W01 no mask": ([frame(2, b"x", masked=False)], 1002),
    "W03 reserved bits": ([frame(2, b"x", rsv=4)], 1002),
    "W04 opcode 3": ([frame(3)], 1002),
    "W04 opcode 11": ([frame(11)], 1002),
    "W05 long ping": ([frame(9, bytes(126))], 1002),
    "W05 ping in pieces": ([frame(9, b"x", fin=False)], 1002),
    "W06 continuation of nothing": ([frame(0, b"x")], 1002),
    "W06 message within a message": ([frame(2, b"x", fin=False), frame(2, b"y")], 1002),
    "W07 ping flood": ([frame(9)] * (PINGS_A_SECOND + 1), 1008),
    "W08 top bit of the length": ([b"\x82\xff" + b"\xff" * 8 + bytes(4)], 1009),
    "W08 2^63-1": ([b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4)], 1009),
    "W09 past the frame limit": ([b"\x82\xff" + struct.pack(">Q", 16 * 1024 * 1024 + 1) + bytes(4)], 1009),
    "W09 empty fragments": ([frame(2, fin=False), frame(0, fin=False) * (3 * FRAGMENTS_MAX)], 1009),
    "W11 text": ([frame(1, b"hello")], 1003),
    "W12 close without code": ([frame(8)], 1005),
    "W12 one byte": ([frame(8, b"\3")], 1002),
    "W12 code 999": ([frame(8, b"\3\xe7")], 1002),
    "W12 code 1005": ([frame(8, b"\3\xed")], 1002),
    "W12 code 1015": ([frame(8, b"\3\xf7")], 1002),
    "W12 code 5000": ([frame(8, b"\x13\x88")], 1002),
    "W12 reason not UTF-8": ([frame(8, b"\3\xe8\xff\xfe")], 1007),
    "W12 normal": ([frame(8, b"\3\xe8bye")], 1000),
    "W14 compressed": ([frame(2, b"\x4b\x04\x00", rsv=4)], 1002),
}


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_W_violations_get_their_code_and_end_the_trunk(case: str) -> None:
    async with open_pump() as pump:
        server = Server(pump)
        frames, code = VIOLATIONS[case]
        server.says(frame(2, b"good"), *frames, frame(2, b"never seen"))  # W13: data after it is ignored
        assert await server.closed_with() == code
        await server.mux.wait_heard("lost")
        assert isinstance(server.mux.errors[0], Reset)
        assert bytes(server.mux.received) in (b"good", b"goodx")
        assert pump.crashes == 0


async def test_W02_a_masked_frame_of_the_server_ends_the_clients_trunk() -> None:
    async with open_pump() as pump:
        one, other = tcp_pair(pump)
        ear = Recorder()
        one.sink, ear.pipe = ear, one
        trunk = WebSocketTrunk(pump, other, server_side=False)
        mux = Recorder()
        trunk.sink = mux
        do(pump, one, lambda: one.send(frame(2, b"x")))
        await mux.wait_heard("lost")
        assert "masking" in str(mux.errors[0])


async def test_W13_a_close_that_is_not_answered_ends_by_the_timer() -> None:
    async with open_pump() as pump:
        server = Server(pump)
        gone: list[object] = []
        server.connection.gone = gone.append
        do(pump, server.connection, lambda: server.trunk.close(1001))
        assert await server.closed_with() == 1001
        assert not gone
        pump.sweep(trio.current_time() + 3)
        await spin(lambda: bool(gone))


async def test_a_drop_sends_no_close_frame_but_what_was_written() -> None:
    async with open_pump() as pump:
        server = Server(pump)
        do(pump, server.connection, lambda: server.trunk.send(b"go away"), server.trunk.close)
        await server.agent_ear.wait_heard("eof")
        assert messages(bytes(server.agent_ear.received)) == [(2, b"go away")]


async def test_the_end_of_the_connection_is_the_end_of_the_trunk() -> None:
    async with open_pump() as pump:
        for end in ("send_eof", "reset"):
            server = Server(pump)
            do(pump, server.agent, getattr(server.agent, end))
            await server.mux.wait_heard("lost")
            assert isinstance(server.mux.errors[0], Reset)


async def test_a_crash_in_a_deferred_call_of_the_mux_ends_the_trunk_only() -> None:
    async with open_pump() as pump:
        server, bystander = Server(pump), Server(pump)

        def crash() -> None:
            raise ZeroDivisionError

        pump.later(server.trunk, crash)
        await server.mux.wait_heard("lost")
        await server.agent_ear.wait_heard("lost")
        assert pump.crashes == 1
        bystander.says(frame(2, b"fine"))
        await bystander.mux.wait_received(4)
