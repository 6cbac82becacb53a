"""The PROXY protocol: what is written is read back, at any split, and nothing else is taken for it."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustunnel_py.errors import WireError
from rustunnel_py.wire import proxy
from rustunnel_py.wire.proxy import SIGNATURE, ProxyHeader


class Peer(NamedTuple):
    ip: str
    port: int


V4 = Peer("203.0.113.9", 54321), Peer("192.0.2.1", 443)
V6 = Peer("2001:db8::1", 54321), Peer("::1", 8080)


def v2(command: int, kind: int, payload: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, kind, len(payload) if length is None else length) + payload


INET = b"\x01\x02\x03\x04\x05\x06\x07\x08\x00\x50\x01\xbb"


def test_version_1_as_the_specification_prints_it() -> None:
    assert proxy.encode(1, *V4) == b"PROXY TCP4 203.0.113.9 192.0.2.1 54321 443\r\n"
    assert proxy.encode(1, *V6) == b"PROXY TCP6 2001:db8::1 ::1 54321 8080\r\n"


def test_version_2_as_the_specification_lays_it_out() -> None:
    assert proxy.encode(2, Peer("1.2.3.4", 80), Peer("5.6.7.8", 443)) == v2(0x21, 0x11, INET)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("pair", [V4, V6], ids=["v4", "v6"])
def test_what_is_written_is_read_back(version: int, pair: tuple[Peer, Peer]) -> None:
    data = proxy.encode(version, *pair)
    expected = ProxyHeader(version, (pair[0].ip, pair[0].port), (pair[1].ip, pair[1].port), len(data))
    assert proxy.read(data + b"GET / HTTP/1.1\r\n") == expected
    assert proxy.read(memoryview(data)) == expected
    for size in range(len(data)):
        assert proxy.read(data[:size]) is None


@pytest.mark.parametrize("version", [1, 2])
def test_a_mixed_pair_goes_as_mapped_addresses_and_comes_back_plain(version: int) -> None:
    data = proxy.encode(version, V4[0], V6[1])
    header = proxy.read(data)
    assert header is not None
    assert header.source == tuple(V4[0])
    assert header.destination == tuple(V6[1])


def test_no_third_version() -> None:
    with pytest.raises(ValueError):
        proxy.encode(3, *V4)


@pytest.mark.parametrize("line", [b"PROXY UNKNOWN\r\n", b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n"])
def test_unknown_keeps_the_address_of_the_socket(line: bytes) -> None:
    assert proxy.read(line + b"x") == ProxyHeader(1, None, None, len(line))


@pytest.mark.parametrize(
    "payload",
    [
        v2(0x20, 0x00, b""),
        v2(0x20, 0x11, INET),
        v2(0x21, 0x00, b"\0\0\0"),
        v2(0x21, 0x31, bytes(216)),
        v2(0x21, 0x12, INET),
    ],
    ids=["local", "local with addresses", "unspecified", "unix", "datagram"],
)
def test_headers_without_an_address_that_counts(payload: bytes) -> None:
    assert proxy.read(payload) == ProxyHeader(2, None, None, len(payload))


def test_tlvs_are_skipped() -> None:
    data = v2(0x21, 0x11, INET + b"\x01\x00\x02h2" + b"\x04\x00\x00")
    header = proxy.read(data + b"rest")
    assert header is not None
    assert header.source == ("1.2.3.4", 80)
    assert header.size == len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXZ",
        b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
        b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
        b"PROXY TCP4 1.2.3.400 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 ::1 ::2 1 2\r\n",
        b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
        b"PROXY UNKNOWN" + b" " * 100,
        SIGNATURE[:-1] + b"X",
        SIGNATURE + b"\x11",
        SIGNATURE + b"\x22",
        v2(0x21, 0x11, INET[:-1]),
        v2(0x21, 0x21, INET),
        v2(0x21, 0x41, INET),
        v2(0x21, 0x13, INET),
        v2(0x21, 0x11, INET + b"\x01\x00"),
        v2(0x21, 0x11, INET + b"\x01\x00\x05h2"),
        v2(0x21, 0x11, b"", length=8 * 1024 + 1),
    ],
)
def test_T16_everything_else_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        proxy.read(data)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=64), st.binary(max_size=64).map(lambda tail: SIGNATURE + b"\x21" + tail)))
def test_any_bytes_give_a_header_nothing_yet_or_an_error(data: bytes) -> None:
    try:
        header = proxy.read(data)
    except WireError:
        return
    assert header is None or header.size <= len(data)


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY UNKNOWN\r\n",
        b"PROXY UNKNOWN a b c\r\n",
        b"PROXY TCP6 :: :: 1 1\r\n",
        b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        proxy.SIGNATURE + b"\x20\x00\x00\x00",
        proxy.encode(2, Peer("192.0.2.1", 1), Peer("192.0.2.2", 2)),
        proxy.encode(2, Peer("2001:db8::1", 1), Peer("2001:db8::2", 2)),
    ],
)
@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_T16_missing_never_asks_for_a_byte_behind_the_header(header: bytes, at_once: int) -> None:
    stream, taken = header + b"what follows", b""
    while size := proxy.missing(taken):
        assert proxy.read(taken) is None
        taken = stream[: len(taken) + min(size, at_once)]
    assert taken == header
    assert proxy.read(taken) is not None


@pytest.mark.parametrize(
    "broken", [b"PROXY " + b"x" * 200, proxy.SIGNATURE + b"\x21\x11\xff\xff", b"\n", b"GET / HTTP/1.1\n"]
)
def test_T16_missing_comes_to_an_end(broken: bytes) -> None:
    taken = b""
    with pytest.raises(WireError):
        while size := proxy.missing(taken):
            taken = broken[: len(taken) + size]
        proxy.read(taken)
