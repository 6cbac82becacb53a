"""PROXY headers before everything else, and the reserve of descriptors: rows T16, P07; on both pumps."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Literal

import pytest
import trio

from rustunnel_py.model.networks import Networks
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.transport import descriptors, listen
from rustunnel_py.transport.listen import INTRODUCTION_SECONDS, Intake, Listener, bind
from rustunnel_py.transport.pump import open_pump
from rustunnel_py.transport.tcp import TcpConnection
from rustunnel_py.transport.tls import TlsConnection
from rustunnel_py.wire import proxy
from tests.support.pairs import client_tls, server_tls, spin
from tests.support.poison import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rustunnel_py.transport.pump import Pump

Kind = Literal["epoll", "portable"]
both_pumps = pytest.mark.parametrize("pump_kind", ["epoll", "portable"])

VISITOR, EDGE = Peer("2001:db8::7", 4711), Peer("2001:db8::1", 443)
LOOPBACK = Networks.parse(["127.0.0.0/8"])


class Place:
    """A listener whose visitors are plain connections with an ear."""

    def __init__(self, pump: Pump, trusted: Networks = LOOPBACK) -> None:
        (self.sock,) = bind("127.0.0.1", 0, key="k")
        self.pump = pump
        self.peers: list[Peer] = []
        self.ears: list[Recorder] = []
        self.clients: list[socket.socket] = []
        self.listener = Listener(pump, self.sock, self._accepted, Intake(trusted))

    def _accepted(self, sock: socket.socket, peer: Peer) -> None:
        ear = Recorder()
        ear.pipe = TcpConnection(self.pump, sock, ear)
        self.peers.append(peer)
        self.ears.append(ear)

    def connect(self, *parts: bytes) -> socket.socket:
        client = socket.create_connection(self.sock.getsockname(), 10)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.clients.append(client)
        for part in parts:
            client.sendall(part)
        return client

    async def ended(self, client: socket.socket) -> bool:
        try:
            return await trio.to_thread.run_sync(client.recv, 1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.listener.close()
        for client in self.clients:
            client.close()


@pytest.fixture
async def place(pump_kind: Kind) -> AsyncIterator[Place]:
    async with open_pump(pump_kind) as pump:
        made = Place(pump)
        yield made
        made.close()
        assert pump.crashes == 0


@both_pumps
@pytest.mark.parametrize("version", [1, 2])
async def test_T16_a_trusted_proxy_tells_who_came_and_what_follows_is_data(place: Place, version: int) -> None:
    place.connect(proxy.encode(version, VISITOR, EDGE) + b"hello")
    await spin(lambda: bool(place.ears))
    assert place.peers == [VISITOR]
    assert await place.ears[0].wait_received(5) == b"hello"


@both_pumps
@pytest.mark.parametrize("version", [1, 2])
async def test_T16_a_header_in_pieces(place: Place, version: int) -> None:
    client = place.connect()
    for byte in proxy.encode(version, VISITOR, EDGE):
        client.sendall(bytes([byte]))
        for _ in range(5):
            await trio.lowlevel.checkpoint()
    await spin(lambda: bool(place.ears))
    client.sendall(b"later")
    assert await place.ears[0].wait_received(5) == b"later"
    assert place.peers == [VISITOR]


@both_pumps
@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", proxy.SIGNATURE + b"\x20\x00\x00\x00"])
async def test_a_proxys_own_connection_has_its_own_address(place: Place, header: bytes) -> None:
    client = place.connect(header)
    await spin(lambda: bool(place.ears))
    assert place.peers == [Peer(*client.getsockname())]


@both_pumps
@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"PROXY TCP4 nonsense\r\n", proxy.SIGNATURE + b"\x31\x00\x00\x00"],
)
async def test_T16_a_trusted_proxy_without_a_header_is_closed(place: Place, sent: bytes) -> None:
    assert await place.ended(place.connect(sent))
    assert (place.ears, place.listener.intake.unintroduced) == ([], 1)


@both_pumps
async def test_T16_from_everybody_else_a_header_is_data(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        place = Place(pump, Networks.parse(["10.0.0.0/8", "::1"]))
        sent = proxy.encode(1, VISITOR, EDGE)
        client = place.connect(sent)
        await spin(lambda: bool(place.ears))
        assert await place.ears[0].wait_received(len(sent)) == sent
        assert place.peers == [Peer(*client.getsockname())]
        place.close()


@both_pumps
async def test_a_header_that_stops_or_never_comes(place: Place) -> None:
    half = place.connect(b"PROXY TCP4 1")
    half.shutdown(socket.SHUT_WR)
    assert await place.ended(half)
    assert place.listener.intake.unintroduced == 1
    silent = place.connect()
    await spin(lambda: len(place.listener._introductions) == 1)
    place.pump.sweep(place.pump.now + INTRODUCTION_SECONDS + 0.1)
    assert await place.ended(silent)
    assert place.listener.intake.unintroduced == 2


@both_pumps
async def test_headers_awaited_are_bounded_and_end_with_the_listener(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "INTRODUCTIONS_MAX", 3)
    waiting = [place.connect() for _ in range(3)]
    await spin(lambda: len(place.listener._introductions) == 3)
    assert await place.ended(place.connect())
    place.listener.close()
    for client in waiting:
        assert await place.ended(client)


@both_pumps
async def test_tls_begins_behind_the_header(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        ear, peers = Recorder(), []

        def accepted(new: socket.socket, peer: Peer) -> None:
            peers.append(peer)
            ear.pipe = TlsConnection(pump, new, server_tls(), ear, server_side=True)

        listener = Listener(pump, sock, accepted, Intake(LOOPBACK))
        raw = socket.create_connection(sock.getsockname(), 10)
        raw.sendall(proxy.encode(2, VISITOR, EDGE))
        client = TlsConnection(pump, raw, client_tls(), Recorder(), server_side=False, server_hostname="localhost")
        pump.call(client, lambda: client.send(b"secret"))
        assert await ear.wait_received(6) == b"secret"
        assert peers == [VISITOR]
        listener.close()


@both_pumps
async def test_P07_descriptors_of_the_reserve_are_not_for_visitors(pump_kind: Kind) -> None:
    async with open_pump(pump_kind) as pump:
        (sock,) = bind("127.0.0.1", 0, key="k")
        accepted: list[socket.socket] = []
        lowest = os.dup(0)
        os.close(lowest)
        # Of the descriptors that are given next, clients take every second one.
        listener = Listener(pump, sock, lambda new, _: accepted.append(new), Intake(ceiling=lowest + 5))
        clients = [socket.create_connection(sock.getsockname(), 10) for _ in range(3)]
        await spin(lambda: listener.intake.pauses == 1)
        served = len(accepted)
        assert served < 3
        for end in accepted:
            end.close()
        for client in clients:
            client.close()
        with socket.create_connection(sock.getsockname(), 10):
            pump.sweep(pump.now + 1.5)
            await spin(lambda: len(accepted) > served)
        accepted[-1].close()
        listener.close()


@pytest.mark.parametrize(("limit", "ceiling"), [(64, 48), (1024, 960), (1_000_000, 999_936)])
def test_P07_the_reserve_is_a_quarter_at_most(limit: int, ceiling: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    assert descriptors.descriptor_ceiling() == ceiling
