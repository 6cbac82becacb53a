"""Heads, routing, pipelining, answers of the edge's own: visitors fed with bytes."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.edges.limits import EdgeLimits
from rustunnel_py.errors import Hop, HopError
from rustunnel_py.model.bucket import Buckets
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.model.visit import LocalTarget
from tests.support.fake_link import OK, FakeExchange, FakeLink
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import HOST, Rig, get, post, status_of

FORWARDED = (
    b"X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: app.example.test\r\n"
    b"X-Forwarded-Port: 80\r\nX-Real-IP: 203.0.113.7\r\nForwarded: for=203.0.113.7;host=app.example.test;proto=http\r\n"
)


def replies(data: bytes) -> list[int]:
    """The statuses of the replies in `data`; bodies hold no status line in these tests."""
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.link.answer = OK
    return rig


def test_one_request_reaches_the_link_in_canonical_form(rig: Rig) -> None:
    connection = rig.send(get("/a?b", "accept:  x/y "))
    assert rig.link.canonical == [
        b"GET /a?b HTTP/1.1\r\nHost: app.example.test\r\naccept: x/y\r\n" + FORWARDED + b"\r\n"
    ]
    assert connection.take() == OK
    assert not connection.is_over
    assert connection.uncredited == 0
    assert rig.tunnel.requests == 1
    rig.assert_clean()


def test_a_visit_is_told_with_its_method_target_status_time_and_id(rig: Rig) -> None:
    rig.link.answer = None
    rig.send(get("/x", method="PUT"))
    rig.pump.now += 0.25
    rig.exchange.reply(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    assert rig.told == [(b"PUT", b"/x", 404, 250.0, rig.exchange.visit.id, False)]
    assert len(bytes.fromhex(rig.exchange.visit.id)) == 16


def test_visit_ids_are_never_the_same(rig: Rig) -> None:
    connection = rig.connect()
    for _ in range(600):
        rig.send(get(), connection)
    assert len({exchange.visit.id for exchange in rig.link.exchanges}) == 600


def test_the_visit_tells_who_came_and_where_to(rig: Rig) -> None:
    rig.tunnel.target = LocalTarget(host_header=b"localhost:3000")
    connection = rig.connect(FedConnection(peer=Peer("2001:db8::5", 4711)))
    rig.send(get("/", host=f"{HOST}:8080"), connection)
    visit = rig.exchange.visit
    assert (visit.visitor, visit.tunnel_id, visit.connection) == (Peer("2001:db8::5", 4711), rig.tunnel.id, connection)
    assert b"\r\nHost: localhost:3000\r\n" in rig.link.canonical[0]
    assert b"\r\nX-Forwarded-Host: app.example.test:8080\r\nX-Forwarded-Port: 8080\r\n" in rig.link.canonical[0]
    assert b'\r\nForwarded: for="[2001:db8::5]";' in rig.link.canonical[0]


def test_H45_forwarding_lines_follow_the_host_of_each_request(rig: Rig) -> None:
    other = FakeLink(answer=OK)
    rig.add_tunnel("other.example.test", other)
    connection = rig.send(get())
    connection.feed(get(host="other.example.test"))
    other.run()
    rig.send(get("/again"), connection)
    assert b"X-Forwarded-Host: other.example.test\r\n" in other.canonical[0]
    assert [b"X-Forwarded-Host: app.example.test\r\n" in head for head in rig.link.canonical] == [True, True]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 64])
def test_H63_any_split_gives_the_same_requests(rig: Rig, step: int) -> None:
    connection = rig.connect()
    stream = get("/1") + post(b"hello", target="/2") + get("/3", "Connection: close")
    for at in range(0, len(stream), step):
        connection.feed(stream[at : at + step])
        rig.link.run()
    assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/1", b"/2", b"/3"]
    assert rig.link.exchanges[1].body == b"hello"
    assert replies(connection.take()) == [200, 200, 200]
    assert connection.end == "close"
    rig.assert_clean()


CONVERSATION = (
    get("/1", "Accept: a/b")
    + post(b"x" * 300, target="/2")
    + b"POST /3 HTTP/1.1\r\nHost: app.example.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    + b"4;n=v\r\nwiki\r\n0\r\nX-T: 1\r\n\r\n"
    + b"\r\n"
    + get("/4")
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, len(CONVERSATION)), max_size=12), st.booleans())
def test_H63_whatever_the_segments_the_conversation_is_the_same(cuts: list[int], late: bool) -> None:
    rig = Rig()
    rig.link.answer = OK
    connection = rig.connect()
    edges = sorted({0, len(CONVERSATION), *cuts})
    for start, end in itertools.pairwise(edges):
        connection.feed(CONVERSATION[start:end])
        if not late:
            rig.link.run()
    rig.link.run()
    assert [bytes(exchange.body) for exchange in rig.link.exchanges] == [b"", b"x" * 300, b"wiki", b""]
    assert rig.link.exchanges[2].trailers == ((b"X-T", b"1"),)
    assert bytes(connection.take()) == OK * 4
    assert connection.uncredited == 0
    rig.assert_clean()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(CONVERSATION) - 1), st.binary(min_size=1, max_size=4), st.integers(1, 400))
def test_H63_any_mutation_is_refused_or_canonical_and_never_a_crash(at: int, bytes_: bytes, step: int) -> None:
    rig = Rig()
    rig.link.answer = OK
    connection = rig.connect()
    stream = CONVERSATION[:at] + bytes_ + CONVERSATION[at + len(bytes_) :]
    for start in range(0, len(stream), step):
        connection.feed(stream[start : start + step])
        rig.link.run()
    connection.feed_eof()
    rig.link.run()
    assert connection.is_over
    rig.assert_clean()


def test_H47_two_pipelined_requests_are_answered_in_order(rig: Rig) -> None:
    rig.link.answer = lambda exchange: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n" + exchange.request.target
    connection = rig.send(get("/1") + get("/2"))
    assert connection.take().split(b"\r\n\r\n")[1:] == [b"/1HTTP/1.1 200 OK\r\nContent-Length: 2", b"/2"]


def test_H47_one_request_at_a_time(rig: Rig) -> None:
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/1") + get("/2"))
    assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/1"]
    rig.exchange.reply(OK)
    assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/1", b"/2"]


def test_H47_ten_thousand_pipelined_requests_stop_the_reading_and_not_the_memory(rig: Rig) -> None:
    connection = rig.connect(FedConnection(read_ahead=64 * 1024))
    rig.link.answer = None
    connection.feed(get("/x") * 10_000)
    assert connection.uncredited <= 128 * 1024
    assert len(connection.unread) > 250_000
    rig.link.answer = OK
    rig.exchange.reply(OK)
    while rig.link.due or connection.unread:
        rig.link.run()
        connection.deliver()
    assert len(rig.link.exchanges) == 10_000
    assert connection.take() == OK * 10_000
    assert connection.uncredited == 0


def test_H47_a_bad_request_is_answered_after_the_good_ones(rig: Rig) -> None:
    connection = rig.send(get("/1") + get("/2") + b"BAD\r\n\r\n" + get("/3"))
    assert replies(connection.take()) == [200, 200, 400]
    assert connection.end == "linger"
    assert len(rig.link.exchanges) == 2


def test_H47_one_byte_after_a_whole_message_waits(rig: Rig) -> None:
    connection = rig.send(get() + b"G")
    assert replies(connection.take()) == [200]
    rig.send(get()[1:], connection)
    assert replies(connection.take()) == [200]


NOT_HTTP = b"SSH-2.0-OpenSSH_9.9\r\n"


def test_H47_a_request_behind_one_that_failed_is_served(rig: Rig) -> None:
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/rst") + get("/not-http") + get("/x") + b"GET")
    rig.exchange.fail(HopError(Hop.LOCAL_SERVICE, 502, "reset", "Reset."))
    assert rig.exchange.request.target == b"/not-http"
    rig.exchange.reply(NOT_HTTP)
    assert rig.exchange.request.target == b"/x"
    rig.exchange.reply(OK)
    assert replies(connection.take()) == [502, 502, 200]
    assert connection.due == rig.pump.now + rig.shared.limits.header_seconds  # for the rest of the fourth
    rig.assert_clean()


def test_H47_a_request_behind_one_that_was_too_slow_is_served(rig: Rig) -> None:
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/slow") + get("/x"))
    connection.expire(rig.pump)
    rig.exchange.reply(OK)
    assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/slow", b"/x"]
    assert replies(connection.take()) == [504, 200]
    rig.assert_clean()


def test_H47_a_request_behind_a_switch_that_does_not_fit_is_served_neither(rig: Rig) -> None:
    """Bytes behind a handshake are the WebSocket's, whatever they look like (H54)."""
    rig.link.answer = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    key = ("Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    connection = rig.send(get("/", "Connection: upgrade", *key) + get("/x"))
    assert replies(connection.take()) == [502]
    assert connection.end == "linger"
    assert len(rig.link.exchanges) == 1


@pytest.mark.parametrize("first", [OK, NOT_HTTP])
def test_H47_a_crash_at_a_pipelined_request_is_its_own_500(rig: Rig, first: bytes) -> None:
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/1") + get("/2"))
    rig.link.exchange = broken  # type: ignore[method-assign]
    rig.link.exchanges[0].reply(first)
    assert replies(connection.take()) == [200 if first == OK else 502, 500]
    assert rig.pump.crashes == 1
    assert connection.end == "close"


@pytest.mark.parametrize("host", [HOST, "nobody.example.test", "example.test"])
def test_H47_a_flood_that_is_answered_at_once_does_not_deepen_the_stack(rig: Rig, host: str) -> None:
    rig.link.refusal = HopError(Hop.AGENT, 501, "cannot", "No.")
    connection = rig.send(get("/", host=host) * 2000)
    assert len(replies(connection.take())) == 2000
    assert rig.pump.errors == []


def closes(data: bytes) -> list[bool]:
    """Of each reply in `data`, whether it says that it is the last one."""
    return [b"\r\nConnection: close\r\n" in part for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize(
    ("rest", "statuses", "end"),
    [
        (b"", [200, 200, 200], "close"),
        (b"\r\n", [200, 200, 200], "linger"),
        (get("/d")[:-1], [200, 200, 200], "linger"),
        (b"BAD\r\n\r\n", [200, 200, 200, 400], "linger"),
        (b"BAD\n", [200, 200, 200, 400], "linger"),
        (b"\r\n" * 9, [200, 200, 200, 400], "linger"),
        (post(b"hello")[:-1], [200, 200, 200, 400], "linger"),
        (post(b"hello"), [200, 200, 200, 200], "close"),
        (get("/d", host="nobody.example.test"), [200, 200, 200, 404], "close"),
        (get("/d", host="example.test") + get("/e"), [200, 200, 200, 200, 200], "close"),
        (get("/d", "Connection: close") + get("/e"), [200, 200, 200, 200], "linger"),
    ],
)
def test_H47_H64_whole_requests_before_a_half_close_are_all_served(
    rig: Rig, rest: bytes, statuses: list[int], end: str, at_once: bool
) -> None:
    connection = rig.connect()
    connection.feed(get("/a") + get("/b") + get("/c") + rest)
    if not at_once:
        rig.link.due.pop(0)()
    connection.feed_eof()
    rig.link.run()
    answer = connection.take()
    assert replies(answer) == statuses
    assert closes(answer) == [False] * (len(statuses) - 1) + [True]
    assert connection.end == end
    rig.assert_clean()


@pytest.mark.parametrize("rest", [b"", b"GET"])
def test_H47_H64_a_half_close_while_the_output_is_full_drops_no_whole_request(rig: Rig, rest: bytes) -> None:
    connection = rig.connect(FedConnection(high_water=10))
    rig.send(get("/a") + get("/b", host="nobody.example.test") + get("/c") + rest, connection)
    connection.feed_eof()
    answer = b""
    while connection.output:
        answer += connection.take()
        rig.link.run()
    assert replies(answer) == [200, 404, 200]
    assert closes(answer) == [False, False, True]
    assert connection.is_over
    rig.assert_clean()


def test_H64_a_half_close_while_the_output_is_full_ends_what_holds_no_request(rig: Rig) -> None:
    connection = rig.send(get(), rig.connect(FedConnection(high_water=10)))
    connection.feed_eof()
    assert connection.end == "close"


def test_H64_a_half_closed_visitor_s_next_request_has_its_own_time(rig: Rig) -> None:
    rig.link.answer = None
    connection = rig.connect()
    connection.feed(get("/a") + get("/b"))
    connection.feed_eof()
    rig.pump.now += 20
    rig.exchange.reply(OK)
    assert connection.due == rig.pump.now + rig.shared.limits.half_closed_seconds
    connection.expire(rig.pump)
    assert connection.end == "abort"


def test_an_ended_visitor_is_not_handed_over(rig: Rig) -> None:
    """Who takes it would never hear of its end."""
    rig.shared.take_control = lambda connection, head, held: True
    connection = rig.connect()
    connection.feed(get("/a") + get("/_control", host="example.test"))
    connection.feed_eof()
    rig.link.run()
    assert replies(connection.take()) == [200, 200]
    assert connection.end == "close"


def test_the_next_request_is_taken_only_when_the_output_has_room(rig: Rig) -> None:
    connection = rig.connect(FedConnection(high_water=10))
    rig.send(get("/1") + get("/2"), connection)
    assert len(rig.link.exchanges) == 1
    rig.send(get("/3"), connection)
    assert len(rig.link.exchanges) == 1
    connection.take()
    rig.link.run()
    assert len(rig.link.exchanges) == 2
    connection.take()
    rig.link.run()
    assert [exchange.request.target for exchange in rig.link.exchanges] == [b"/1", b"/2", b"/3"]
    rig.assert_clean()


def test_pipelined_pages_of_our_own_stop_at_a_full_output(rig: Rig) -> None:
    connection = rig.connect(FedConnection(high_water=2000))
    rig.send(get("/", host="nobody.example.test") * 100, connection)
    assert len(connection.output) < 4000
    total = b""
    while connection.output:
        total += connection.take()
    assert replies(total) == [404] * 100
    assert not connection.is_over


def test_H66_a_few_empty_lines_are_skipped_and_many_are_refused(rig: Rig) -> None:
    assert replies(rig.send(b"\r\n\r\n" + get()).take()) == [200]
    connection = rig.send(b"\r\n" * 50_000)
    assert replies(connection.take()) == [400]
    assert connection.end == "linger"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (get("/", "Content-Length: 5", "Transfer-Encoding: chunked"), 400, b""),
        (b"GET /\r\n\r\n", 400, b"bad-request-line"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, b"no-host"),
        (b"GET / HTTP/1.0\r\n\r\n", 400, b"no-host"),
        (b"GET / HTTP/2.0\r\nHost: app.example.test\r\n\r\n", 505, b"version"),
        (get("/" + "x" * 9000), 414, b"target-too-long"),
        (get("/", "X: " + "y" * 9000), 431, b"header-too-long"),
        (get("/", *("X: y",) * 101), 431, b"too-many-headers"),
        (get(method="CONNECT"), 405, b"method"),
        (get(method="TRACE"), 405, b"method"),
        (get("/", "Expect: foo"), 417, b"unknown-expectation"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"http2-preface"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, b""),
    ],
)
def test_H01_H44_what_is_refused_names_its_reason_and_reaches_nobody(
    rig: Rig, raw: bytes, status: int, code: bytes
) -> None:
    connection = rig.send(raw)
    answer = connection.take()
    assert status_of(answer) == status
    assert b"\r\nConnection: close\r\n" in answer
    assert b"code: " + code in answer
    assert connection.end == "linger"
    assert rig.link.exchanges == []


def test_H36_H37_a_refused_method_says_which_are_allowed(rig: Rig) -> None:
    assert b"\r\nAllow: GET, HEAD, POST" in rig.send(get(method="TRACE")).take()


@pytest.mark.parametrize(
    "host", ["nobody.example.test", "x.app.example.test", "app.example.test.evil", "[::1]", "127.0.0.1"]
)
def test_H42_H44_a_host_that_nobody_has_is_404_and_the_connection_stays(rig: Rig, host: str) -> None:
    connection = rig.send(get(host=host))
    answer = connection.take()
    assert status_of(answer) == 404
    assert b"no-such-tunnel" in answer
    assert HOST.encode() not in answer
    assert not connection.is_over
    rig.send(get(), connection)
    assert connection.take() == OK


@pytest.mark.parametrize("host", ["APP.Example.test", "app.example.test.", "app.example.test:443"])
def test_H41_spellings_of_a_host_reach_its_tunnel(rig: Rig, host: str) -> None:
    assert rig.send(get(host=host)).take() == OK


def test_the_bare_domain_has_a_page_of_its_own_that_names_no_tunnel(rig: Rig) -> None:
    for host in ("example.test", "localhost:8080"):
        answer = rig.send(get(host=host)).take()
        assert status_of(answer) == 200
        assert b"app" not in answer.partition(b"\r\n\r\n")[2]
    assert status_of(rig.send(get(host="example.test", method="POST")).take()) == 405


def test_H45_a_host_of_another_tunnel_than_the_sni_is_421() -> None:
    rig = Rig(scheme="https")
    rig.link.answer = OK
    rig.add_tunnel("other.example.test", FakeLink(answer=OK))
    answer = rig.send(get(), rig.connect(sni="Other.example.test")).take()
    assert status_of(answer) == 421
    assert b"misdirected" in answer
    assert rig.link.exchanges == []
    for sni in (HOST, "unknown.example.test", "example.test", None):
        assert rig.send(get(), rig.connect(sni=sni)).take() == OK


def test_https_is_said_to_the_local_service() -> None:
    rig = Rig(scheme="https")
    rig.send(get())
    assert b"X-Forwarded-Proto: https\r\n" in rig.link.canonical[0]
    assert b"X-Forwarded-Port: 443\r\n" in rig.link.canonical[0]


@pytest.mark.parametrize("line", ["Connection: close", "connection: keep-alive, Close"])
def test_the_visitor_may_ask_for_the_end(rig: Rig, line: str) -> None:
    connection = rig.send(get("/", line))
    assert b"\r\nConnection: close\r\n" in connection.take()
    assert connection.end == "close"


@pytest.mark.parametrize("host", [HOST, "example.test", "nobody.example.test"])
def test_what_comes_behind_the_last_request_is_dropped_and_costs_no_answer(rig: Rig, host: str) -> None:
    connection = rig.send(get("/", "Connection: close", host=host) + get("/more"))
    assert len(replies(connection.take())) == 1
    assert connection.end == "linger"


def test_http_1_0_stays_only_where_it_asks(rig: Rig) -> None:
    head = b"GET / HTTP/1.0\r\nHost: app.example.test\r\n"
    assert rig.send(head + b"\r\n").end == "close"
    connection = rig.send(head + b"Connection: keep-alive\r\n\r\n")
    assert b"\r\nConnection: keep-alive\r\n" in connection.take()
    assert not connection.is_over


def test_a_link_that_refuses_is_a_page_of_its_hop(rig: Rig) -> None:
    rig.link.refusal = HopError(Hop.AGENT, 501, "no-upgrades", "This kind of agent carries no upgrades.")
    connection = rig.send(get("/", "Accept: application/json"))
    answer = connection.take()
    assert status_of(answer) == 501
    assert b'"hop": "agent"' in answer
    assert rig.told[0][2] == 501
    rig.link.refusal = None
    rig.send(get(), connection)
    assert connection.take() == OK


def broken(visit: object, head: object, sink: object) -> FakeExchange:
    raise ZeroDivisionError


def test_a_crash_is_a_500_of_the_edge_and_is_counted(rig: Rig) -> None:
    rig.link.exchange = broken  # type: ignore[method-assign]
    connection = rig.send(get("/", "Accept: application/json"))
    answer = connection.take()
    assert status_of(answer) == 500
    assert b'"hop": "edge"' in answer
    assert b"ZeroDivision" not in answer
    assert rig.pump.crashes == 1
    assert connection.is_over


def test_a_tunnel_that_nobody_serves_is_503_with_since_when(rig: Rig) -> None:
    rig.tunnel.links.remove(rig.link, rig.pump.now)
    rig.pump.now += 42
    answer = rig.send(get("/", "Accept: application/json")).take()
    assert status_of(answer) == 503
    assert b"agent-away" in answer
    assert b"42 s" in answer
    assert b'"since": "2' in answer
    assert b"\r\nRetry-After: " in answer


def test_requests_per_source_are_429_over_the_rate(rig: Rig) -> None:
    rig.shared.rates = Buckets(3)
    rig.shared.is_choosy = True
    connection = rig.connect()
    for _ in range(4):
        rig.send(get(), connection)
    answer = connection.take()
    assert replies(answer) == [200, 200, 200, 429]
    assert b"\r\nRetry-After: 1\r\n" in answer
    rig.pump.now += 0.4
    assert replies(rig.send(get(), connection).take()) == [200]
    rig.assert_clean()


def test_a_redirect_goes_to_the_same_target_on_https(rig: Rig) -> None:
    rig.shared.redirect_port = 8443
    rig.shared.is_choosy = True
    connection = rig.send(get("/a?b=c", method="POST"))
    assert b"\r\nLocation: https://app.example.test:8443/a?b=c\r\n" in connection.take()
    assert rig.link.exchanges == []


def test_take_control_gets_the_connection_and_every_byte_uncredited(rig: Rig) -> None:
    taken: list[bytes] = []

    def take_control(connection: FedConnection, head: object, held: bytes) -> bool:
        assert connection.due == math.inf
        taken.append(held)
        return b"/_control" in held

    rig.shared.take_control = take_control  # type: ignore[assignment]
    raw = get("/_control", "Upgrade: x", host="example.test")
    connection = rig.connect()
    connection.feed(raw[:9])
    connection.feed(raw[9:] + b"early")
    assert taken == [raw + b"early"]
    assert not connection.is_over
    assert connection.written == b""
    assert connection.uncredited == len(taken[0])
    assert connection.due == math.inf
    other = rig.send(get("/", host="example.test"))
    assert status_of(other.take()) == 200
    assert other.due == rig.pump.now + rig.shared.limits.idle_seconds


def test_draining_ends_idle_connections_and_lets_the_others_finish(rig: Rig) -> None:
    rig.link.answer = None
    idle, fresh, busy = rig.connect(), rig.connect(), rig.connect()
    busy.feed(get())
    rig.shared.draining = True
    for connection in (idle, fresh, busy):
        connection.sink.drain()  # type: ignore[attr-defined]
    assert (idle.end, fresh.end, busy.end) == ("close", "close", "")
    rig.exchange.reply(OK)
    assert b"\r\nConnection: close\r\n" in busy.take()
    assert busy.end == "close"


def test_P03_what_is_cut_at_the_end_looks_cut(rig: Rig) -> None:
    rig.link.answer = None
    busy = rig.connect()
    visitor = busy.sink
    busy.feed(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
    visitor.end()  # type: ignore[attr-defined]
    assert busy.end == "cut"
    assert rig.exchange.was_reset
    assert rig.told[0][2] == 200


def test_limits_of_heads_are_settings() -> None:
    from rustunnel_py.wire.http1 import HeadLimits

    rig = Rig(limits=EdgeLimits(heads=HeadLimits(count=3)))
    rig.link.answer = OK
    assert replies(rig.send(get("/", "A: 1", "B: 2")).take()) == [200]
    assert replies(rig.send(get("/", "A: 1", "B: 2", "C: 3")).take()) == [431]
