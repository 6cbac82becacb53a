"""WebSocket end to end: the local service's own 101, early bytes, half-close, and everything that is no upgrade."""

from __future__ import annotations

import math

import pytest

from rustunnel_py.wire.http1 import websocket_accept
from tests.support.fake_link import OK, FakePipe
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import Rig, get, status_of

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
LINES = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
HANDSHAKE = get("/chat", *LINES, "Sec-WebSocket-Protocol: a, b", "Cookie: c=d")
ACCEPT = websocket_accept(KEY.encode())
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\nSec-WebSocket-Protocol: b\r\nSet-Cookie: e=f\r\n\r\n"
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def upgraded(rig: Rig, connection: FedConnection | None = None) -> tuple[FedConnection, FakePipe]:
    connection = rig.send(HANDSHAKE, connection)
    rig.exchange.reply(SWITCH)
    pipe = rig.exchange.pipe
    assert pipe is not None
    return connection, pipe


def test_W20_the_handshake_travels_and_its_own_101_comes_back(rig: Rig) -> None:
    connection, pipe = upgraded(rig)
    sent = rig.link.canonical[0]
    for line in (*LINES, "Sec-WebSocket-Protocol: a, b", "Cookie: c=d"):
        assert line.encode() + b"\r\n" in sent
    answer = connection.take()
    assert status_of(answer) == 101
    for wanted in (b"Sec-WebSocket-Accept: " + ACCEPT, b"Sec-WebSocket-Protocol: b", b"Set-Cookie: e=f"):
        assert wanted in answer
    connection.feed(b"to the service")
    pipe.feed(b"to the visitor")
    assert pipe.sent == b"to the service"
    assert connection.take() == b"to the visitor"
    assert (connection.uncredited, pipe.uncredited) == (0, 0)
    rig.assert_clean()


def test_W21_no_deadline_of_http_is_left(rig: Rig) -> None:
    connection, _ = upgraded(rig)
    assert connection.due == math.inf


def test_W22_a_slow_side_stops_the_other(rig: Rig) -> None:
    rig.link.room = 100
    connection = rig.connect(FedConnection(high_water=1000, low_water=10))
    connection, pipe = upgraded(rig, connection)
    connection.take()
    connection.feed(b"x" * 500)
    assert connection.uncredited == 500
    pipe.give_room()
    assert connection.uncredited == 0
    pipe.feed(b"y" * 2000)
    assert pipe.uncredited == 2000
    assert connection.take() == b"y" * 2000
    assert pipe.uncredited == 0


def test_half_close_passes_both_ways_and_the_visit_ends_with_the_second(rig: Rig) -> None:
    connection, pipe = upgraded(rig)
    connection.feed(b"bye")
    connection.feed_eof()
    assert pipe.eof_sent
    pipe.feed(b"and bye")
    assert rig.told == []
    pipe.feed_eof()
    assert connection.eof_sent
    assert connection.written.endswith(b"and bye")
    assert [status for _, _, status, *_ in rig.told] == [101]


def test_a_reset_passes_both_ways(rig: Rig) -> None:
    connection, pipe = upgraded(rig)
    connection.lose()
    assert pipe.was_reset
    connection, pipe = upgraded(rig)
    pipe.lose()
    assert connection.end == "abort"
    assert [status for _, _, status, *_ in rig.told] == [101, 101]


@pytest.mark.parametrize("split", [0, 1, 5])
def test_H56_early_bytes_are_held_and_delivered_after_the_101(rig: Rig, split: int) -> None:
    connection = rig.connect()
    connection.feed(HANDSHAKE + b"early"[:split])
    connection.feed(b"early"[split:])
    assert connection.uncredited == 5
    rig.exchange.reply(SWITCH)
    assert rig.exchange.pipe is not None
    assert rig.exchange.pipe.sent == b"early"
    assert connection.uncredited == 0


def test_H56_early_bytes_stop_at_the_read_ahead(rig: Rig) -> None:
    connection = rig.connect(FedConnection(read_ahead=1000))
    connection.feed(HANDSHAKE)
    connection.feed(b"x" * 10_000, step=100)
    assert connection.uncredited == 1000
    rig.exchange.reply(SWITCH)
    connection.deliver()
    assert rig.exchange.pipe is not None
    assert rig.exchange.pipe.sent == b"x" * 10_000


def test_what_follows_the_101_of_the_local_service_comes_behind_it(rig: Rig) -> None:
    connection = rig.send(HANDSHAKE)
    rig.exchange.reply(SWITCH + b"first frame")
    assert connection.take().endswith(b"\r\n\r\nfirst frame")


def test_an_end_before_the_101_is_passed_on(rig: Rig) -> None:
    connection = rig.send(HANDSHAKE + b"early")
    connection.feed_eof()
    rig.exchange.reply(SWITCH)
    assert rig.exchange.pipe is not None
    assert rig.exchange.pipe.sent == b"early"
    assert rig.exchange.pipe.eof_sent


@pytest.mark.parametrize("status", [b"200 OK", b"426 Upgrade Required", b"500 Oops"])
def test_H54_anything_but_a_101_is_an_ordinary_reply(rig: Rig, status: bytes) -> None:
    connection = rig.send(HANDSHAKE)
    rig.exchange.reply(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno")
    assert connection.take() == b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\nno"
    assert not connection.is_over
    rig.link.answer = OK
    assert rig.send(get("/next"), connection).take() == OK


def test_H54_early_bytes_of_a_refused_handshake_are_never_taken_for_a_request(rig: Rig) -> None:
    connection = rig.send(HANDSHAKE + get("/smuggled"))
    rig.exchange.reply(OK)
    assert b"\r\nConnection: close\r\n" in connection.take()
    assert connection.end == "linger"
    assert len(rig.link.exchanges) == 1


@pytest.mark.parametrize(
    "lines",
    [
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n",
    ],
)
def test_H55_a_101_that_does_not_fit_is_502(rig: Rig, lines: bytes) -> None:
    connection = rig.send(HANDSHAKE)
    rig.exchange.reply(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n")
    assert status_of(connection.take()) == 502
    assert rig.exchange.pipe is not None
    assert rig.exchange.pipe.was_reset


def test_H53_another_version_is_426_with_ours(rig: Rig) -> None:
    answer = rig.send(HANDSHAKE.replace(b"Version: 13", b"Version: 99")).take()
    assert status_of(answer) == 426
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer
    assert rig.link.exchanges == []


@pytest.mark.parametrize(
    "raw",
    [
        HANDSHAKE.replace(KEY.encode(), b"short"),
        HANDSHAKE.replace(b"Connection: Upgrade\r\n", b""),
        HANDSHAKE.replace(b"GET", b"POST"),
        HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0"),
        HANDSHAKE.replace(b"Cookie: c=d", b"Content-Length: 2") + b"xx",
    ],
)
def test_H53_H56_a_malformed_handshake_is_refused(rig: Rig, raw: bytes) -> None:
    assert status_of(rig.send(raw).take()) == 400
    assert rig.link.exchanges == []


@pytest.mark.parametrize("upgrade", ["h2c", "foo/1"])
def test_H52_H57_other_upgrades_are_served_as_plain_requests(rig: Rig, upgrade: str) -> None:
    rig.link.answer = OK
    lines = (f"Upgrade: {upgrade}", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    assert rig.send(get("/", *lines)).take() == OK
    assert b"pgrade" not in rig.link.canonical[0]
    assert b"HTTP2" not in rig.link.canonical[0]


def test_the_time_to_answer_a_handshake_is_bounded(rig: Rig) -> None:
    connection = rig.send(HANDSHAKE)
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 504


def test_P03_the_end_of_the_server_cuts_a_websocket(rig: Rig) -> None:
    connection = rig.connect()
    visitor = connection.sink
    connection, pipe = upgraded(rig, connection)
    visitor.end()  # type: ignore[attr-defined]
    assert connection.end == "cut"
    assert pipe.was_reset
    assert len(rig.told) == 1
