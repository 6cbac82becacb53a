"""The link as a machine: requests in, frames out, and back, over a pretend trunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.agents import rustunnel_link
from rustunnel_py.agents.rustunnel_link import EVICTIONS_A_SECOND
from rustunnel_py.errors import Expired, Hop, HopError, Reset
from rustunnel_py.model.visit import LocalTarget, VisitKind
from rustunnel_py.wire.http1 import websocket_accept
from tests.support.link_bench import GET, LinkBench, Turn, head_of
from tests.support.muxpair import Hearing

if TYPE_CHECKING:
    from rustunnel_py.wire.sink import Pipe

POST = b"POST /p HTTP/1.1\r\nHost: app.example\r\nContent-Length: 5\r\n\r\n"
PUT = POST.replace(b"POST", b"PUT")
CHUNKED_POST = b"POST /p HTTP/1.1\r\nHost: app.example\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: app.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def switching(key: bytes = b"dGhlIHNhbXBsZSBub25jZQ==") -> bytes:
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: " + websocket_accept(key) + b"\r\n\r\n"
    )


def failure(turn: Turn) -> tuple[Hop, int, str]:
    assert turn.events[-1] == "failed"
    assert turn.error is not None
    return turn.error.hop, turn.error.status, turn.error.code


def test_a_stream_begins_with_the_announced_id_and_the_canonical_head() -> None:
    bench = LinkBench()
    bench.request()
    (conn_id, visit) = bench.notified[0]
    sent = bytes(bench.streams[0].received)
    assert sent[:16].hex() == conn_id.replace("-", "")
    assert conn_id[14] == "4"  # a random UUID
    assert sent[16:] == b"GET /a HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"
    assert visit.tunnel_id == "t1"


def test_a_reply_is_delivered_and_the_stream_kept_for_the_next_request() -> None:
    bench = LinkBench()
    for round in range(3):
        turn = bench.request()
        bench.reply(bench.streams[0], OK)
        assert turn.events == ["head", "data", "end"], round
        assert turn.body == b"hello"
    assert len(bench.streams) == 1
    assert len(bench.notified) == 1


def test_a_repeated_reply_head_is_known_but_judged_in_the_light_of_its_request() -> None:
    bench = LinkBench()
    for body in (b"hello", b"world"):
        turn = bench.request()
        bench.reply(bench.streams[0], OK.replace(b"hello", body))
        assert bytes(turn.body) == body
    turn = bench.request(GET.replace(b"GET", b"HEAD"))
    bench.reply(bench.streams[0], OK.removesuffix(b"hello"))
    assert turn.events == ["head", "end"]
    turn = bench.request()
    bench.reply(bench.streams[0], OK.replace(b": 5", b": 3").replace(b"hello", b"bye"))
    assert bytes(turn.body) == b"bye"
    bench.reply(bench.streams[0], b"")
    assert len(bench.streams) == 1


def test_kept_streams_are_taken_last_in_first_out() -> None:
    bench = LinkBench()
    turns = [bench.request(), bench.request()]
    bench.reply(bench.streams[0], OK)
    bench.reply(bench.streams[1], OK)
    assert [turn.events[-1] for turn in turns] == ["end", "end"]
    before = len(bench.streams[1].received)
    bench.request()
    assert len(bench.streams[1].received) > before


def test_each_tunnel_has_its_own_kept_streams() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.request(visit=bench.visit(tunnel="t2"))
    assert len(bench.streams) == 2


@given(cuts=st.lists(st.integers(1, 40), max_size=20), kind=st.sampled_from(["length", "chunks", "close", "none"]))
@settings(max_examples=100, deadline=None)
def test_H63_a_reply_in_any_pieces_is_the_same(cuts: list[int], kind: str) -> None:
    bench = LinkBench()
    head = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n"
    raw = {
        "length": head + b"Content-Length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz",
        "chunks": head + b"Transfer-Encoding: chunked\r\n\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nT: u\r\n\r\n",
        "close": head + b"\r\nabcdefghijklmnopqrstuvwxyz",
        "none": head + b"Content-Length: 0\r\n\r\n",
    }[kind]
    turn = bench.request()
    at = 0
    for cut in [*cuts, len(raw)]:
        bench.reply(bench.streams[0], raw[at : at + cut])
        at += cut
    if kind == "close":
        bench.end(bench.streams[0])
    assert turn.events == (["103", "head", "end"] if kind == "none" else ["103", "head", "data", "end"])
    assert bytes(turn.body) == (b"" if kind == "none" else b"abcdefghijklmnopqrstuvwxyz")
    assert turn.trailers == (((b"T", b"u"),) if kind == "chunks" else ())
    bench.request()
    assert len(bench.streams) == (2 if kind == "close" else 1)


def test_a_kept_streams_window_does_not_shrink_though_nobody_gives_credit() -> None:
    bench = LinkBench()
    body = b"x" * 50_000
    raw = b"HTTP/1.1 200 OK\r\nContent-Length: 50000\r\n\r\n" + body
    for _ in range(20):  # four windows
        turn = bench.request(pays=False)
        bench.reply(bench.streams[0], raw)
        assert turn.events[-1] == "end"
    assert len(bench.streams) == 1


@pytest.mark.parametrize("head", [b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n", b"\r\n"])
def test_an_unread_reply_stops_at_the_window_and_goes_on_with_credit(head: bytes) -> None:
    bench = LinkBench()
    turn = bench.request(pays=False)
    body = bytes(1_000_000)
    if b"chunked" in head:
        raw = b"".join(b"1388\r\n" + body[:5000] + b"\r\n" for _ in range(200)) + b"0\r\n\r\n"
    else:
        raw = body
    bench.reply(bench.streams[0], b"HTTP/1.1 200 OK\r\n" + head + raw)
    assert 250_000 < len(turn.body) <= 262_144
    assert turn.exchange is not None
    paid = 0
    while paid < len(turn.body):
        turn.exchange.credit(len(turn.body) - paid)
        paid = len(turn.body)
        bench.settle()
    if head == b"\r\n":
        bench.end(bench.streams[0])
    assert len(turn.body) == 1_000_000
    assert turn.events[-1] == "end"


def test_bodies_are_framed_as_the_head_says() -> None:
    bench = LinkBench()
    turn = bench.request(CHUNKED_POST, finish=False)
    assert turn.exchange is not None
    assert turn.exchange.send(b"hello ")
    assert turn.exchange.send(b"world")
    turn.exchange.finish(((b"X-Sum", b"1"),))
    bench.settle()
    sent = bytes(bench.streams[0].received).partition(b"\r\n\r\n")[2]
    assert sent == b"6\r\nhello \r\n5\r\nworld\r\n0\r\nX-Sum: 1\r\n\r\n"
    turn = bench.request(POST, finish=False)
    assert turn.exchange is not None
    turn.exchange.send(b"hello")
    turn.exchange.finish()
    bench.settle()
    assert bytes(bench.streams[1].received).endswith(b"Content-Length: 5\r\n\r\nhello")


def test_an_upload_waits_for_the_local_service_and_goes_on_with_room() -> None:
    bench = LinkBench()
    raw = b"POST /p HTTP/1.1\r\nHost: a.example\r\nContent-Length: 600000\r\n\r\n"
    turn = bench.request(raw, finish=False)
    stream = bench.streams[0]
    stream.pays = False
    assert turn.exchange is not None
    assert not turn.exchange.send(bytes(300_000))
    bench.settle()
    assert "room" not in turn.events
    assert stream.stream is not None
    stream.stream.credit(262_144)
    bench.settle()
    assert turn.events == ["room"]


def test_a_host_header_of_the_tunnel_replaces_the_visitors() -> None:
    bench = LinkBench()
    bench.request(visit=bench.visit(target=LocalTarget(host_header=b"localhost:3000")))
    assert b"Host: localhost:3000\r\n" in bench.streams[0].received
    assert b"app.example" not in bench.streams[0].received


# streams that are of no more use


@pytest.mark.parametrize(
    "reply",
    [
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + b"more",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["close", "1.0", "too-many-bytes", "H49-body-with-204"],
)
def test_a_stream_is_not_used_again_after_any_doubt(reply: bytes) -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], reply)
    assert turn.events[-1] == "end"
    assert bytes(turn.body) in (b"hello", b"")
    bench.request()
    assert len(bench.streams) == 2
    bench.pass_time(3)
    assert {"eof", "lost"} & set(bench.streams[0].events)
    assert bench.link.session is not None
    bench.end(bench.streams[0]) if "lost" not in bench.streams[0].events else None
    assert bench.link.session.open_streams == 1


def test_bytes_on_an_idle_stream_end_it() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.reply(bench.streams[0], b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert bench.streams[0].events == ["lost"]
    bench.request()
    assert len(bench.streams) == 2


def test_an_idle_stream_that_the_local_service_ends_is_dropped_on_both_sides() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.end(bench.streams[0])
    assert bench.streams[0].events == ["eof"]
    assert bench.link.session is not None
    assert bench.link.session.open_streams == 0


def test_idle_streams_end_after_a_minute() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.pass_time(58)
    assert bench.streams[0].events == []
    bench.pass_time(4)
    assert bench.streams[0].events[:1] == ["eof"]


def test_an_early_answer_is_delivered_and_its_stream_reset() -> None:
    bench = LinkBench()
    turn = bench.request(POST, finish=False)
    assert turn.exchange is not None
    bench.reply(bench.streams[0], b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert turn.events == ["head", "end"]
    assert bench.streams[0].events == ["lost"]
    assert turn.exchange.send(b"hello")  # drained
    turn.exchange.finish()
    turn.exchange.credit(5)
    turn.exchange.reset()
    bench.settle()
    assert turn.events == ["head", "end"]


# the retry


def test_a_stale_stream_is_replaced_once_for_a_request_that_may_be_repeated() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    turn = Turn()
    turn.exchange = bench.link.exchange(bench.visit(), head_of(GET), turn)
    turn.exchange.finish()
    # The FIN crosses the request.
    first = bench.streams[0]
    assert first.stream is not None
    first.stream.send_eof()
    bench.settle()
    assert turn.events == []
    assert len(bench.streams) == 2
    assert bytes(bench.streams[1].received[16:]).startswith(b"GET /a ")
    bench.reply(bench.streams[1], OK)
    assert turn.events == ["head", "data", "end"]


def test_the_retry_sends_the_body_again() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    turn = bench.request(PUT, finish=False)
    assert turn.exchange is not None
    turn.exchange.send(b"hel")
    bench.settle()
    bench.cut(bench.streams[0])
    turn.exchange.send(b"lo")
    turn.exchange.finish()
    bench.settle()
    assert bytes(bench.streams[1].received).endswith(b"\r\n\r\nhello")
    bench.reply(bench.streams[1], OK)
    assert turn.events == ["head", "data", "end"]


def test_no_retry_for_a_post_for_a_fresh_stream_after_a_byte_or_a_second_time() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    turn = bench.request(POST, finish=False)
    bench.end(bench.streams[0])
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-closed")
    turn = bench.request()
    bench.end(bench.streams[1])  # fresh
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-closed")
    bench.request()
    bench.reply(bench.streams[2], OK)
    turn = bench.request()
    bench.reply(bench.streams[2], b"HTTP/1.1 2")
    bench.cut(bench.streams[2])
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-cut")
    bench.request()
    bench.reply(bench.streams[3], OK)
    turn = bench.request()
    bench.cut(bench.streams[3])
    bench.end(bench.streams[4])
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-closed")
    assert len(bench.streams) == 5


def test_a_stream_idle_over_2_s_is_not_used_for_what_may_not_be_repeated() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.pump.now += 1.9
    turn = bench.request(POST, finish=False)
    assert turn.exchange is not None
    turn.exchange.send(b"hello")
    turn.exchange.finish()
    bench.settle()
    bench.reply(bench.streams[0], OK)
    assert len(bench.streams) == 1
    bench.pump.now += 2.1
    bench.request(POST, finish=False)
    assert len(bench.streams) == 2
    bench.request()
    assert len(bench.streams) == 2  # a GET may use the old one


def test_a_stream_is_not_used_within_a_second_of_its_announced_end() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n"))
    bench.pump.now += 3.9
    bench.request()
    assert len(bench.streams) == 1
    bench.reply(bench.streams[0], OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=5\r\n\r\n"))
    bench.pump.now += 4.1
    bench.request()
    assert len(bench.streams) == 2


# streams of one visitor


@pytest.mark.parametrize("scheme", [b"NTLM", b"Negotiate"])
def test_after_connection_bound_authentication_a_stream_belongs_to_one_visitor(scheme: bytes) -> None:
    bench = LinkBench()
    alice, bob = object(), object()
    denied = b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: " + scheme + b"\r\nContent-Length: 0\r\n\r\n"
    bench.request(visit=bench.visit(connection=alice))
    bench.reply(bench.streams[0], denied)
    bench.request(visit=bench.visit(connection=bob))
    assert len(bench.streams) == 2
    bench.request(visit=bench.visit(connection=alice))
    assert len(bench.streams) == 2
    bench.reply(bench.streams[0], OK)
    bench.request(visit=bench.visit(connection=alice))
    assert len(bench.streams) == 2
    bench.request(visit=bench.visit(connection=None))
    assert len(bench.streams) == 3


def test_a_proxy_header_goes_first_and_ties_the_stream_to_its_visitor() -> None:
    bench = LinkBench()
    target = LocalTarget(proxy_protocol=1)
    alice, bob = object(), object()
    bench.request(visit=bench.visit(target=target, connection=alice))
    assert bytes(bench.streams[0].received[16:]).startswith(b"PROXY TCP4 192.0.2.1 192.0.2.2 4444 80\r\nGET /a ")
    bench.reply(bench.streams[0], OK)
    bench.request(visit=bench.visit(target=target, connection=alice))
    assert bytes(bench.streams[0].received).count(b"PROXY") == 1
    bench.reply(bench.streams[0], OK)
    bench.request(visit=bench.visit(target=target, connection=bob))
    assert len(bench.streams) == 2
    pipe = bench.link.open(bench.visit(kind=VisitKind.TCP, target=target, connection=bob))
    pipe.send(b"data")
    bench.settle()
    assert bytes(bench.streams[2].received[16:]) == b"PROXY TCP4 192.0.2.1 192.0.2.2 4444 80\r\ndata"


# failures


def test_a_refused_local_service_is_a_502_that_names_it() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.cut(bench.streams[0])
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "local-service-refused")


@pytest.mark.parametrize("how", ["eof", "reset", "bad chunk"])
def test_H60_a_cut_reply_is_never_a_clean_end(how: str) -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    if how == "eof":
        bench.end(bench.streams[0])
    elif how == "reset":
        bench.cut(bench.streams[0])
    else:
        bench.reply(bench.streams[0], b"zz\r\n")
    assert turn.events == ["head", "data", "failed"]
    assert failure(turn)[:2] == (Hop.LOCAL_SERVICE, 502)
    assert bench.link.session is not None
    assert bench.link.session.open_streams == 0 or how == "eof"


@pytest.mark.parametrize(
    "raw", [b"220 smtp.example ESMTP\r\n\r\n", b"HTTP/1.1 200 OK\nX: y\r\n\r\n", b"HTTP/1.1 101 Hm\r\n\r\n"]
)
def test_H61_garbage_is_a_502_of_the_local_service(raw: bytes) -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], raw)
    assert failure(turn)[:2] == (Hop.LOCAL_SERVICE, 502)
    assert bench.streams[0].events == ["lost"]


def test_H61_a_head_of_a_megabyte_is_refused_early() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200_000)
    assert failure(turn)[:2] == (Hop.LOCAL_SERVICE, 502)


def test_H50_interim_answers_are_passed_on_up_to_a_cap() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 103 Early Hints\r\n\r\n" * 500 + OK)
    assert turn.events == ["103"] * 16 + ["head", "data", "end"]
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1200)
    assert failure(turn) == (Hop.LOCAL_SERVICE, 502, "too-many-interim-answers")


def test_a_visitor_that_leaves_resets_its_stream() -> None:
    bench = LinkBench()
    turn = bench.request()
    assert turn.exchange is not None
    turn.exchange.reset()
    bench.settle()
    assert bench.streams[0].events == ["lost"]
    bench.request()
    assert len(bench.streams) == 2
    assert turn.events == []


@pytest.mark.parametrize("where", ["head", "data", "end"])
def test_a_sink_may_reset_in_any_callback(where: str) -> None:
    bench = LinkBench()
    turn = bench.request()
    exchange = turn.exchange
    assert exchange is not None
    setattr(turn, f"on_{where}", exchange.reset)
    bench.reply(bench.streams[0], OK)
    assert turn.events[-1] == where
    bench.request()
    assert len(bench.streams) == (1 if where == "end" else 2)


def test_a_crash_in_the_edge_is_its_own_500_and_ends_that_stream_only() -> None:
    bench = LinkBench()
    other = bench.request()
    turn = bench.request()

    def crash() -> None:
        raise RuntimeError("on purpose")

    turn.on_data = crash
    bench.reply(bench.streams[1], OK)
    assert failure(turn) == (Hop.EDGE, 500, "crash")
    assert bench.streams[1].events == ["lost"]
    bench.reply(bench.streams[0], OK)
    assert other.events[-1] == "end"


def test_the_next_request_may_start_in_end_and_takes_the_same_stream() -> None:
    bench = LinkBench()
    turn = bench.request()
    second = Turn()

    def go_on() -> None:
        second.exchange = bench.link.exchange(bench.visit(), head_of(GET), second)
        second.exchange.finish()

    turn.on_end = go_on
    bench.reply(bench.streams[0], OK)
    bench.reply(bench.streams[0], OK)
    assert second.events == ["head", "data", "end"]
    assert len(bench.streams) == 1


# upgrades


def test_a_101_turns_the_stream_into_a_pipe() -> None:
    bench = LinkBench()
    turn = bench.request(UPGRADE)
    bench.reply(bench.streams[0], switching() + b"\x81\x02hi")
    assert turn.events == ["upgraded"]
    assert turn.piped is not None
    assert turn.pipe is not None
    assert turn.piped.received == b"\x81\x02hi"
    before = len(bench.streams[0].received)
    turn.pipe.send(b"\x81\x80")
    bench.settle()
    assert bytes(bench.streams[0].received[before:]) == b"\x81\x80"
    bench.end(bench.streams[0])
    assert turn.piped.events == ["eof"]
    turn.pipe.reset()
    bench.settle()
    bench.request()
    assert len(bench.streams) == 2


def test_H54_H55_other_answers_to_an_upgrade_are_ordinary_or_wrong() -> None:
    bench = LinkBench()
    turn = bench.request(UPGRADE)
    bench.reply(bench.streams[0], switching(b"AAAAAAAAAAAAAAAAAAAAAA=="))
    assert failure(turn)[:2] == (Hop.LOCAL_SERVICE, 502)
    turn = bench.request(UPGRADE)
    bench.reply(bench.streams[1], OK)
    assert turn.events == ["head", "data", "end"]


# data sockets


def test_loss_of_the_data_socket_fails_what_is_in_flight_at_once_and_the_next_one_serves() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    reused, fresh = bench.request(), bench.request()
    bench.drop()
    assert failure(reused) == (Hop.AGENT, 502, "agent-lost")
    assert failure(fresh) == (Hop.AGENT, 502, "agent-lost")
    assert len(bench.lost) == 1
    assert not bench.link.connected
    bench.connect()
    turn = bench.request()
    bench.reply(bench.streams[0], OK)
    assert turn.events[-1] == "end"


def test_a_second_data_socket_replaces_the_first() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.connect()
    assert failure(turn) == (Hop.AGENT, 502, "agent-lost")
    assert bench.lost == []  # its owner knows
    turn = bench.request()
    bench.reply(bench.streams[0], OK)
    assert turn.events[-1] == "end"


def test_visits_before_the_first_data_socket_wait_for_it() -> None:
    bench = LinkBench(connect=False)
    turn = bench.request(POST, finish=False)
    assert turn.exchange is not None
    assert not turn.exchange.send(b"hello")
    turn.exchange.finish()
    pipe = bench.link.open(bench.visit(kind=VisitKind.TCP))
    heard = pipe.sink = Hearing()
    assert not pipe.send(b"one")
    assert not bench.notified
    bench.connect()
    assert bytes(bench.streams[0].received[16:]).endswith(b"\r\n\r\nhello")
    assert bytes(bench.streams[1].received[16:]) == b"one"
    assert heard.events == ["room"]
    assert len(bench.notified) == 2
    bench.reply(bench.streams[0], OK)
    assert turn.events == ["head", "data", "end"]
    pipe.send(b" two")
    bench.reply(bench.streams[1], b"three")
    pipe.credit(5)
    assert heard.received == b"three"
    assert bytes(bench.streams[1].received[16:]) == b"one two"
    pipe.send_eof()
    bench.settle()
    assert bench.streams[1].events == ["eof"]
    bench.cut(bench.streams[1])
    assert heard.events == ["room", "lost"]


def test_who_waits_too_long_hears_503_of_the_agent() -> None:
    bench = LinkBench(connect=False)
    turn = bench.request()
    pipe = bench.link.open(bench.visit(kind=VisitKind.TCP))
    heard = pipe.sink = Hearing()
    left = bench.request()
    assert left.exchange is not None
    left.exchange.reset()
    bench.pass_time(10)
    assert turn.events == []
    bench.pass_time(1)
    assert failure(turn) == (Hop.AGENT, 503, "agent-away")
    assert heard.events == ["lost"]
    assert left.events == []
    bench.connect()
    assert bench.streams == []


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel_link, "QUEUE_MAX", 3)
    bench = LinkBench(connect=False)
    turns = [bench.request() for _ in range(3)]
    with pytest.raises(HopError) as refused:
        bench.request()
    assert (refused.value.hop, refused.value.status, refused.value.code) == (Hop.AGENT, 503, "agent-busy")
    assert turns[0].exchange is not None
    turns[0].exchange.reset()
    bench.request()


def test_a_closed_link_fails_everybody_and_refuses_the_rest() -> None:
    bench = LinkBench()
    flying = bench.request()
    bench.link.detach(Reset("gone"))
    waiting = bench.request()
    bench.link.close(Reset("gone"))
    assert failure(flying) == (Hop.AGENT, 502, "agent-lost")
    assert failure(waiting) == (Hop.AGENT, 502, "agent-lost")
    assert bench.pump.sweeps == []
    with pytest.raises(HopError) as refused:
        bench.request()
    assert refused.value.status == 503


# bounds


def test_at_most_400_streams_are_open_and_256_unacknowledged_and_the_rest_waits() -> None:
    bench = LinkBench()
    silent = [Turn() for _ in range(600)]
    for turn in silent:
        turn.exchange = bench.link.exchange(bench.visit(), head_of(GET), turn)
        turn.exchange.finish()
    assert bench.link.session is not None
    assert bench.link.session.unacknowledged == 256
    bench.settle()  # the played agent acknowledges
    assert bench.link.session.open_streams == 400
    for _ in range(200):
        bench.reply(bench.streams[0], OK)
    assert sum(turn.events[-1:] == ["end"] for turn in silent) == 200
    assert bench.link.session.open_streams == 400
    for stream in bench.streams[1:]:
        bench.reply(stream, OK)
    bench.reply(bench.streams[0], OK)
    assert all(turn.events[-1] == "end" for turn in silent)


def test_an_idle_stream_of_another_tunnel_makes_place() -> None:
    bench = LinkBench(max_streams=2)
    bench.request()
    bench.request()
    waiting = bench.request(visit=bench.visit(tunnel="t2"))
    assert len(bench.streams) == 2
    bench.reply(bench.streams[0], OK)
    assert bench.streams[0].events == ["lost"]
    bench.reply(bench.streams[2], OK)
    assert waiting.events[-1] == "end"
    turn = bench.request()
    bench.reply(bench.streams[3], OK)
    assert turn.events[-1] == "end"


def test_past_so_many_evictions_a_second_streams_are_ended_politely() -> None:
    bench = LinkBench(max_streams=1)

    def served(tunnel: str) -> bool:
        turn = bench.request(visit=bench.visit(tunnel=tunnel))
        bench.reply(bench.streams[-1], OK)
        return turn.events[-1] == "end"

    assert all(served(f"t{number}") for number in range(1 + EVICTIONS_A_SECOND))
    assert [stream.events for stream in bench.streams] == [["lost"]] * EVICTIONS_A_SECOND + [[]]
    last = bench.streams[-1]
    waiting, other = (bench.request(visit=bench.visit(tunnel=tunnel)) for tunnel in ("one more", "and another"))
    assert (last.events, waiting.events, len(bench.streams)) == (["eof"], [], 1 + EVICTIONS_A_SECOND)
    bench.end(last)
    bench.reply(bench.streams[-1], OK)
    assert waiting.events[-1] == "end"
    bench.end(bench.streams[-1])
    bench.reply(bench.streams[-1], OK)
    assert other.events[-1] == "end"
    bench.pass_time(1)
    assert served("a second later")
    assert bench.streams[-2].events == ["lost"]


def test_a_pipe_waits_for_a_place_and_can_be_given_up() -> None:
    bench = LinkBench(max_streams=1)
    first = bench.link.open(bench.visit(kind=VisitKind.TCP))
    waiting, gone = (bench.link.open(bench.visit(kind=VisitKind.TCP)) for _ in range(2))
    gone.reset()
    waiting.send(b"x")
    bench.settle()
    assert len(bench.streams) == 1
    first.reset()
    bench.settle()
    assert len(bench.streams) == 2
    assert bench.streams[1].received[16:] == b"x"


# several tunnels share a session


def open_pipes(bench: LinkBench, tunnel: str, count: int) -> list[Pipe]:
    """The agent hears of them only when the bench settles: until then it has acknowledged none."""
    return [bench.link.open(bench.visit(tunnel=tunnel, kind=VisitKind.TCP)) for _ in range(count)]


def test_T09_one_tunnel_leaves_others_unacknowledged_streams() -> None:
    """A stock agent acknowledges nothing of a visitor for whom its local service has nothing to say."""
    bench = LinkBench(shared=True)
    silent = open_pipes(bench, "t1", 260)
    session = bench.link.session
    assert session is not None
    assert (session.unacknowledged, bench.link.waiting) == (192, 68)
    turn = Turn()
    bench.link.exchange(bench.visit(tunnel="t2"), head_of(GET), turn).finish()
    assert (session.unacknowledged, bench.link.waiting) == (193, 68)
    for pipe in silent:
        pipe.reset()
    bench.settle()
    bench.reply(bench.streams[-1], OK)
    assert turn.events[-1] == "end"
    assert (session.unacknowledged, session.open_streams, bench.link.waiting) == (0, 1, 0)


def test_T09_however_many_tunnels_crowd_another_one_finds_a_place() -> None:
    bench = LinkBench(shared=True)
    session = bench.link.session
    assert session is not None
    taken = []
    for number in range(4):
        before = session.open_streams
        for _ in range(2):  # what is acknowledged makes place for more
            open_pipes(bench, f"t{number}", (155, 40, 10, 3)[number])
            bench.settle()
        taken.append(session.open_streams - before)
    assert taken == [300, 75, 19, 5]
    assert bench.request(visit=bench.visit(tunnel="another")).events == []
    assert session.open_streams == 400


def test_T09_the_only_tunnel_of_a_session_may_have_all_places() -> None:
    bench = LinkBench(max_streams=40)
    open_pipes(bench, "t1", 50)
    bench.settle()
    assert bench.link.session is not None
    assert bench.link.session.open_streams == 40


def test_T09_who_waits_for_a_place_of_his_own_tunnel_holds_up_nobody_behind_him() -> None:
    bench = LinkBench(max_streams=4)
    taken = open_pipes(bench, "t1", 6)
    later = bench.request(visit=bench.visit(tunnel="t2"))
    assert bench.link.waiting == 3
    bench.shared = True  # the second tunnel was registered just now, say
    taken[0].reset()
    bench.settle()
    assert bench.link.waiting == 2
    bench.reply(bench.streams[-1], OK)
    assert later.events[-1] == "end"
    taken[1].reset()  # now it has two, and two are left
    bench.settle()
    assert bench.link.waiting == 1


def test_T09_one_tunnel_does_not_fill_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rustunnel_link, "QUEUE_MAX", 40)
    bench = LinkBench(connect=False, shared=True)
    open_pipes(bench, "t1", 30)
    with pytest.raises(HopError) as caught:
        open_pipes(bench, "t1", 1)
    assert (caught.value.status, caught.value.code) == (503, "agent-busy")
    open_pipes(bench, "t2", 7)
    assert bench.link.waiting == 37
    bench.connect()
    assert bench.link.waiting == 0


def test_T09_kept_streams_that_are_idle_are_places_that_are_left() -> None:
    bench = LinkBench(max_streams=8, shared=True)
    others = [bench.request(visit=bench.visit(tunnel="t2")) for _ in range(3)]
    open_pipes(bench, "t1", 5)
    bench.settle()
    session = bench.link.session
    assert session is not None
    assert (session.open_streams, bench.link.waiting) == (7, 1)
    bench.reply(bench.streams[0], OK)
    assert others[0].events[-1] == "end"
    assert (session.open_streams, bench.link.waiting) == (8, 0)
    bench.pump.now += 1
    # Full, but for two that are idle: they make place for a tunnel that has none.
    bench.reply(bench.streams[1], OK)
    bench.request(visit=bench.visit(tunnel="t3"))
    assert (session.open_streams, bench.link.waiting) == (8, 0)
    assert [stream.events for stream in bench.streams[:3]] == [["lost"], [], []]


def test_T09_a_stream_that_becomes_idle_makes_place_for_a_tunnel_that_has_fewer() -> None:
    bench = LinkBench(max_streams=5)
    turns = [bench.request() for _ in range(5)]
    waiting = open_pipes(bench, "t1", 1) + open_pipes(bench, "t2", 1)
    bench.shared = True
    bench.reply(bench.streams[0], OK)
    assert turns[0].events[-1] == "end"
    assert bench.streams[0].events == ["lost"]
    assert bench.link.waiting == 1
    waiting[1].send(b"x")
    bench.settle()
    assert bench.streams[5].received[16:] == b"x"


def test_T09_no_idle_stream_is_ended_for_a_tunnel_that_has_its_part() -> None:
    bench = LinkBench(max_streams=5)
    for _ in range(5):
        bench.request()
    open_pipes(bench, "t1", 1)
    bench.shared = True
    bench.reply(bench.streams[0], OK)
    assert bench.streams[0].events == []
    assert bench.link.waiting == 1
    bench.reply(bench.streams[1], OK)  # now it has three, and two are left
    assert bench.link.waiting == 0
    assert len(bench.streams) == 6


def test_T09_when_only_one_tunnel_is_left_it_may_have_all_places_at_once() -> None:
    bench = LinkBench(max_streams=40, shared=True)
    open_pipes(bench, "t1", 40)
    bench.settle()
    assert bench.link.waiting == 10
    bench.shared = False
    bench.link.forget_tunnel("t2")
    bench.settle()
    assert bench.link.waiting == 0


def test_nothing_is_left_of_the_counts_when_all_streams_have_ended() -> None:
    bench = LinkBench(shared=True)
    for how in ("reset", "lost"):
        pipes = open_pipes(bench, "t1", 3)
        bench.settle()
        pipes += open_pipes(bench, "t2", 3)
        group = bench.link._groups["t2"]
        assert (group.open, group.unacknowledged) == (3, 3)
        if how == "lost":
            bench.drop()
        else:
            for pipe in pipes:
                pipe.reset()
        assert (group.open, group.unacknowledged) == (0, 0)
        bench.pass_time(1)
        assert not bench.link._groups


# deadlines


def test_an_answer_that_never_comes_is_a_504() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.pass_time(299)
    assert turn.events == []
    bench.pass_time(3)
    assert failure(turn) == (Hop.LOCAL_SERVICE, 504, "local-service-slow")
    assert bench.streams[0].events == ["lost"]


def test_a_slow_answer_that_has_begun_has_no_deadline() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 200 OK\r\n\r\n")
    bench.pass_time(400)
    assert turn.events == ["head"]


@pytest.mark.parametrize("kind", [VisitKind.HTTP, VisitKind.TCP])
def test_an_agent_that_acknowledges_at_once_has_10_s_for_it(kind: VisitKind) -> None:
    bench = LinkBench(prompt=True)
    heard = Hearing()
    turn = Turn()
    if kind is VisitKind.TCP:
        bench.link.open(bench.visit(kind=kind)).sink = heard
    else:
        turn.exchange = bench.link.exchange(bench.visit(), head_of(GET), turn)
    bench.trunk.take()  # nothing arrives
    for _ in range(12):
        bench.pump.now += 1
        bench.link.sweep(bench.pump.now)
        bench.pump.later_calls.run()
    if kind is VisitKind.TCP:
        assert isinstance(heard.error, Expired)
    else:
        assert failure(turn) == (Hop.AGENT, 502, "agent-silent")


def test_a_yamux_ping_at_the_start_and_the_trunk_watches_for_silence() -> None:
    bench = LinkBench()
    assert bench.agent.session.pings == 1
    assert bench.trunk.ping is not None
    bench.trunk.ping(7)
    bench.settle()
    assert bench.agent.session.pings == 2


def test_framing_of_small_chunks_does_not_use_up_the_window() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(10):
        bench.reply(bench.streams[0], b"1\r\nx\r\n" * 10_000)
    assert len(turn.body) == 100_000


def test_a_tunnel_that_ended_leaves_no_idle_stream() -> None:
    bench = LinkBench()
    bench.request()
    bench.reply(bench.streams[0], OK)
    bench.link.forget_tunnel("t1")
    bench.settle()
    assert bench.streams[0].events == ["eof"]


def test_after_a_go_away_no_new_stream_is_opened_but_what_is_open_ends_well() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.agent.session.go_away()
    bench.settle()
    waiting = bench.request()
    assert len(bench.streams) == 1
    bench.reply(bench.streams[0], OK)
    assert turn.events[-1] == "end"
    bench.end(bench.streams[0])
    assert len(bench.lost) == 1
    bench.connect()
    bench.reply(bench.streams[0], OK)
    assert waiting.events[-1] == "end"


def test_a_go_away_ends_the_streams_that_are_kept_idle_so_that_another_data_socket_comes_soon() -> None:
    bench = LinkBench()
    turn = bench.request()
    bench.reply(bench.streams[0], OK)
    assert turn.events[-1] == "end"
    bench.agent.session.go_away()
    bench.settle()
    assert bench.lost == []  # the stream is open still
    bench.link.sweep(bench.pump.now)
    bench.settle()
    assert bench.streams[0].events == ["eof"]
    bench.end(bench.streams[0])
    assert not bench.link.connected
    assert len(bench.lost) == 1
