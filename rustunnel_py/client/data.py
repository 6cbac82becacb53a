"""The data socket: one TLS connection, upgraded by hand, with yamux on it in which we are the server.

After the 101 the bytes are plain yamux where both sides have the feature `raw_data`, else payloads of WebSocket
messages. What follows the 101 in the same segment is already yamux, so the answer is read by a sink and not by a
task: there is no moment in which bytes could be lost.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from typing import TYPE_CHECKING

import h11
import trio

from rustunnel_py.client.failure import Unreachable
from rustunnel_py.client.local import reason
from rustunnel_py.errors import Closed
from rustunnel_py.transport.trunk import SocketTrunk
from rustunnel_py.transport.websocket_trunk import WebSocketTrunk
from rustunnel_py.wire.control import MANY_STREAMS_MAX
from rustunnel_py.wire.yamux import Limits, Role, Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.client.local import Serving
    from rustunnel_py.client.reach import Reach
    from rustunnel_py.errors import LinkLost
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.tls import TlsConnection
    from rustunnel_py.wire.control import AuthOk

SECRET_HEADER = "X-Rustunnel-Data-Secret"
OPEN_SECONDS = 15.0  # to reach the server and have its 101, which it may hold back while the session begins
ANSWER_MAX = 16 * 1024  # bytes of the answer's head
# A server that was not told so keeps below what stock agents stand (512). Windows as the server's own.
LIMITS = Limits(max_accepted=MANY_STREAMS_MAX, grown_window=1024 * 1024, growth=16 * 1024 * 1024)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
_PATH_WORD = re.compile(r"[A-Za-z0-9-]{1,64}")  # a session id: it goes into a request line
_SECRET = re.compile(r"[\x21-\x7e]{1,512}")


class RawTrunk(SocketTrunk):
    """Silence is noticed within 15 s (W19): a second of each pause is the sweep's."""

    __slots__ = ()
    ping_seconds = 9.0
    answer_seconds = 4.0


class FramedTrunk(WebSocketTrunk):
    """The same for WebSocket messages; it pings on the WebSocket itself."""

    __slots__ = ()
    ping_seconds = 9.0
    answer_seconds = 4.0


async def open_data(reach: Reach, pump: Pump, serving: Serving, welcome: AuthOk, *, raw: bool) -> DataSocket:
    """Open the data socket of a session. Raises Unreachable or Untrusted."""
    secret = welcome.data_secret
    if not _PATH_WORD.fullmatch(welcome.session_id) or (secret is not None and not _SECRET.fullmatch(secret)):
        raise Unreachable("the server's session id or data secret is not usable")
    request = UpgradeRequest(str(reach.server), f"/_data/{welcome.session_id}", secret)
    try:
        with trio.fail_after(OPEN_SECONDS):
            data = await reach.connect(lambda connection: DataSocket(pump, connection, serving, request, raw=raw))
            try:
                await data.wait_opened()
            except BaseException:
                data.abort()
                raise
            return data
    except trio.TooSlowError:
        raise Unreachable(f"the server did not open the data connection within {OPEN_SECONDS:.0f} s") from None


class UpgradeRequest:
    """One upgrade request, and the judge of its answer."""

    def __init__(self, host: str, path: str, secret: str | None) -> None:
        key = base64.b64encode(secrets.token_bytes(16))
        self._accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
        headers = [
            (b"Host", host.encode()),
            (b"Connection", b"Upgrade"),
            (b"Upgrade", b"websocket"),
            (b"Sec-WebSocket-Version", b"13"),
            (b"Sec-WebSocket-Key", key),
        ]
        if secret is not None:
            headers.append((SECRET_HEADER.encode(), secret.encode()))
        self._machine = h11.Connection(h11.CLIENT, max_incomplete_event_size=ANSWER_MAX)
        self.bytes = self._machine.send(h11.Request(method=b"GET", target=path.encode(), headers=headers)) or b""
        self.bytes += self._machine.send(h11.EndOfMessage()) or b""

    def take(self, data: bytes) -> bytes | None:
        """What follows the 101, or None while that is not complete. Raises Unreachable for any other answer."""
        try:
            self._machine.receive_data(data)
            event = self._machine.next_event()
        except h11.RemoteProtocolError:
            raise Unreachable("the server did not answer the data upgrade in HTTP") from None
        if event is h11.NEED_DATA:
            return None
        if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
            if dict(event.headers).get(b"sec-websocket-accept") != self._accept:
                raise Unreachable("the server's answer to the data upgrade belongs to another request")
            return self._machine.trailing_data[0]
        status = getattr(event, "status_code", 0)  # a redirect, above all, is never followed
        raise Unreachable(f"the server answered {status} to the data upgrade")


class DataSocket:
    """One data socket: first the sink of the connection, until the 101; then the owner of trunk and mux."""

    def __init__(
        self, pump: Pump, connection: TlsConnection, serving: Serving, request: UpgradeRequest, *, raw: bool
    ) -> None:
        self.opened = False
        self._pump = pump
        self._connection = connection
        self._serving = serving
        self._request = request
        self._raw = raw
        self._trunk: SocketTrunk | None = None
        self._session: Session | None = None
        self._off: Callable[[], None] | None = None
        self._why: str | None = None
        self._changed = trio.Event()
        connection.sink = self
        connection.send(request.bytes)

    def __repr__(self) -> str:
        return f"<data socket {'over' if self._why else 'open' if self.opened else 'opening'}: {self._session!r}>"

    async def wait_opened(self) -> None:
        """Until the 101 came; raises Unreachable where something else did."""
        await self._changed.wait()
        if not self.opened:
            raise Unreachable(self._why or "the data connection ended")

    async def run(self) -> str:
        """Until it ends; gives the reason. Cancelled, it ends the socket."""
        try:
            while self._why is None:
                await self._changed.wait()
                self._changed = trio.Event()
            return self._why
        finally:
            self.abort()

    def abort(self) -> None:
        """End it at once; every stream on it hears so."""
        if self._trunk is None or self._session is None:
            self._connection.abort()
            return
        self._trunk.abort()
        session = self._session
        if not session.over:  # its trunk says nothing when we end it ourselves
            self._pump.call(self, lambda: session.lost(Closed("this side ended the data connection")))

    def _end(self, why: str) -> None:
        if self._why is None:
            self._why = why
        if self._off is not None:
            self._off()
            self._off = None
        self._changed.set()

    # the connection's sink, until the 101

    def data(self, data: memoryview) -> None:
        try:
            rest = self._request.take(bytes(data))
        except Unreachable as failure:
            self._connection.abort()
            self._end(str(failure))
            return
        if rest is None:
            self._connection.credit(len(data))
            return
        self._connection.credit(len(data) - len(rest))
        self._open(rest)

    def eof(self) -> None:
        self._connection.abort()
        self._end("the server closed the data connection before it was open")

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None:
        self._end(reason(error))

    def expired(self) -> None: ...

    def crashed(self, error: Exception) -> None:
        self._connection.abort()
        self._end(f"a fault of this program: {type(error).__name__}")

    # afterwards

    def _open(self, rest: bytes) -> None:
        self._trunk = trunk = (
            RawTrunk(self._pump, self._connection, rest)
            if self._raw
            else FramedTrunk(self._pump, self._connection, rest, server_side=False)
        )
        self._session = session = Session(
            Role.SERVER, trunk, self._pump.later, accept=self._serving.accept, ended=self._ended, limits=LIMITS
        )
        trunk.sink = session
        trunk.keep_alive(session.ping)
        self._off = self._pump.on_sweep(session.sweep)
        self.opened = True
        self._changed.set()

    def _ended(self, error: LinkLost) -> None:
        if self._trunk is not None:
            self._trunk.close()  # a go-away of ours may have to be flushed
        self._end(reason(error))
