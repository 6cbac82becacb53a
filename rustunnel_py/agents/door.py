"""The agents' door: the two paths of the rustunnel wire, as routes of a front.

Heads come judged (`wire/http1`: one key, version 13, no body, no more than so many lines); what is left to see to is
here, before any upgrade: the path, that it is an upgrade at all, that no web page's script is behind it, and for a
data socket that its session lives. Whatever is refused gets a plain HTTP answer in JSON.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

import structlog

from rustunnel_py.agents.rustunnel import Greeting, RustunnelAgent, serve_agent
from rustunnel_py.agents.rustunnel_link import FIRST_BYTE_SECONDS
from rustunnel_py.model.bucket import source_of
from rustunnel_py.transport.front import Route, refuse
from rustunnel_py.transport.stream import ConnectionStream
from rustunnel_py.transport.tcp import SocketConnection
from rustunnel_py.wire.http1 import websocket_accept

if TYPE_CHECKING:
    import trio

    from rustunnel_py.hub.registry import Registry
    from rustunnel_py.hub.sessions import Sessions
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.wire.http1 import RequestHead

CONTROL_PATH = b"/_control"
DATA_PATH = b"/_data/"
SECRET_HEADER = b"x-rustunnel-data-secret"
STRANGERS_MAX = 2000  # control sockets that have not authenticated; each has 5 s
STRANGERS_PER_SOURCE = 1000  # of them from one address: a whole fleet behind one NAT may come back at once

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Door:
    """Takes control and data connections, by `routes` of a front; the agents' tasks run in `nursery`."""

    def __init__(
        self,
        pump: Pump,
        sessions: Sessions,
        registry: Registry,
        nursery: trio.Nursery,
        *,
        region: str = "default",
        https: bool = False,
        first_byte_seconds: float = FIRST_BYTE_SECONDS,
    ) -> None:
        """`region` and `https` (a publicly trusted certificate is in use) are told to our own agents."""
        self.refused = 0
        self.routes = (
            Route("control", lambda head: _path(head) == CONTROL_PATH, self._take_control),
            Route("data", lambda head: _path(head).startswith(DATA_PATH), self._take_data),
        )
        self._nursery = nursery
        self._pump = pump
        self._sessions = sessions
        self._registry = registry
        self._greeting = Greeting(region, https)
        self._first_byte_seconds = first_byte_seconds
        self._strangers: dict[Connection, str] = {}  # control sockets without a session, and their source

    def __repr__(self) -> str:
        return f"<Door {len(self._strangers)} strangers>"

    def take(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> bool:
        """For an edge that serves other things as well: whether the request is for this door; then it was taken."""
        for route in self.routes:
            if route.matches(head):
                route.handle(connection, head, bytes_read)
                return True
        return False

    def _refuse(self, connection: Connection, head: RequestHead, status: int, message: str) -> None:
        self.refused += 1
        refuse(connection, status, message, head_only=head.method == b"HEAD")

    def _may_upgrade(self, connection: Connection, head: RequestHead) -> bool:
        """Refuses what is no upgrade of an agent's."""
        if b"?" in head.target:
            self._refuse(connection, head, 400, "this path takes no query")
        elif not head.is_upgrade:
            self._refuse(connection, head, 426, "agents speak WebSocket here")
        elif _header(head, b"origin") is not None:
            self._refuse(connection, head, 403, "web pages may not connect here")
        else:
            return True
        return False

    # control

    def _take_control(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        if not self._may_upgrade(connection, head):
            return
        source = source_of(connection.peer.ip)
        if not self._has_room(source):
            self._refuse(connection, head, 503, "too many agents are connecting; come back later")
            return
        self._strangers[connection] = source
        self._nursery.start_soon(
            self._serve_control, connection, ConnectionStream(connection, bytes_read), name="agent's control socket"
        )

    def _has_room(self, source: str) -> bool:
        strangers = len(self._strangers)
        if strangers < STRANGERS_PER_SOURCE:
            return True
        here = sum(1 for one in self._strangers.values() if one == source)
        return strangers < STRANGERS_MAX and here < STRANGERS_PER_SOURCE

    async def _serve_control(self, connection: Connection, stream: ConnectionStream) -> None:
        try:
            await serve_agent(
                self._pump,
                self._sessions,
                self._registry,
                stream,
                connection.peer,
                self._greeting,
                admitted=lambda: self._strangers.pop(connection, None),
                first_byte_seconds=self._first_byte_seconds,
            )
        except Exception as error:
            self._pump.crash(self, error)  # counted and logged there; one agent's handler never ends the server
        finally:
            self._strangers.pop(connection, None)
            stream.drop()

    # data

    def _take_data(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        if not self._may_upgrade(connection, head):
            return
        agent = self._agent_for(head)
        if agent is None:
            self._refuse(connection, head, 403, "no such session")
            return
        end = bytes_read.index(b"\r\n\r\n") + 4
        connection.credit(end)
        if agent.is_stock and isinstance(connection, SocketConnection):
            connection.quickack = True  # it writes small frames in two pieces, with Nagle's algorithm on
        connection.send(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-accept: %b\r\n\r\n" % websocket_accept(head.block.websocket_key)
        )
        agent.attach_data(connection, bytes_read[end:])

    def _agent_for(self, head: RequestHead) -> RustunnelAgent | None:
        """The live session that the path names, opened with its secret where it has one."""
        session = self._sessions.find(head.target[len(DATA_PATH) :].decode("latin-1"))
        given = _header(head, SECRET_HEADER) or b""
        agent = session.agent if session is not None else None
        if session is None or not isinstance(agent, RustunnelAgent):
            return None
        if not agent.is_stock and not hmac.compare_digest(given, session.data_secret.encode("ascii")):
            return None
        return agent


def _path(head: RequestHead) -> bytes:
    return head.target.partition(b"?")[0]


def _header(head: RequestHead, name: bytes) -> bytes | None:
    return next((value for key, value in head.block.headers if key.lower() == name), None)
