"""Bodies: by length, in chunks, until the end; at every split the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import HttpError
from rustunnel_py.wire.body import CHUNK_MAX, EXTENSION_BUDGET
from rustunnel_py.wire.http1 import (
    CHUNKED,
    REQUEST_LIMITS,
    UNTIL_CLOSE,
    BodyReader,
    Headers,
    HeadLimits,
    chunk,
    last_chunk,
    sendable_trailers,
)


class Heard:
    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ends: list[Headers] = []

    def data(self, data: memoryview) -> None:
        assert not self.ends
        assert len(data)
        self.pieces.append(bytes(data))

    def end(self, trailers: Headers) -> None:
        self.ends.append(trailers)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def read(
    body: int, raw: bytes, cuts: list[int] | None = None, limits: HeadLimits = REQUEST_LIMITS
) -> tuple[Heard, int, BodyReader]:
    """What was heard when `raw` came in pieces, how much of it was used, and the reader."""
    heard = Heard()
    reader = BodyReader(body, heard, limits)
    used = 0
    edges = [0, *sorted(cuts or []), len(raw)]
    for start, stop in pairwise(edges):
        # Each piece in memory of its own that is wiped afterwards: nothing may be kept.
        piece = bytearray(raw[start:stop])
        took = reader.feed(memoryview(piece))
        used += took
        piece[:] = b"\xee" * len(piece)
        if took < stop - start:
            break
    return heard, used, reader


def test_a_body_by_length() -> None:
    heard, used, reader = read(5, b"helloGET /")
    assert (heard.pieces, heard.ends, used, reader.done) == ([b"hello"], [()], 5, True)
    heard, used, reader = read(5, b"hello", [1, 3])
    assert (heard.pieces, heard.ends, used, reader.done) == ([b"h", b"el", b"lo"], [()], 5, True)


def test_a_body_that_is_whole_is_handed_on_uncopied() -> None:
    seen: list[memoryview] = []

    class Keeps(Heard):
        def data(self, data: memoryview) -> None:
            seen.append(data)

    view = memoryview(b"hello")
    BodyReader(5, Keeps(), REQUEST_LIMITS).feed(view)
    assert seen[0] is view
    BodyReader(CHUNKED, Keeps(), REQUEST_LIMITS).feed(memoryview(b"5\r\nhello\r\n0\r\n\r\n"))
    assert seen[1].obj == b"5\r\nhello\r\n0\r\n\r\n"


def test_no_body_is_done_and_says_nothing() -> None:
    heard, used, reader = read(0, b"GET /")
    assert (heard.pieces, heard.ends, used, reader.done) == ([], [], 0, True)
    assert reader.end_of_input()


def test_after_the_end_nothing_is_used() -> None:
    heard, _, reader = read(2, b"ab")
    assert reader.feed(memoryview(b"cd")) == 0
    assert heard.ends == [()]


@pytest.mark.parametrize("raw", [b"", b"hel"])
def test_H60_a_length_that_falls_short_does_not_end_well(raw: bytes) -> None:
    heard, _, reader = read(5, raw)
    assert not reader.end_of_input()
    assert heard.ends == []


def test_H60_until_close_ends_well_and_once() -> None:
    heard, used, reader = read(UNTIL_CLOSE, b"hello", [2])
    assert (heard.body, heard.ends, used, reader.done) == (b"hello", [], 5, False)
    assert reader.end_of_input()
    assert reader.end_of_input()
    assert heard.ends == [()]


CHUNKS = b"5\r\nhello\r\n1;a=b\r\n \r\n0005\r\nworld\r\n0;x\r\nX-Sum: 1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize("cut", range(len(CHUNKS) + 1))
def test_H63_chunks_at_every_split(cut: int) -> None:
    heard, used, reader = read(CHUNKED, CHUNKS + b"GET", [cut])
    assert (heard.body, heard.ends, used, reader.done) == (b"hello world", [((b"X-Sum", b"1"),)], len(CHUNKS), True)


def test_H63_chunks_a_byte_at_a_time() -> None:
    heard, used, _ = read(CHUNKED, CHUNKS + b"GET", list(range(len(CHUNKS) + 3)))
    assert (heard.body, heard.ends, used) == (b"hello world", [((b"X-Sum", b"1"),)], len(CHUNKS))


def test_an_empty_chunked_body() -> None:
    heard, used, reader = read(CHUNKED, b"0\r\n\r\nGET")
    assert (heard.pieces, heard.ends, used, reader.done) == ([], [()], 5, True)


@pytest.mark.parametrize("cut", range(len(CHUNKS)))
def test_H60_chunks_cut_off_do_not_end_well(cut: int) -> None:
    heard, _, reader = read(CHUNKED, CHUNKS[:cut])
    assert not reader.end_of_input()
    assert heard.ends == []


def code_of(raw: bytes, cuts: list[int] | None = None, limits: HeadLimits = REQUEST_LIMITS) -> tuple[int, str]:
    with pytest.raises(HttpError) as caught:
        read(CHUNKED, raw, cuts, limits)
    return caught.value.status, caught.value.code


END = b"\r\nhello\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    "size", [b"0x5", b"+5", b"-5", b" 5", b"5 ", b"5_0", b"", b"0" * 16 + b"5", b"5\t", b"g", b"5\0", b"\xd9\xa5"]
)
def test_H11_sizes_that_are_none(size: bytes) -> None:
    assert code_of(size + END) == (400, "bad-chunk")
    assert code_of(b"1\r\nx\r\n" + size + END) == (400, "bad-chunk")


def test_H11_sizes_that_overflow_others() -> None:
    assert code_of(b"%x" % (2**32 + 5) + END) == (400, "chunk-too-large")
    assert code_of(b"%x" % (2**64 + 5) + END) == (400, "bad-chunk")
    assert code_of(b"%x" % (CHUNK_MAX + 1) + END) == (400, "chunk-too-large")
    assert read(CHUNKED, b"%x\r\nhello" % CHUNK_MAX)[0].body == b"hello"


@pytest.mark.parametrize("extension", [b";a\n", b";a\nhello\r\n", b";a\n\r\n", b"\n", b";\n"])
def test_H12_a_bare_lf_in_an_extension(extension: bytes) -> None:
    assert code_of(b"5" + extension + END) == (400, "bad-chunk")


@pytest.mark.parametrize(
    "extension",
    [b";a\rb", b";a\0", b";", b";a@", b";a=", b";=a", b'; a="b"', b';a="\r\n"', b';a="', b';a="b"c', b" ;a"],
)
def test_H13_extensions_that_are_none(extension: bytes) -> None:
    raw = b"5" + extension + END
    assert code_of(raw)[0] == 400
    assert code_of(raw, list(range(len(raw))))[0] == 400


@pytest.mark.parametrize("extension", [b";a", b";a=b", b';a="b c\\" \xe4;"', b";a=1;b;c=2"])
def test_H13_extensions_are_judged_and_dropped(extension: bytes) -> None:
    assert read(CHUNKED, b"5" + extension + END)[0].pieces == [b"hello"]


@pytest.mark.parametrize("excess", [-1, 0, 1])
def test_H14_one_budget_for_all_extensions(excess: int) -> None:
    half = EXTENSION_BUDGET // 2
    raw = b"1;" + b"a" * (half - 1) + b"\r\nx\r\n1;" + b"a" * (half - 1 + excess) + b"\r\nx\r\n0\r\n\r\n"
    if excess > 0:
        assert code_of(raw) == (400, "chunk-extensions")
        assert code_of(raw, list(range(0, len(raw), 500))) == (400, "chunk-extensions")
    else:
        assert read(CHUNKED, raw)[0].body == b"xx"


def test_H14_an_extension_without_end_holds_little_memory() -> None:
    heard = Heard()
    reader = BodyReader(CHUNKED, heard, REQUEST_LIMITS)
    reader.feed(memoryview(b"5;a="))
    fed = 0
    with pytest.raises(HttpError, match="chunk-extensions"):
        while fed < 1 << 20:
            fed += reader.feed(memoryview(b"x" * 1000))
    assert fed <= EXTENSION_BUDGET + 1000


@pytest.mark.parametrize("tail", [b"XX", b"X", b"\n", b"\rX", b"\r\r\n", b" \r\n"])
def test_H15_what_stands_where_a_line_end_belongs(tail: bytes) -> None:
    assert code_of(b"5\r\nhello" + tail) == (400, "bad-chunk")
    assert code_of(b"5\r\nhello" + tail, [8]) == (400, "bad-chunk")


@pytest.mark.parametrize("eol", [b"\n", b"\rX", b"\r\0"])
def test_H16_a_size_line_without_its_end(eol: bytes) -> None:
    assert code_of(b"5" + eol + b"hello\r\n0\r\n\r\n") == (400, "bad-chunk")
    assert code_of(b"5" + eol, [0, 1, 2]) == (400, "bad-chunk")


def test_H17_a_last_chunk_and_silence_is_not_the_end() -> None:
    heard, used, reader = read(CHUNKED, b"5\r\nhello\r\n0\r\n")
    assert (heard.body, heard.ends, used, reader.done) == (b"hello", [], 13, False)


FORBIDDEN = [
    b"Host",
    b"content-length",
    b"Transfer-Encoding",
    b"Transfer_Encoding",
    b"Authorization",
    b"Cookie",
    b"Set-Cookie",
    b"X-Forwarded-For",
    b"X-Forwarded-Anything",
    b"Forwarded",
    b"X-Real-IP",
    b"Via",
    b"Proxy",
    b"Connection",
    b"Keep-Alive",
    b"Upgrade",
    b"TE",
    b"Trailer",
    b"Expect",
    b"Max-Forwards",
    b"Cache-Control",
    b"Content-Type",
    b"Content-Encoding",
    b"If-None-Match",
    b"WWW-Authenticate",
    b"Location",
    b"Sec-WebSocket-Key",
]


@pytest.mark.parametrize("name", FORBIDDEN)
def test_H18_trailers_that_end_here(name: bytes) -> None:
    heard, _, _ = read(CHUNKED, b"0\r\nX-A: 1\r\n" + name + b": x\r\n\r\n")
    assert heard.ends == [((b"X-A", b"1"),)]
    assert sendable_trailers(((name, b"x"),)) == ()
    assert last_chunk(((name, b"x"), (b"X-A", b"1"))) == b"0\r\nX-A: 1\r\n\r\n"


@pytest.mark.parametrize(
    "block", [b"X\r\n", b"X : y\r\n", b" X: y\r\n", b"X: y\n", b"X: \0\r\n", b": y\r\n", b"\n", b"\rX"]
)
def test_H18_malformed_trailers(block: bytes) -> None:
    raw = b"0\r\n" + block + b"\r\n"
    assert code_of(raw)[0] == 400
    assert code_of(raw, list(range(len(raw))))[0] == 400


@pytest.mark.parametrize(
    "trailers",
    [b"X: y\r\n" * 1000, b"X: " + b"y" * (1 << 20) + b"\r\n", b"X: " + b"y" * 9000 + b"\r\n"],
    ids=["count", "1 MiB", "line"],
)
def test_H19_too_many_trailers(trailers: bytes) -> None:
    raw = b"0\r\n" + trailers + b"\r\n"
    assert code_of(raw)[0] == 431
    assert code_of(raw, list(range(0, len(raw), 1000)))[0] == 431


@pytest.mark.parametrize("raw", [b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n"])
def test_a_sink_that_is_gone_hears_no_more(raw: bytes) -> None:
    class Leaves(Heard):
        reader: BodyReader

        def data(self, data: memoryview) -> None:
            super().data(data)
            self.reader.stop()

    heard = Leaves()
    reader = heard.reader = BodyReader(5 if raw == b"hello" else CHUNKED, heard, REQUEST_LIMITS)
    reader.feed(memoryview(raw))
    assert reader.feed(memoryview(b"more")) == 0
    assert (heard.pieces, heard.ends, reader.done) == ([b"hello"], [], False)


def test_a_bad_chunk_behind_good_ones_is_no_end() -> None:
    heard = Heard()
    reader = BodyReader(CHUNKED, heard, REQUEST_LIMITS)
    with pytest.raises(HttpError):
        reader.feed(memoryview(b"5\r\nhello\r\nzz\r\n0\r\n\r\n"))
    assert (heard.body, heard.ends, reader.done) == (b"hello", [], False)


PAYLOAD = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
CUTS = st.lists(st.integers(0, 400), max_size=8)


@settings(max_examples=200, deadline=None)
@given(PAYLOAD, CUTS, st.booleans())
def test_what_is_written_in_chunks_is_read_at_any_split(pieces: list[bytes], cuts: list[int], trailers: bool) -> None:
    said: Headers = ((b"X-Sum", b"abc"),) if trailers else ()
    raw = b"".join(
        b"".join((before, piece, after)) for piece in pieces for before, after in [chunk(piece)]
    ) + last_chunk(said)
    heard, used, reader = read(CHUNKED, raw + b"GET /", [min(cut, len(raw)) for cut in cuts])
    assert (heard.body, heard.ends, used, reader.done) == (b"".join(pieces), [said], len(raw), True)


def outcome(raw: bytes, cuts: list[int]) -> tuple[bytes, list[Headers], int]:
    heard = Heard()
    reader = BodyReader(CHUNKED, heard, REQUEST_LIMITS)
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    try:
        for start, stop in pairwise(edges):
            if reader.feed(memoryview(raw)[start:stop]) < stop - start:
                break
    except HttpError as error:
        return heard.body, heard.ends, error.status
    return heard.body, heard.ends, 0


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 80),
            st.integers(0, 3),
            st.sampled_from([b"\r\n", b"\n", b"\r", b"5", b";", b" ", b"\0", b"x", b'"', b"="]),
        ),
        max_size=4,
    ),
    CUTS,
)
def test_H63_any_mutation_ends_the_same_at_any_split(edits: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    raw = CHUNKS
    for at, gone, new in edits:
        at %= len(raw) + 1
        raw = raw[:at] + new + raw[at + gone :]
    assert outcome(raw, cuts) == outcome(raw, [])
