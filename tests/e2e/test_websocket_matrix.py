"""W20: the conversations of RFC 6455 have the same verdict through the tunnel as without it.

The local service is the sans-I/O core of `websockets`. Each conversation is held with it directly, then through a whole
server and our own agent by http and https; what came back, frame by frame, and how it ended must be equal.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.our_agent import agent_config, http, our_agent
from tests.support.running_server import RunningServer, running_server
from tests.support.services import tcp_service
from tests.support.websocket_service import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Verdict,
    close,
    converse,
    frame,
    websocket_echo,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

MEBIBYTE = 1024 * 1024
BLOCK = bytes(range(256)) * 4096
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"


def fragments(opcode: int, payload: bytes, size: int) -> list[bytes]:
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    last = len(parts) - 1
    return [frame(CONTINUATION if at else opcode, part, fin=at == last) for at, part in enumerate(parts)]


def by_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


def deflated(payload: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


SIZES = (0, 1, 2, 124, 125, 126, 127, 128, 65_535, 65_536, 65_537, 131_072, MEBIBYTE)
WORD = "Hällo-µ@ßöä\U0001f600".encode()
BAD_TEXT = {
    "a lone continuation byte": b"\x80",
    "an overlong slash": b"\xc0\xaf",
    "overlong in 3": b"\xe0\x80\xaf",
    "overlong in 4": b"\xf0\x80\x80\xaf",
    "a surrogate": b"\xed\xa0\x80",
    "a pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "beyond 10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "fe": b"\xfe",
    "ff": b"\xff",
    "cut": b"\xc3",
    "bad behind good": WORD + b"\xff" + b"more",
}
GOOD_TEXT = {
    "U+0000": b"\x00",
    "U+007F": b"\x7f",
    "U+0080": b"\xc2\x80",
    "U+07FF": b"\xdf\xbf",
    "U+0800": b"\xe0\xa0\x80",
    "U+D7FF": b"\xed\x9f\xbf",
    "U+E000": b"\xee\x80\x80",
    "U+FFFF": b"\xef\xbf\xbf",
    "U+10000": b"\xf0\x90\x80\x80",
    "U+10FFFF": b"\xf4\x8f\xbf\xbf",
    "words": WORD,
}
CODES = (0, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 1015, 1016)
MORE_CODES = (1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65535)

CONVERSATIONS: dict[str, dict[str, Iterable[bytes]]] = {
    "messages": {
        **{f"{n} bytes of text": [frame(TEXT, b"*" * n), close()] for n in SIZES},
        **{f"{n} bytes of binary": [frame(BINARY, (BLOCK * 2)[:n]), close()] for n in SIZES},
        "100 in one segment": [b"".join(frame(TEXT, b"%d" % n) for n in range(100)) + close()],
        "a byte at a time": by_byte(frame(TEXT, WORD) + frame(BINARY, b"\0" * 130) + close()),
        "a mask of zeros": [frame(TEXT, b"abc", mask=bytes(4)), close()],
    },
    "fragments": {
        **{
            f"{size} bytes each": [*fragments(BINARY, BLOCK[:100_000], size), close()]
            for size in (100_000, 65_536, 1000, 126, 125)
        },
        "one byte each": [b"".join(fragments(TEXT, b"x" * 3000, 1)), close()],
        "empty ones": [frame(TEXT, fin=False), frame(0, fin=False), frame(0), close()],
        "empty ones around": [frame(TEXT, fin=False), frame(0, b"middle", fin=False), frame(0), close()],
        "in one segment": [b"".join(fragments(TEXT, b"fragment2", 3)) + close()],
        "a ping between": [frame(TEXT, b"a", fin=False), frame(PING, b"p"), frame(0, b"b"), close()],
        "pings between": [
            frame(TEXT, b"a", fin=False),
            *[frame(PING, b"%d" % n) + frame(0, b"%d" % n, fin=False) for n in range(10)],
            frame(PONG, b"unasked"),
            frame(0, b"z"),
            close(),
        ],
        "a close between": [frame(TEXT, b"a", fin=False), close(), frame(0, b"b")],
        "a continuation of nothing": [frame(0, b"x"), close()],
        "a last continuation of nothing": [frame(0, b"x", fin=False), frame(0, b"y"), close()],
        "a message within another": [frame(TEXT, b"a", fin=False), frame(TEXT, b"b"), close()],
        "a continuation after the end": [*fragments(TEXT, b"ab", 1), frame(0, b"c"), close()],
    },
    "pings": {
        "empty": [frame(PING), close()],
        "text": [frame(PING, b"hello"), close()],
        "binary": [frame(PING, b"\x00\xff\xfe\xfd"), close()],
        "125": [frame(PING, b"\xfe" * 125), close()],
        "126": [frame(PING, b"\xfe" * 126), close()],
        "a byte at a time": by_byte(frame(PING, b"\xfe" * 125) + close()),
        "ten": [*[frame(PING, b"%d" % n) for n in range(10)], close()],
        "an unasked pong": [frame(PONG), frame(PONG, b"x"), frame(PING, b"y"), close()],
        "in fragments": [frame(PING, b"a", fin=False), frame(0, b"b"), close()],
        "a pong in fragments": [frame(PONG, b"a", fin=False), close()],
    },
    "bits": {
        **{f"rsv {rsv}": [frame(TEXT, b"a"), frame(TEXT, b"b", rsv=rsv), close()] for rsv in range(1, 8)},
        **{f"rsv {rsv} of a ping": [frame(PING, b"b", rsv=rsv), close()] for rsv in (1, 4)},
        **{
            f"opcode {code}": [frame(TEXT, b"a"), frame(code, b"b"), close()]
            for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        },
        "no mask": [frame(TEXT, b"a", mask=None), close()],
        "a long form of a short length": [b"\x82\xfe\x00\x05\1\2\3\4abcde", close()],
        "a length with the top bit": [b"\x82\xff\x80" + bytes(7) + b"\1\2\3\4abcde"],
        "too long a message": [b"\x82\xff\x7f" + b"\xff" * 7 + b"\1\2\3\4abcde"],
    },
    "text": {
        **{f"good: {name}": [frame(TEXT, text), close()] for name, text in GOOD_TEXT.items()},
        **{f"good in bytes: {name}": [*fragments(TEXT, text, 1), close()] for name, text in GOOD_TEXT.items()},
        **{f"bad: {name}": [frame(TEXT, text), close()] for name, text in BAD_TEXT.items()},
        **{f"bad in bytes: {name}": [*fragments(TEXT, text, 1), close()] for name, text in BAD_TEXT.items()},
        "binary is not judged": [frame(BINARY, b"\xff\xfe"), close()],
        "cut over fragments": [frame(TEXT, WORD[:2], fin=False), frame(0, WORD[2:]), close()],
    },
    "closes": {
        **{f"code {code}": [close(code)] for code in (*CODES, *MORE_CODES)},
        "empty": [frame(8)],
        "one byte": [frame(8, b"\x03")],
        "a reason": [close(1000, b"bye")],
        "a reason of 123": [close(1000, b"*" * 123)],
        "a reason of 124": [close(1000, b"*" * 124)],
        "a reason that is no text": [close(1000, b"\xff\xfe")],
        "twice": [close(), close()],
        "a ping behind": [close(), frame(PING, b"x")],
        "a message behind": [close(), frame(TEXT, b"x")],
        "behind a message": [frame(TEXT, b"x") + close(3000, b"done")],
        "with a mebibyte before": [frame(BINARY, BLOCK), close()],
    },
}


class Ways:
    """The local service, and how to reach it."""

    def __init__(self, server: RunningServer, port: int) -> None:
        self._server = server
        self._port = port

    async def talk(self, way: str, pieces: Iterable[bytes], *lines: str) -> Verdict:
        host = self._server.host("sock")
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]
        if way == "direct":
            stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        elif way == "http":
            stream = await self._server.connect()
        else:
            stream = await self._server.connect_tls(host)
        try:
            return await converse(stream, host, pieces, *lines)
        finally:
            await trio.aclose_forcefully(stream)


@pytest.fixture
async def ways(tmp_path: Path) -> AsyncIterator[Ways]:
    async with (
        tcp_service(websocket_echo) as port,
        running_server(tmp_path) as server,
        our_agent(agent_config(server, http(port, "sock"))),
    ):
        yield Ways(server, port)


def test_W20_the_matrix_is_large_enough() -> None:
    assert sum(map(len, CONVERSATIONS.values())) > 150


@pytest.mark.parametrize("group", CONVERSATIONS)
async def test_W20_F18_the_same_verdict_direct_and_through_the_tunnel(ways: Ways, group: str) -> None:
    different = {}
    verdicts = {}
    for name, pieces in CONVERSATIONS[group].items():
        pieces = list(pieces)
        direct = await ways.talk("direct", pieces)
        assert direct.status == b"HTTP/1.1 101 Switching Protocols"
        assert direct.frames, name
        verdicts[name] = direct.frames
        for way in ("http", "https"):
            through = await ways.talk(way, pieces)
            if (through.frames, through.rest, through.ended) != (direct.frames, direct.rest, direct.ended):
                different[name, way] = direct, through
    assert different == {}
    ends = {frames[-1][0] for frames in verdicts.values()}
    assert ends == {0x88}  # each with a close frame of the service


@pytest.mark.parametrize(
    "lines",
    [
        (),
        (DEFLATE,),
        ("Sec-WebSocket-Protocol: other, chat",),
        (DEFLATE, "Sec-WebSocket-Protocol: chat", "Cookie: a=b"),
    ],
    ids=["plain", "deflate", "subprotocol", "all"],
)
async def test_W20_the_handshake_is_the_local_service_s_own(ways: Ways, lines: tuple[str, ...]) -> None:
    direct = await ways.talk("direct", [close()], *lines)
    for way in ("http", "https"):
        through = await ways.talk(way, [close()], *lines)
        dated = [line for line in through.headers if not line.startswith(b"Date:")]
        assert sorted(dated) == sorted(line for line in direct.headers if not line.startswith(b"Date:"))
    assert any(line.startswith(b"Set-Cookie: seen=1") for line in direct.headers)


async def test_W20_compressed_messages_pass_as_they_are(ways: Ways) -> None:
    good = [frame(TEXT, deflated(WORD * 1000), rsv=4), frame(TEXT, b"plain"), close()]
    halves = deflated(b"half" * 1000)
    split = [frame(TEXT, halves[:5], fin=False, rsv=4), frame(PING), frame(0, halves[5:]), close()]
    garbage = [frame(TEXT, b"\xff" * 20, rsv=4), close()]
    for pieces in (good, split, garbage):
        direct = await ways.talk("direct", pieces, DEFLATE)
        for way in ("http", "https"):
            through = await ways.talk(way, pieces, DEFLATE)
            assert (through.frames, through.rest, through.ended) == (direct.frames, direct.rest, direct.ended)
        assert len(direct.frames) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [4 * MEBIBYTE, 16 * MEBIBYTE - 1, 16 * MEBIBYTE])
@pytest.mark.parametrize("shape", ["one frame", "fragments of 64 KiB"])
async def test_W22_sizes_up_to_16_MiB(ways: Ways, size: int, shape: str) -> None:
    payload = BLOCK * (size // len(BLOCK)) + BLOCK[: size % len(BLOCK)]
    pieces = [frame(BINARY, payload)] if shape == "one frame" else fragments(BINARY, payload, 65_536)
    for way in ("direct", "http", "https"):
        verdict = await ways.talk(way, [*pieces, close()])
        assert verdict.frames[0] == (0x82, size, hashlib.sha256(payload).digest())
        assert verdict.frames[1][:2] == (0x88, 2)
        assert verdict.ended == "cleanly"


async def test_W21_a_byte_now_and_then_and_silence_between(ways: Ways) -> None:
    """The deadlines of HTTP are off: shown on the virtual clock in tests/edges; here a message survives pauses."""
    pieces = itertools.chain(by_byte(frame(TEXT, b"slowly")), [close()])
    through = await ways.talk("http", pieces)
    assert through.frames[0] == (0x81, 6, b"slowly")
