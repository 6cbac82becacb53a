"""Forwarding headers are believed from trusted proxies only."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from rustunnel_py.edges.proxied import TrustedProxies
from rustunnel_py.model.tunnel import Peer
from tests.support.fake_link import OK
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import Rig, get

TRUSTED = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")])
PROXY = Peer("10.0.0.1", 4000)


def headers(*values: str) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"x-Forwarded-for", value.encode("latin-1")) for value in values)


@pytest.mark.parametrize(
    ("values", "visitor"),
    [
        ([], "10.0.0.1"),
        (["198.51.100.9"], "198.51.100.9"),
        (["1.1.1.1, 198.51.100.9"], "198.51.100.9"),
        (["1.1.1.1", "198.51.100.9, 10.0.0.7"], "198.51.100.9"),
        (["198.51.100.9:5555"], "198.51.100.9"),
        (["[2001:db8::9]:5555"], "2001:db8::9"),
        (["2001:db8::9"], "2001:db8::9"),
        (["::ffff:198.51.100.9"], "198.51.100.9"),
        (["198.51.100.9, unknown"], "10.0.0.1"),
        (["198.51.100.9, <script>, 10.0.0.8"], "10.0.0.8"),
        (["10.0.0.3, fd00::1"], "10.0.0.3"),
        (["\xff\xfe"], "10.0.0.1"),
        ([""], "10.0.0.1"),
    ],
)
def test_H59_the_visitor_is_the_last_address_that_is_no_trusted_proxy(values: list[str], visitor: str) -> None:
    assert TRUSTED.visitor(headers(*values), PROXY).ip == visitor


@pytest.mark.parametrize(
    ("told", "scheme"), [("https", "https"), ("HTTP", "http"), ("https, http", "http"), ("ftp", "http"), ("", "http")]
)
def test_H59_the_scheme_is_what_the_last_proxy_says(told: str, scheme: str) -> None:
    assert TRUSTED.scheme(((b"X-Forwarded-Proto", told.encode()),), "http") == scheme


@pytest.mark.parametrize(
    ("told", "host"),
    [
        (b"shop.example", b"shop.example"),
        (b"a.example, shop.example:8443", b"shop.example:8443"),
        (b"[2001:db8::1]:80", b"[2001:db8::1]:80"),
        (b"a b", b"own.example"),
        (b'x"; for=1.2.3.4', b"own.example"),
        (b"\xff", b"own.example"),
        (b"x" * 300, b"own.example"),
        (b"", b"own.example"),
    ],
)
def test_H59_the_host_is_what_the_last_proxy_says_if_it_can_be_one(told: bytes, host: bytes) -> None:
    assert TRUSTED.host(((b"X-Forwarded-Host", told),), b"own.example") == host


def forged(peer: str) -> tuple[Rig, bytes]:
    rig = Rig()
    rig.link.answer = OK
    rig.shared.trusted = TRUSTED
    lines = ("X-Forwarded-For: 198.51.100.9", "X-Forwarded-Proto: https", "Forwarded: for=1.2.3.4")
    rig.send(get("/", *lines), rig.connect(FedConnection(peer=Peer(peer, 4000))))
    return rig, rig.link.canonical[0]


def test_H59_a_trusted_proxy_is_believed() -> None:
    rig, sent = forged("10.0.0.1")
    assert b"\r\nX-Forwarded-For: 198.51.100.9\r\nX-Forwarded-Proto: https\r\n" in sent
    assert b"\r\nX-Forwarded-Port: 443\r\n" in sent
    assert (rig.exchange.visit.visitor.ip, rig.exchange.visit.scheme) == ("198.51.100.9", "https")


def test_H59_anybody_else_is_not() -> None:
    rig, sent = forged("203.0.113.7")
    assert b"\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\n" in sent
    assert b"198.51.100.9" not in sent
    assert b"1.2.3.4" not in sent
    assert (rig.exchange.visit.visitor.ip, rig.exchange.visit.scheme) == ("203.0.113.7", "http")


def test_each_request_of_a_proxy_s_connection_has_a_visitor_of_its_own() -> None:
    rig, _ = forged("10.0.0.1")
    connection = rig.connect(FedConnection(peer=PROXY))
    for ip in ("198.51.100.1", "198.51.100.2"):
        rig.send(get("/", f"X-Forwarded-For: {ip}"), connection)
    rig.send(get(), connection)
    assert [e.visit.visitor.ip for e in rig.link.exchanges[1:]] == ["198.51.100.1", "198.51.100.2", "10.0.0.1"]


def test_behind_a_proxy_that_speaks_tls_nothing_is_redirected() -> None:
    rig, _ = forged("10.0.0.1")
    rig.shared.redirect_port = 443
    rig.shared.is_choosy = True
    connection = rig.connect(FedConnection(peer=PROXY))
    rig.send(get("/", "X-Forwarded-Proto: https"), connection)
    assert connection.take() == OK
    rig.send(get(), connection)
    assert connection.take().startswith(b"HTTP/1.1 308 ")
