"""What people who run real clients and conformance suites against the HTTP edge find first."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from rustunnel_py.edges.proxied import TrustedProxies
from rustunnel_py.model.tunnel import Peer
from tests.support.fake_link import OK
from tests.support.fed_connection import FedConnection
from tests.support.visitor_rig import Rig, get, status_of

WEBSOCKET_8 = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 8",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def test_H53_a_426_names_its_upgrade_in_connection_as_rfc_9110_wants() -> None:
    answer = Rig().send(get("/", *WEBSOCKET_8)).take()
    assert status_of(answer) == 426
    lines = answer.partition(b"\r\n\r\n")[0].split(b"\r\n")
    options = [option.strip() for line in lines if line.startswith(b"Connection: ") for option in line[12:].split(b",")]
    assert b"Upgrade: websocket" in lines
    assert sorted(options) == [b"Upgrade", b"close"]


@pytest.mark.parametrize(
    "zone", [b"%eth0", b"%", b'%" 200 5 "x', b"%x;host=evil.example", b"%\xff", b"%\xe9, 10.0.0.9"]
)
@pytest.mark.parametrize("address", [b"fe80::1", b"[fe80::1", b"2001:db8::1"])
def test_H59_a_zone_in_a_forwarded_address_is_no_way_into_our_own_header_lines(address: bytes, zone: bytes) -> None:
    rig = Rig()
    rig.link.answer = OK
    rig.shared.trusted = TrustedProxies([ip_network("10.0.0.0/8")])
    raw = b"GET / HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-For: " + address + zone + b", 10.0.0.8\r\n\r\n"
    connection = rig.connect(FedConnection(peer=Peer("10.0.0.1", 4000)))
    host = get().partition(b"Host: ")[2].partition(b"\r\n")[0]
    rig.send(raw.replace(b"app.example", host), connection)
    assert connection.take() == OK
    sent = rig.link.canonical[0]
    assert b"%" not in sent
    assert b"evil" not in sent
    assert rig.exchange.visit.visitor.ip.startswith("10.0.0.")


@pytest.mark.parametrize(
    "head",
    [
        b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: foo\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\nb: c",
    ],
)
@pytest.mark.parametrize("cut", [0, 3, 20])
def test_a_refusal_of_HEAD_has_no_body(head: bytes, cut: int) -> None:
    rig = Rig()
    connection = rig.connect()
    for piece in (head[:cut], head[cut:]):
        if piece:
            connection.feed(piece)
    lines, end, body = bytes(connection.output).partition(b"\r\n\r\n")
    assert lines.split(b" ")[1] in (b"400", b"417")
    assert (end, body) == (b"\r\n\r\n", b"")
    rig.assert_clean()
