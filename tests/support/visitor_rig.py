"""Visitors over a real registry and a fake link, without a loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.edges.shared import Shared
from rustunnel_py.edges.visitor import Visitor
from rustunnel_py.hub.ports import Ports
from rustunnel_py.hub.registry import Places, Registry, Tunnel
from rustunnel_py.model.tunnel import HttpHost, Protocol
from tests.support.fake_link import FakeExchange, FakeLink
from tests.support.fed_connection import FedConnection, FedPump

HOST = "app.example.test"


class NoPorts(Ports):
    def open(self, tunnel: Tunnel, port: int) -> None: ...

    def close(self, port: int) -> None: ...


def new_registry(clock: FedPump) -> Registry:
    registry = Registry(NoPorts(), (20000, 20099), lambda: clock.now)
    registry.places = Places("example.test", 80, 443)
    return registry


@dataclass
class Rig:
    """One tunnel at HOST, served by `link`; `connect` makes a visitor."""

    limits: EdgeLimits = field(default_factory=EdgeLimits)
    scheme: str = "http"
    parking: ParkingLimits = field(default_factory=ParkingLimits)
    pump: FedPump = field(default_factory=FedPump)
    link: FakeLink = field(default_factory=FakeLink)

    def __post_init__(self) -> None:
        self.registry = new_registry(self.pump)
        self.tunnel = self.add_tunnel(HOST, self.link)
        self.told: list[tuple[bytes, bytes, int, float, str, bool]] = []
        self.tunnel.tell = lambda *visit: self.told.append(visit)
        census = Census(self.limits, self.parking)
        self.shared = Shared(self.pump, self.registry, self.limits, self.scheme, census=census)  # type: ignore[arg-type]

    def add_tunnel(self, host: str, link: FakeLink | None) -> Tunnel:
        tunnel = self.registry.create(HttpHost(host), "owner", Protocol.HTTP)
        if link is not None:
            tunnel.links.add(link)
        return tunnel

    def connect(self, connection: FedConnection | None = None, *, sni: str | None = None) -> FedConnection:
        connection = connection or FedConnection()
        Visitor(self.shared, connection, source=connection.peer.ip, sni=sni)
        return connection

    def send(self, data: bytes, connection: FedConnection | None = None) -> FedConnection:
        """Connect, send, let the link play; returns the connection."""
        connection = connection or self.connect()
        connection.feed(data)
        self.link.run()
        return connection

    @property
    def exchange(self) -> FakeExchange:
        """The last one."""
        return self.link.exchanges[-1]

    def assert_clean(self) -> None:
        """No crash, and no exchange that neither ended nor was reset."""
        assert self.pump.errors == []
        assert [exchange for exchange in self.link.exchanges if exchange.is_live] == []


def get(target: str = "/", *lines: str, host: str = HOST, method: str = "GET") -> bytes:
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}", *lines]
    return "".join(f"{line}\r\n" for line in head).encode("latin-1") + b"\r\n"


def post(body: bytes, *lines: str, target: str = "/", host: str = HOST) -> bytes:
    return get(target, f"Content-Length: {len(body)}", *lines, host=host, method="POST") + body


def status_of(data: bytes | bytearray) -> int:
    assert data.startswith(b"HTTP/1.1 "), bytes(data[:80])
    return int(data[9:12])
