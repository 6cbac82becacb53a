"""Reply heads: what the local service may say, and what a visitor is told."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.http1 import (
    CHUNKED,
    REPLY_LIMITS,
    REQUEST_LIMITS,
    UNTIL_CLOSE,
    ReplyHead,
    check_upgraded,
    find_reply_head_end,
    judge_reply,
    judge_request,
    render_reply,
    reply_framing,
)
from tests.hostile.corpus import WEBSOCKET, head

OK = b"HTTP/1.1 200 OK"
LENGTH = b"Content-Length: 5"
SWITCH = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
)


def judge(*lines: bytes, start: bytes = OK, method: bytes = b"GET", upgrade: bool = False) -> ReplyHead:
    return judge_reply(head(start, *lines), method, REPLY_LIMITS, upgrade=upgrade)


def refusal(*lines: bytes, start: bytes = OK) -> str:
    with pytest.raises(HttpError) as caught:
        judge(*lines, start=start)
    assert caught.value.status == 502
    return caught.value.code


def render(reply: ReplyHead, minor: int = 1, close: bool = False) -> bytes:
    return render_reply(reply, body=reply_framing(reply, minor), minor=minor, close=close)


def test_an_ordinary_reply() -> None:
    lines = (
        b"Server: x",
        LENGTH,
        b"Set-Cookie: a=b",
        b"Set-Cookie: c=d",
        b"X-Raw: \xe4\xff",
        b"Keep-Alive: timeout=5, max=100",
    )
    reply = judge(*lines)
    assert (reply.status, reply.reason, reply.minor, reply.body, reply.content_length) == (200, b"OK", 1, 5, 5)
    assert reply.keep_alive
    assert reply.keep_alive_timeout == 5.0
    assert not reply.doubtful
    assert not reply.owns_connection
    assert len(reply.headers) == 6
    assert render(reply) == head(OK, b"Server: x", b"Set-Cookie: a=b", b"Set-Cookie: c=d", b"X-Raw: \xe4\xff", LENGTH)


@pytest.mark.parametrize(
    ("start", "lines", "method", "body", "keeps"),
    [
        (OK, (LENGTH,), b"GET", 5, True),
        (OK, (b"Content-Length: 0",), b"GET", 0, True),
        (OK, (b"Transfer-Encoding: Chunked",), b"GET", CHUNKED, True),
        (OK, (), b"GET", UNTIL_CLOSE, False),
        (OK, (b"Connection: keep-alive",), b"GET", UNTIL_CLOSE, False),
        (OK, (LENGTH, b"Connection: close"), b"GET", 5, False),
        (b"HTTP/1.0 200 OK", (LENGTH,), b"GET", 5, False),
        (b"HTTP/1.0 200 OK", (LENGTH, b"Connection: Keep-Alive"), b"GET", 5, True),
        (OK, (LENGTH,), b"HEAD", 0, True),
        (OK, (), b"HEAD", 0, True),
        (OK, (b"Transfer-Encoding: chunked",), b"HEAD", 0, True),
        (b"HTTP/1.1 204 No", (), b"GET", 0, True),
        (b"HTTP/1.1 204 No", (b"Content-Length: 0",), b"GET", 0, False),
        (b"HTTP/1.1 204 No", (b"Transfer-Encoding: chunked",), b"GET", 0, False),
        (b"HTTP/1.1 304 No", (), b"GET", 0, True),
        (b"HTTP/1.1 304 No", (LENGTH,), b"GET", 0, False),
        (b"HTTP/1.1 304 No", (b"Transfer-Encoding: chunked",), b"GET", 0, False),
        (b"HTTP/1.1 100 Go", (), b"POST", 0, True),
        (b"HTTP/1.1 103 Early", (LENGTH,), b"GET", 0, False),
        (b"HTTP/1.1 999 Odd", (LENGTH,), b"GET", 5, True),
    ],
)
def test_H49_H60_how_a_reply_is_framed(
    start: bytes, lines: tuple[bytes, ...], method: bytes, body: int, keeps: bool
) -> None:
    reply = judge(*lines, start=start, method=method)
    assert reply.body == body
    assert reply.keep_alive is keeps


CODES = {
    "H60 both": ((LENGTH, b"Transfer-Encoding: chunked"), OK, "length-and-chunked"),
    "H60 two": ((LENGTH, LENGTH), OK, "two-content-lengths"),
    "H60 length": ((b"Content-Length: +5",), OK, "bad-content-length"),
    "H60 coding": ((b"Transfer-Encoding: gzip",), OK, "bad-transfer-encoding"),
    "H60 1.0": ((b"Transfer-Encoding: chunked",), b"HTTP/1.0 200 OK", "chunked-in-1.0"),
    "H60 CR": ((b"X: a\rb",), OK, "bare-cr"),
    "H60 NUL": ((b"X: a\0b",), OK, "nul"),
    "H60 control": ((b"X: a\x02b",), OK, "control-byte"),
    "H60 fold": ((b"X: a", b" b"), OK, "obs-fold"),
    "H50 101": (SWITCH, b"HTTP/1.1 101 Switching", "unasked-upgrade"),
    "H61 99": ((), b"HTTP/1.1 99 x", "bad-status-line"),
    "H61 099": ((), b"HTTP/1.1 099 x", "bad-status-line"),
    "H61 1000": ((), b"HTTP/1.1 1000 x", "bad-status-line"),
    "H61 no reason": ((), b"HTTP/1.1 200", "bad-status-line"),
    "H61 2.0": ((), b"HTTP/2.0 200 OK", "bad-status-line"),
    "H61 count": (tuple(b"X: y" for _ in range(201)), OK, "too-many-headers"),
    "H61 total": (tuple(b"X: " + b"y" * 1000 for _ in range(70)), OK, "head-too-large"),
}


@pytest.mark.parametrize(("lines", "start", "code"), CODES.values(), ids=CODES.keys())
def test_H60_H61_a_bad_reply_is_a_502_with_a_reason(lines: tuple[bytes, ...], start: bytes, code: str) -> None:
    assert refusal(*lines, start=start) == code


@pytest.mark.parametrize("space", [b" ", b"\t", b" \t "])
def test_H60_whitespace_between_a_name_and_its_colon_is_removed(space: bytes) -> None:
    """RFC 9112 §5.1, of a proxy and a response."""
    reply = judge(b"X-A" + space + b": b : c", LENGTH, b"Set-Cookie" + space + b":d=e", b"X-F:" + space)
    assert reply.headers == ((b"X-A", b"b : c"), (b"Content-Length", b"5"), (b"Set-Cookie", b"d=e"), (b"X-F", b""))
    assert render(reply) == head(OK, b"X-A: b : c", b"Set-Cookie: d=e", b"X-F: ", LENGTH)


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length : 5",
        b"content_length : 5",
        b"TRANSFER-ENCODING\t: chunked",
        b"Connection : close",
        b" X-A : b",
        b"X A : b",
        b" : b",
        b"X-A\x0b: b",
        b"X-A \x80: b",
    ],
)
def test_H60_whitespace_stays_wrong_where_it_would_be_framing_or_no_name_at_all(line: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        judge(b"X-Z : y", line, LENGTH)
    assert caught.value.status == 502
    with pytest.raises(HttpError):
        judge(LENGTH, line)


def test_H61_200_headers_and_64_kilobytes_pass() -> None:
    assert len(judge(*(b"X: y" for _ in range(200))).headers) == 200
    assert judge(b"X: " + b"y" * 60_000).forward


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"220 mail.example ESMTP\r\n", "not-http"),
        (b"SSH-2", "not-http"),
        (b"H2", "not-http"),
        (b"<html>", "not-http"),
        (b"HTTP/2.0 200 OK", "not-http"),
        (b"HTTP/1.1 200 OK\n", "bare-lf"),
        (b"HTTP/1.1 200 " + b"O" * 70_000, "head-too-large"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "head-too-large"),
        (head(OK, *(b"X: " + b"y" * 1000 for _ in range(70))), "head-too-large"),
    ],
)
def test_H61_what_can_never_be_a_reply_is_refused_at_once(data: bytes, code: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_reply_head_end(data, 0, REPLY_LIMITS)
    assert (caught.value.status, caught.value.code) == (502, code)


def test_H63_a_reply_s_head_is_found_wherever_it_is_split() -> None:
    raw = head(OK, LENGTH)
    for size in range(len(raw)):
        data = bytearray(raw[:size])
        assert find_reply_head_end(data, 0, REPLY_LIMITS) == -1
        data += raw[size:] + b"hello"
        assert find_reply_head_end(data, size, REPLY_LIMITS) == len(raw)


def test_hop_by_hop_fields_end_here() -> None:
    hop = (
        b"Connection: X-A, close",
        b"X-A: b",
        b"Keep-Alive: timeout=1",
        b"Proxy-Connection: x",
        b"Upgrade: h2c",
        b"TE: x",
    )
    assert render(judge(LENGTH, *hop, b"Via: 1.1 local")) == head(OK, b"Via: 1.1 local", LENGTH)


@pytest.mark.parametrize("connection", [(), (b"Connection: Upgrade, X-Gone",), (b"Connection: close, upgrade",)])
def test_426_says_what_to_upgrade_to_and_that_it_is_of_this_hop(connection: tuple[bytes, ...]) -> None:
    """RFC 9110 §7.8: who sends Upgrade names it in Connection."""
    start = b"HTTP/1.1 426 Upgrade Required"
    reply = judge(LENGTH, b"upgrade: websocket", *connection, start=start)
    kept = head(start, b"upgrade: websocket", LENGTH, b"Connection: upgrade")
    for _ in range(2):  # the second one is remembered
        assert render(reply) == kept
    assert render(reply, close=True) == head(start, b"upgrade: websocket", LENGTH, b"Connection: close, upgrade")
    assert render(reply, minor=0) == head(start, b"upgrade: websocket", LENGTH, b"Connection: keep-alive, upgrade")
    assert render(reply) == kept


def test_426_without_upgrade_and_upgrade_without_426_say_nothing_of_it() -> None:
    start = b"HTTP/1.1 426 Upgrade Required"
    assert render(judge(LENGTH, start=start)) == head(start, LENGTH)
    assert render(judge(LENGTH, b"Upgrade: h2c", b"Connection: upgrade")) == head(OK, LENGTH)


@pytest.mark.parametrize(
    ("value", "owns"),
    [
        (b"NTLM", True),
        (b"Negotiate", True),
        (b'Basic realm="x", Negotiate', True),
        (b'Basic realm="NTLM"', False),
        (b"", False),
    ],
)
def test_a_stream_may_belong_to_one_visitor(value: bytes, owns: bool) -> None:
    reply = judge(LENGTH, b"WWW-Authenticate: " + value, start=b"HTTP/1.1 401 No")
    assert reply.owns_connection is owns
    assert b"WWW-Authenticate: " + value + b"\r\n" in reply.forward


def test_H60_the_framing_for_each_visitor() -> None:
    endless = judge()
    assert reply_framing(endless, 1) == CHUNKED
    assert reply_framing(endless, 0) == UNTIL_CLOSE
    assert render(endless) == head(OK, b"Transfer-Encoding: chunked")
    assert render(endless, minor=0, close=True) == head(OK, b"Connection: close")
    chunked = judge(b"Transfer-Encoding: chunked")
    assert render(chunked, minor=0, close=True) == head(OK, b"Connection: close")
    with pytest.raises(ValueError):
        render_reply(chunked, body=CHUNKED, minor=0, close=True)
    length = judge(LENGTH)
    assert render(length, minor=0) == head(OK, LENGTH, b"Connection: keep-alive")
    assert render(length, close=True) == head(OK, LENGTH, b"Connection: close")
    assert render_reply(length, body=7, minor=1, close=False, extra=b"X-A: b\r\n") == head(
        OK, b"Content-Length: 7", b"X-A: b"
    )
    assert render_reply(length, body=0, minor=1, close=False) == head(OK, b"Content-Length: 0")


def test_H49_a_reply_without_body_keeps_the_length_it_says() -> None:
    assert render(judge(LENGTH, method=b"HEAD")) == head(OK, LENGTH)
    assert render(judge(method=b"HEAD")) == head(OK)
    assert render(judge(LENGTH, start=b"HTTP/1.1 304 No")) == head(b"HTTP/1.1 304 No", LENGTH)
    assert render(judge(LENGTH, start=b"HTTP/1.1 204 No")) == head(b"HTTP/1.1 204 No")
    assert render(judge(LENGTH, b"Link: x", start=b"HTTP/1.1 103 Early"), close=True) == head(
        b"HTTP/1.1 103 Early", b"Link: x"
    )


def test_H54_a_101_goes_back_as_it_came() -> None:
    request = judge_request(head(b"GET / HTTP/1.1", b"Host: a", *WEBSOCKET), REQUEST_LIMITS)
    reply = judge(*SWITCH, b"Sec-WebSocket-Protocol: a", start=b"HTTP/1.1 101 Switching Protocols", upgrade=True)
    check_upgraded(request, reply)
    assert render(reply) == head(
        b"HTTP/1.1 101 Switching Protocols",
        SWITCH[2],
        b"Sec-WebSocket-Protocol: a",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
    )


@pytest.mark.parametrize(
    "lines",
    [
        SWITCH[:2],
        (*SWITCH[:2], b"Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        (*SWITCH, SWITCH[2]),
        SWITCH[1:],
        (SWITCH[0], SWITCH[2]),
        (SWITCH[0], b"Upgrade: h2c", SWITCH[2]),
        (SWITCH[0], b"Upgrade: websocket, h2c", SWITCH[2]),
    ],
)
def test_H55_a_101_that_does_not_fit_is_a_502(lines: tuple[bytes, ...]) -> None:
    request = judge_request(head(b"GET / HTTP/1.1", b"Host: a", *WEBSOCKET), REQUEST_LIMITS)
    reply = judge(*lines, start=b"HTTP/1.1 101 Switching", upgrade=True)
    with pytest.raises(HttpError) as caught:
        check_upgraded(request, reply)
    assert caught.value.status == 502


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 300),
            st.integers(0, 4),
            st.sampled_from([b"\r\n", b"\n", b"\r", b" ", b":", b"\0", b"1", b"\xff", LENGTH + b"\r\n"]),
        ),
        max_size=4,
    ),
    st.sampled_from([b"GET", b"HEAD"]),
)
def test_any_mutation_is_refused_or_becomes_one_canonical_reply(
    edits: list[tuple[int, int, bytes]], method: bytes
) -> None:
    raw = head(OK, b"Server: x", LENGTH, b"Connection: keep-alive", b"X-A: b")
    for at, gone, new in edits:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + gone :]
    try:
        end = find_reply_head_end(raw, 0, REPLY_LIMITS)
        if end < 0:
            return
        reply = judge_reply(raw[:end], method, REPLY_LIMITS)
    except HttpError as error:
        if error.status != 502:
            raise
        return
    wire = render(reply)
    again = judge_reply(wire, method, REPLY_LIMITS)
    assert (again.status, again.reason, again.forward) == (reply.status, reply.reason, reply.forward)
    assert again.body == reply_framing(reply, 1)
    assert render(again) == wire
    if reply.status >= 200:
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
        peer.send(h11.EndOfMessage())
        peer.receive_data(wire)
        event = peer.next_event()
        assert isinstance(event, h11.Response)
        assert event.status_code == reply.status
