from __future__ import annotations

import pytest

from rustunnel_py.hub.registry import Places
from rustunnel_py.model.tunnel import Address, HttpHost, Peer, Protocol, TcpPort, UdpPort


@pytest.mark.parametrize(
    ("places", "protocol", "address", "url"),
    [
        (Places("d.test", 80, 443), Protocol.HTTP, HttpHost("a.d.test"), "http://a.d.test"),
        (Places("d.test", 8080, 443), Protocol.HTTP, HttpHost("a.d.test"), "http://a.d.test:8080"),
        (Places("d.test", 80, 443), Protocol.HTTPS, HttpHost("a.d.test"), "https://a.d.test"),
        (Places("d.test", 80, 8443), Protocol.HTTPS, HttpHost("a.d.test"), "https://a.d.test:8443"),
        (Places("d.test", 80, 443), Protocol.TCP, TcpPort(20001), "tcp://d.test:20001"),
        (Places("d.test", 80, 443), Protocol.UDP, UdpPort(20101), "udp://d.test:20101"),
    ],
)
def test_a_public_url_can_be_pasted(places: Places, protocol: Protocol, address: Address, url: str) -> None:
    assert places.url(protocol, address) == url


def test_a_peer_is_shown_as_an_address_that_can_be_read_back() -> None:
    assert str(Peer("192.0.2.1", 5)) == "192.0.2.1:5"
    assert str(Peer("2001:db8::1", 5)) == "[2001:db8::1]:5"
