"""Rows W01 to W19 on a whole server: what breaks WebSocket on an agent's control or data socket.

On a data socket each violation is told by its close code, and costs that socket only. On a control socket nobody is
ever told by a close frame: TCP is dropped. What the machines do with these bytes is tested in tests/transport.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from rustunnel_py.agents import rustunnel
from rustunnel_py.transport.websocket_trunk import FRAGMENTS_MAX, PINGS_A_SECOND
from tests.support.services import http_service
from tests.support.stock_agent import BINARY, CLOSE, PING, PONG, TEXT, Refused, StockAgent, WebSocket
from tests.support.whole_server import WholeServer, whole_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[WholeServer]:
    async with whole_server(tmp_path) as whole:
        yield whole


def frame(op: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One frame with a mask of zeros, its length in the shortest form."""
    size = len(payload)
    first = fin << 7 | rsv << 4 | op
    if size < 126:
        head = bytes((first, masked << 7 | size))
    elif size < 65536:
        head = struct.pack(">BBH", first, masked << 7 | 126, size)
    else:
        head = struct.pack(">BBQ", first, masked << 7 | 127, size)
    return head + (bytes(4) if masked else b"") + payload


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


PING_BYTES = json.dumps({"type": "ping", "timestamp": 7}).encode()
YAMUX_PING = struct.pack(">BBHII", 0, 2, 1, 0, 7)
YAMUX_PONG = struct.pack(">BBHII", 0, 2, 2, 0, 7)

# Bytes that break the protocol, and the close code that a data socket answers.
VIOLATIONS = {
    "W01 no mask": (frame(BINARY, b"{}", masked=False), 1002),
    "W03 rsv1": (frame(BINARY, b"{}", rsv=4), 1002),
    "W03 rsv2": (frame(BINARY, b"{}", rsv=2), 1002),
    "W03 rsv3": (frame(BINARY, b"{}", rsv=1), 1002),
    **{f"W04 opcode {op}": (frame(op), 1002) for op in (3, 7, 11, 15)},
    "W05 ping of 126 bytes": (frame(PING, bytes(126)), 1002),
    "W05 ping in pieces": (frame(PING, b"x", fin=False), 1002),
    "W06 continuation of nothing": (frame(0, b"x"), 1002),
    "W06 message within a message": (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), 1002),
    "W08 top bit of the length": (b"\x82\xff" + b"\xff" * 8 + bytes(4), 1009),
    "W08 2^63-1": (b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4), 1009),
    "W09 one frame past the limit": (b"\x82\xff" + struct.pack(">Q", (16 << 20) + 1) + bytes(4), 1009),
    "W12 one byte": (frame(CLOSE, b"\3"), 1002),
    **{f"W12 code {code}": (closing(code), 1002) for code in (999, 1004, 1005, 1006, 1015, 5000)},
    "W12 reason not UTF-8": (closing(1000, b"\xff\xfe"), 1007),
    "W12 reason of 124 bytes": (closing(1000, b"x" * 124), 1002),
    "W14 compressed": (frame(BINARY, b"\x4b\x04\x00", rsv=4), 1002),
}


async def code_of(websocket: WebSocket) -> int | None:
    """Read to the end: the code of its close frame, None without one, 1005 with an empty one."""
    with trio.fail_after(10):
        while True:
            try:
                op, payload = await websocket.receive()
            except EOFError:
                return None
            if op == CLOSE:
                return int.from_bytes(payload[:2], "big") if payload else 1005


async def data_socket(agent: StockAgent) -> WebSocket:
    return await agent._open(f"/_data/{agent.session_id}")


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_W_a_violation_on_a_data_socket_is_told_and_costs_that_socket(whole: WholeServer, case: str) -> None:
    raw, code = VIOLATIONS[case]
    async with http_service() as service, whole.agent() as agent:
        await agent.register("http", service.port, subdomain="demo")
        websocket = await data_socket(agent)
        await websocket.stream.send_all(raw + frame(BINARY, b"W13: never looked at"))
        assert await code_of(websocket) == code
        await websocket.drop()
        await agent.serve()
        assert (await whole.get("demo")).status == 200
        assert not agent.ended.is_set()


@pytest.mark.parametrize("case", VIOLATIONS)
async def test_W_a_violation_on_a_control_socket_is_a_drop_without_a_close_frame(whole: WholeServer, case: str) -> None:
    raw, _ = VIOLATIONS[case]
    async with whole.agent() as agent, whole.serving(1, "other") as other:
        await agent.register("http", 1, subdomain="demo")
        assert agent.control is not None
        await agent.control.stream.send_all(raw)
        assert await code_of(agent.control) is None
        await whole.until(lambda: len(whole.sessions) == 1)
        tunnel = whole.tunnel("demo")
        assert tunnel is not None
        assert tunnel.held_until is not None  # no clean end: it is waited for
        assert not other.ended.is_set()


@pytest.mark.parametrize("case", ["W01 no mask", "W04 opcode 3", "W08 2^63-1", "W12 code 999"])
async def test_W_a_violation_before_auth_is_a_drop(whole: WholeServer, case: str) -> None:
    control = await whole.dial("/_control")
    await control.stream.send_all(VIOLATIONS[case][0])
    assert await code_of(control) is None
    await control.drop()
    await whole.until(lambda: not whole.parts._door._strangers)


async def test_W07_pings_between_fragments_and_of_125_bytes_are_echoed(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        data = await data_socket(agent)
        assert (await data.receive())[0] == BINARY  # its first yamux ping
        assert agent.control is not None
        for websocket, message in ((agent.control, PING_BYTES), (data, YAMUX_PING)):
            half = len(message) // 2
            await websocket.stream.send_all(
                frame(BINARY, message[:half], fin=False) + frame(PING, b"p" * 125) + frame(0, message[half:])
            )
            with trio.fail_after(5):
                assert await websocket.receive() == (PONG, b"p" * 125)
                op, answer = await websocket.receive()
            assert op == BINARY
            assert answer == YAMUX_PONG or json.loads(answer) == {"type": "pong", "timestamp": 7}
        await data.drop()


async def test_W07_a_flood_of_pings_on_a_data_socket_is_1008(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        websocket = await data_socket(agent)
        await websocket.stream.send_all(frame(PING, b"x") * (PINGS_A_SECOND * 3))
        assert await code_of(websocket) == 1008
        await websocket.drop()


async def test_W07_a_flood_of_pings_on_a_control_socket_disturbs_nobody(whole: WholeServer) -> None:
    async with http_service() as service, whole.serving(service.port), whole.agent() as agent:
        assert agent.control is not None
        await agent.control.stream.send_all(frame(PING, b"x" * 100) * 2000)
        assert (await whole.get("demo")).status == 200
        pongs = 0
        with trio.fail_after(10):
            while pongs < 2000:
                op, _ = await agent.control.receive()
                pongs += op == PONG


async def test_W08_the_long_form_of_a_short_length_is_taken_or_refused_and_nothing_else(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        data = await data_socket(agent)
        await data.receive()
        await data.stream.send_all(b"\x82\xfe" + struct.pack(">H", 12) + bytes(4) + YAMUX_PING)
        with trio.fail_after(5):
            op, answer = await data.receive()
        assert (op, answer) == (BINARY, YAMUX_PONG) or (op == CLOSE and answer[:2] == b"\x03\xea")
        await data.drop()


@pytest.mark.parametrize("size", [0, 1])
async def test_W09_a_message_in_too_many_fragments_is_1009(whole: WholeServer, size: int) -> None:
    async with whole.agent() as agent:
        websocket = await data_socket(agent)
        piece = frame(0, bytes(size), fin=False)
        try:
            await websocket.stream.send_all(frame(BINARY, fin=False) + piece * (FRAGMENTS_MAX + 100))
        except trio.BrokenResourceError:
            pass
        # One-byte fragments of zeros are yamux first: a header of zeros is data for stream 0.
        assert await code_of(websocket) in ((1009,) if size == 0 else (1009, None))
        await websocket.drop()


async def test_W09_a_control_message_past_the_limit_is_a_drop(whole: WholeServer) -> None:
    for raw in (
        frame(BINARY, bytes(300_000)),
        frame(BINARY, bytes(100_000), fin=False) + frame(0, bytes(100_000), fin=False) * 3,
    ):
        async with whole.agent() as agent:
            assert agent.control is not None
            try:
                await agent.control.stream.send_all(raw)
            except trio.BrokenResourceError:
                pass
            assert await code_of(agent.control) is None


BAD_TEXTS = {
    "invalid": b"\xff",
    "cut": b"\xe2\x82",
    "surrogate": b"\xed\xa0\x80",
    "overlong": b"\xc0\xaf",
    "five bytes": b"\xf8\x88\x80\x80\x80",
}


@pytest.mark.parametrize("case", BAD_TEXTS)
async def test_W10_text_that_is_no_UTF_8(whole: WholeServer, case: str) -> None:
    """Text has no place on either socket; broken text ends the control socket, and any text a data socket."""
    text = frame(TEXT, BAD_TEXTS[case])
    async with whole.agent() as agent:
        data = await data_socket(agent)
        await data.stream.send_all(text)
        assert await code_of(data) in (1003, 1007)
        await data.drop()
        assert agent.control is not None
        await agent.control.stream.send_all(text)
        assert await code_of(agent.control) is None


async def test_W10_valid_text_cut_within_a_letter_is_ignored_as_text(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        assert agent.control is not None
        letter = "\N{EURO SIGN}".encode()
        await agent.control.stream.send_all(frame(TEXT, letter[:1], fin=False) + frame(0, letter[1:]))
        await agent.ping(1)
        assert (await agent._only_answer(("pong",)))["timestamp"] == 1


async def test_W11_text_is_ignored_on_control_and_1003_on_data(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        data = await data_socket(agent)
        await data.send(TEXT, b"hello")
        assert await code_of(data) == 1003
        await data.drop()
        assert agent.control is not None
        await agent.control.send(TEXT, PING_BYTES)
        await agent.ping(2)
        assert (await agent._only_answer(("pong",)))["timestamp"] == 2
        assert whole.shell(agent).ignored == 1


@pytest.mark.parametrize(
    ("raw", "code", "clean"),
    [
        (frame(CLOSE), 1005, True),
        (closing(1000), 1000, True),
        (closing(1001, b"x" * 123), 1001, True),
        (closing(3000), 3000, True),
        (closing(4999, b"bye"), 4999, True),
        (closing(1011), 1011, False),
    ],
    ids=["empty", "1000", "1001", "3000", "4999", "1011"],
)
async def test_W12_a_close_frame_is_echoed_on_data_and_the_clean_end_on_control(
    whole: WholeServer, raw: bytes, code: int, clean: bool
) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        data = await data_socket(agent)
        await data.stream.send_all(raw)
        assert await code_of(data) == code
        await data.drop()
        assert agent.control is not None
        await agent.control.stream.send_all(raw)
        assert await code_of(agent.control) is None
        await whole.until(lambda: len(whole.sessions) == 0)
        assert (whole.tunnel("demo") is None) is clean


async def test_W13_after_its_close_frame_nothing_of_an_agent_counts_and_the_connection_ends(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        await agent.register("http", 1, subdomain="demo")
        assert agent.control is not None
        wish = {
            "type": "register_tunnel",
            "request_id": "9",
            "protocol": "http",
            "subdomain": "late",
            "local_addr": "x",
        }
        await agent.control.stream.send_all(closing(1000) + frame(BINARY, json.dumps(wish).encode()))
        assert await code_of(agent.control) is None  # though the agent holds its own side open
        await whole.until(lambda: len(whole.sessions) == 0)
        assert whole.tunnel("late") is None


@pytest.mark.parametrize(
    "offer",
    ["permessage-deflate", "permessage-deflate; server_max_window_bits=99", "permessage-deflate;;;", "x" * 1000],
)
async def test_W14_no_extension_is_negotiated(whole: WholeServer, offer: str) -> None:
    async with whole.agent() as agent:
        for path in ("/_control", f"/_data/{agent.session_id}"):
            answer = await _upgrade(
                whole, path, f"Sec-WebSocket-Extensions: {offer}\r\nSec-WebSocket-Protocol: chat\r\n"
            )
            assert answer.startswith(b"http/1.1 101 ")
            assert b"extensions" not in answer
            assert b"protocol:" not in answer


@pytest.mark.parametrize(
    ("headers", "status"),
    [("Origin: https://evil.example\r\n", b"403"), ("Origin: null\r\n", b"403"), ("X: y\r\n" * 10_000, b"431")],
    ids=["origin", "null", "10 000 lines"],
)
async def test_W15_web_pages_and_endless_heads_are_refused(whole: WholeServer, headers: str, status: bytes) -> None:
    """More of this row, in raw bytes: tests/agents/test_door.py."""
    async with whole.agent() as agent:
        for path in ("/_control", f"/_data/{agent.session_id}"):
            assert (await _upgrade(whole, path, headers)).startswith(b"http/1.1 " + status)


async def _upgrade(whole: WholeServer, path: str, headers: str) -> bytes:
    stream = await whole.raw_tls()
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    request += "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + headers + "\r\n"
    try:
        await stream.send_all(request.encode())
    except trio.BrokenResourceError:
        pass
    answer = bytes(await stream.receive_some(4096)).lower()
    await trio.aclose_forcefully(stream.transport_stream)
    return answer


async def test_W15_a_refusal_is_no_upgrade(whole: WholeServer) -> None:
    with pytest.raises(Refused) as refused:
        await whole.dial("/_data/x")
    head = refused.value.answer.partition(b"\r\n\r\n")[0].lower()
    assert b"upgrade" not in head
    assert b"content-type: application/json" in head


async def test_W16_silence_frees_its_place_after_the_auth_deadline(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rustunnel, "AUTH_SECONDS", 0.1)
    silent = await whole.dial("/_control")
    dripping = await whole.dial("/_control")
    await dripping.stream.send_all(frame(BINARY, b"{}")[:3])
    assert len(whole.parts._door._strangers) == 2
    for control in (silent, dripping):
        assert await code_of(control) is None
        await control.drop()
    await whole.until(lambda: not whole.parts._door._strangers)


async def test_W17_one_frame_in_many_segments_and_many_frames_in_one_are_the_same(whole: WholeServer) -> None:
    async with whole.agent() as agent:
        assert agent.control is not None
        for byte in frame(BINARY, PING_BYTES.ljust(300)):
            await agent.control.stream.send_all(bytes((byte,)))
        assert (await agent._only_answer(("pong",)))["timestamp"] == 7
        await agent.control.stream.send_all(frame(BINARY, PING_BYTES) * 300)
        for _ in range(300):
            assert (await agent._only_answer(("pong",)))["timestamp"] == 7
        data = await data_socket(agent)
        await data.receive()
        for byte in frame(BINARY, YAMUX_PING):
            await data.stream.send_all(bytes((byte,)))
        assert await data.receive() == (BINARY, YAMUX_PONG)
        await data.stream.send_all(
            frame(BINARY, YAMUX_PING[:5]) * 0 + b"".join(frame(BINARY, bytes((b,))) for b in YAMUX_PING)
        )
        assert await data.receive() == (BINARY, YAMUX_PONG)
        await data.drop()


async def test_W18_an_agent_that_does_not_read_its_control_socket_is_given_up_and_nobody_else_notices(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rustunnel, "OUTBOX_MAX", 50)
    monkeypatch.setattr(rustunnel, "SEND_SECONDS", 0.5)
    async with http_service() as service, whole.serving(service.port, "other") as other, whole.agent() as agent:
        assert agent.control is not None
        shell = whole.shell(agent)
        with trio.fail_after(20):
            try:
                while not shell._over.is_set():
                    await agent.control.stream.send_all(frame(BINARY, PING_BYTES) * 100)  # answers nobody reads
            except trio.BrokenResourceError:
                pass
            await shell._over.wait()
        assert (await whole.get("other")).status == 200
        assert not other.ended.is_set()


async def test_W19_a_peer_that_is_silently_gone_is_noticed_and_its_visits_end(
    whole: WholeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times of a stock agent: control 30 + 10 s, data 20 + 10 s; here the clocks are hurried."""
    monkeypatch.setattr(rustunnel, "PING_SECONDS", 0.1)
    monkeypatch.setattr(rustunnel, "PONG_SECONDS", 0.1)
    async with http_service() as service, whole.serving(service.port) as agent:
        agent.freeze()
        visitor = await whole.server.connect()
        await visitor.send_all(b"GET / HTTP/1.1\r\nHost: demo.localhost\r\n\r\n")
        with trio.fail_after(10):
            answer = await visitor.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 502 ")
        tunnel = whole.tunnel("demo")
        assert tunnel is not None
        assert tunnel.held_until is not None
        await visitor.aclose()
        agent.thaw()
