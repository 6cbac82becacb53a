"""From a stream of the server to the local service: which one, how it is reached, and the join.

The agent connects to the addresses that its own user configured and to nothing else: the server names a tunnel by
its id, never a destination. A stream of our own server begins with a head that does so. One of a stock server begins
with the 16 bytes of a connection id; `new_connection` with the same id comes on the control socket, before or after.
When it is known what a stream is for the local service is dialled; what the stream brought meanwhile is kept (its
window bounds it, no credit is given) and handed over at the join. From then on bytes are relayed and nothing is read
into them, so one stream may carry many requests.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import trio

from rustunnel_py.client.config import HttpTunnel, LocalAddress, Scheme, Tunnel
from rustunnel_py.client.news import Joined, LocalTrouble
from rustunnel_py.model.text import escape
from rustunnel_py.transport import relay
from rustunnel_py.transport.tcp import connect_tcp
from rustunnel_py.transport.tls import connect_tls
from rustunnel_py.wire import stream_head
from rustunnel_py.wire.stream_head import BadStreamHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.client.screen import Screen
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.stream_head import StreamHead
    from rustunnel_py.wire.yamux import Stream

ID_SIZE = 16  # bytes of a connection id at the head of a stream
CONNECT_SECONDS = 5.0  # for one address: a live service on the same network accepts in milliseconds
DIAL_SECONDS = 10.0  # for all of it, from the stream's first byte: below what edges wait for a first byte
# Twice the streams of a session whose server announces them; one that announces more gets the oldest dropped.
ANNOUNCED_MAX = 1024
VISITOR_MAX = 64  # characters of an address that are shown
KNOWN_SECONDS = 30.0  # how long a resolved local name is believed: containers move
TROUBLE_SECONDS = 1.0  # one line a second and service about what does not answer
RESOLVERS = 4  # threads that may wait for a dead resolver

SockAddr: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


class Resolver:
    """Names to addresses, in a few threads that nobody waits for when he has lost interest."""

    def __init__(self) -> None:
        self._places = trio.CapacityLimiter(RESOLVERS)

    async def resolve(self, host: str, port: int) -> list[SockAddr]:
        """What the system says, in its order; raises OSError."""
        literal = address_of(host, port)
        if literal is not None:
            return [literal]
        found = await trio.to_thread.run_sync(
            lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP),
            abandon_on_cancel=True,
            limiter=self._places,
        )
        known: dict[SockAddr, None] = {}
        for family, _, _, _, sockaddr in found:
            if family in (socket.AF_INET, socket.AF_INET6):
                known[(socket.AddressFamily(family), sockaddr)] = None  # type: ignore[index]  # by its family
        if not known:
            raise OSError(f"{host} has no address")
        return list(known)


def address_of(host: str, port: int) -> SockAddr | None:
    """The socket address of an IP literal, None for a name."""
    try:
        literal = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if literal.version == 4:
        return socket.AF_INET, (host, port)
    if "%" in host:
        return None  # a scope by name: the resolver knows its number
    return socket.AF_INET6, (host, port, 0, 0)


class LocalService:
    """One local service: its addresses, the one that answered last first. Shared by the tunnels that lead to it."""

    def __init__(
        self, pump: Pump, nursery: trio.Nursery, resolver: Resolver, local: LocalAddress, *, insecure: bool = False
    ) -> None:
        self.local = local
        self.pump = pump
        self._nursery = nursery
        self._resolver = resolver
        self._insecure = insecure
        self._context: ssl.SSLContext | None = None
        self._known: list[SockAddr] = _loopback(local)
        self._known_until = float("inf") if self._known else 0.0
        self._waiting: list[Dial] = []
        self._resolving = False

    def addresses(self) -> list[SockAddr] | None:
        """In the order in which they are tried; None while they are not known."""
        return list(self._known) if self._known and self.pump.now < self._known_until else None

    def answered(self, address: SockAddr) -> None:
        if address in self._known and self._known[0] != address:
            self._known.remove(address)
            self._known.insert(0, address)

    def resolve_for(self, dial: Dial) -> None:
        """`dial.go_on` is called when the addresses are known, or it is clear that there are none."""
        self._waiting.append(dial)
        if not self._resolving:
            self._resolving = True
            self._nursery.start_soon(self._resolve)

    def forget(self, dial: Dial) -> None:
        if dial in self._waiting:
            self._waiting.remove(dial)

    async def _resolve(self) -> None:
        why = ""
        try:
            found = await self._resolver.resolve(self.local.host, self.local.port)
            preferred = self._known[0] if self._known else None
            self._known = sorted(found, key=lambda address: address != preferred)  # a stable sort
            self._known_until = self.pump.now + KNOWN_SECONDS
        except (OSError, UnicodeError) as error:
            why = f"the name {self.local.host} cannot be resolved: {reason(error)}"
        finally:
            self._resolving = False
        waiting, self._waiting = self._waiting, []
        for dial in waiting:
            self.pump.call(dial, lambda dial=dial: dial.go_on(why))  # type: ignore[misc]

    def tls_context(self) -> ssl.SSLContext | None:
        """How an https local service is spoken to; None for a plain one."""
        if self.local.scheme is not Scheme.HTTPS:
            return None
        if self._context is None:
            context = ssl.create_default_context()
            if self._insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            context.set_alpn_protocols(["http/1.1"])
            self._context = context
        return self._context


def _loopback(local: LocalAddress) -> list[SockAddr]:
    """The addresses that need no resolver. `localhost` is both loopbacks, whatever the hosts file forgot."""
    if local.host == "localhost":
        return [(socket.AF_INET, ("127.0.0.1", local.port)), (socket.AF_INET6, ("::1", local.port, 0, 0))]
    literal = address_of(local.host, local.port)
    return [] if literal is None else [literal]


def reason(error: BaseException) -> str:
    """The part of an error that a line on the screen has room for."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message or "the certificate cannot be verified"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class Dial:
    """One try to reach a local service: each of its addresses in turn. It is the sink of the connection in the making.

    Exactly one of `done(connection)` and `failed(why)` is called, unless `cancel` came first. `done` sets the
    connection's sink before it returns.
    """

    __slots__ = ("_connection", "_done", "_failed", "_left", "_over", "_service", "_trying", "_why")

    def __init__(
        self, service: LocalService, done: Callable[[Connection], None], failed: Callable[[str], None]
    ) -> None:
        self._service = service
        self._done = done
        self._failed = failed
        self._connection: Connection | None = None
        self._left: list[SockAddr] = []
        self._trying: SockAddr | None = None
        self._over = False
        self._why = "no address"

    def start(self) -> None:
        addresses = self._service.addresses()
        if addresses is None:
            self._service.resolve_for(self)
        else:
            self._left = addresses
            self._next()

    def go_on(self, why: str) -> None:
        """The name was resolved, or could not be."""
        if self._over:
            return
        if why:
            self._why = why
        self._left = self._service.addresses() or []
        self._next()

    def cancel(self) -> None:
        if self._over:
            return
        self._over = True
        self._service.forget(self)
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def _next(self) -> None:
        """Try the next address; the last one's failure is the reason that is told."""
        service = self._service
        context = service.tls_context()
        while self._left:
            self._trying = family, sockaddr = self._left.pop(0)
            try:
                if context is None:
                    made: Connection = connect_tcp(service.pump, family, sockaddr, self, connected=self._connected)
                else:
                    host = service.local.host
                    made = connect_tls(service.pump, family, sockaddr, context, host, self, connected=self._connected)
            except OSError as error:  # no descriptor, no such family, no route
                self._why = reason(error)
                continue
            made.due = service.pump.now + CONNECT_SECONDS
            self._connection = made
            return
        self._over = True
        self._failed(self._why)

    def _connected(self, connection: Connection) -> None:
        if self._over:
            connection.abort()
            return
        if connection.local == connection.peer:
            # A connect to a free port of the ephemeral range may meet itself (TCP's simultaneous open).
            connection.abort()
            self._fell("nobody listens there")
            return
        self._over = True
        self._connection = None
        connection.due = float("inf")
        if self._trying is not None:
            self._service.answered(self._trying)
        self._done(connection)

    def _fell(self, why: str) -> None:
        if not self._over:
            self._connection = None
            self._why = why
            self._next()

    # the sink of a connection that is not there yet

    def data(self, data: memoryview) -> None: ...

    def eof(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.abort()
        self._fell("it closed the connection at once")

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        cause = error.__cause__
        self._fell(reason(error if cause is None else cause))

    def expired(self) -> None:
        connection = self._connection
        if connection is not None:
            connection.abort()
        self._fell(f"no answer within {CONNECT_SECONDS:.0f} s")

    def crashed(self, error: Exception) -> None:
        self.cancel()


@dataclass(frozen=True, slots=True)
class Served:
    """A registered tunnel: what the server calls it, and the service behind it."""

    tunnel_id: str
    tunnel: Tunnel
    service: LocalService

    @property
    def kind(self) -> str:
        """`http` and `https` tunnels count as one, as `new_connection` says it."""
        return "http" if isinstance(self.tunnel, HttpTunnel) else "tcp"


@dataclass(slots=True)
class _Announced:
    served: Served | None  # None: no tunnel of ours; the stream is reset when it comes
    visitor: str
    due: float


class Incoming:
    """One stream, from its SYN to its join: the sink of the stream until the relay takes over."""

    __slots__ = ("_begun", "_dial", "_early", "_ended", "_serving", "_stream", "due", "id", "over")

    def __init__(self, serving: Serving, stream: Stream, due: float) -> None:
        self.id: bytes | None = None
        self.due = due
        self.over = False
        self._serving = serving
        self._stream = stream
        self._begun = False  # what names it has come
        self._early = bytearray()
        self._ended = False
        self._dial: Dial | None = None

    def reach(self, served: Served, visitor: str) -> None:
        """Both halves are there: the stream, and what it is for."""
        self._dial = dial = Dial(
            served.service,
            lambda connection: self._join(connection, served, visitor),
            lambda why: self._fail(served, why),
        )
        dial.start()

    def give_up(self) -> None:
        """Reset the stream: what the wire says for a local service that refuses."""
        self._leave()
        self._stream.reset()

    def _leave(self) -> None:
        if not self.over:
            self.over = True
            self._serving.left(self)
            dial, self._dial = self._dial, None  # which knows us: left so, only the collector frees both
            if dial is not None:
                dial.cancel()

    def _fail(self, served: Served, why: str) -> None:
        if not self.over:
            self._serving.trouble(served, why)
            self.give_up()

    def _join(self, connection: Connection, served: Served, visitor: str) -> None:
        if self.over:
            connection.abort()
            return
        self._leave()
        stream = self._stream
        relay.join(self._serving.pump, connection, stream)
        self._serving.joined(served, visitor)
        if self._early:
            stream.sink.data(memoryview(self._early))
        if self._ended:
            stream.sink.eof()

    # the stream's sink

    def data(self, data: memoryview) -> None:
        early = self._early
        early += data
        if self._begun:
            return
        if not self._serving.stream_heads:
            if len(early) >= ID_SIZE:
                self.id = bytes(early[:ID_SIZE])
                self._strip(ID_SIZE)
                self._serving.named(self, self.id)
            return
        try:
            found = stream_head.cut(early)
        except BadStreamHead:
            self.give_up()
            return
        if found is not None:
            head, size = found
            self._strip(size)
            self._serving.headed(self, head)

    def _strip(self, size: int) -> None:
        """What names the stream was read, and is not for the local service."""
        self._begun = True
        del self._early[:size]
        self._stream.credit(size)

    def eof(self) -> None:
        if not self._begun:
            self.give_up()
        self._ended = True

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self._leave()

    def expired(self) -> None: ...


class Serving:
    """The streams of one session that are not joined yet, and the announcements that wait for their stream."""

    def __init__(self, pump: Pump, screen: Screen, *, show_visitors: bool, stream_heads: bool = False) -> None:
        self.stream_heads = stream_heads
        self.pump = pump
        self._screen = screen
        self._show_visitors = show_visitors
        self._tunnels: dict[str, Served] = {}
        self._announced: OrderedDict[bytes, _Announced] = OrderedDict()
        self._incoming: set[Incoming] = set()
        self._named: dict[bytes, Incoming] = {}
        self._quiet_until: dict[str, float] = {}
        self._off = pump.on_sweep(self.sweep)

    def __repr__(self) -> str:
        return (
            f"<serving {len(self._tunnels)} tunnels: {len(self._incoming)} streams, {len(self._announced)} announced>"
        )

    def close(self) -> None:
        self._off()
        for incoming in list(self._incoming):
            incoming.give_up()
        self._announced.clear()

    def add(self, served: Served) -> None:
        self._tunnels[served.tunnel_id] = served

    @property
    def announced(self) -> int:
        """Announcements whose stream has not come."""
        return len(self._announced)

    def tunnel_ids(self) -> list[str]:
        return list(self._tunnels)

    def crashed(self, error: Exception) -> None:
        """A call from a task failed; counted by the pump, and no stream hangs on it."""

    def announce(self, conn_id: bytes, kind: str, tunnel_id: str | None, visitor: str) -> None:
        """`new_connection`. `kind` is its protocol, `tunnel_id` None from a stock server."""
        served = self._pick(kind, tunnel_id)
        waiting = self._named.pop(conn_id, None)
        if waiting is not None:
            self._start(waiting, served, visitor)
            return
        self._announced[conn_id] = _Announced(served, visitor, self.pump.now + DIAL_SECONDS)
        if len(self._announced) > ANNOUNCED_MAX:
            self._announced.popitem(last=False)

    def accept(self, stream: Stream) -> None:
        """A stream that the server opened."""
        incoming = Incoming(self, stream, self.pump.now + DIAL_SECONDS)
        self._incoming.add(incoming)
        stream.sink = incoming

    def named(self, incoming: Incoming, conn_id: bytes) -> None:
        announced = self._announced.pop(conn_id, None)
        if announced is not None:
            self._start(incoming, announced.served, announced.visitor)
        elif conn_id in self._named:  # an id is good for one stream
            incoming.give_up()
        else:
            self._named[conn_id] = incoming

    def headed(self, incoming: Incoming, head: StreamHead) -> None:
        self._start(incoming, self._tunnels.get(head.tunnel_id), escape(head.visitor, VISITOR_MAX))

    def left(self, incoming: Incoming) -> None:
        self._incoming.discard(incoming)
        if incoming.id is not None and self._named.get(incoming.id) is incoming:
            del self._named[incoming.id]

    def trouble(self, served: Served, why: str) -> None:
        local = str(served.service.local)
        if self._quiet_until.get(local, 0.0) <= self.pump.now:
            self._quiet_until[local] = self.pump.now + TROUBLE_SECONDS
            self._screen.show(LocalTrouble(local, why))

    def joined(self, served: Served, visitor: str) -> None:
        if self._show_visitors or served.kind != "http":
            self._screen.show(Joined(served.tunnel_id, str(served.service.local), visitor))

    def sweep(self, now: float) -> None:
        while self._announced:
            conn_id, oldest = next(iter(self._announced.items()))
            if oldest.due > now:
                break
            del self._announced[conn_id]
        for incoming in [incoming for incoming in self._incoming if incoming.due <= now]:
            incoming.give_up()

    def _pick(self, kind: str, tunnel_id: str | None) -> Served | None:
        if tunnel_id is not None:
            return self._tunnels.get(tunnel_id)
        wanted = "http" if kind == "https" else kind
        return next((served for served in self._tunnels.values() if served.kind == wanted), None)

    def _start(self, incoming: Incoming, served: Served | None, visitor: str) -> None:
        if served is None:
            incoming.give_up()
        else:
            incoming.reach(served, visitor)
