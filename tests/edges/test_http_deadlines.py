"""Deadlines: each is looked at through `connection.due`, and `expired` says what it was for."""

from __future__ import annotations

import math

import pytest

from rustunnel_py.edges.limits import EdgeLimits
from tests.support.fake_link import OK
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import Rig, get, status_of

LIMITS = EdgeLimits()


@pytest.fixture
def rig() -> Rig:
    return Rig()


def left(rig: Rig, connection: FedConnection) -> float:
    return connection.due - rig.pump.now


def let_expire(rig: Rig, connection: FedConnection) -> None:
    """Look again and again, until it is over."""
    for _ in range(100):
        if connection.is_over:
            return
        connection.expire(rig.pump)
    raise AssertionError(f"no deadline ended it: {connection!r}")


def test_H65_who_connects_and_says_nothing_is_gone_within_the_header_s_time(rig: Rig) -> None:
    connection = rig.connect()
    assert left(rig, connection) == LIMITS.header_seconds
    connection.expire(rig.pump)
    assert connection.end == "close"
    assert connection.written == b""


def test_H65_a_dripping_head_gains_no_time(rig: Rig) -> None:
    connection = rig.connect()
    start = rig.pump.now
    for byte in get()[:5]:
        rig.pump.now += 1
        connection.feed(bytes([byte]))
    assert connection.due == start + LIMITS.header_seconds
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 408
    assert connection.end == "linger"


def test_an_idle_connection_has_longer_and_a_second_head_as_long_as_the_first(rig: Rig) -> None:
    rig.link.answer = OK
    connection = rig.send(get())
    assert left(rig, connection) == LIMITS.idle_seconds
    rig.pump.now += 70
    connection.feed(b"GET")
    assert left(rig, connection) == LIMITS.header_seconds
    rig.pump.now += 5
    connection.feed(b" /")
    assert left(rig, connection) == LIMITS.header_seconds - 5
    connection.take()
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 408


def test_an_idle_connection_ends_cleanly(rig: Rig) -> None:
    rig.link.answer = OK
    connection = rig.send(get())
    connection.take()
    connection.expire(rig.pump)
    assert connection.end == "close"
    assert connection.take() == b""


def test_H17_H65_a_body_that_is_too_slow_is_408_and_a_reset(rig: Rig) -> None:
    connection = rig.send(get("/", "Transfer-Encoding: chunked", method="POST"))
    assert left(rig, connection) == LIMITS.body_window_seconds
    enough = int(LIMITS.bytes_per_second * LIMITS.body_window_seconds)
    connection.feed(b"%x\r\n" % enough + b"x" * enough + b"\r\n0\r\n")
    connection.expire(rig.pump)
    assert not connection.is_over
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 408
    assert rig.exchange.was_reset
    assert not rig.exchange.finished


def test_a_body_is_not_slow_where_the_local_service_does_not_read(rig: Rig) -> None:
    rig.link.room = 1
    connection = rig.send(get("/", "Content-Length: 100", method="POST") + b"x")
    for _ in range(5):
        connection.expire(rig.pump)
    assert not connection.is_over
    rig.exchange.give_room()
    assert left(rig, connection) == LIMITS.body_window_seconds
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 408


def test_H46_who_waits_for_a_100_is_not_slow(rig: Rig) -> None:
    connection = rig.send(get("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
    for _ in range(3):
        connection.expire(rig.pump)
    assert not connection.is_over
    rig.exchange.reply(b"HTTP/1.1 100 Continue\r\n\r\n")
    connection.expire(rig.pump)
    assert connection.take().startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 408 ")


def test_H46_a_local_service_that_never_decides_is_too_slow(rig: Rig) -> None:
    connection = rig.send(get("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
    let_expire(rig, connection)
    assert status_of(connection.take()) == 504


def test_a_local_service_that_does_not_answer_is_504(rig: Rig) -> None:
    connection = rig.send(get())
    assert left(rig, connection) == LIMITS.answer_seconds
    connection.expire(rig.pump)
    answer = connection.take()
    assert status_of(answer) == 504
    assert b"failed: local service" in answer
    assert rig.exchange.was_reset
    assert not connection.is_over


@pytest.mark.parametrize("kind", ["text/event-stream", "Text/Event-Stream ;charset=utf-8"])
def test_an_event_stream_may_be_silent_for_ever(rig: Rig, kind: str) -> None:
    connection = rig.send(get())
    rig.exchange.reply(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n\r\n".encode())
    connection.expire(rig.pump)
    assert connection.due == math.inf
    assert not connection.is_over


@pytest.mark.parametrize(
    ("head", "part"),
    [
        ("Content-Length: 9", b"half"),
        ("Content-Length: 9", b""),
        ("Transfer-Encoding: chunked", b"4\r\nhalf\r\n"),
        ("Connection: close", b"half"),
        ("X-Kind: text/event-stream", b"half"),
    ],
)
def test_a_reply_that_stalls_is_cut_and_names_the_hop(rig: Rig, head: str, part: bytes) -> None:
    connection = rig.send(get())
    rig.exchange.reply(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode() + part)
    connection.expire(rig.pump)
    assert not connection.is_over  # that it was whole a moment ago cannot be told yet
    assert left(rig, connection) == LIMITS.reply_idle_seconds
    before = bytes(connection.written)
    connection.expire(rig.pump)
    assert connection.end == "cut"
    assert connection.written == before  # no last chunk, no page behind a head
    assert rig.exchange.was_reset
    assert rig.shared.census.refusals == {"stalled-reply": 1}
    assert [visit[2:3] + visit[5:] for visit in rig.told] == [(200, True)]
    rig.assert_clean()


def test_a_reply_that_goes_on_is_never_cut(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(10):
        connection.expire(rig.pump)
        rig.pump.now += LIMITS.reply_idle_seconds - 1
        rig.exchange.reply(b"x")
    assert not connection.is_over


def test_a_reply_does_not_stall_while_it_is_still_read(rig: Rig) -> None:
    """The local service has sent what it may; its visitor takes it slowly."""
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
    for _ in range(5):
        connection.expire(rig.pump)
        connection.take(50)
    assert not connection.is_over
    connection.expire(rig.pump)
    connection.expire(rig.pump)
    assert connection.end == "cut"


def test_a_reply_does_not_stall_while_the_visitor_does_not_read() -> None:
    rig = Rig(EdgeLimits(bytes_per_second=0, reply_idle_seconds=3.0))
    connection = rig.connect(FedConnection(high_water=100))
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 200)
    for _ in range(20):
        connection.expire(rig.pump)
    assert not connection.is_over
    connection.take()
    connection.expire(rig.pump)
    assert not connection.is_over
    connection.expire(rig.pump)
    assert connection.end == "cut"


@pytest.mark.parametrize("answer_seconds", [math.inf, 300.0, 2.0])
def test_the_look_at_a_reply_needs_no_other_deadline(answer_seconds: float) -> None:
    rig = Rig(EdgeLimits(answer_seconds=answer_seconds, reply_idle_seconds=5.0))
    connection = rig.send(get())
    start = rig.pump.now
    assert left(rig, connection) == min(5.0, answer_seconds)
    rig.pump.now += 1
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
    let_expire(rig, connection)
    assert connection.end == "cut"
    assert rig.pump.now - start == min(5.0, answer_seconds) + 5.0


def test_before_its_head_a_reply_has_the_longer_time() -> None:
    rig = Rig(EdgeLimits(answer_seconds=20.0, reply_idle_seconds=5.0))
    connection = rig.send(get())
    start = rig.pump.now
    connection.expire(rig.pump)
    assert not connection.is_over
    connection.expire(rig.pump)
    assert status_of(connection.take()) == 504
    assert rig.pump.now - start == 20.0


def test_an_upload_that_is_not_taken_has_as_long_as_an_answer(rig: Rig) -> None:
    rig.link.room = 1
    connection = rig.send(get("/", "Content-Length: 100", method="POST") + b"x")
    start = rig.pump.now
    let_expire(rig, connection)
    assert rig.pump.now - start == LIMITS.answer_seconds + LIMITS.body_window_seconds
    assert status_of(connection.take()) == 504
    assert rig.exchange.was_reset


def test_an_upload_may_be_taken_slowly_for_ever(rig: Rig) -> None:
    rig.link.room = 1
    connection = rig.send(get("/", "Content-Length: 1000", method="POST") + b"x")
    for _ in range(20):
        for _ in range(5):
            connection.expire(rig.pump)
        rig.exchange.give_room(1)
        connection.feed(b"x")
    assert not connection.is_over


def test_an_upload_that_stalls_under_a_reply_is_cut(rig: Rig) -> None:
    rig.link.room = 1
    connection = rig.send(get("/", "Content-Length: 100", method="POST") + b"x")
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    let_expire(rig, connection)
    assert connection.end == "cut"
    assert rig.shared.census.refusals == {"stalled-reply": 1}


def test_H65_who_does_not_read_is_gone_within_the_send_time(rig: Rig) -> None:
    connection = rig.connect(FedConnection(high_water=100))
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 200)
    assert left(rig, connection) == LIMITS.send_window_seconds
    connection.expire(rig.pump)
    assert connection.end == "abort"
    assert rig.exchange.was_reset
    rig.assert_clean()


def test_who_reads_slowly_is_given_time_again_with_each_room(rig: Rig) -> None:
    connection = rig.connect(FedConnection(high_water=100))
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 200)
    rig.pump.now += LIMITS.send_window_seconds - 5
    connection.take()
    rig.exchange.reply(b"x" * 200)
    connection.expire(rig.pump)
    assert not connection.is_over
    assert left(rig, connection) == LIMITS.send_window_seconds - 5
    connection.expire(rig.pump)
    assert connection.end == "abort"


def test_the_last_bytes_of_a_reply_have_the_send_time_too(rig: Rig) -> None:
    rig.link.answer = OK
    connection = rig.connect(FedConnection(high_water=10))
    rig.send(get(), connection)
    assert left(rig, connection) == LIMITS.send_window_seconds
    connection.expire(rig.pump)
    assert connection.end == "abort"


def test_H64_a_half_closed_visitor_is_let_go_when_nothing_moves(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\n\r\n")
    connection.feed_eof()
    assert left(rig, connection) == LIMITS.half_closed_seconds
    rig.exchange.reply(b"event")
    connection.expire(rig.pump)
    assert not connection.is_over
    assert left(rig, connection) == LIMITS.half_closed_seconds
    connection.expire(rig.pump)
    assert connection.end == "abort"
    assert rig.exchange.was_reset


def test_H64_a_half_closed_visitor_has_its_whole_time_however_late_it_ended_its_side(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\n\r\nevent")
    rig.pump.now += LIMITS.answer_seconds - 1
    connection.feed_eof()
    ended = rig.pump.now
    let_expire(rig, connection)
    assert connection.end == "abort"
    assert rig.pump.now - ended == LIMITS.half_closed_seconds


@pytest.mark.parametrize("elapsed", [0.0, 3.0])
def test_an_early_sweep_changes_nothing(rig: Rig, elapsed: float) -> None:
    connection = rig.send(get())
    rig.pump.now += elapsed
    connection.sink.expired()
    assert not connection.is_over
    assert connection.due == rig.pump.now - elapsed + LIMITS.answer_seconds
