"""Bodies both ways: framing, credit, early answers, cut replies, 1xx, trailers."""

from __future__ import annotations

import pytest

from rustunnel_py.edges.limits import EdgeLimits
from rustunnel_py.errors import Hop, HopError, Reset
from tests.support.fake_link import OK
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import HOST, Rig, get, post, status_of

CHUNKED_POST = f"POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def long_post(size: int) -> bytes:
    return get("/", f"Content-Length: {size}", method="POST")


@pytest.fixture
def rig() -> Rig:
    return Rig()


# requests


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "POST"])
def test_H48_a_body_is_forwarded_whatever_the_method(rig: Rig, method: str) -> None:
    rig.send(get("/", "Content-Length: 3", method=method) + b"abc")
    assert rig.exchange.finished
    assert rig.link.canonical[0].endswith(b"Content-Length: 3\r\n\r\nabc")


def test_H48_no_length_means_no_body(rig: Rig) -> None:
    rig.send(get("/", method="POST"))
    assert rig.exchange.finished
    assert rig.exchange.body == b""


def test_a_body_is_passed_on_as_it_comes(rig: Rig) -> None:
    connection = rig.send(long_post(6) + b"ab")
    assert rig.exchange.body == b"ab"
    assert rig.link.canonical[0].endswith(b"\r\n\r\nab")
    connection.feed(b"cdef")
    assert rig.exchange.body == b"abcdef"
    assert rig.exchange.finished
    assert connection.uncredited == 0


def test_H18_trailers_of_a_request_pass_and_framing_fields_do_not(rig: Rig) -> None:
    rig.send(CHUNKED_POST + b"3\r\nabc\r\n0\r\nX-Sum: 9\r\nContent-Length: 3\r\nAuthorization: x\r\n\r\n")
    assert rig.exchange.trailers == ((b"X-Sum", b"9"),)
    assert rig.link.canonical[0].endswith(b"3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n")


def test_a_full_link_stops_the_reading_of_the_visitor(rig: Rig) -> None:
    rig.link.room = 10
    connection = rig.connect(FedConnection(read_ahead=100))
    connection.feed(long_post(1000), step=50)
    before = connection.uncredited
    connection.feed(b"x" * 1000, step=50)
    assert before == 0
    assert 100 <= connection.uncredited <= 150
    assert len(rig.exchange.body) == connection.uncredited
    rig.exchange.give_room()
    assert connection.uncredited == 0
    connection.deliver()
    assert rig.exchange.finished
    assert len(rig.exchange.body) == 1000
    assert connection.uncredited == 0


def test_a_reply_that_ends_before_the_link_had_room_pays_for_what_was_taken(rig: Rig) -> None:
    rig.link.room = 10
    connection = rig.connect()
    connection.feed(post(b"x" * 20))
    assert connection.uncredited == 20
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert connection.uncredited == 0
    connection.feed(get("/next"))
    assert rig.exchange.request.target == b"/next"


@pytest.mark.parametrize(
    "bad",
    [b"0x5\r\nhi", b"5\r\nhelloXX", b"5\nhello", b"5;a\nhello", b"-5\r\n", b"G\r\n", b"fffffffff\r\n", b" 5\r\nhello"],
)
def test_H11_H16_a_body_that_turns_bad_is_a_reset_and_never_complete(rig: Rig, bad: bytes) -> None:
    connection = rig.send(CHUNKED_POST + b"2\r\nok\r\n" + bad)
    assert rig.exchange.was_reset
    assert not rig.exchange.finished
    assert status_of(connection.take()) == 400
    assert connection.end == "linger"
    rig.assert_clean()


def test_a_body_that_turns_bad_behind_a_reply_s_head_cuts_the_reply(rig: Rig) -> None:
    connection = rig.send(CHUNKED_POST)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
    connection.feed(b"zz\r\n")
    assert connection.end == "cut"
    assert rig.exchange.was_reset
    assert not connection.written.endswith(b"0\r\n\r\n")


def test_H19_too_many_trailers_are_431_and_a_reset(rig: Rig) -> None:
    connection = rig.send(CHUNKED_POST + b"0\r\n" + b"A: 1\r\n" * 1000 + b"\r\n")
    assert status_of(connection.take()) == 431
    assert rig.exchange.was_reset
    assert not rig.exchange.finished


@pytest.mark.parametrize(("size", "status"), [(99, 200), (100, 200), (101, 413)])
def test_a_body_over_the_limit_is_413(size: int, status: int) -> None:
    rig = Rig(limits=EdgeLimits(body_max_bytes=100))
    rig.link.answer = OK
    connection = rig.send(post(b"x" * size))
    assert status_of(connection.take()) == status
    assert len(rig.link.exchanges) == (status == 200)
    assert connection.end == ("" if status == 200 else "linger")


@pytest.mark.parametrize(("size", "status"), [(99, 200), (100, 200), (101, 413)])
def test_a_chunked_body_over_the_limit_is_413(size: int, status: int) -> None:
    rig = Rig(limits=EdgeLimits(body_max_bytes=100))
    rig.link.answer = OK
    connection = rig.send(CHUNKED_POST + b"1\r\nx\r\n" * size + b"0\r\n\r\n")
    assert status_of(connection.take()) == status
    assert rig.exchange.was_reset == (status == 413)
    rig.assert_clean()


def test_H64_a_visitor_that_ends_in_its_body_resets_the_exchange(rig: Rig) -> None:
    connection = rig.send(long_post(10) + b"half")
    connection.feed_eof()
    assert rig.exchange.was_reset
    assert not rig.exchange.finished
    assert connection.is_over
    assert rig.told[0][2] == 400


def test_H64_a_visitor_that_vanishes_resets_the_exchange(rig: Rig) -> None:
    connection = rig.send(get())
    connection.lose()
    assert rig.exchange.was_reset
    assert rig.told[0][2] == 499


@pytest.mark.parametrize("by", ["nobody", "the visitor", "the local service", "the agent", "the end of the server"])
def test_whether_a_reply_was_cut_is_told_beside_its_status(rig: Rig, by: str) -> None:
    connection = rig.connect()
    visitor = connection.sink
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf")
    match by:
        case "nobody":
            rig.exchange.reply(b"full")
        case "the visitor":
            connection.lose()
        case "the local service":
            rig.exchange.reply_eof()
        case "the agent":
            rig.exchange.fail(HopError(Hop.AGENT, 502, "agent-lost", "The agent is gone."))
        case _:
            visitor.end()  # type: ignore[attr-defined]
    ((_, _, status, _, _, cut),) = rig.told
    assert (status, cut) == (200, by != "nobody")


def test_what_was_never_begun_is_not_cut(rig: Rig) -> None:
    rig.send(get()).lose()
    rig.send(get())
    rig.exchange.fail(HopError(Hop.AGENT, 502, "agent-lost", "The agent is gone."))
    assert [(visit[2], visit[5]) for visit in rig.told] == [(499, False), (502, False)]


@pytest.mark.parametrize("cut", range(0, len(long_post(4)) + 4, 3))
@pytest.mark.parametrize("clean", [True, False])
def test_H64_ends_at_any_byte_leave_nothing(rig: Rig, cut: int, clean: bool) -> None:
    connection = rig.send((long_post(4) + b"body")[:cut])
    if clean:
        connection.feed_eof()
    else:
        connection.lose()
    assert connection.is_over
    rig.assert_clean()


def test_H64_a_half_closed_visitor_still_gets_its_reply(rig: Rig) -> None:
    connection = rig.send(get())
    connection.feed_eof()
    rig.exchange.reply(OK)
    assert b"Connection: close" in connection.take()
    assert connection.end == "close"


# replies


def test_a_reply_with_a_length_passes_as_it_is(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhe")
    assert connection.take() == b"HTTP/1.1 201 Made\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhe"
    rig.exchange.reply(b"llo")
    assert connection.take() == b"llo"
    assert not connection.is_over


def test_each_chunk_passes_at_once_and_trailers_at_the_end(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    rig.exchange.reply(b"6\r\nevent1\r\n")
    assert connection.take() == b"6\r\nevent1\r\n"
    rig.exchange.reply(b"0\r\nX-Sum: 1\r\n\r\n")
    assert connection.take() == b"0\r\nX-Sum: 1\r\n\r\n"
    assert not connection.is_over


def test_a_large_chunk_is_framed_without_a_copy(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    connection.take()
    rig.exchange.reply(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
    assert connection.take() == b"2000\r\n" + b"x" * 0x2000 + b"\r\n"


def test_H60_a_reply_without_length_is_chunked_for_1_1_and_ends_a_1_0_connection(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\n\r\nabc")
    rig.exchange.reply_eof()
    assert connection.take().endswith(b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    assert not connection.is_over
    connection = rig.send(b"GET / HTTP/1.0\r\nHost: app.example.test\r\nConnection: keep-alive\r\n\r\n")
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"
    assert connection.end == "close"


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
@pytest.mark.parametrize("minor", [0, 1])
def test_H60_a_reply_that_is_cut_short_never_looks_complete(rig: Rig, start: bytes, minor: int) -> None:
    connection = rig.send(f"GET / HTTP/1.{minor}\r\nHost: {HOST}\r\n\r\n".encode())
    rig.exchange.reply(start)
    rig.exchange.reply_eof()
    assert connection.end == "cut"
    assert not connection.written.endswith(b"0\r\n\r\n")


def test_a_failure_before_the_head_is_a_page_and_the_connection_stays(rig: Rig) -> None:
    connection = rig.send(get("/", "Accept: text/html,*/*;q=0.8"))
    rig.exchange.fail(HopError(Hop.LOCAL_SERVICE, 502, "local-service-refused", "Nothing listens at localhost:3000."))
    answer = connection.take()
    assert status_of(answer) == 502
    assert b"<dd>local service</dd>" in answer
    assert rig.exchange.visit.id.encode() in answer
    assert not connection.is_over
    rig.link.answer = OK
    assert rig.send(get(), connection).take() == OK


def test_H49_HEAD_204_and_304_have_no_body(rig: Rig) -> None:
    connection = rig.send(get(method="HEAD"))
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 204 No Content\r\n\r\n"
    rig.send(get(), connection)
    rig.exchange.reply(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n')
    assert connection.take() == b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n'
    assert not connection.is_over


def test_a_page_for_HEAD_has_no_body(rig: Rig) -> None:
    answer = rig.send(get(method="HEAD", host="nobody.example.test")).take()
    assert answer.endswith(b"\r\n\r\n")
    assert b"Content-Length: " in answer


def test_a_slow_visitor_blocks_the_reply(rig: Rig) -> None:
    connection = rig.connect(FedConnection(high_water=100))
    rig.send(get(), connection)
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + b"x" * 20)
    assert rig.exchange.uncredited == 0
    rig.exchange.reply(b"x" * 200)
    assert rig.exchange.uncredited == 200
    rig.exchange.reply(b"x" * 200)
    assert rig.exchange.uncredited == 400
    connection.take()
    assert rig.exchange.uncredited == 0
    rig.exchange.reply(b"x" * 80)
    connection.take()
    assert not connection.is_over
    rig.assert_clean()


# 1xx


def test_H50_interim_replies_pass_to_1_1_up_to_a_number() -> None:
    rig = Rig(limits=EdgeLimits(interims=3))
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 1000 + OK)
    answer = connection.take()
    assert answer.count(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n") == 3
    assert answer.endswith(OK)


def test_H50_no_interim_for_1_0(rig: Rig) -> None:
    connection = rig.send(b"GET / HTTP/1.0\r\nHost: app.example.test\r\n\r\n")
    rig.exchange.reply(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    assert connection.take().startswith(b"HTTP/1.1 200 OK\r\n")


def test_H50_a_101_that_nobody_asked_for_is_502(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")
    assert status_of(connection.take()) == 502


def test_H46_the_local_service_decides_on_100_continue(rig: Rig) -> None:
    connection = rig.send(get("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
    assert b"Expect: 100-continue\r\n" in rig.link.canonical[0]
    assert connection.take() == b""
    rig.exchange.reply(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.feed(b"body")
    rig.exchange.reply(OK)
    assert connection.take() == OK
    assert not connection.is_over


@pytest.mark.parametrize("status", [b"417 Expectation Failed", b"401 Unauthorized", b"200 OK"])
def test_H46_a_final_answer_before_the_body_ends_the_connection(rig: Rig, status: bytes) -> None:
    connection = rig.send(get("/", "Content-Length: 4", "Expect: 100-continue", method="POST"))
    rig.exchange.reply(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    assert connection.take() == b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert connection.end == "linger"


def test_H46_no_100_once_the_body_comes(rig: Rig) -> None:
    connection = rig.send(get("/", "Content-Length: 2", "Expect: 100-continue", method="POST") + b"a")
    rig.exchange.reply(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert connection.take() == b""


def test_H50_a_100_that_nobody_asked_for_passes_once(rig: Rig) -> None:
    connection = rig.send(get())
    rig.exchange.reply(b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + OK)
    assert connection.take() == b"HTTP/1.1 100 Continue\r\n\r\n" + OK


# answers before the upload ended


def test_H51_an_early_answer_is_not_lost_and_the_connection_lingers(rig: Rig) -> None:
    connection = rig.send(long_post(1000) + b"some")
    rig.exchange.reply(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno!")
    assert connection.take() == b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"
    assert connection.end == "linger"
    assert rig.exchange.was_reset


def test_H51_while_an_early_reply_goes_on_the_upload_goes_on(rig: Rig) -> None:
    connection = rig.send(long_post(8) + b"1234")
    rig.exchange.reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
    connection.feed(b"5678")
    assert rig.exchange.finished
    rig.exchange.reply(b"0\r\n\r\n")
    assert b"Connection: close\r\n" in connection.take()
    assert connection.end == "close"
    assert not rig.exchange.was_reset


def test_H51_the_local_service_resets_in_mid_upload(rig: Rig) -> None:
    connection = rig.send(long_post(8) + b"1234")
    rig.exchange.fail(HopError(Hop.LOCAL_SERVICE, 502, "local-service-reset", "It was reset."))
    assert status_of(connection.take()) == 502
    assert connection.end == "linger"


def test_a_late_callback_cannot_hit_the_next_request(rig: Rig) -> None:
    connection = rig.send(get("/1"))
    first = rig.exchange
    first.reply(OK)
    rig.send(get("/2"), connection)
    connection.take()
    turn = first._sink
    turn.data(memoryview(b"late"))
    turn.end(())
    turn.failed(HopError(Hop.AGENT, 502, "late", "late"))
    turn.room()
    assert connection.take() == b""
    connection.feed(get("/3"))
    assert len(rig.link.exchanges) == 2
    rig.exchange.reply(OK)
    assert connection.take() == OK
    assert len(rig.link.exchanges) == 3


def test_nothing_is_heard_after_lost(rig: Rig) -> None:
    connection = rig.send(long_post(10))
    rig.link.room = 1
    sink = connection.sink
    connection.lose(Reset("gone"))
    sink.room()
    sink.expired()
    sink.lost(Reset("again"))
    assert connection.written == b""
    assert len(rig.told) == 1
