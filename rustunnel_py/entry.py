"""Where agents come in: their own port, the HTTPS edge under the bare domain, and both behind a proxy that encrypts.
And who calls the API where a proxy stands before the dashboard's port.

Wiring, as `server.py` is: the edges know no agents, and neither the agents' door nor the API knows proxies.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from rustunnel_py.edges.proxied import TrustedProxies
from rustunnel_py.transport.front import Route
from rustunnel_py.transport.tcp import SocketConnection, peer_of

if TYPE_CHECKING:
    from rustunnel_py.agents.door import Door
    from rustunnel_py.api.serve import Introduce
    from rustunnel_py.model.networks import Networks
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.front import Handle
    from rustunnel_py.wire.http1 import Headers, RequestHead


def callers_of(trusted: Networks) -> Introduce:
    """Who calls the API: by the rules for visitors, so that nobody but `trusted` is believed about somebody else."""
    proxies = TrustedProxies(trusted)

    def introduce(headers: Headers, peer: Peer, scheme: str) -> tuple[Peer, str]:
        if peer.ip not in proxies:
            return peer, scheme
        return proxies.visitor(headers, peer), proxies.scheme(headers, scheme)

    return introduce


class AgentsEntry:
    """`trusted` are believed about the agent's address; they, `introducers` and loopback may come unencrypted."""

    def __init__(self, door: Door, trusted: Networks, introducers: Networks) -> None:
        self.routes = tuple(Route(route.name, route.matches, self._proxied(route.handle)) for route in door.routes)
        self._door = door
        self._trusted = TrustedProxies(trusted)
        self._introducers = introducers

    def __repr__(self) -> str:
        return f"<AgentsEntry to {self._door!r}>"

    def take(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> bool:
        """For the HTTPS edge: whether the request is an agent's; then it was taken."""
        for route in self.routes:
            if route.matches(head):
                route.handle(connection, head, bytes_read)
                return True
        return False

    def take_plain(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> bool:
        """For the HTTP edge: the same, for those who may come unencrypted."""
        return self.may_be_plain(connection) and self.take(connection, head, bytes_read)

    def may_be_plain(self, connection: Connection) -> bool:
        """Asked of the socket itself: a PROXY header tells of somebody else."""
        if not isinstance(connection, SocketConnection):
            return False
        try:
            ip = peer_of(connection.sock.getpeername()).ip
        except OSError:
            return False
        return ipaddress.ip_address(ip).is_loopback or ip in self._trusted or ip in self._introducers

    def _proxied(self, handle: Handle) -> Handle:
        def handle_proxied(connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
            if connection.peer.ip in self._trusted:
                connection.peer = self._trusted.visitor(head.block.headers, connection.peer)
            handle(connection, head, bytes_read)

        return handle_proxied
