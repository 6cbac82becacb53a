"""Each bound of the edges at limit - 1, limit and limit + 1, and what of the settings they come from."""

from __future__ import annotations

import math

import pytest

from rustunnel_py.config import LimitsConfig, TunnelsConfig
from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.wire.http1 import HeadLimits
from tests.support.fake_link import OK
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import Rig, get, post, status_of

AROUND = pytest.mark.parametrize("over", [-1, 0, 1], ids=["limit - 1", "limit", "limit + 1"])


def entered(census: Census, ips: list[str]) -> int:
    return sum(census.enter(ip) is not None for ip in ips)


@AROUND
def test_connections_in_all(over: int) -> None:
    census = Census(EdgeLimits(connections=5, connections_per_source=0))
    asked = 5 + over
    assert entered(census, [f"192.0.2.{number}" for number in range(asked)]) == min(asked, 5)
    assert census.now == min(asked, 5)
    assert census.refusals == ({"too-many-connections": 1} if over > 0 else {})


@AROUND
@pytest.mark.parametrize("ip", ["192.0.2.{}", "::ffff:192.0.2.{}", "2001:db8:1:2::{}"])
def test_connections_of_a_source(over: int, ip: str) -> None:
    census = Census(EdgeLimits(connections_per_source=5))
    asked = 5 + over
    same = "2001" in ip  # a whole /64 is one source, each IPv4 address is one of its own
    ips = [ip.format(number if same else 7) for number in range(1, asked + 1)]
    assert entered(census, ips) == min(asked, 5)
    assert census.enter("198.51.100.1") is not None
    assert census.refusals == ({"too-many-connections-of-address": 1} if over > 0 else {})


def test_T12_ipv4_and_mapped_addresses_are_one_source_and_neighbours_in_ipv6_are_not() -> None:
    census = Census(EdgeLimits(connections_per_source=1))
    assert census.enter("192.0.2.1") is not None
    assert census.enter("::ffff:192.0.2.1") is None
    assert census.enter("2001:db8:0:1::1") is not None
    assert census.enter("2001:db8:0:2::1") is not None
    assert census.enter("2001:db8:0:2:ffff::1") is None


def test_a_source_is_forgotten_with_its_last_connection() -> None:
    census = Census(EdgeLimits(connections_per_source=2))
    keys = [census.enter(ip) for ip in ("192.0.2.1", "192.0.2.1", "2001:db8::1")]
    assert census.sources == 2
    for key in keys:
        assert key is not None
        census.leave(key)
    assert (census.now, census.sources) == (0, 0)


@pytest.mark.parametrize("limits", [EdgeLimits(connections=0, connections_per_source=0)])
def test_0_is_off(limits: EdgeLimits) -> None:
    census = Census(limits)
    assert entered(census, ["192.0.2.1"] * 30_000) == 30_000
    assert all(census.may_shake_hands("192.0.2.1", 0.0) for _ in range(100))
    assert census.refusals == {}


@AROUND
def test_handshakes_of_a_source_in_a_second(over: int) -> None:
    census = Census(EdgeLimits(handshakes_per_second_per_source=5))
    asked = 5 + over
    assert sum(census.may_shake_hands("192.0.2.1", 0.0) for _ in range(asked)) == min(asked, 5)
    assert census.may_shake_hands("192.0.2.2", 0.0)
    assert census.refusals == ({"too-many-handshakes": 1} if over > 0 else {})
    assert census.may_shake_hands("192.0.2.1", 1.0)


@AROUND
@pytest.mark.parametrize("parking", [ParkingLimits(per_tunnel=5), ParkingLimits(in_all=5)])
def test_parked_at_a_time(over: int, parking: ParkingLimits) -> None:
    census = Census(parking=parking)
    asked = 5 + over
    assert sum(census.park("a") for _ in range(asked)) == min(asked, 5)
    assert census.park("b") is (parking.in_all != 5 or over < 0)
    for _ in range(min(asked, 5)):
        census.unpark("a")
    assert census.park("a")


@AROUND
def test_requests_of_a_source_in_a_second(over: int) -> None:
    rig = Rig(limits=EdgeLimits(requests_per_second_per_source=5))
    rig.link.answer = OK
    asked = 5 + over
    connections = [rig.send(get()) for _ in range(asked)]  # the source counts, not the connection
    statuses = [status_of(connection.written) for connection in connections]
    assert statuses == [200] * min(asked, 5) + [429] * max(0, over)
    assert rig.shared.census.refusals == ({"too-many-requests": 1} if over > 0 else {})


@AROUND
def test_H27_the_target(over: int) -> None:
    rig = Rig(limits=EdgeLimits(heads=HeadLimits(target=100)))
    rig.link.answer = OK
    answer = rig.send(get("/" + "a" * (99 + over))).written
    assert status_of(answer) == (414 if over > 0 else 200)
    assert rig.shared.census.refusals == ({"target-too-long": 1} if over > 0 else {})


@AROUND
def test_H26_the_head(over: int) -> None:
    def head(size: int) -> bytes:
        bare = len(get("/", "X: " + "a" * 1000, "Y: "))
        return get("/", "X: " + "a" * 1000, "Y: " + "b" * (size - bare))

    rig = Rig(limits=EdgeLimits(heads=HeadLimits(total=2000, line=1900)))
    rig.link.answer = OK
    assert len(head(2000)) == 2000
    answer = rig.send(head(2000 + over)).written
    assert status_of(answer) == (431 if over > 0 else 200)
    assert rig.shared.census.refusals == ({"head-too-large": 1} if over > 0 else {})


@AROUND
def test_H26_a_header_line(over: int) -> None:
    rig = Rig(limits=EdgeLimits(heads=HeadLimits(line=100)))
    rig.link.answer = OK
    answer = rig.send(get("/", "X: " + "a" * (97 + over))).written
    assert status_of(answer) == (431 if over > 0 else 200)


@AROUND
def test_H26_the_number_of_header_lines(over: int) -> None:
    rig = Rig(limits=EdgeLimits(heads=HeadLimits(count=10)))
    rig.link.answer = OK
    answer = rig.send(get("/", *[f"X-{number}: 1" for number in range(9 + over)])).written
    assert status_of(answer) == (431 if over > 0 else 200)


@AROUND
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body(over: int, chunked: bool) -> None:
    rig = Rig(limits=EdgeLimits(body_max_bytes=1000))
    body = b"x" * (1000 + over)
    if chunked:
        raw = get("/", "Transfer-Encoding: chunked", method="POST") + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        raw = post(body)
    connection = rig.send(raw)
    if over > 0:
        assert status_of(connection.written) == 413
        assert rig.shared.census.refusals == {"body-too-large": 1}
        assert all(exchange.was_reset and not exchange.finished for exchange in rig.link.exchanges)
    else:
        rig.exchange.reply(OK)
        assert status_of(connection.written) == 200
        assert rig.exchange.body == body


@AROUND
def test_the_time_for_a_head(over: int) -> None:
    rig = Rig()
    connection = rig.connect()
    connection.feed(b"GET / HT")
    rig.pump.now = connection.due + over * 0.5
    if over >= 0:
        connection.sink.expired()
        assert status_of(connection.written) == 408
        assert rig.shared.census.refusals == {"slow-head": 1}
    else:
        connection.feed(b"TP/1.1\r\nHost: app.example.test\r\n\r\n")
        assert len(rig.link.exchanges) == 1


@AROUND
def test_the_time_for_more_of_a_reply(over: int) -> None:
    rig = Rig(limits=EdgeLimits(reply_idle_seconds=20.0))
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
    connection.expire(rig.pump)
    rig.pump.now = connection.due + over * 0.5
    connection.sink.expired()
    assert connection.end == ("cut" if over >= 0 else "")
    assert rig.shared.census.refusals == ({"stalled-reply": 1} if over >= 0 else {})


@AROUND
def test_the_rate_of_a_body(over: int) -> None:
    rig = Rig(limits=EdgeLimits(bytes_per_second=10))
    connection = rig.send(get("/", "Content-Length: 1000", method="POST"))
    connection.feed(b"x" * (100 + over))
    connection.expire(rig.pump)
    if over < 0:
        assert status_of(connection.written) == 408
        assert rig.shared.census.refusals == {"slow-body": 1}
    else:
        assert not connection.is_over


@AROUND
def test_F12_the_rate_of_a_reader(over: int) -> None:
    """Judged by what arrives, however little of it makes room: no more is sent to it meanwhile."""
    rig = Rig(limits=EdgeLimits(bytes_per_second=10))
    enough = int(10 * rig.limits.send_window_seconds)
    connection = FedConnection(high_water=10_000)
    rig.connect(connection)
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 20_000)
    for _ in range(3):
        connection.take(enough)
        connection.expire(rig.pump)
        assert not connection.is_over
    connection.take(enough + over)
    connection.expire(rig.pump)
    if over < 0:
        assert connection.end == "abort"
        assert rig.exchange.was_reset
        assert rig.shared.census.refusals == {"slow-reader": 1}
    else:
        assert not connection.is_over


def test_a_look_at_its_reading_does_not_judge_a_visitor_s_body() -> None:
    """It may come a moment after the body's own look, when hardly anything of the body has come."""
    rig = Rig()
    connection = FedConnection(high_water=10_000)
    rig.connect(connection)
    rig.send(get("/", "Content-Length: 1000000", method="POST"), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 90_000)
    for moment in range(1, 16):  # a look each second; the body comes in the last of each ten
        rig.pump.now += 1.0
        connection.take(2000)
        if moment == 10:
            connection.feed(b"x" * 20_000)
        if connection.due <= rig.pump.now:
            connection.sink.expired()
        assert not connection.is_over
    assert rig.shared.census.refusals == {}


def test_a_rate_of_0_lets_everybody_be_slow() -> None:
    rig = Rig(limits=EdgeLimits(bytes_per_second=0))
    sender = rig.send(get("/", "Content-Length: 1000", method="POST"))
    reader = FedConnection(high_water=10)
    rig.connect(reader)
    rig.send(get(), reader)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500)
    for _ in range(20):
        sender.expire(rig.pump)
        reader.expire(rig.pump)
    assert not sender.is_over
    assert not reader.is_over


def test_every_setting_arrives() -> None:
    settings = LimitsConfig(
        max_connections=1,
        max_connections_per_ip=2,
        ip_rate_limit_rps=3.0,
        ip_handshakes_per_second=4.0,
        request_body_max_bytes=5,
        target_max_bytes=100,
        header_max_bytes=300,
        header_max_count=9,
        head_max_bytes=2000,
        handshake_seconds=10.5,
        header_seconds=11.0,
        idle_seconds=12.0,
        answer_seconds=13.0,
        reply_idle_seconds=13.5,
        half_closed_seconds=14.0,
        min_bytes_per_second=15,
    )
    assert EdgeLimits.from_config(settings) == EdgeLimits(
        connections=1,
        connections_per_source=2,
        requests_per_second_per_source=3.0,
        handshakes_per_second_per_source=4.0,
        body_max_bytes=5,
        heads=HeadLimits(target=100, line=300, total=2000, count=9),
        handshake_seconds=10.5,
        header_seconds=11.0,
        idle_seconds=12.0,
        answer_seconds=13.0,
        reply_idle_seconds=13.5,
        half_closed_seconds=14.0,
        bytes_per_second=15,
    )
    waits = TunnelsConfig(wait_seconds=1.0, wait_max=2, wait_max_per_tunnel=3)
    assert ParkingLimits.from_config(waits) == ParkingLimits(wait_seconds=1.0, in_all=2, per_tunnel=3)


def test_the_defaults_are_those_of_the_settings() -> None:
    assert EdgeLimits.from_config(LimitsConfig()) == EdgeLimits()
    assert ParkingLimits.from_config(TunnelsConfig()) == ParkingLimits()


def test_seconds_of_0_are_no_deadline() -> None:
    limits = EdgeLimits.from_config(
        LimitsConfig(
            handshake_seconds=0,
            header_seconds=0,
            idle_seconds=0,
            answer_seconds=0,
            reply_idle_seconds=0,
            half_closed_seconds=0,
        )
    )
    assert {limits.handshake_seconds, limits.header_seconds, limits.idle_seconds} == {math.inf}
    assert {limits.answer_seconds, limits.reply_idle_seconds, limits.half_closed_seconds} == {math.inf}
    rig = Rig(limits=limits)
    connection = rig.connect()
    assert connection.due == math.inf
    rig.send(get(), connection)
    rig.exchange.reply(OK)
    assert connection.due == math.inf
