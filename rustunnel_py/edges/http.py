"""The HTTP edge: public listeners and the visitors that came through them.

`run` holds the listeners; one task in `visits` stays until the last visitor is gone and holds the nursery of those that
are parked. Cancelling `run` closes the listeners and begins the drain; cancelling `visits` cuts what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.edges.limits import Census, EdgeLimits, ParkingLimits
from rustunnel_py.edges.parked import Parking
from rustunnel_py.edges.proxied import TrustedProxies
from rustunnel_py.edges.shared import Shared, Tap
from rustunnel_py.edges.visitor import Visitor
from rustunnel_py.hub.under_way import UnderWay
from rustunnel_py.transport.listen import Listener
from rustunnel_py.transport.tcp import TcpConnection
from rustunnel_py.transport.tls import TlsConnection

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Sequence

    from rustunnel_py.edges.access_log import AccessLog
    from rustunnel_py.edges.proxied import Network
    from rustunnel_py.hub.registry import Registry, Tunnel
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.listen import Intake
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tcp import SocketConnection
    from rustunnel_py.wire.http1 import RequestHead

__all__ = ["Census", "EdgeLimits", "HttpEdge", "ParkingLimits", "Tap", "Visitor"]

# Refusals that linger so that their 503 arrives; beyond that a connection is closed without a word.
REFUSALS_AT_ONCE = 256
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 33\r\nRetry-After: 5\r\n"
    b"Connection: close\r\n\r\ntoo-many-connections: come later\n"
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class HttpEdge:
    """One public HTTP or HTTPS edge. `context` for HTTPS: what handshakes are made with.

    `take_control(connection, head, bytes)` is asked about requests under the bare domain: True means that it has set
    the connection's sink and goes on from these bytes, the head's own included, all of them uncredited. `watch` gives
    a tap for an exchange, or None. `redirect_port` sends every request for a tunnel to https:// on that port.
    `census`: the one that all edges of a server share, with their limits; else one is made of `limits` and
    `parking`. Forwarding headers are believed from `trusted_proxies` only.
    """

    def __init__(
        self,
        pump: Pump,
        registry: Registry,
        *,
        listeners: Sequence[socket.socket],
        scheme: str = "http",
        context: ssl.SSLContext | None = None,
        limits: EdgeLimits | None = None,
        parking: ParkingLimits | None = None,
        census: Census | None = None,
        take_control: Callable[[Connection, RequestHead, bytes], bool] | None = None,
        watch: Callable[[Tunnel, Visit, RequestHead], Tap | None] | None = None,
        redirect_port: int | None = None,
        trusted_proxies: Sequence[Network] = (),
        intake: Intake | None = None,
        access: AccessLog | None = None,
        always_https: bool = False,
    ) -> None:
        if (scheme == "https") != (context is not None):
            raise ValueError("an https edge has a context, an http edge has none")
        self.census = census or Census(limits, parking)
        self._pump = pump
        self._sockets = list(listeners)
        self._context = context
        self._intake = intake
        self._take_control = take_control
        self._connections: dict[SocketConnection, tuple[Visitor | None, str]] = {}
        self._handed_over = 0
        self._lingering_refusals = 0
        self._stopped = False
        self._empty = trio.Event()
        self.shared = Shared(
            pump,
            registry,
            self.census.limits,
            scheme,
            census=self.census,
            take_control=None if take_control is None else self._hand_over,
            watch=watch,
            redirect_port=redirect_port,
            trusted=TrustedProxies(trusted_proxies) if trusted_proxies else None,
            access=access,
            always_https=always_https,
        )

    def __repr__(self) -> str:
        return f"<HttpEdge {self.shared.scheme} {len(self._connections)} connections>"

    @property
    def visitors(self) -> int:
        """Connections that are open here, agents' that were handed over not counted."""
        return len(self._connections) - self._handed_over

    def under_way(self, tunnel_id: str) -> list[UnderWay]:
        """The exchanges of a tunnel that have a tap and have not ended; a look at every connection."""
        turns = [visitor.turn for visitor, _ in self._connections.values() if visitor is not None]
        return [
            UnderWay(turn.tap, turn.visit.arrived, turn.status)
            for turn in turns
            if turn is not None and turn.tap is not None and turn.tunnel.id == tunnel_id
        ]

    async def run(
        self, visits: trio.Nursery, *, task_status: trio.TaskStatus[list[Peer]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; reports the addresses that it listens on."""
        await visits.start(self._keep_visitors)
        listeners: list[Listener] = []
        try:
            for sock in self._sockets:
                listeners.append(Listener(self._pump, sock, self._accepted, self._intake))
            task_status.started([listener.address for listener in listeners])
            await trio.sleep_forever()
        finally:
            for listener in listeners:
                listener.close()
            self.drain()

    async def _keep_visitors(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.shared.parking = Parking(self._pump, nursery, self.shared.registry.owns, self.census)
            task_status.started()
            try:
                await self._empty.wait()
            finally:
                self.shared.parking = None
                self._pump.call(self, self._end_visitors)
            nursery.cancel_scope.cancel()

    def drain(self) -> None:
        """Idle connections end now, the others with their present reply. New ones are not accepted any more."""
        self._stopped = True
        self._pump.call(self, self._drain_visitors)

    def _drain_visitors(self) -> None:
        self.shared.draining = True
        for connection, (visitor, _) in list(self._connections.items()):
            if visitor is None:
                connection.abort()  # in its handshake: nothing was asked yet
            else:
                visitor.drain()
        self._look_whether_empty()

    def _end_visitors(self) -> None:
        for connection, (visitor, _) in list(self._connections.items()):
            if visitor is None:
                connection.abort()
            elif not visitor.is_handed_over:
                visitor.end()

    def _look_whether_empty(self) -> None:
        if self._stopped and self.visitors == 0:
            self._empty.set()

    # connections

    def _accepted(self, sock: socket.socket, peer: Peer) -> None:
        trusted = self.shared.trusted
        is_proxy = trusted is not None and peer.ip in trusted
        source = self.census.enter(peer.ip, many=is_proxy)
        if source is None:
            self._refuse(sock)
            return
        if self._context is not None and not is_proxy and not self.census.may_shake_hands(source, self._pump.now):
            self.census.leave(source)
            sock.close()
            return
        if self._context is None:
            connection: SocketConnection = TcpConnection(self._pump, sock, gone=self._gone)
            connection.peer = peer
            self._connections[connection] = Visitor(self.shared, connection, source=source), source
        else:
            connection = TlsConnection(
                self._pump,
                sock,
                self._context,
                server_side=True,
                gone=self._gone,
                handshaken=self._handshaken,
                handshake_seconds=self.census.limits.handshake_seconds,
            )
            connection.peer = peer
            self._connections[connection] = None, source

    def _handshaken(self, connection: TlsConnection) -> None:
        _, source = self._connections[connection]
        visitor = Visitor(self.shared, connection, source=source, sni=connection.sni)
        self._connections[connection] = visitor, source

    def _refuse(self, sock: socket.socket) -> None:
        """Over a limit. Over TLS a word would cost a handshake."""
        if self._context is not None or self._lingering_refusals >= REFUSALS_AT_ONCE:
            sock.close()
            return
        self._lingering_refusals += 1
        connection = TcpConnection(self._pump, sock, gone=self._refused)
        connection.send(_BUSY)
        connection.close_lingering()

    def _refused(self, connection: SocketConnection) -> None:
        self._lingering_refusals -= 1

    def _gone(self, connection: SocketConnection) -> None:
        visitor, source = self._connections.pop(connection)
        self.census.leave(source)
        if visitor is not None:
            self._handed_over -= visitor.is_handed_over
            visitor.gone()
        if self._stopped:
            self._look_whether_empty()

    def _hand_over(self, connection: Connection, head: RequestHead, held: bytes) -> bool:
        if self._take_control is None or not self._take_control(connection, head, held):
            return False
        self._handed_over += 1
        self._look_whether_empty()
        return True

    def crashed(self, error: Exception) -> None:
        """Draining or ending failed half way; the guard has counted it. The rest ends by its deadlines."""
        log.error("an edge could not end its visitors", error=repr(error))
