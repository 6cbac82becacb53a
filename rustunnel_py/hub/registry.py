"""Who owns which public address: claim, hold, release, find.

One dict keyed by address. A tunnel in it either serves (it has links) or is *held*: its agent went away
uncleanly and the address waits for its owner until the hold ends (design: names, hold). Every method is
plain code without an await, so each claim is atomic.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias
from typing import Protocol as TypingProtocol

from rustunnel_py.errors import Unavailable
from rustunnel_py.hub.links import Links
from rustunnel_py.hub.ports import PortTaken
from rustunnel_py.hub.tally import Tally
from rustunnel_py.model.access import Caller, may_see
from rustunnel_py.model.names import generated_label
from rustunnel_py.model.tunnel import Address, HttpHost, Peer, Protocol, TcpPort, UdpPort
from rustunnel_py.model.visit import LocalTarget

if TYPE_CHECKING:
    from rustunnel_py.hub.gate import Gate
    from rustunnel_py.hub.link import Link
    from rustunnel_py.hub.ports import Ports
    from rustunnel_py.hub.sessions import Session

TellVisit: TypeAlias = Callable[[bytes, bytes, int, float, str, bool], None]
"""`tell(method, target, status, milliseconds, visit id, cut)`: one visit has ended. Status 0: before it had one; `cut`:
its reply had begun, and was not whole."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the public edges really listen, and under which name; for public URLs."""

    domain: str
    http_port: int
    https_port: int

    def url(self, protocol: Protocol, address: Address) -> str:
        """The URL to paste: a port other than the scheme's own is part of it."""
        match address:
            case HttpHost(host):
                secure = protocol is Protocol.HTTPS
                port, default = (self.https_port, 443) if secure else (self.http_port, 80)
                return f"{'https' if secure else 'http'}://{host}{'' if port == default else f':{port}'}"
            case TcpPort(port):
                return f"tcp://{self.domain}:{port}"
            case UdpPort(port):
                return f"udp://{self.domain}:{port}"


class Record(TypingProtocol):
    """What stands behind a tunnel that exists apart from its agents: a lease, a stored tunnel (design: names).

    Its name is taken for every other claim, also by the same owner; agents attach to it and leave it.
    """

    def tunnel_closed(self) -> None:
        """Somebody closed the tunnel: the record is over. It takes itself off the tunnel and closes that."""


class Tunnel:
    """A public address, its owner and who serves it now."""

    __slots__ = (
        "address",
        "client_addr",
        "gate",
        "held_until",
        "id",
        "links",
        "local_addr",
        "owner",
        "protocol",
        "record",
        "registered_at",
        "requests",
        "session",
        "tally",
        "target",
        "tell",
        "watch",
    )

    def __init__(self, id: str, owner: str, address: Address, protocol: Protocol, now: float) -> None:
        self.id = id
        self.owner = owner
        self.address = address
        self.protocol = protocol
        self.links = Links(now)
        self.gate: Gate | None = None  # None: no policy is switched on, the hot path asks nothing
        self.target = LocalTarget()
        self.local_addr = ""  # as the agent said it, for display only
        self.session: Session | None = None  # the one that registered it last; None once it left
        self.client_addr: Peer | None = None
        self.registered_at = datetime.now(UTC)
        self.requests = 0  # exchanges and connections since it was made
        self.tell: TellVisit | None = None
        self.watch: TellVisit | None = None  # what goes on being told when its agent has left, and its visits fail
        self.tally = Tally()
        self.held_until: float | None = None  # trio's time; None while it serves
        self.record: Record | None = None

    def __repr__(self) -> str:
        state = "held" if self.held_until is not None else f"{len(self.links)} links"
        return f"<Tunnel {self.address} {state}>"


class Registry:
    """Every address that somebody owns now."""

    def __init__(
        self,
        ports: Ports,
        tcp_port_range: tuple[int, int],
        clock: Callable[[], float],
        *,
        new_gate: Callable[[], Gate | None] = lambda: None,
    ) -> None:
        """`tcp_port_range` is inclusive, (0, 0) turns TCP tunnels off; `new_gate` makes a new tunnel's gate."""
        self.places = Places("localhost", 80, 443)
        self._ports = ports
        self._tcp_range = tcp_port_range
        self._clock = clock
        self._new_gate = new_gate
        self.ended = Tally()  # of all tunnels that are gone
        self._by_address: dict[Address, Tunnel] = {}
        self._by_host: dict[str, Tunnel] = {}  # the HttpHost half again, keyed by text: one look-up a request
        self._by_id: dict[str, Tunnel] = {}

    def find_host(self, host: str) -> Tunnel | None:
        """The tunnel of a host name as heads carry it: lower case, no port, no final dot."""
        return self._by_host.get(host)

    def find(self, address: Address) -> Tunnel | None:
        return self._by_address.get(address)

    def get(self, tunnel_id: str) -> Tunnel | None:
        """By id, also while it is held."""
        return self._by_id.get(tunnel_id)

    def live(self) -> Iterator[Tunnel]:
        """The tunnels that are served now, oldest first."""
        return (
            tunnel
            for tunnel in self._by_address.values()
            if tunnel.held_until is None and (tunnel.record is None or tunnel.session is not None)
        )

    def all(self) -> Iterator[Tunnel]:
        """Every tunnel that there is, held ones and records too."""
        return iter(list(self._by_address.values()))

    def visible_to(self, caller: Caller) -> list[Tunnel]:
        return [tunnel for tunnel in self.live() if may_see(caller, tunnel.owner)]

    def owned_by(self, owner: str) -> list[Tunnel]:
        """Every tunnel of this owner, held and unattached ones too."""
        return [tunnel for tunnel in self._by_address.values() if tunnel.owner == owner]

    def public_url(self, tunnel: Tunnel) -> str:
        return self.places.url(tunnel.protocol, tunnel.address)

    def host_of(self, label: str) -> HttpHost:
        return HttpHost(f"{label}.{self.places.domain}")

    def free_host(self) -> HttpHost:
        """A host name that nobody has, from a generated label."""
        while True:
            address = self.host_of(generated_label(secrets.token_bytes(16)))
            if address not in self._by_address:
                return address

    def create(self, address: Address, owner: str, protocol: Protocol, *, tunnel_id: str | None = None) -> Tunnel:
        """Take an address that nobody has. Raises Unavailable("taken") where a port cannot be had."""
        if address in self._by_address:
            raise Unavailable("taken", f"{address} is in use")
        if tunnel_id is None or tunnel_id in self._by_id:
            tunnel_id = str(uuid.uuid4())
        tunnel = Tunnel(tunnel_id, owner, address, protocol, self._clock())
        tunnel.gate = self._new_gate()
        if isinstance(address, TcpPort):
            try:
                self._ports.open(tunnel, address.port)
            except PortTaken:
                raise Unavailable("taken", f"port {address.port} is in use by another program") from None
        self._by_address[address] = tunnel
        self._by_id[tunnel.id] = tunnel
        if isinstance(address, HttpHost):
            self._by_host[address.host] = tunnel
        return tunnel

    def create_tcp(
        self, owner: str, *, tunnel_id: str | None = None, allowed: Callable[[int], bool] = lambda port: True
    ) -> Tunnel:
        """Take any free and allowed port of the range, from a random start: a freed port is not given at once again.

        Raises Unavailable("exhausted").
        """
        low, high = self._tcp_range
        if high == 0:
            raise Unavailable("unsupported", "TCP tunnels are turned off on this server (limits.tcp_port_range)")
        count = high - low + 1
        start = secrets.randbelow(count)
        for offset in range(count):
            address = TcpPort(low + (start + offset) % count)
            if address in self._by_address or not allowed(address.port):
                continue
            try:
                return self.create(address, owner, Protocol.TCP, tunnel_id=tunnel_id)
            except Unavailable:
                continue
        raise Unavailable("exhausted", f"all TCP ports from {low} to {high} are in use")

    def in_tcp_range(self, port: int) -> bool:
        return 0 < self._tcp_range[0] <= port <= self._tcp_range[1]

    def serve(self, tunnel: Tunnel, session: Session, link: Link, client_addr: Peer) -> None:
        """`session` serves the tunnel from now on, with `link`."""
        tunnel.session = session
        tunnel.client_addr = client_addr
        tunnel.registered_at = datetime.now(UTC)
        tunnel.held_until = None
        tunnel.links.add(link)

    def hold(self, tunnel: Tunnel, link: Link, seconds: float) -> None:
        """Its agent went away uncleanly: keep the address for the owner. A record keeps it anyway."""
        now = self._clock()
        tunnel.links.remove(link, now)
        tunnel.session = None
        tunnel.tell = tunnel.watch
        if not tunnel.links and tunnel.record is None:
            tunnel.held_until = now + seconds

    def close_door(self, tunnel: Tunnel) -> None:
        """No visitor finds an HTTP tunnel any more; those who are in go on, and its address stays taken."""
        if isinstance(tunnel.address, HttpHost) and self._by_host.get(tunnel.address.host) is tunnel:
            del self._by_host[tunnel.address.host]

    def release(self, tunnel: Tunnel) -> None:
        """The address is free again; visitors that wait are told."""
        if self._by_address.get(tunnel.address) is not tunnel:
            return
        self.ended.add(tunnel.tally)
        del self._by_address[tunnel.address]
        del self._by_id[tunnel.id]
        match tunnel.address:
            case HttpHost(host):
                self._by_host.pop(host, None)  # its door may have been closed before
            case TcpPort(port):
                self._ports.close(port)
            case UdpPort():
                pass
        tunnel.session = None
        tunnel.tell = tunnel.watch
        tunnel.links.close()

    def owns(self, tunnel: Tunnel) -> bool:
        """Whether the tunnel still has its address; asked after a wait."""
        return self._by_address.get(tunnel.address) is tunnel

    def sweep(self, now: float) -> None:
        """Free what has been held long enough; called by the pump once a second."""
        over = [t for t in self._by_address.values() if t.held_until is not None and t.held_until <= now]
        for tunnel in over:
            self.release(tunnel)
