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
    while not connection.is_over:
        connection.expire(rig.pump)
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


def test_a_reply_that_has_begun_may_take_for_ever(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    connection.expire(rig.pump)
    assert connection.due == math.inf
    assert not connection.is_over


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


@pytest.mark.parametrize("elapsed", [0.0, 3.0])
def test_an_early_sweep_changes_nothing(rig: Rig, elapsed: float) -> None:
    connection = rig.send(get())
    rig.pump.now += elapsed
    connection.sink.expired()
    assert not connection.is_over
    assert connection.due == rig.pump.now - elapsed + LIMITS.answer_seconds
