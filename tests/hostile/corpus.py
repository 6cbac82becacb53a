"""Raw bytes against a public HTTP/1.1 door, and what must come of them (reliability.md, rows H).

`CASES` are what a visitor sends on one connection, `REPLY_CASES` what a local service answers. `{host}` stands for a
live tunnel's host name (`Case.bytes_for`). The rule behind all: nothing reaches the agent, or requests in one canonical
form. After its last byte a visitor keeps the connection open and sends nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class Forwarded:
    """One request as it must reach the agent. `has` are whole header lines, `lacks` names in lower case.

    `trailers` are those that must arrive, all others must not.
    """

    method: bytes
    target: bytes
    body: bytes = b""
    has: tuple[bytes, ...] = ()
    lacks: tuple[bytes, ...] = ()
    trailers: tuple[tuple[bytes, bytes], ...] = ()
    upgrade: bool = False


@dataclass(frozen=True, slots=True)
class Expect:
    """What must come of the bytes: these requests in order, then the server's own answer, if any.

    `statuses`: the answer is one of these; but for a 404 it says `Connection: close`, and the connection ends. Empty:
    no answer of our own.
    `dropped`: ending the connection without an answer is right too (with empty `statuses`: it is what must happen).
    `begun`: one more request may have begun at the agent; it must be reset, never completed.
    `waits`: the input is incomplete; nothing happens until a deadline, then 408 or a close; what had begun is reset.
    """

    forwarded: tuple[Forwarded, ...] = ()
    statuses: frozenset[int] = frozenset()
    dropped: bool = False
    begun: bool = False
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    row: str
    raw: bytes = field(repr=False)
    expect: Expect

    def bytes_for(self, host: str) -> bytes:
        return self.raw.replace(b"{host}", host.encode("ascii"))


@dataclass(frozen=True, slots=True)
class ReplyExpect:
    """What the visitor must see: the reply with this status and body; or, with `cut`, a beginning of it and an abort.

    A `status` of 502 without `relayed` is our own answer. `reusable`: the stream may serve another request.
    """

    status: int
    body: bytes = b""
    relayed: bool = True
    cut: bool = False
    reusable: bool = False
    interim: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ReplyCase:
    """What a local service writes in answer to one request of `method` and `target` `/`, and whether it then closes."""

    id: str
    row: str
    method: bytes
    raw: bytes = field(repr=False)
    closes: bool
    expect: ReplyExpect


def refused(*statuses: int) -> Expect:
    return Expect(statuses=frozenset(statuses))


def refused_or_dropped(*statuses: int) -> Expect:
    return Expect(statuses=frozenset(statuses), dropped=True)


def broken(*statuses: int) -> Expect:
    """The head was good and may have been sent on, what follows is not."""
    return Expect(statuses=frozenset(statuses), begun=True)


def no_tunnel() -> Expect:
    return Expect(statuses=frozenset({404}))


def waits() -> Expect:
    return Expect(waits=True)


def forwarded(
    method: bytes = b"GET",
    target: bytes = b"/",
    body: bytes = b"",
    *,
    has: Iterable[bytes] = (),
    lacks: Iterable[bytes] = (),
    trailers: Iterable[tuple[bytes, bytes]] = (),
    upgrade: bool = False,
) -> Expect:
    return Expect((Forwarded(method, target, body, tuple(has), tuple(lacks), tuple(trailers), upgrade),))


def then(*parts: Expect) -> Expect:
    """One after another; only the last may refuse."""
    last = parts[-1]
    every = tuple(one for part in parts for one in part.forwarded)
    return Expect(every, last.statuses, last.dropped, last.begun, last.waits)


HOST = b"Host: {host}"
CHUNKED = b"Transfer-Encoding: chunked"
WEBSOCKET = (
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)


def head(start: bytes, *lines: bytes) -> bytes:
    return b"\r\n".join((start, *lines, b"", b""))


def get(*lines: bytes, target: bytes = b"/") -> bytes:
    return head(b"GET " + target + b" HTTP/1.1", HOST, *lines)


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return head(b"POST /p HTTP/1.1", HOST, *lines) + body


def chunked(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


CASES: list[Case] = []
REPLY_CASES: list[ReplyCase] = []


def _add(row: str, name: str, raw: bytes, expect: Expect) -> None:
    CASES.append(Case(f"{row}-{name.replace(' ', '-')}", row, raw, expect))


def _add_all(row: str, expect: Expect, variants: dict[str, bytes]) -> None:
    for name, raw in variants.items():
        _add(row, name, raw, expect)


def _framing_rows() -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    length = b"Content-Length: 5"
    _add("H01", "length then chunked", post(length, CHUNKED, body=body), refused(400))
    _add("H01", "length zero then chunked", post(b"Content-Length: 0", CHUNKED, body=body), refused(400))
    _add(
        "H01",
        "smuggled request",
        post(b"Content-Length: 4", CHUNKED, body=b"0\r\n\r\n" + get(target=b"/x")),
        refused(400),
    )
    _add_all(
        "H02",
        refused(400),
        {
            "chunked then length": post(CHUNKED, length, body=body),
            "upper case": post(b"TRANSFER-ENCODING: CHUNKED", b"CONTENT-LENGTH: 5", body=body),
            "mixed case": post(b"cOnTeNt-LeNgTh: 5", b"tRaNsFeR-eNcOdInG: cHuNkEd", body=body),
            "apart": post(length, b"X-A: b", CHUNKED, body=body),
        },
    )
    _add("H03", "5 and 6", post(length, b"Content-Length: 6", body=b"hello!"), refused(400))
    _add("H03", "5 and 0", post(length, b"Content-Length: 0", body=b"hello"), refused(400))
    _add("H03", "other case", post(length, b"content-length: 50", body=b"hello"), refused(400))
    _add("H04", "two equal", post(length, length, body=b"hello"), refused(400))
    _add("H04", "list", post(b"Content-Length: 5, 5", body=b"hello"), refused(400))
    _add("H04", "list without space", post(b"Content-Length: 5,5", body=b"hello"), refused(400))
    _add("H04", "two zero", post(b"Content-Length: 0", b"Content-Length: 0"), refused(400))
    lengths = {
        "empty": b"",
        "blank": b"   ",
        "plus": b"+5",
        "minus": b"-1",
        "minus zero": b"-0",
        "two numbers": b"5 5",
        "hex": b"0x5",
        "hex digits": b"a",
        "underscore": b"5_0",
        "arabic digit": "٥".encode(),
        "fullwidth digit": "５".encode(),
        "superscript": b"\xb2",
        "leading zeros": b"00005",
        "double zero": b"00",
        "exponent": b"1e3",
        "fraction": b"5.0",
        "comma": b"5,",
        "semicolon": b"5;a",
        "quoted": b'"5"',
        "twenty nines": b"9" * 20,
        "nineteen digits": b"9223372036854775808",
        "a thousand digits": b"1" * 1000,
        "nbsp": b"5\xa0",
        "vertical tab": b"5\x0b",
        "form feed": b"\x0c5",
        "trailing NUL": b"5\0",
    }
    _add_all("H05", refused(400), {name: post(b"Content-Length: " + v, body=b"hello") for name, v in lengths.items()})
    _add(
        "H05",
        "outer whitespace is legal",
        post(b"Content-Length: \t 5 \t", body=b"hello"),
        forwarded(b"POST", b"/p", b"hello"),
    )
    _add("H05", "no space is legal", post(b"Content-Length:5", body=b"hello"), forwarded(b"POST", b"/p", b"hello"))
    codings = {
        "chunked then identity": b"chunked, identity",
        "gzip then chunked": b"gzip, chunked",
        "chunked twice": b"chunked, chunked",
        "leading comma": b",chunked",
        "trailing comma": b"chunked,",
        "identity": b"identity",
        "gzip": b"gzip",
        "parameter": b"chunked;q=1",
        "empty": b"",
        "quoted": b'"chunked"',
        "prefix": b"xchunked",
        "suffix": b"chunkedx",
        "two words": b"chunked chunked",
        "cut": b"chunke",
        "kelvin sign": "chun\u212aed".encode(),
    }
    _add_all(
        "H06", refused(400, 501), {name: post(b"Transfer-Encoding: " + v, body=body) for name, v in codings.items()}
    )
    _add(
        "H06",
        "upper case is legal",
        post(b"Transfer-Encoding: CHUNKED", body=body),
        forwarded(b"POST", b"/p", b"hello"),
    )
    names = {
        "space before colon": b"Transfer-Encoding : chunked",
        "tab before colon": b"Transfer-Encoding\t: chunked",
        "leading space": b" Transfer-Encoding: chunked",
        "leading tab": b"\tTransfer-Encoding: chunked",
        "space in length": b"Content-Length : 5",
        "space in host": b"X: y\r\nHost : other.example",
        "vertical tab": b"Transfer-Encoding\x0b: chunked",
        "NUL": b"Transfer-Encoding\0: chunked",
        "nbsp": b"Transfer-Encoding\xa0: chunked",
    }
    _add_all("H07", refused(400), {name: post(line, body=body) for name, line in names.items()})
    twins = {
        "underscore coding": (b"Transfer_Encoding: chunked", b"transfer_encoding"),
        "underscore length": (b"Content_Length: 5", b"content_length"),
        "dot length": (b"Content.Length: 5", b"content.length"),
        "underscore forwarded": (b"X_Forwarded_For: 6.6.6.6", b"x_forwarded_for"),
        "half underscore forwarded": (b"X-Forwarded_For: 6.6.6.6", b"x-forwarded_for"),
        "underscore real ip": (b"X_Real_IP: 6.6.6.6", b"x_real_ip"),
    }
    for name, (line, gone) in twins.items():
        _add("H07", name, get(line), forwarded(lacks=[gone]))
    _add("H07", "other underscore passes", get(b"X_Token: a_b"), forwarded(has=[b"X_Token: a_b"]))
    odd = {"vertical tab": b"\x0b", "form feed": b"\x0c", "nbsp": b"\xa0", "nel": b"\x85", "NUL": b"\0", "DEL": b"\x7f"}
    for name, byte in odd.items():
        _add("H08", f"{name} before", post(b"Transfer-Encoding: " + byte + b"chunked", body=body), refused(400))
        _add("H08", f"{name} after", post(b"Transfer-Encoding: chunked" + byte, body=body), refused(400))
    _add("H09", "chunked in 1.0", head(b"POST / HTTP/1.0", HOST, CHUNKED) + body, refused(400))
    _add("H09", "kept alive", head(b"POST / HTTP/1.0", HOST, b"Connection: keep-alive", CHUNKED) + body, refused(400))
    _add("H10", "two lines", post(CHUNKED, CHUNKED, body=body), refused(400))
    _add("H10", "identity first", post(b"Transfer-Encoding: identity", CHUNKED, body=body), refused(400))
    _add("H10", "identity last", post(CHUNKED, b"transfer-encoding: identity", body=body), refused(400))
    _add("H10", "empty second", post(CHUNKED, b"Transfer-Encoding:", body=body), refused(400))


def _chunk_rows() -> None:
    end = b"0\r\n\r\n"
    ok = forwarded(b"POST", b"/p", b"hello")
    sizes = {
        "hex prefix": b"0x5",
        "plus": b"+5",
        "minus": b"-5",
        "space before": b" 5",
        "space after": b"5 ",
        "tab after": b"5\t",
        "underscore": b"5_0",
        "empty": b"",
        "17 digits": b"0" * 16 + b"5",
        "2^32+5": b"100000005",
        "2^64+5": b"10000000000000005",
        "2^63": b"8000000000000000",
        "not hex": b"g",
        "NUL": b"5\0",
        "obs text": b"5\xa0",
        "two sizes": b"5 5",
        "comma": b"5,",
        "leading zeros with sign": b"-0",
    }
    _add_all("H11", broken(400), {n: chunked(size + b"\r\nhello\r\n" + end) for n, size in sizes.items()})
    _add_all(
        "H11",
        broken(400),
        {f"{n} in second chunk": chunked(b"2\r\nhe\r\n" + s + b"\r\nllo\r\n" + end) for n, s in sizes.items()},
    )
    _add(
        "H11",
        "upper case digits are legal",
        chunked(b"A\r\n0123456789\r\n" + end),
        forwarded(b"POST", b"/p", b"0123456789"),
    )
    _add("H11", "16 digits are legal", chunked(b"0" * 15 + b"5\r\nhello\r\n" + end), ok)
    _add("H11", "long zero is legal", chunked(b"5\r\nhello\r\n000\r\n\r\n"), ok)
    _add("H12", "LF in extension", chunked(b"5;a\nhello\r\n" + end), broken(400))
    _add("H12", "LF before CRLF", chunked(b"5;a\n\r\nhello\r\n" + end), broken(400))
    _add(
        "H12",
        "LF hides a size",
        chunked(b"2;\nxx\r\n45\r\n0\r\n\r\nGET /x HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        broken(400),
    )
    _add("H12", "LF in last chunk", chunked(b"5\r\nhello\r\n0;a\n\r\n"), broken(400))
    extensions = {
        "CR": b";a\rb",
        "NUL": b";a\0",
        "control": b";a=\x01",
        "DEL": b";a=\x7f",
        "bare semicolon": b";",
        "two semicolons": b";a;;b",
        "bad token": b";a@=1",
        "no name": b";=1",
        "no value": b";a=",
        "space before": b" ;a",
        "space inside": b"; a",
        "space around equals": b";a = 1",
        "open quote": b';a="b',
        "text behind quote": b';a="b"c',
        "CRLF in quote": b';a="\r\n"',
        "LF in quote": b';a="\n"',
        "escaped CR in quote": b';a="\\\r\n"',
        "obs text in name": b";\xe4=1",
    }
    _add_all("H13", broken(400), {n: chunked(b"5" + e + b"\r\nhello\r\n" + end) for n, e in extensions.items()})
    legal = {"name": b";a", "value": b";a=1", "quoted": b';a="b;c \\" d"', "two": b';a=1;b="2"'}
    _add_all("H13", ok, {f"legal {n}": chunked(b"5" + e + b"\r\nhello\r\n" + end) for n, e in legal.items()})
    _add("H13", "legal in last chunk", chunked(b"5\r\nhello\r\n0;a=b\r\n\r\n"), ok)
    _add("H14", "64 KiB in one", chunked(b"5;a=" + b"x" * 65536 + b"\r\nhello\r\n" + end), broken(400))
    _add("H14", "64 KiB and no end", chunked(b"5;a=" + b"x" * 65536), broken(400))
    _add("H14", "64 KiB quoted", chunked(b'5;a="' + b"x" * 65536 + b'"\r\nhello\r\n' + end), broken(400))
    _add("H14", "8 KiB each", chunked((b"1;a=" + b"x" * 8192 + b"\r\nh\r\n") * 10 + end), broken(400))
    _add("H14", "small ones past the budget", chunked(b"1;abcdefg=12345678\r\nh\r\n" * 2000 + end), broken(400))
    _add("H14", "small ones within", chunked(b"1;a=1\r\nh\r\n" * 100 + end), forwarded(b"POST", b"/p", b"h" * 100))
    for name, tail in {"XX": b"XX", "LF": b"\n", "CR and more": b"\rX", "LF CR": b"\n\r", "one more": b"!\r\n"}.items():
        _add("H15", name, chunked(b"5\r\nhello" + tail + b"0\r\n\r\n"), broken(400))
    _add("H15", "XX and silence", chunked(b"5\r\nhelloXX"), broken(400))
    _add("H15", "X and silence", chunked(b"5\r\nhelloX"), broken(400))
    for name, eol in {
        "LF": b"\n",
        "CR and X": b"\rX",
        "CR and NUL": b"\r\0",
        "CR CR LF": b"\r\r\n",
        "LF CR": b"\n\r",
    }.items():
        _add("H16", name, chunked(b"5" + eol + b"hello\r\n" + end), broken(400))
        _add("H16", f"{name} at the end", chunked(b"5\r\nhello\r\n0" + eol + b"\r\n"), broken(400))
    _add("H16", "last empty line by LF", chunked(b"5\r\nhello\r\n0\r\n\n"), broken(400))
    _add("H17", "last chunk and silence", chunked(b"5\r\nhello\r\n0\r\n"), waits())
    _add("H17", "half a trailer", chunked(b"5\r\nhello\r\n0\r\nX-A: b"), waits())
    _add("H17", "no last chunk", chunked(b"5\r\nhello\r\n"), waits())
    _add("H17", "length and less", post(b"Content-Length: 5", body=b"hell"), waits())
    for line in (
        b"Host: evil.example",
        b"Content-Length: 7",
        b"Transfer-Encoding: chunked",
        b"Authorization: Basic eDp5",
        b"X-Forwarded-For: 6.6.6.6",
        b"Forwarded: for=6.6.6.6",
        b"X-Real-IP: 6.6.6.6",
        b"Cookie: a=b",
        b"Set-Cookie: a=b",
        b"Connection: close",
        b"Upgrade: websocket",
        b"Expect: 100-continue",
        b"Content-Type: text/html",
        b"Content-Encoding: gzip",
        b"Trailer: x",
        b"If-Match: x",
        b"Content_Length: 7",
    ):
        name = line.split(b":")[0].decode()
        raw = chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n" + line + b"\r\n\r\n")
        _add("H18", name, raw, forwarded(b"POST", b"/p", b"hello", trailers=[(b"X-Sum", b"1")]))
    _add(
        "H18",
        "others pass",
        chunked(b"0\r\nX-A: 1\r\nx-b:  2 \r\n\r\n"),
        forwarded(b"POST", b"/p", trailers=[(b"X-A", b"1"), (b"x-b", b"2")]),
    )
    broken_trailers = {
        "no colon": b"X-A\r\n",
        "obs-fold": b"X-A: b\r\n c\r\n",
        "LF": b"X-A: b\n",
        "space before colon": b"X-A : b\r\n",
        "NUL": b"X-A: \0\r\n",
        "empty name": b": x\r\n",
    }
    _add_all(
        "H18",
        broken(400),
        {f"malformed {n}": chunked(b"5\r\nhello\r\n0\r\n" + t + b"\r\n") for n, t in broken_trailers.items()},
    )
    _add("H19", "1 000 trailers", chunked(b"0\r\n" + b"X-A: b\r\n" * 1000 + b"\r\n"), broken(431))
    _add("H19", "one of 1 MiB", chunked(b"0\r\nX-A: " + b"b" * (1 << 20) + b"\r\n\r\n"), broken(431))
    _add("H19", "one of 1 MiB and no end", chunked(b"0\r\nX-A: " + b"b" * (1 << 20)), broken(431))
    _add("H19", "one of 16 KiB", chunked(b"0\r\nX-A: " + b"b" * (1 << 14) + b"\r\n\r\n"), broken(431))


def _byte_rows() -> None:
    _add_all(
        "H20",
        refused(400),
        {
            "request line by LF": b"GET / HTTP/1.1\nHost: {host}\r\n\r\n",
            "all by LF": b"GET / HTTP/1.1\nHost: {host}\n\n",
            "one header by LF": b"GET / HTTP/1.1\r\nHost: {host}\nX-A: b\r\n\r\n",
            "empty line by LF": b"GET / HTTP/1.1\r\nHost: {host}\r\n\n",
            "LF before headers": b"GET / HTTP/1.1\r\n\nHost: {host}\r\n\r\n",
            "hidden request": b"GET / HTTP/1.1\r\nHost: {host}\n\nGET /x HTTP/1.1\r\nHost: {host}\r\n\r\n",
        },
    )
    _add_all(
        "H21",
        refused(400),
        {
            "in method": head(b"G\rET / HTTP/1.1", HOST),
            "in target": head(b"GET /\rx HTTP/1.1", HOST),
            "in version": head(b"GET / HTTP/1.1\r", HOST),
            "for line end": b"GET / HTTP/1.1\rHost: {host}\r\n\r\n",
            "in name": get(b"X-\rA: b"),
            "in value": get(b"X-A: b\rc"),
            "before line end": get(b"X-A: b\r"),
            "hides a header": get(b"X-A: b\rContent-Length: 5"),
            "all by CR": b"GET / HTTP/1.1\rHost: {host}\r\rX",
        },
    )
    _add_all(
        "H22",
        refused(400),
        {
            "in method": head(b"G\0T / HTTP/1.1", HOST),
            "in target": head(b"GET /\0 HTTP/1.1", HOST),
            "in version": head(b"GET / HTTP/1.1\0", HOST),
            "in name": get(b"X\0A: b"),
            "in value": get(b"X-A: b\0c"),
            "in Host": head(b"GET / HTTP/1.1", HOST + b"\0"),
            "at the start": b"\0" + get(),
        },
    )
    _add("H22", "in body passes", post(b"Content-Length: 3", body=b"a\0b"), forwarded(b"POST", b"/p", b"a\0b"))
    _add("H22", "in chunk passes", chunked(b"3\r\na\0b\r\n0\r\n\r\n"), forwarded(b"POST", b"/p", b"a\0b"))
    _add_all(
        "H23",
        refused(400),
        {
            "ordinary": get(b"X-A: b", b" c"),
            "by tab": get(b"X-A: b", b"\tc"),
            "in Host": head(b"GET / HTTP/1.1", b"Host:", b" {host}"),
            "behind Host": head(b"GET / HTTP/1.1", HOST, b" x"),
            "in length": post(b"Content-Length:", b" 5", body=b"hello"),
            "in coding": post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"),
            "first line": head(b"GET / HTTP/1.1", b" X-A: b", HOST),
            "first line Host": head(b"GET / HTTP/1.1", b" Host: {host}"),
            "blank continuation": get(b"X-A: b", b" "),
        },
    )
    _add("H23", "behind the head", get() + b" X: y\r\n\r\n", then(forwarded(), refused(400)))
    _add_all(
        "H24",
        refused(400),
        {
            "no colon": get(b"X-A"),
            "empty name": get(b": x"),
            "space in name": get(b"X A: b"),
            "brackets": get(b"X-A[]: b"),
            "parenthesis": get(b"X(A): b"),
            "slash": get(b"X/A: b"),
            "quote": get(b'"X": b'),
            "at": get(b"X@A: b"),
            "comma": get(b"X,A: b"),
            "semicolon": get(b"X;A: b"),
            "0x80": get(b"X\x80: b"),
            "0xff": get(b"\xff: b"),
            "utf-8": get("Ä: b".encode()),
            "control": get(b"X\x01: b"),
            "DEL": get(b"X\x7f: b"),
            "request line twice": head(b"GET / HTTP/1.1", b"GET / HTTP/1.1", HOST),
        },
    )
    _add("H24", "all of tchar passes", get(b"!#$%&'*+-.^`|~aZ09: b"), forwarded(has=[b"!#$%&'*+-.^`|~aZ09: b"]))
    controls = {"01": 1, "08": 8, "0b": 11, "0c": 12, "1b": 27, "1f": 31, "7f": 127}
    _add_all("H25", refused(400), {name: get(b"X-A: b" + bytes([n]) + b"c") for name, n in controls.items()})
    for name, value in {
        "80": b"\x80",
        "ff": b"\xff",
        "utf-8": "grün".encode(),
        "tab inside": b"a\tb",
        "latin-1": b"gr\xfcn",
    }.items():
        _add("H25", f"{name} passes", get(b"X-A: " + value), forwarded(has=[b"X-A: " + value]))
    _add("H25", "empty value passes", get(b"X-A:"), forwarded(has=[b"X-A: "]))
    _add("H25", "outer whitespace goes", get(b"X-A: \t b \t "), forwarded(has=[b"X-A: b"]))


def _size_rows() -> None:
    _add("H26", "8 KiB passes", get(b"X-A: " + b"b" * 8000), forwarded(has=[b"X-A: " + b"b" * 8000]))
    _add("H26", "16 KiB in all pass", get(*(b"X-A: " + b"b" * 4000 for _ in range(4))), forwarded())
    _add("H26", "90 headers pass", get(*(b"X-%d: b" % n for n in range(90))), forwarded())
    _add("H26", "101 headers", get(*(b"X-%d: b" % n for n in range(100))), refused(431))
    _add("H26", "one of 16 KiB", get(b"X-A: " + b"b" * 16384), refused(431))
    _add("H26", "one of 16 KiB and no end", get()[:-2] + b"X-A: " + b"b" * 16384, refused(431))
    _add("H26", "40 KiB in all", get(*(b"X-A: " + b"b" * 8000 for _ in range(5))), refused(431))
    _add("H26", "10 000 headers", get(*(b"X-%d: b" % n for n in range(10_000))), refused(431))
    _add("H26", "10 000 headers and no end", get(*(b"X-%d: b" % n for n in range(10_000)))[:-2], refused(431))
    _add("H26", "name of 100 KB", get(b"X" * 100_000 + b": b"), refused(431))
    _add("H26", "name of 100 KB and no end", get()[:-2] + b"X" * 100_000, refused(431))
    _add("H26", "cookie of 1 MiB", get(b"Cookie: " + b"b" * (1 << 20)), refused(431))
    _add("H27", "8 KiB passes", get(target=b"/" + b"a" * 8191), forwarded(target=b"/" + b"a" * 8191))
    _add("H27", "8 KiB and one", get(target=b"/" + b"a" * 8192), refused(414))
    _add("H27", "64 KiB", get(target=b"/" + b"a" * 65535), refused(414))
    _add("H27", "64 KiB query", get(target=b"/?" + b"a" * 65535), refused(414))
    _add("H27", "1 MiB", get(target=b"/" + b"a" * (1 << 20)), refused(414))
    _add("H27", "1 MiB and no end", b"GET /" + b"a" * (1 << 20), refused(414))
    _add("H27", "absolute of 64 KiB", get(target=b"http://{host}/" + b"a" * 65535), refused(414))


def _start_line_rows() -> None:
    _add_all(
        "H28",
        refused(400),
        {
            "two spaces before target": head(b"GET  / HTTP/1.1", HOST),
            "two spaces before version": head(b"GET /  HTTP/1.1", HOST),
            "tab before target": head(b"GET\t/ HTTP/1.1", HOST),
            "tab before version": head(b"GET /\tHTTP/1.1", HOST),
            "trailing space": head(b"GET / HTTP/1.1 ", HOST),
            "trailing tab": head(b"GET / HTTP/1.1\t", HOST),
            "leading space": head(b" GET / HTTP/1.1", HOST),
            "no version": head(b"GET /", HOST),
            "no target": head(b"GET HTTP/1.1", HOST),
            "empty target": head(b"GET  HTTP/1.1", HOST),
            "method alone": head(b"GET", HOST),
            "space in target": head(b"GET /a b HTTP/1.1", HOST),
            "form feed": head(b"GET\x0c/ HTTP/1.1", HOST),
            "nbsp": head(b"GET\xa0/ HTTP/1.1", HOST),
            "0.9": b"GET /\r\n\r\n",
            "a reply": b"HTTP/1.1 200 OK\r\nHost: {host}\r\n\r\n",
            "relative target": head(b"GET a HTTP/1.1", HOST),
            "query alone": head(b"GET ?a HTTP/1.1", HOST),
        },
    )
    versions = (
        b"HTTP/0.0 HTTP/0.9 HTTP/1.2 HTTP/1.01 HTTP/01.1 HTTP/2.0 HTTP/3.0 HTTP/9.9 HTTP/1.1x http/1.1 HTTP/1.+1 "
        b"HTTP/1 HTTP/1. HTTP/11 HTTP/1.10 HTTP/-1.1 HTP/1.1 HTTPS/1.1 HTTP/1,1 HTTP1.1 HTTP//1.1 ICE/1.0"
    ).split()
    _add_all("H29", refused(400, 505), {v.decode(): head(b"GET / " + v, HOST) for v in versions})
    _add("H29", "fullwidth", head("GET / HTTP/1.１".encode(), HOST), refused(400, 505))
    _add("H30", "preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refused_or_dropped(400))
    _add("H30", "preface and settings", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", refused_or_dropped(400))
    _add("H30", "TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 32, refused_or_dropped(400))
    methods = {
        "0x80": b"G\x80T",
        "quote": b'G"T',
        "colon": b"G:T",
        "slash": b"G/T",
        "bracket": b"G[T",
        "control": b"G\x01T",
        "100 KB": b"G" * 100_000,
        "65 letters": b"G" * 65,
    }
    _add_all("H31", refused(400), {name: head(m + b" / HTTP/1.1", HOST) for name, m in methods.items()})
    _add("H31", "100 KB and no end", b"G" * 100_000, refused(400))
    for m in (b"get", b"FOO", b"PROPFIND", b"M-SEARCH", b"PATCH", b"QUERY", b"G!T"):
        _add("H31", f"{m.decode()} passes", head(m + b" / HTTP/1.1", HOST), forwarded(m))
    _add("H32", "OPTIONS", head(b"OPTIONS * HTTP/1.1", HOST), forwarded(b"OPTIONS", b"*"))
    _add(
        "H32",
        "OPTIONS with body",
        head(b"OPTIONS * HTTP/1.1", HOST, b"Content-Length: 2") + b"ab",
        forwarded(b"OPTIONS", b"*", b"ab"),
    )
    _add("H32", "GET", head(b"GET * HTTP/1.1", HOST), refused(400))
    _add("H32", "POST with body", head(b"POST * HTTP/1.1", HOST, b"Content-Length: 2") + b"ab", refused(400))
    _add("H32", "two stars", head(b"OPTIONS ** HTTP/1.1", HOST), refused(400))
    _add("H32", "star and path", head(b"OPTIONS */x HTTP/1.1", HOST), refused(400))
    absolute = {
        "path": (b"http://{host}/p", b"/p"),
        "query": (b"http://{host}/p?q=1", b"/p?q=1"),
        "no path": (b"http://{host}", b"/"),
        "no path but query": (b"http://{host}?q", b"/?q"),
        "upper case scheme": (b"HTTP://{host}/p", b"/p"),
        "URL in query": (b"http://{host}/?u=http://b.example/", b"/?u=http://b.example/"),
        "double slash": (b"http://{host}//p", b"//p"),
        "final dot": (b"http://{host}./p", b"/p"),
        "port of the scheme": (b"http://{host}:80/p", b"/p"),
    }
    for name, (target, path) in absolute.items():
        _add("H33", name, get(target=target), forwarded(target=path))
    _add("H33", "OPTIONS without path", head(b"OPTIONS http://{host} HTTP/1.1", HOST), forwarded(b"OPTIONS", b"*"))
    _add("H33", "without Host", head(b"GET http://{host}/p HTTP/1.1"), refused(400))
    different = {
        "other host": b"http://other.example/",
        "sub": b"http://a.{host}/",
        "other port": b"http://{host}:81/",
        "suffix": b"http://{host}.evil/",
    }
    _add_all("H34", refused(400), {name: get(target=t) for name, t in different.items()})
    _add("H34", "host other", head(b"GET http://{host}/ HTTP/1.1", b"Host: other.example"), refused(400))
    bad = {
        "userinfo": b"http://u:p@{host}/",
        "user": b"http://u@{host}/",
        "ftp": b"ftp://{host}/",
        "file": b"file:///etc/passwd",
        "https on plain": b"https://{host}/",
        "fragment": b"http://{host}/#f",
        "empty authority": b"http:///p",
        "no authority": b"http:/p",
        "no slashes": b"http:{host}",
        "scheme alone": b"http://",
        "backslash": b"http:\\\\{host}\\p",
        "bad port": b"http://{host}:x/",
        "javascript": b"javascript:alert(1)",
        "authority form": b"{host}:80",
    }
    _add_all("H35", refused(400), {name: get(target=t) for name, t in bad.items()})
    for name, target in {
        "authority": b"host:443",
        "absolute": b"http://{host}/",
        "path": b"/",
        "tunnel": b"{host}:80",
        "star": b"*",
    }.items():
        _add("H36", name, head(b"CONNECT " + target + b" HTTP/1.1", HOST), refused(400, 405))
    _add("H36", "own host", head(b"CONNECT other.example:443 HTTP/1.1", b"Host: other.example:443"), refused(400, 405))
    _add("H37", "TRACE", head(b"TRACE / HTTP/1.1", HOST, b"Cookie: a=b"), refused(405))
    _add("H37", "TRACE star", head(b"TRACE * HTTP/1.1", HOST), refused(400, 405))
    _add("H37", "TRACE absolute", head(b"TRACE http://{host}/ HTTP/1.1", HOST), refused(400, 405))


def _target_rows() -> None:
    passes = {
        "dots": b"/../../x",
        "encoded dots": b"/%2e%2e/",
        "double slash": b"//host/",
        "parameter": b"/;a=b",
        "encoded NUL": b"/%00",
        "encoded slash": b"/a%2fb",
        "bad escape": b"/%zz",
        "cut escape": b"/%",
        "double escape": b"/%252e",
        "braces": b"/{a}|[b]^`",
        "quotes": b"/\"'<>\\",
        "query": b"/?a=b&c=d?e/f",
        "all": b"/" + bytes(n for n in range(0x21, 0x7F) if n != 0x23),
        "encoded CRLF": b"/%0d%0aX:%20y",
    }
    for name, target in passes.items():
        _add("H38", f"{name} passes", get(target=target), forwarded(target=target))
    bad = {
        "overlong utf-8": b"/\xc0\xae",
        "raw utf-8": "/ü".encode(),
        "raw 8-bit": b"/\xff",
        "fragment": b"/#frag",
        "control": b"/\x01",
        "DEL": b"/\x7f",
        "tab": b"/a\tb",
        "8-bit query": b"/?\xe4",
        "backslash first": b"\\",
    }
    _add_all("H38", refused(400), {name: get(target=t) for name, t in bad.items()})


def _host_rows() -> None:
    def named(*hosts: bytes) -> bytes:
        return head(b"GET / HTTP/1.1", *(b"Host: " + h for h in hosts))

    _add("H39", "none", head(b"GET / HTTP/1.1"), refused(400))
    _add("H39", "none but a header", head(b"GET / HTTP/1.1", b"X-A: b"), refused(400))
    _add("H39", "none in 1.0", head(b"GET / HTTP/1.0"), refused(400))
    _add("H39", "empty", named(b""), refused(400))
    _add("H39", "blank", head(b"GET / HTTP/1.1", b"Host: \t "), refused(400))
    _add("H39", "with Host in 1.0", head(b"GET / HTTP/1.0", HOST), forwarded())
    _add("H40", "two equal", named(b"{host}", b"{host}"), refused(400))
    _add("H40", "two different", named(b"{host}", b"other.example"), refused(400))
    _add("H40", "two different swapped", named(b"other.example", b"{host}"), refused(400))
    _add("H40", "list", named(b"{host}, other.example"), refused(400))
    _add("H40", "list of equal", named(b"{host},{host}"), refused(400))
    _add("H40", "empty second", named(b"{host}", b""), refused(400))
    _add("H40", "other case", head(b"GET / HTTP/1.1", HOST, b"hOST: other.example"), refused(400))
    for name, value in {
        "final dot": b"{host}.",
        "port": b"{host}:443",
        "port zero": b"{host}:0",
        "last port": b"{host}:65535",
        "dot and port": b"{host}.:80",
        "outer space": b" {host} ",
        "tab": b"\t{host}",
    }.items():
        _add("H41", f"{name} passes", named(value), forwarded(has=[b"Host: " + value.strip()]))
    for name, value in {
        "port 99999": b"{host}:99999",
        "port 65536": b"{host}:65536",
        "port x": b"{host}:x",
        "empty port": b"{host}:",
        "port -1": b"{host}:-1",
        "port +80": b"{host}:+80",
        "two ports": b"{host}:80:80",
        "port with space": b"{host}: 80",
        "space before port": b"{host} :80",
        "two dots": b"{host}..",
        "port with six digits": b"{host}:000080",
        "port alone": b":80",
        "dot": b".",
    }.items():
        _add("H41", name, named(value), refused(400))
    for name, value in {
        "[::1]": b"[::1]",
        "[::1]:80": b"[::1]:80",
        "[v1.x]": b"[v1.x]",
        "127.0.0.1": b"127.0.0.1",
        "2130706433": b"2130706433",
        "0x7f.1": b"0x7f.1",
        "mapped": b"[::ffff:127.0.0.1]",
    }.items():
        _add("H42", name, named(value), no_tunnel())
    for name, value in {
        "::1": b"::1",
        "[::1": b"[::1",
        "::1]": b"::1]",
        "[]": b"[]",
        "[::1]x": b"[::1]x",
        "[1.2.3.4]": b"[1.2.3.4]",
        "zone": b"[fe80::1%25eth0]",
        "raw zone": b"[fe80::1%eth0]",
        "[{host}]": b"[{host}]",
        "[v1.]": b"[v1.]",
        "[:::1]": b"[:::1]",
    }.items():
        _add("H42", f"bad {name}", named(value), refused(400))
    for name, value in {
        "path": b"{host}/b",
        "userinfo": b"user@{host}",
        "space": b"a {host}",
        "fragment": b"{host}#f",
        "query": b"{host}?f",
        "backslash": b"{host}\\x",
        "escape": b"a%2e{host}",
        "utf-8": "ä.example".encode(),
        "latin-1": b"\xe4.example",
        "kelvin sign": "\u212aelvin.example".encode(),
        "254 characters": b".".join([b"a" * 49] * 5) + b".abcd",
        "64-letter label": b"a" * 64 + b".example",
        "leading hyphen": b"-a.example",
        "trailing hyphen": b"a-.example",
        "empty label": b"a..b",
        "leading dot": b".{host}",
        "underscore": b"_dmarc.x",
        "star": b"*.example",
        "quote": b'"{host}"',
        "comma": b"{host},",
        "semicolon": b"{host};x",
        "scheme": b"http://{host}",
        "DEL": b"{host}\x7f",
        "vertical tab": b"\x0b{host}",
    }.items():
        _add("H43", name, named(value), refused(400))
    _add("H43", "253 characters are a name", named(b".".join([b"a" * 49] * 5) + b".abc"), no_tunnel())
    _add("H43", "63-letter label is a name", named(b"a" * 63 + b".example"), no_tunnel())
    _add("H43", "A-label is a name", named(b"xn--mnchen-3ya.example"), no_tunnel())
    _add("H43", "invalid A-label is a name", named(b"xn--a.example"), no_tunnel())
    for name, value in {
        "prefix": b"evil{host}",
        "sub": b"x.{host}",
        "sub of sub": b"x.y.{host}",
        "suffix": b"{host}.evil",
        "suffix run on": b"{host}evil",
        "other": b"other.example",
    }.items():
        _add("H44", name, named(value), no_tunnel())


def _message_rows() -> None:
    expect = b"Expect: 100-continue"
    _add("H46", "with body", post(expect, b"Content-Length: 2", body=b"ab"), forwarded(b"POST", b"/p", b"ab"))
    _add(
        "H46",
        "upper case",
        post(b"Expect: 100-Continue", b"Content-Length: 2", body=b"ab"),
        forwarded(b"POST", b"/p", b"ab"),
    )
    _add("H46", "without body", get(expect), forwarded(lacks=[b"expect"]))
    _add("H46", "length zero", post(expect, b"Content-Length: 0"), forwarded(b"POST", b"/p", lacks=[b"expect"]))
    _add(
        "H46",
        "in 1.0",
        head(b"POST /p HTTP/1.0", HOST, expect, b"Content-Length: 2") + b"ab",
        forwarded(b"POST", b"/p", b"ab", lacks=[b"expect"]),
    )
    for name, value in {
        "foo": b"foo",
        "and foo": b"100-continue, foo",
        "101": b"101-continue",
        "parameter": b"100-continue;a",
    }.items():
        _add("H46", name, post(b"Expect: " + value, b"Content-Length: 2", body=b"ab"), refused(417))
    _add("H46", "two lines", post(expect, b"Expect: foo", b"Content-Length: 2", body=b"ab"), refused(417))
    numbered = [get(target=b"/%d" % n) for n in range(1000)]
    answers = [forwarded(target=b"/%d" % n) for n in range(1000)]
    _add("H47", "two", b"".join(numbered[:2]), then(*answers[:2]))
    _add("H47", "a hundred", b"".join(numbered[:100]), then(*answers[:100]))
    _add("H47", "a thousand", b"".join(numbered), then(*answers))
    _add(
        "H47", "second malformed", numbered[0] + b"GET / HTTP/1.1\nHost: {host}\r\n\r\n", then(answers[0], refused(400))
    )
    _add("H47", "second without Host", numbered[0] + head(b"GET / HTTP/1.1"), then(answers[0], refused(400)))
    _add(
        "H47",
        "third refused",
        numbered[0] + numbered[1] + head(b"TRACE / HTTP/1.1", HOST),
        then(*answers[:2], refused(405)),
    )
    again = head(b"GET /1 HTTP/1.1", b"X-A: b", HOST)
    _add(
        "H47",
        "second with one more header",
        get() + again,
        then(forwarded(lacks=[b"x-a"]), forwarded(target=b"/1", has=[b"X-A: b"])),
    )
    _add(
        "H47",
        "second with a length before the same block",
        get() + head(b"POST /1 HTTP/1.1", b"Content-Length: 2", HOST) + b"ab" + again,
        then(forwarded(), forwarded(b"POST", b"/1", b"ab"), forwarded(target=b"/1", has=[b"X-A: b"])),
    )
    _add(
        "H47",
        "second with a bad header before the same block",
        get() + head(b"GET / HTTP/1.1", b"X A: b", HOST),
        then(forwarded(), refused(400)),
    )
    _add(
        "H47",
        "same block in 1.0",
        get(CHUNKED) + b"0\r\n\r\n" + head(b"GET / HTTP/1.0", HOST, CHUNKED) + b"0\r\n\r\n",
        then(forwarded(), refused(400)),
    )
    _add(
        "H47",
        "same block with another method",
        get(*WEBSOCKET[:1]) + head(b"TRACE / HTTP/1.1", HOST, WEBSOCKET[0]),
        then(forwarded(), refused(405)),
    )
    _add("H47", "one byte behind", numbered[0] + b"G", then(answers[0], waits()))
    _add("H47", "one NUL behind", numbered[0] + b"\0", then(answers[0], refused(400)))
    _add(
        "H47",
        "POST then GET",
        post(b"Content-Length: 5", body=b"hello") + numbered[1],
        then(forwarded(b"POST", b"/p", b"hello"), answers[1]),
    )
    _add(
        "H47",
        "chunked then GET",
        chunked(b"1\r\na\r\n0\r\n\r\n") + numbered[1],
        then(forwarded(b"POST", b"/p", b"a"), answers[1]),
    )
    _add(
        "H47",
        "other tunnel second",
        numbered[0] + head(b"GET / HTTP/1.1", b"Host: other.example"),
        then(answers[0], no_tunnel()),
    )
    _add("H47", "nothing behind close", get(b"Connection: close") + numbered[1], forwarded())
    _add("H47", "nothing behind 1.0", head(b"GET / HTTP/1.0", HOST) + numbered[1], forwarded())
    _add(
        "H47",
        "1.0 kept alive",
        head(b"GET / HTTP/1.0", HOST, b"Connection: keep-alive") + numbered[1],
        then(forwarded(), answers[1]),
    )
    for method in (b"GET", b"HEAD", b"DELETE", b"OPTIONS"):
        name = method.decode()
        start = method + b" /b HTTP/1.1"
        _add(
            "H48",
            f"{name} with length",
            head(start, HOST, b"Content-Length: 2") + b"ab",
            forwarded(method, b"/b", b"ab"),
        )
        _add(
            "H48",
            f"{name} chunked",
            head(start, HOST, CHUNKED) + b"2\r\nab\r\n0\r\n\r\n",
            forwarded(method, b"/b", b"ab"),
        )
    for method in (b"POST", b"PUT", b"PATCH"):
        raw = head(method + b" /b HTTP/1.1", HOST)
        _add(
            "H48",
            f"{method.decode()} without length",
            raw,
            forwarded(method, b"/b", lacks=[b"content-length", b"transfer-encoding"]),
        )
    _add("H48", "length zero stays", post(b"Content-Length: 0"), forwarded(b"POST", b"/p", has=[b"Content-Length: 0"]))


def _upgrade_rows() -> None:
    h2c = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__")
    gone = [b"upgrade", b"http2-settings", b"connection"]
    _add("H52", "h2c", get(*h2c), forwarded(lacks=gone))
    _add(
        "H52",
        "h2c and body",
        post(*h2c, b"Content-Length: 2", body=b"ab"),
        forwarded(b"POST", b"/p", b"ab", lacks=gone),
    )
    _add("H52", "settings not named", get(b"Connection: Upgrade", *h2c[1:]), forwarded(lacks=gone))
    _add("H52", "h2c list", get(h2c[0], b"Upgrade: h2c, foo", h2c[2]), forwarded(lacks=gone))
    connection, upgrade, key, version = WEBSOCKET
    good = forwarded(
        has=[b"Upgrade: websocket", b"Connection: Upgrade", key, version],
        lacks=[b"content-length", b"http2-settings"],
        upgrade=True,
    )
    _add_all(
        "H53",
        refused(400, 426),
        {
            "version 99": get(connection, upgrade, key, b"Sec-WebSocket-Version: 99"),
            "version 8": get(connection, upgrade, key, b"Sec-WebSocket-Version: 8"),
            "version list": get(connection, upgrade, key, b"Sec-WebSocket-Version: 13, 8"),
            "no version": get(connection, upgrade, key),
            "two versions": get(connection, upgrade, key, version, version),
            "no key": get(connection, upgrade, version),
            "short key": get(connection, upgrade, b"Sec-WebSocket-Key: abc", version),
            "empty key": get(connection, upgrade, b"Sec-WebSocket-Key:", version),
            "key of 15 bytes": get(connection, upgrade, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j", version),
            "key no base64": get(connection, upgrade, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25!ZQ==", version),
            "two keys": get(connection, upgrade, key, key, version),
            "POST": post(*WEBSOCKET),
            "HTTP/1.0": head(b"GET / HTTP/1.0", HOST, *WEBSOCKET),
            "no connection": get(upgrade, key, version),
            "connection close": get(b"Connection: close", upgrade, key, version),
            "connection upgraded": get(b"Connection: upgraded", upgrade, key, version),
        },
    )
    _add("H54", "valid", get(*WEBSOCKET), good)
    _add("H54", "valid lower case", get(b"connection: keep-alive, upgrade", b"upgrade: WebSocket", key, version), good)
    _add(
        "H54",
        "valid with offers",
        get(*WEBSOCKET, b"Sec-WebSocket-Protocol: a, b", b"Sec-WebSocket-Extensions: x"),
        good,
    )
    _add("H56", "length", get(*WEBSOCKET, b"Content-Length: 5") + b"hello", refused(400))
    _add("H56", "chunked", get(*WEBSOCKET, CHUNKED) + b"0\r\n\r\n", refused(400))
    _add("H56", "length zero", get(*WEBSOCKET, b"Content-Length: 0"), forwarded(upgrade=True))
    _add("H56", "stray byte", get(*WEBSOCKET) + b"\0", good)
    _add("H56", "early frames", get(*WEBSOCKET) + b"\x81\x85\0\0\0\0hello" * 10, good)
    _add("H56", "early request", get(*WEBSOCKET) + get(target=b"/x"), good)
    _add("H57", "foo and websocket", get(connection, b"Upgrade: foo/1, websocket", key, version), good)
    _add("H57", "websocket and foo", get(connection, b"Upgrade: websocket, foo/1", key, version), good)
    _add("H57", "two lines", get(connection, b"Upgrade: foo", b"Upgrade: websocket", key, version), good)
    _add(
        "H57", "1 000 tokens", get(connection, b"Upgrade: " + b",".join([b"foo"] * 1000)), forwarded(lacks=[b"upgrade"])
    )
    _add("H57", "foo alone", get(connection, b"Upgrade: foo"), forwarded(lacks=[b"upgrade", b"connection"]))
    _add(
        "H57",
        "websocket with version",
        get(connection, b"Upgrade: websocket/13", key, version),
        forwarded(lacks=[b"upgrade"]),
    )
    _add("H57", "TLS", get(connection, b"Upgrade: TLS/1.0"), forwarded(lacks=[b"upgrade"]))
    _add("H57", "empty", get(connection, b"Upgrade:"), forwarded(lacks=[b"upgrade"]))


def _hygiene_rows() -> None:
    _add(
        "H58",
        "named",
        get(b"Connection: X-Secret", b"X-Secret: a", b"X-Other: b"),
        forwarded(has=[b"X-Other: b"], lacks=[b"x-secret", b"connection"]),
    )
    _add(
        "H58",
        "close and named",
        get(b"Connection: close, X-Secret", b"x-secret: a"),
        forwarded(lacks=[b"x-secret", b"connection"]),
    )
    _add(
        "H58",
        "named in two lines",
        get(b"Connection: X-A", b"Connection: X-B", b"X-A: 1", b"X-B: 2"),
        forwarded(lacks=[b"x-a", b"x-b"]),
    )
    _add("H58", "empty elements", get(b"Connection: ,, X-A ,,", b"X-A: 1"), forwarded(lacks=[b"x-a"]))
    _add(
        "H58",
        "names length",
        post(b"Connection: Content-Length", b"Content-Length: 2", body=b"ab"),
        forwarded(b"POST", b"/p", b"ab"),
    )
    _add(
        "H58",
        "names coding",
        post(b"Connection: Transfer-Encoding", CHUNKED, body=b"2\r\nab\r\n0\r\n\r\n"),
        forwarded(b"POST", b"/p", b"ab"),
    )
    _add("H58", "names Host", get(b"Connection: Host"), forwarded(has=[b"Host: {host}"]))
    _add("H58", "names forwarded", get(b"Connection: X-Forwarded-For, X-Forwarded-Host"), forwarded())
    for line in (
        b"Keep-Alive: timeout=5",
        b"TE: trailers",
        b"Proxy-Connection: keep-alive",
        b"Proxy: http://evil.example",
        b"Connection: keep-alive",
    ):
        name = line.split(b":")[0]
        _add("H58", f"{name.decode()} goes", get(line), forwarded(lacks=[name.lower()]))
    forged = (
        b"X-Forwarded-For: 6.6.6.6",
        b"X-Forwarded-Proto: gopher",
        b"X-Forwarded-Host: evil.example",
        b"X-Forwarded-Port: 666",
        b"Forwarded: for=6.6.6.6",
        b"X-Real-IP: 6.6.6.6",
    )
    for line in forged:
        _add("H59", line.split(b":")[0].decode(), get(line), forwarded())
        _add("H59", line.split(b":")[0].decode() + " lower case", get(line.lower()), forwarded())
    _add("H59", "X-Forwarded-Prefix goes", get(b"X-Forwarded-Prefix: /x"), forwarded(lacks=[b"x-forwarded-prefix"]))
    _add("H59", "X-Forwarded-User goes", get(b"X-Forwarded-User: root"), forwarded(lacks=[b"x-forwarded-user"]))
    _add("H59", "Via goes", get(b"Via: 1.1 a"), forwarded(lacks=[b"via"]))
    _add("H59", "Via a thousand times", get(b"Via: " + b", ".join([b"1.1 a"] * 1000)), forwarded(lacks=[b"via"]))
    _add("H59", "Max-Forwards passes", get(b"Max-Forwards: 0"), forwarded(has=[b"Max-Forwards: 0"]))
    _add(
        "H59",
        "authorization passes",
        get(b"Authorization: Basic eDp5", b"Cookie: a=b"),
        forwarded(has=[b"Authorization: Basic eDp5", b"Cookie: a=b"]),
    )
    for lines in range(5):
        _add("H66", f"{lines} empty lines", b"\r\n" * lines + get(), forwarded())
    _add("H66", "9 empty lines", b"\r\n" * 9 + get(), refused_or_dropped(400))
    _add("H66", "50 000 empty lines", b"\r\n" * 50_000 + get(), refused_or_dropped(400))
    _add("H66", "empty lines by LF", b"\n\n" + get(), refused_or_dropped(400))
    _add("H66", "empty line between", get() + b"\r\n" + get(), then(forwarded(), forwarded()))
    _add("H66", "CR alone", b"\r" + get(), refused_or_dropped(400))
    _add("H67", "range bomb", get(b"Range: bytes=" + b",".join(b"%d-" % n for n in range(1000))), forwarded())
    _add("H67", "encoding bomb", get(b"Accept-Encoding: " + b",".join([b"gzip"] * 1000)), forwarded())
    _add(
        "H67",
        "gzip body",
        post(b"Content-Encoding: gzip", b"Content-Length: 4", body=b"\x1f\x8b\x08\0"),
        forwarded(b"POST", b"/p", b"\x1f\x8b\x08\0", has=[b"Content-Encoding: gzip"]),
    )


OK = b"HTTP/1.1 200 OK"


def _reply(
    row: str, name: str, raw: bytes, expect: ReplyExpect, *, method: bytes = b"GET", closes: bool = False
) -> None:
    REPLY_CASES.append(ReplyCase(f"{row}-{name.replace(' ', '-')}", row, method, raw, closes, expect))


def _reply_rows() -> None:
    bad = ReplyExpect(502, relayed=False)
    length = b"Content-Length: 2"
    plain = head(OK, length) + b"ab"
    chunks = head(OK, CHUNKED)
    _reply("H49", "length", plain, ReplyExpect(200, b"ab", reusable=True))
    _reply("H49", "HEAD", head(OK, length), ReplyExpect(200, reusable=True), method=b"HEAD")
    _reply("H49", "HEAD with body", plain, ReplyExpect(200), method=b"HEAD")
    _reply("H49", "HEAD chunked", chunks, ReplyExpect(200, reusable=True), method=b"HEAD")
    for status in (204, 304):
        start = b"HTTP/1.1 %d No" % status
        _reply("H49", f"{status}", head(start), ReplyExpect(status, reusable=True))
        _reply("H49", f"{status} with length and body", head(start, length) + b"ab", ReplyExpect(status))
        _reply("H49", f"{status} chunked", head(start, CHUNKED) + b"0\r\n\r\n", ReplyExpect(status))
        _reply("H49", f"{status} with body", head(start) + b"ab", ReplyExpect(status))
    for status in (100, 102, 103, 199):
        interim = (status,) if status in (100, 103) else ()
        _reply(
            "H50",
            f"{status}",
            head(b"HTTP/1.1 %d Wait" % status) + plain,
            ReplyExpect(200, b"ab", reusable=True, interim=interim),
        )
    _reply("H50", "101 unasked", head(b"HTTP/1.1 101 Switch", b"Upgrade: websocket", b"Connection: Upgrade"), bad)
    _reply("H60", "until close", head(OK) + b"abc", ReplyExpect(200, b"abc"), closes=True)
    _reply("H60", "until close in 1.0", head(b"HTTP/1.0 200 OK") + b"abc", ReplyExpect(200, b"abc"), closes=True)
    _reply("H60", "length in 1.0", head(b"HTTP/1.0 200 OK", length) + b"ab", ReplyExpect(200, b"ab"))
    _reply(
        "H60",
        "1.0 kept alive",
        head(b"HTTP/1.0 200 OK", b"Connection: keep-alive", length) + b"ab",
        ReplyExpect(200, b"ab", reusable=True),
    )
    _reply("H60", "close", head(OK, b"Connection: close", length) + b"ab", ReplyExpect(200, b"ab"), closes=True)
    _reply("H60", "too short", head(OK, length) + b"a", ReplyExpect(200, b"a", cut=True), closes=True)
    _reply("H60", "too long", head(OK, length) + b"abc", ReplyExpect(200, b"ab"))
    _reply("H60", "chunked", chunks + b"2\r\nab\r\n0\r\n\r\n", ReplyExpect(200, b"ab", reusable=True))
    for name, tail in {
        "in data": b"5\r\nab",
        "behind data": b"2\r\nab",
        "behind line end": b"2\r\nab\r\n",
        "in last": b"2\r\nab\r\n0\r\n",
        "in trailer": b"2\r\nab\r\n0\r\nX-A: b\r\n",
    }.items():
        _reply("H60", f"chunked cut {name}", chunks + tail, ReplyExpect(200, b"ab", cut=True), closes=True)
    _reply("H60", "bad chunk", chunks + b"2\r\nab\r\nXX\r\n", ReplyExpect(200, b"ab", cut=True))
    _reply("H60", "bad line end", chunks + b"2\r\nabXX", ReplyExpect(200, b"ab", cut=True))
    for name, lines in {
        "two lengths": (length, b"Content-Length: 3"),
        "two equal lengths": (length, length),
        "length and chunked": (length, CHUNKED),
        "bad length": (b"Content-Length: +2",),
        "gzip coding": (b"Transfer-Encoding: gzip",),
        "CR in value": (length, b"X-A: b\rc"),
        "NUL in value": (length, b"X-A: b\0c"),
        "control in value": (length, b"X-A: b\x01c"),
        "obs-fold": (length, b"X-A: b", b" c"),
        "no colon": (length, b"X-A"),
        "space before the colon of a length": (b"Content-Length : 2",),
        "space before the colon of a coding": (length, b"Transfer-Encoding : chunked"),
    }.items():
        _reply("H60", name, head(OK, *lines) + b"ab", bad)
    _reply(
        "H60", "space before colon goes", head(OK, length, b"X-A : b") + b"ab", ReplyExpect(200, b"ab", reusable=True)
    )
    _reply("H60", "chunked in 1.0", head(b"HTTP/1.0 200 OK", CHUNKED) + b"0\r\n\r\n", bad)
    for name, start in {
        "99": b"HTTP/1.1 99 Low",
        "099": b"HTTP/1.1 099 Low",
        "1000": b"HTTP/1.1 1000 High",
        "7 digits": b"HTTP/1.1 2000000 OK",
        "no status": b"HTTP/1.1",
        "no reason and no space": b"HTTP/1.1 200",
        "two spaces": b"HTTP/1.1  200 OK",
        "text": b"HTTP/1.1 abc OK",
        "2.0": b"HTTP/2.0 200 OK",
        "1.2": b"HTTP/1.2 200 OK",
        "lower case": b"http/1.1 200 OK",
        "ICY": b"ICY 200 OK",
        "control in reason": b"HTTP/1.1 200 O\x01K",
        "a request": b"GET / HTTP/1.1",
    }.items():
        _reply("H61", name, head(start, length) + b"ab", bad)
    _reply(
        "H61", "empty reason is legal", head(b"HTTP/1.1 200 ", length) + b"ab", ReplyExpect(200, b"ab", reusable=True)
    )
    _reply("H61", "LF ends", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nab", bad)
    _reply("H61", "0.9", b"<html>hello</html>", bad, closes=True)
    _reply("H61", "SMTP banner", b"220 mail.example ESMTP ready\r\n", bad)
    _reply("H61", "SSH banner", b"SSH-2.0-OpenSSH_9.6\r\n", bad)
    _reply("H61", "nothing", b"", bad, closes=True)
    _reply("H61", "half a head", b"HTTP/1.1 200 OK\r\nContent-", bad, closes=True)
    _reply("H61", "1 MiB of headers", head(OK, b"X-A: " + b"b" * (1 << 20)), bad)
    _reply("H61", "1 MiB of headers and no end", b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * (1 << 20), bad)
    _reply("H61", "10 000 headers", head(OK, *(b"X-%d: b" % n for n in range(10_000))), bad)
    _reply("H61", "first line of 1 MiB", b"HTTP/1.1 200 " + b"O" * (1 << 20), bad)
    _reply(
        "H62",
        "Set-Cookie",
        head(OK, b"Set-Cookie: a=b; Domain=example", length) + b"ab",
        ReplyExpect(200, b"ab", reusable=True),
    )


for _rows in (
    _framing_rows,
    _chunk_rows,
    _byte_rows,
    _size_rows,
    _start_line_rows,
    _target_rows,
    _host_rows,
    _message_rows,
    _upgrade_rows,
    _hygiene_rows,
    _reply_rows,
):
    _rows()
