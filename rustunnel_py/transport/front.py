"""One listener, several uses: a front reads a connection's first head and hands it to the first route that matches.

A handler gets the connection, the judged head and every byte read, the head's own included; these bytes count as
delivered and not yet credited. Later bytes, later heads, deadlines and the end are the handler's, which sets
`connection.sink` before it returns. What is not HTTP, or has no route, the front answers itself, in plain JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

import trio

from rustunnel_py.errors import HttpError, LinkLost
from rustunnel_py.model.bucket import source_of
from rustunnel_py.transport.connection import Connection
from rustunnel_py.transport.listen import Listener
from rustunnel_py.transport.tcp import TcpConnection, peer_of
from rustunnel_py.transport.tls import TlsConnection
from rustunnel_py.wire.http1 import REQUEST_LIMITS, RequestHead, find_head_end, judge_request
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Sequence

    from rustunnel_py.model.bucket import Buckets
    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.transport.listen import Intake
    from rustunnel_py.transport.pump import Pump

# From the first byte of a connection, or the end of its handshake, to the end of the head.
HEAD_SECONDS = 10.0

Handle: TypeAlias = Callable[[Connection, RequestHead, bytes], None]


@dataclass(frozen=True, slots=True)
class Route:
    """Requests that `matches` go to `handle`; `name` is for the log."""

    name: str
    matches: Callable[[RequestHead], bool]
    handle: Handle


def plain_answer(status: int, message: str, *, head_only: bool = False) -> bytes:
    """A whole reply with `{"error": message}` that ends its connection; `head_only`: to a HEAD."""
    body = json.dumps({"error": message}).encode()
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    allow = "Allow: DELETE, GET, HEAD, PATCH, POST, PUT\r\n" if status == 405 else ""  # RFC 9110 section 15.5.6
    if status == 426:  # RFC 9110 section 15.5.22: to what, and section 7.8: named in Connection
        ends = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nConnection: close, upgrade\r\n"
    else:
        ends = "Connection: close\r\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\n{allow}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{ends}\r\n"
    ).encode()
    return head if head_only else head + body


class _Reading:
    """The sink of a connection whose head is not there yet."""

    __slots__ = ("_buffer", "_connection", "_front", "_looked")

    def __init__(self, front: Front, connection: Connection) -> None:
        self._front = front
        self._connection = connection
        self._buffer = bytearray()
        self._looked = 0

    def data(self, data: memoryview) -> None:
        buffer = self._buffer
        buffer += data
        try:
            end = find_head_end(buffer, self._looked, REQUEST_LIMITS)
            if end < 0:
                self._looked = len(buffer)
                return
            head = judge_request(bytes(buffer[:end]), REQUEST_LIMITS)
        except HttpError as error:
            self._answer(error.status, error.detail)
            return
        self._front._hand_over(self._connection, head, bytes(buffer))

    def eof(self) -> None:
        self._leave()
        self._connection.close()

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self._leave()

    def expired(self) -> None:
        if self._buffer:
            self._answer(408, "the request's head did not come in time")
        else:
            self._leave()
            self._connection.close()

    def _answer(self, status: int, message: str) -> None:
        self._leave()
        refuse(self._connection, status, message, head_only=self._buffer.startswith(b"HEAD "))

    def _leave(self) -> None:
        self._front._reading.pop(self._connection, None)


def refuse(connection: Connection, status: int, message: str, *, head_only: bool = False) -> None:
    """Answer in plain JSON and end the connection, so that the answer survives input that is still coming."""
    connection.send(plain_answer(status, message, head_only=head_only))
    connection.close_lingering()


class Front:
    """A table of routes behind the sockets of one listener; `context` is None for plain HTTP.

    `accepted(connection)` is asked of each new connection before anything is read: False drops it. `otherwise` gets
    what no route matches; without it that is a 404. `handshakes` bounds those of each source; beyond it a connection
    is closed.
    """

    def __init__(
        self,
        pump: Pump,
        listeners: list[socket.socket],
        routes: Sequence[Route],
        *,
        context: ssl.SSLContext | None,
        name: str,
        accepted: Callable[[Connection], bool] | None = None,
        head_deadline: float = HEAD_SECONDS,
        otherwise: Handle | None = None,
        intake: Intake | None = None,
        handshakes: Buckets | None = None,
    ) -> None:
        self.name = name
        self.routes = routes
        self._pump = pump
        self._sockets = listeners
        self._context = context
        self._accepted = accepted
        self._head_deadline = head_deadline
        self._otherwise = otherwise
        self._intake = intake
        self._handshakes = handshakes
        self._reading: dict[Connection, None] = {}

    def __repr__(self) -> str:
        return f"<front {self.name}: {len(self._reading)} reading>"

    async def run(self, *, task_status: trio.TaskStatus[list[Peer]] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept until cancelled; then close the listeners and what still reads a head. Starts with the addresses."""
        listeners = [Listener(self._pump, sock, self._accept, self._intake) for sock in self._sockets]
        try:
            task_status.started([peer_of(sock.getsockname()) for sock in self._sockets])
            await trio.sleep_forever()
        finally:
            for listener in listeners:
                listener.close()
            for connection in list(self._reading):
                connection.abort()
            self._reading.clear()

    def take(self, connection: Connection, bytes_read: bytes = b"") -> None:
        """Adopt a connection from elsewhere, with what was read of it (uncredited), as if it had been accepted here."""
        reading = self._read(connection)
        if bytes_read:
            reading.data(memoryview(bytes_read))

    def _accept(self, sock: socket.socket, peer: Peer) -> None:
        connection: TcpConnection | TlsConnection
        if self._context is None:
            connection = TcpConnection(self._pump, sock, gone=self._gone)
        else:
            if self._handshakes is not None and self._handshakes.take(source_of(peer.ip), self._pump.now):
                sock.close()
                return
            connection = TlsConnection(
                self._pump, sock, self._context, server_side=True, gone=self._gone, handshaken=self._restart_deadline
            )
        connection.peer = peer
        if self._accepted is not None and not self._accepted(connection):
            connection.abort()
            return
        self._read(connection)

    def _read(self, connection: Connection) -> _Reading:
        reading = _Reading(self, connection)
        connection.sink = reading
        connection.due = self._pump.now + self._head_deadline
        self._reading[connection] = None
        return reading

    def _restart_deadline(self, connection: TlsConnection) -> None:
        if connection in self._reading:
            connection.due = self._pump.now + self._head_deadline

    def _gone(self, connection: Connection) -> None:
        self._reading.pop(connection, None)

    def _hand_over(self, connection: Connection, head: RequestHead, bytes_read: bytes) -> None:
        self._reading.pop(connection, None)
        connection.due = math.inf
        connection.sink = SILENT
        for route in self.routes:
            if route.matches(head):
                route.handle(connection, head, bytes_read)
                return
        if self._otherwise is not None:
            self._otherwise(connection, head, bytes_read)
        else:
            refuse(connection, 404, "there is nothing here", head_only=head.method == b"HEAD")
