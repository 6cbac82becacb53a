"""Request heads: what is refused and why, what is read out of them, what is sent on."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.forwarding import TREATED, TREATED_BYTES, TREATED_MAX, Field, request_field
from rustunnel_py.wire.http1 import (
    CHUNKED,
    REQUEST_LIMITS,
    BlockMemory,
    HeadLimits,
    RequestBlock,
    RequestHead,
    find_head_end,
    forwarded_lines,
    judge_request,
    render_request,
    skip_leading_empty_lines,
    websocket_accept,
)
from rustunnel_py.wire.request import REMEMBERED, REMEMBERED_BYTES
from tests.hostile.corpus import CASES, WEBSOCKET, Case, get, head, post

HOST = b"Host: abc.example"
BROWSER = head(
    b"GET /a/b?c=d HTTP/1.1",
    b"Host: Abc.Example:8080",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    b"Accept: text/html,application/xhtml+xml,*/*;q=0.8",
    b"Accept-Language: en-US,en;q=0.5",
    b"Accept-Encoding: gzip, deflate, br",
    b"Connection: keep-alive",
    b"Cookie: session=abcdef; theme=dark_mode",
    b"Upgrade-Insecure-Requests: 1",
    b"Sec-Fetch-Dest: document",
)


def judge(*lines: bytes, start: bytes = b"GET / HTTP/1.1", host: bytes = HOST) -> RequestHead:
    return judge_request(head(start, host, *lines), REQUEST_LIMITS)


def refusal(raw: bytes, limits: HeadLimits = REQUEST_LIMITS) -> tuple[int, str]:
    with pytest.raises(HttpError) as caught:
        judge_request(raw, limits)
    return caught.value.status, caught.value.code


def render(request: RequestHead) -> bytes:
    return render_request(request, None, b"", body=request.body)


def test_a_browser_request_is_read() -> None:
    request = judge_request(BROWSER, REQUEST_LIMITS)
    assert (request.method, request.target, request.minor, request.body) == (b"GET", b"/a/b?c=d", 1, 0)
    assert (request.host, request.block.port, request.block.host_line) == ("abc.example", 8080, b"Abc.Example:8080")
    assert request.keep_alive
    assert request.idempotent
    assert not request.is_upgrade
    assert request.block.headers[-1] == (b"Sec-Fetch-Dest", b"document")
    assert len(request.block.headers) == 9


def test_a_browser_request_is_sent_on_line_by_line() -> None:
    request = judge_request(BROWSER, REQUEST_LIMITS)
    assert render(request) == BROWSER.replace(b"Connection: keep-alive\r\n", b"")


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_will_do(kind: type[bytes] | type[bytearray] | type[memoryview]) -> None:
    first = judge_request(kind(BROWSER), REQUEST_LIMITS)
    assert first.block.raw == BROWSER[BROWSER.index(b"Host") :]
    assert judge_request(kind(BROWSER), REQUEST_LIMITS, first.block) == first


def test_an_equal_block_is_the_same_object_and_its_start_line_is_judged() -> None:
    block = judge_request(BROWSER, REQUEST_LIMITS).block
    other = judge_request(BROWSER.replace(b"/a/b", b"/x"), REQUEST_LIMITS, block)
    assert other.block is block
    assert other.target == b"/x?c=d"
    with pytest.raises(HttpError, match="405"):
        judge_request(BROWSER.replace(b"GET", b"TRACE"), REQUEST_LIMITS, block)


def test_a_block_that_only_ends_alike_is_judged_anew() -> None:
    block = judge(b"X-A: b").block
    longer = head(b"POST / HTTP/1.1", b"Content-Length: 2", HOST, b"X-A: b")
    request = judge_request(longer, REQUEST_LIMITS, block)
    assert request.block is not block
    assert request.body == 2
    with pytest.raises(HttpError, match="bad-header-name"):
        judge_request(head(b"GET / HTTP/1.1", b"X A: b", HOST, b"X-A: b"), REQUEST_LIMITS, block)


@pytest.mark.parametrize("lines", [WEBSOCKET, (b"Transfer-Encoding: chunked",)], ids=["H53", "H09"])
def test_a_remembered_block_is_judged_with_each_start_line(lines: tuple[bytes, ...]) -> None:
    block = judge(*lines).block
    with pytest.raises(HttpError, match="400"):
        judge_request(head(b"GET / HTTP/1.0", HOST, *lines), REQUEST_LIMITS, block)
    assert judge_request(head(b"GET /x HTTP/1.1", HOST, *lines), REQUEST_LIMITS, block).block is block


CODES = {
    "H01": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400, "length-and-chunked"),
    "H03": (post(b"Content-Length: 5", b"Content-Length: 6"), 400, "two-content-lengths"),
    "H05": (post(b"Content-Length: 0x5"), 400, "bad-content-length"),
    "H06": (post(b"Transfer-Encoding: gzip, chunked"), 400, "bad-transfer-encoding"),
    "H07": (get(b"X-A : b"), 400, "bad-header-name"),
    "H09": (head(b"POST / HTTP/1.0", HOST, b"Transfer-Encoding: chunked"), 400, "chunked-in-1.0"),
    "H10": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400, "two-transfer-encodings"),
    "H20 line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400, "bare-lf"),
    "H20 header": (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", 400, "bare-lf"),
    "H21 line": (b"GET /\rx HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bare-cr"),
    "H21 header": (get(b"X: a\rb"), 400, "bare-cr"),
    "H22": (get(b"X: a\0b"), 400, "nul"),
    "H23": (get(b"X: a", b" b"), 400, "obs-fold"),
    "H24 colon": (get(b"X"), 400, "no-colon"),
    "H24 name": (get(b": x"), 400, "bad-header-name"),
    "H25": (get(b"X: \x7f"), 400, "control-byte"),
    "H26 count": (get(*(b"X: y" for _ in range(100))), 431, "too-many-headers"),
    "H26 line": (get(b"X: " + b"y" * 9000), 431, "header-too-long"),
    "H26 total": (get(*(b"X: " + b"y" * 8000 for _ in range(5))), 431, "head-too-large"),
    "H27": (get(target=b"/" + b"x" * 8192), 414, "target-too-long"),
    "H27 total": (get(target=b"/" + b"x" * 40000), 414, "target-too-long"),
    "H28": (b"GET  / HTTP/1.1\r\n\r\n", 400, "bad-request-line"),
    "H29": (b"GET / HTTP/1.2\r\n\r\n", 505, "version"),
    "H29 form": (b"GET / HTTP/1.1x\r\n\r\n", 400, "bad-version"),
    "H30": (b"PRI * HTTP/2.0\r\n\r\n", 400, "http2-preface"),
    "H31": (b'G"T / HTTP/1.1\r\n\r\n', 400, "bad-method"),
    "H31 long": (b"G" * 65 + b" / HTTP/1.1\r\n\r\n", 400, "bad-method"),
    "H32": (b"GET * HTTP/1.1\r\n\r\n", 400, "bad-target"),
    "H34": (get(target=b"http://other.example/"), 400, "authority-not-host"),
    "H35 scheme": (get(target=b"ftp://a/"), 400, "bad-scheme"),
    "H35 user": (get(target=b"http://u@a/"), 400, "bad-authority"),
    "H36": (head(b"CONNECT a:443 HTTP/1.1", HOST), 405, "method"),
    "H37": (head(b"TRACE / HTTP/1.1", HOST), 405, "method"),
    "H38": (get(target=b"/\xff"), 400, "bad-target"),
    "H39": (head(b"GET / HTTP/1.1"), 400, "no-host"),
    "H39 in 1.0": (head(b"GET / HTTP/1.0"), 400, "no-host"),
    "H39 empty": (head(b"GET / HTTP/1.1", b"Host:"), 400, "empty-host"),
    "H40": (head(b"GET / HTTP/1.1", HOST, HOST), 400, "two-hosts"),
    "H41": (head(b"GET / HTTP/1.1", b"Host: a:99999"), 400, "bad-host"),
    "H46": (get(b"Expect: foo"), 417, "unknown-expectation"),
    "H53 version": (get(*WEBSOCKET[:3], b"Sec-WebSocket-Version: 8"), 426, "websocket-version"),
    "H53 key": (get(*WEBSOCKET[:2], WEBSOCKET[3]), 400, "websocket-key"),
    "H53 connection": (get(*WEBSOCKET[1:]), 400, "websocket-connection"),
    "H53 method": (post(*WEBSOCKET), 400, "websocket-method"),
    "H56": (get(*WEBSOCKET, b"Content-Length: 1"), 400, "websocket-body"),
}


@pytest.mark.parametrize(("raw", "status", "code"), CODES.values(), ids=CODES.keys())
def test_H01_to_H56_a_refusal_says_why(raw: bytes, status: int, code: str) -> None:
    assert refusal(raw.replace(b"{host}", b"abc.example")) == (status, code)


REFUSED = [case for case in CASES if case.expect.statuses and not case.expect.forwarded and not case.expect.begun]


@pytest.mark.parametrize("case", [c for c in REFUSED if c.expect.statuses != {404}], ids=lambda case: case.id)
def test_no_refusal_quotes_the_input_or_says_too_much(case: Case) -> None:
    # Details are shown to the visitor and logged: one printable sentence or two.
    raw = case.bytes_for("abc.example")
    with pytest.raises(HttpError) as caught:
        start = skip_leading_empty_lines(raw)
        judge_request(raw[start : find_head_end(raw, start, REQUEST_LIMITS)], REQUEST_LIMITS)
    assert caught.value.status in case.expect.statuses
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 160


def test_no_head_at_all_is_refused() -> None:
    for raw in (
        b"",
        b"\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\n",
        head(b"GET / HTTP/1.1", HOST)[:-2],
    ):
        assert refusal(raw)[0] == 400


@pytest.mark.parametrize(("size", "status"), [(99, 0), (100, 0), (101, 431)])
def test_H26_the_count_of_headers(size: int, status: int) -> None:
    raw = head(b"GET / HTTP/1.1", HOST, *(b"X: y" for _ in range(size - 1)))
    assert (refusal(raw)[0] if status else len(judge_request(raw, REQUEST_LIMITS).block.headers)) == (status or size)


@pytest.mark.parametrize("excess", [-1, 0, 1])
@pytest.mark.parametrize("what", ["target", "line", "total"])
def test_H26_H27_limits_to_the_byte(what: str, excess: int) -> None:
    limits = HeadLimits(target=100, line=200, total=400)
    raw = {
        "target": head(b"GET /" + b"a" * (99 + excess) + b" HTTP/1.1", HOST),
        "line": head(b"GET / HTTP/1.1", HOST, b"X: " + b"y" * (197 + excess)),
        "total": head(
            b"GET / HTTP/1.1", HOST, b"X: " + b"y" * 190, b"Y: " + b"z" * (400 - 16 - 19 - 195 - 2 - 5 + excess)
        ),
    }[what]
    if what == "total":
        assert len(raw) == 400 + excess
    if excess <= 0:
        assert find_head_end(raw, 0, limits) == len(raw)
        judge_request(raw, limits)
    else:
        assert refusal(raw, limits)[0] == (414 if what == "target" else 431)


@pytest.mark.parametrize(
    ("lines", "minor", "stays"),
    [
        ((), 1, True),
        ((), 0, False),
        ((b"Connection: close",), 1, False),
        ((b"Connection: Close",), 1, False),
        ((b"Connection: keep-alive",), 0, True),
        ((b"Connection: Keep-Alive, x",), 0, True),
        ((b"Connection: keep-alive, close",), 1, False),
        ((b"Connection: keep-alive", b"Connection: close"), 0, False),
    ],
)
def test_who_expects_the_connection_to_stay(lines: tuple[bytes, ...], minor: int, stays: bool) -> None:
    assert judge(*lines, start=b"GET / HTTP/1.%d" % minor).keep_alive is stays


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS"])
def test_idempotent_methods(method: bytes) -> None:
    assert judge(start=method + b" / HTTP/1.1").idempotent


@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"get", b"FOO"])
def test_methods_that_may_not_be_repeated(method: bytes) -> None:
    assert not judge(start=method + b" / HTTP/1.1").idempotent


def test_H33_absolute_form_of_the_edge_s_own_scheme() -> None:
    raw = head(b"GET https://abc.example/p HTTP/1.1", HOST)
    assert judge_request(raw, REQUEST_LIMITS, scheme="https").target == b"/p"
    assert refusal(raw) == (400, "bad-scheme")


@pytest.mark.parametrize(
    ("target", "port"),
    [
        (b"http://ABC.example:80/", b":80"),
        (b"http://abc.example./", b""),
        (b"http://abc.example:80/", b""),
        (b"http://abc.example/", b":80"),
        (b"https://abc.example:443/", b""),
        (b"https://abc.example/", b":443"),
        (b"https://abc.example:80/", b":80"),
    ],
)
def test_H33_hosts_are_compared_in_one_form_and_with_the_scheme_s_port(target: bytes, port: bytes) -> None:
    raw = head(b"GET " + target + b" HTTP/1.1", HOST + port)
    assert judge_request(raw, REQUEST_LIMITS, scheme=target.partition(b":")[0].decode()).target == b"/"


@pytest.mark.parametrize(
    ("target", "port"),
    [
        (b"http://abc.example:443/", b""),
        (b"http://abc.example/", b":443"),
        (b"https://abc.example:80/", b""),
        (b"https://abc.example/", b":80"),
        (b"http://abc.example/", b":0"),
        (b"http://abc.example:0/", b""),
        (b"http://abc.example:8080/", b":80"),
    ],
)
def test_H34_another_port_is_another_authority(target: bytes, port: bytes) -> None:
    raw = head(b"GET " + target + b" HTTP/1.1", HOST + port)
    with pytest.raises(HttpError, match="authority-not-host"):
        judge_request(raw, REQUEST_LIMITS, scheme=target.partition(b":")[0].decode())


@pytest.mark.parametrize(
    ("value", "host", "port"),
    [
        (b"A.Example", "a.example", None),
        (b"a.example.", "a.example", None),
        (b"a.example.:80", "a.example", 80),
        (b"[::1]:80", "[::1]", 80),
        (b"[2001:DB8::A]", "[2001:db8::a]", None),
        (b"[V1.X]", "[v1.x]", None),
        (b"127.0.0.1:0", "127.0.0.1", 0),
        (b"localhost", "localhost", None),
        (b"1", "1", None),
    ],
)
def test_H41_H42_what_a_host_names(value: bytes, host: str, port: int | None) -> None:
    block = judge(host=b"Host: " + value).block
    assert (block.host, block.port, block.host_line) == (host, port, value)


def test_H46_when_an_expectation_counts() -> None:
    expect = b"Expect: 100-continue"
    body = b"Content-Length: 2"
    waiting = judge(expect, body, start=b"POST / HTTP/1.1")
    assert waiting.expects_continue
    assert b"\r\nExpect: 100-continue\r\n" in render(waiting)
    for request in (judge(expect), judge(expect, body, start=b"POST / HTTP/1.0"), judge(expect, b"Content-Length: 0")):
        assert not request.expects_continue
        assert b"Expect" not in render(request)


def test_H48_framing_is_written_anew() -> None:
    chunked = judge(b"Transfer-Encoding: CHUNKED", start=b"DELETE / HTTP/1.1")
    assert chunked.body == CHUNKED
    assert b"\r\nTransfer-Encoding: chunked\r\n" in render(chunked)
    assert b"\r\nContent-Length: 7\r\n" in render_request(chunked, None, b"", body=7)
    assert b"\r\nContent-Length: 0\r\n" in render_request(chunked, None, b"", body=0)
    length = judge(b"content-length: 5", start=b"POST / HTTP/1.1")
    assert b"\r\nContent-Length: 5\r\n" in render(length)
    assert b"\r\nTransfer-Encoding: chunked\r\n" in render_request(length, None, b"", body=CHUNKED)
    assert b"ontent-" not in render(judge(start=b"POST / HTTP/1.1"))
    assert b"\r\nContent-Length: 0\r\n" in render(judge(b"Content-Length: 0", start=b"POST / HTTP/1.1"))


def test_H52_H54_only_a_websocket_is_an_upgrade() -> None:
    request = judge(*WEBSOCKET)
    assert request.is_upgrade
    assert request.block.websocket_key == b"dGhlIHNhbXBsZSBub25jZQ=="
    assert render(request).endswith(b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    h2c = judge(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AA")
    assert not h2c.is_upgrade
    assert render(h2c) == head(b"GET / HTTP/1.1", HOST)


def test_H53_the_refusal_is_kept_and_raised_anew_each_time() -> None:
    raw = head(b"GET / HTTP/1.1", HOST, *WEBSOCKET[:3], b"Sec-WebSocket-Version: 8")
    raised = []
    for _ in range(2):
        with pytest.raises(HttpError) as caught:
            judge_request(raw, REQUEST_LIMITS)
        raised.append(caught.value)
    assert raised[0] is not raised[1]
    assert raised[0].status == 426


def test_the_accept_of_the_rfc() -> None:
    assert websocket_accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_H58_te_is_noted_and_removed() -> None:
    request = judge(b"TE: trailers, deflate;q=0.5", b"Connection: TE")
    assert request.block.te_trailers
    assert render(request) == head(b"GET / HTTP/1.1", HOST)


def test_H59_ours_stand_where_theirs_were() -> None:
    request = judge(b"X-Forwarded-For: 6.6.6.6", b"X-A: b", b"Forwarded: for=6.6.6.6", b"Via: 1.0 x")
    ours = forwarded_lines("203.0.113.9", "https", b"abc.example", 443)
    assert render_request(request, None, ours, body=0) == head(
        b"GET / HTTP/1.1",
        HOST,
        b"X-A: b",
        b"X-Forwarded-For: 203.0.113.9",
        b"X-Forwarded-Proto: https",
        b"X-Forwarded-Host: abc.example",
        b"X-Forwarded-Port: 443",
        b"X-Real-IP: 203.0.113.9",
        b"Forwarded: for=203.0.113.9;host=abc.example;proto=https",
    )


def test_forwarded_quotes_what_is_no_token() -> None:
    lines = forwarded_lines("2001:db8::1", "http", b"abc.example:8080", 8080)
    assert lines.endswith(b'Forwarded: for="[2001:db8::1]";host="abc.example:8080";proto=http\r\n')


def test_the_host_may_be_replaced_and_lines_added() -> None:
    request = judge(b"X-A: b")
    assert render_request(request, b"localhost:3000", b"", body=0, extra=b"X-Trace: 1\r\n") == head(
        b"GET / HTTP/1.1", b"Host: localhost:3000", b"X-A: b", b"X-Trace: 1"
    )


@pytest.mark.parametrize("size", range(1, len(BROWSER)))
def test_H63_a_head_is_found_wherever_it_is_split(size: int) -> None:
    data = bytearray(BROWSER[:size])
    assert find_head_end(data, 0, REQUEST_LIMITS) == -1
    data += BROWSER[size:] + b"rest"
    assert find_head_end(data, size, REQUEST_LIMITS) == len(BROWSER)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\n", "bare-lf"),
        (b"GET / HTTP/1.1\rX", "bare-cr"),
        (b"GET / HTTP/1.1\r\nX\0", "nul"),
        (b"\x16\x03\x01\x02\x00", "nul"),
        (b"G" * 9000, "bad-method"),
        (b"GET /" + b"x" * 9000, "target-too-long"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 9000, "header-too-long"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 6000, "head-too-large"),
    ],
)
def test_H65_what_can_never_be_a_head_is_refused_before_its_end(data: bytes, code: str) -> None:
    with pytest.raises(HttpError) as caught:
        find_head_end(data, 0, REQUEST_LIMITS)
    assert caught.value.code == code
    drip = bytearray()
    with pytest.raises(HttpError) as caught:
        for at in range(0, len(data), 50):
            looked = len(drip)
            drip += data[at : at + 50]
            find_head_end(drip, looked, REQUEST_LIMITS)
    assert caught.value.code == code
    assert len(drip) <= REQUEST_LIMITS.total + 50


def test_H66_a_few_empty_lines_before_a_request() -> None:
    for count in range(5):
        data = b"\r\n" * count + BROWSER
        start = skip_leading_empty_lines(data)
        assert start == 2 * count
        assert find_head_end(data, start, REQUEST_LIMITS) == len(data)
    for data in (b"\r\n" * 5, b"\r\n" * 50_000 + BROWSER):
        with pytest.raises(HttpError, match="empty-lines"):
            skip_leading_empty_lines(data)
    assert skip_leading_empty_lines(b"\r\n\r") == 2
    assert skip_leading_empty_lines(b"xx\r\nGET", 2) == 4


BYTES = (
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b",",
    b";",
    b"a",
    b"\x80",
    b"\xff",
    b"/",
    b"*",
    b"#",
    b"@",
    b"[",
)
LINES = (b"Host: x", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Connection: close", b"Upgrade: websocket")
PIECES = st.sampled_from([*BYTES, *(line + b"\r\n" for line in LINES)])


def edit(raw: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in edits:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + gone :]
    return raw


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(
        [BROWSER, head(b"GET / HTTP/1.1", HOST, *WEBSOCKET), head(b"POST /p HTTP/1.1", HOST, b"Content-Length: 5")]
    ),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 4), PIECES), max_size=4),
)
def test_any_mutation_is_refused_or_becomes_one_canonical_request(
    raw: bytes, edits: list[tuple[int, int, bytes]]
) -> None:
    raw = edit(raw, edits)
    try:
        end = find_head_end(raw, 0, REQUEST_LIMITS)
        if end < 0:
            return
        request = judge_request(raw[:end], REQUEST_LIMITS)
    except HttpError:
        return
    wire = render(request)
    peer = h11.Connection(h11.SERVER)
    peer.receive_data(wire)
    event = peer.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (request.method, request.target)
    if request.body == 0:
        assert isinstance(peer.next_event(), h11.EndOfMessage)
    assert peer.trailing_data == (b"", False)
    again = judge_request(wire, REQUEST_LIMITS)
    assert (again.method, again.target, again.body, again.host) == (
        request.method,
        request.target,
        request.body,
        request.host,
    )
    assert again.is_upgrade == request.is_upgrade
    assert render(again) == wire


def test_a_block_that_comes_again_is_judged_once_by_an_edges_memory() -> None:
    memory = BlockMemory()

    def block(host: bytes) -> RequestBlock:
        return judge_request(b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host, REQUEST_LIMITS, memory=memory).block

    first, second = block(b"a"), block(b"a")
    assert first is not second  # kept from the second time on
    assert block(b"a") is second
    for number in range(3 * REMEMBERED):
        assert block(b"n%d" % number).host == f"n{number}"
    assert block(b"a") is second  # what came once pushes nothing out
    for _ in range(2):
        for number in range(0, REMEMBERED, 8):
            assert block(b"n%d" % number).host == f"n{number}"
    assert block(b"a") is second
    assert max(len(memory._newer), len(memory._older), len(memory._once)) <= REMEMBERED


def test_a_long_block_is_not_remembered() -> None:
    memory = BlockMemory()
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * REMEMBERED_BYTES + b"\r\n\r\n"
    blocks = [judge_request(head, REQUEST_LIMITS, memory=memory).block for _ in range(3)]
    assert len({id(block) for block in blocks}) == 3


def test_what_is_refused_is_refused_each_time() -> None:
    memory = BlockMemory()
    for _ in range(3):
        with pytest.raises(HttpError):
            judge_request(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", REQUEST_LIMITS, memory=memory)


def test_how_names_are_treated_is_remembered_within_bounds() -> None:
    TREATED.clear()
    for number in range(3 * TREATED_MAX):
        request_field(b"x-%d" % number)
    assert 0 < len(TREATED) <= TREATED_MAX
    request_field(b"y" * (TREATED_BYTES + 1))
    assert b"y" * (TREATED_BYTES + 1) not in TREATED
    for _ in range(2):  # judged, then remembered
        assert request_field(b"X-Anything") is None
        assert request_field(b"Host") is Field.HOST
        for dropped in (b"X-Forwarded-For", b"x_forwarded_proto", b"Via", b"Content_Length"):
            assert request_field(dropped) is Field.DROP


BLOCK_LINES = [
    b"Host: a.test",
    b"Cookie: a=1",
    b"cookie: a=1",
    b"X-Cookie: a=1",
    b"Referer:  /somewhere ",
    b"Accept: */*",
    b"Connection: close",
    b"Connection: keep-alive, Cookie",
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"TE: trailers",
    b"Expect: 100-continue",
    b"Content_Length: 5",
    b"X-Forwarded-For: 1.2.3.4",
    b"Upgrade: websocket",
    b"Empty:",
]
KNOWN = (
    *("body", "connection_close", "connection_keep_alive", "content_length_given", "delicate", "expect_continue"),
    *("forward", "framing", "headers", "host", "host_line", "port"),
    *("raw", "start", "te_trailers", "upgrade_websocket", "websocket_key"),
)
"""All of a block but the refusal, an exception, which is no equal of another."""
BLOCK_VALUES = [
    b"a=1",
    b"a=2",
    b"",
    b" ",
    b"\tb ",
    b"5",
    b"6",
    b"chunked",
    b"Cookie: a=1",
    b"\x00",
    b"x\r",
    b"close",
    b"a.test",
    b"b.test",
]


@given(
    lines=st.lists(st.sampled_from(BLOCK_LINES), max_size=7),
    changes=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(BLOCK_VALUES)), max_size=3),
)
@example(lines=[b"Host: a.test", b"Cookie: a=1"], changes=[(1, b"a=2")])
@example(lines=[b"Host: a.test", b"X-Cookie: a=1", b"Cookie: a=1"], changes=[(2, b"a=2")])
@example(lines=[b"Host: a.test", b"Cookie: a=1", b"Cookie: a=1"], changes=[(2, b"a=2")])
def test_a_block_that_varies_means_what_it_means_by_itself(
    lines: list[bytes], changes: list[tuple[int, bytes]]
) -> None:
    raw = b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    try:
        known = RequestBlock(raw, REQUEST_LIMITS)
    except HttpError:
        return
    changed = list(lines)
    for place, value in changes:
        if place < len(changed):
            changed[place] = changed[place].partition(b":")[0] + b":" + value
    other = b"".join(line + b"\r\n" for line in changed) + b"\r\n"
    varied = known.varied(other, REQUEST_LIMITS)
    if varied is not None:
        expected = RequestBlock(other, REQUEST_LIMITS)
        assert {name: getattr(varied, name) for name in KNOWN} == {name: getattr(expected, name) for name in KNOWN}


def test_another_cookie_is_all_that_is_judged() -> None:
    known = RequestBlock(b"Host: a.test\r\nCookie: a=1\r\nAccept: */*\r\n\r\n", REQUEST_LIMITS)
    varied = known.varied(b"Host: a.test\r\nCookie: a=2; b=3\r\nAccept: */*\r\n\r\n", REQUEST_LIMITS)
    assert varied is not None
    assert varied.forward == b"Cookie: a=2; b=3\r\nAccept: */*\r\n"
    assert varied.headers[1] == (b"Cookie", b"a=2; b=3")


@pytest.mark.parametrize(
    "other",
    [
        b"Host: b.test\r\nCookie: a=1\r\nAccept: */*\r\n\r\n",
        b"Host: a.test\r\nCookie: a=1\r\nAccept: */*\r\nX: 1\r\n\r\n",
        b"Host: a.test\r\nCookie: a\x00\r\nAccept: */*\r\n\r\n",
        b"Host: a.test\r\nCookie : a=2\r\nAccept: */*\r\n\r\n",
        b"Host: a.test\r\nCookie: " + b"a" * 9000 + b"\r\nAccept: */*\r\n\r\n",
        b"Host: a.test\r\nCookie: a=2\rAccept: */*\r\n\r\n\r\n",
    ],
)
def test_whatever_else_differs_is_judged_by_itself(other: bytes) -> None:
    known = RequestBlock(b"Host: a.test\r\nCookie: a=1\r\nAccept: */*\r\n\r\n", REQUEST_LIMITS)
    assert known.varied(other, REQUEST_LIMITS) is None
