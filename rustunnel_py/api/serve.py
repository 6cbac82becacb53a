"""One accepted connection → Hypercorn's HTTP/1.1 protocol: the only file that knows Hypercorn.

Its server is not used: listeners, TLS, deadlines and tasks are ours. A connection is served by a reader (this
task) and one task a request (the app), which send under one lock. Three deadlines hold:

* a connection that waits for its next request is closed after IDLE_SECONDS,
* a head that has begun is complete within HEAD_SECONDS (the body's deadline is the app's),
* each piece that is sent is taken within SEND_SECONDS, or the connection is over.

Nothing is shielded, so cancelling `serve_connection` ends it whatever the client does.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import h11
import structlog
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.protocol.ws_stream import WSStream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.events import Event
    from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, H11SendableEvent, Scope
    from quart import Quart

    from rustunnel_py.model.tunnel import Peer
    from rustunnel_py.wire.http1 import Headers

    Put: TypeAlias = Callable[[ASGIReceiveEvent], Awaitable[None]]

Introduce: TypeAlias = "Callable[[Headers, Peer, str], tuple[Peer, str]]"
"""`introduce(headers, peer, scheme)`: who a request of this socket's peer comes from, and by `http` or `https`."""

IDLE_SECONDS = 60.0  # between requests; browsers reopen without anybody noticing
HEAD_SECONDS = 10.0
SEND_SECONDS = 20.0  # for at most what the app yields at once
EOF_SECONDS = 10.0  # after the client's end, for the answer that is under way; it may as well be gone
LINGER_SECONDS = 2.0  # after the last answer: time for the client to read it before a RST could discard it
CLOSE_SECONDS = 5.0  # for the last bytes to leave
QUEUED_MAX = 10  # pieces of a body between reader and app
READ_SIZE = 64 * 1024

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def _as_it_seems(_: Headers, peer: Peer, scheme: str) -> tuple[Peer, str]:
    return peer, scheme


class ApiServer:
    """Serves connections of any listener with one app. `crashes` counts what no handler of the app caught.

    `introduce` is asked about each request: a proxy sends those of many visitors on one connection.
    """

    def __init__(self, app: Quart, introduce: Introduce = _as_it_seems) -> None:
        self._app = app
        self._introduce = introduce
        self._config = Config()
        self._config.errorlog = None
        self._config.include_server_header = False
        self._config.max_app_queue_size = QUEUED_MAX
        self._context = WorkerContext(None)
        self.crashes = 0

    async def serve_connection(self, stream: trio.abc.Stream, *, scheme: str, peer: Peer, local: Peer) -> None:
        """Serve one accepted stream until it ends, and close it. `scheme` is `http` or `https`.

        An exception ends this connection only: nothing but Cancelled comes out.
        """
        try:
            await _Served(self, stream).run(scheme, peer, local)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it went away in the middle of something
        except* Exception as crash:
            self.crashed(crash)
        finally:
            await _end(stream)

    def crashed(self, error: BaseException) -> None:
        self.crashes += 1
        log.error("an API connection crashed", exc_info=error)


async def _end(stream: trio.abc.Stream) -> None:
    """Close politely, in bounded time; at once where this task is cancelled."""
    try:
        with trio.move_on_after(CLOSE_SECONDS):
            await stream.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


class _Protocol(H11Protocol):
    async def _check_protocol(self, event: h11.Request) -> None:
        """No h2 and no h2c: such a request is served as the HTTP/1.1 request that it is."""

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Where a client sends something before its WebSocket was accepted, Hypercorn refuses it while the app answers:
        what cannot be said any more is dropped, and the connection ends.
        """
        try:
            await super()._send_h11_event(event)
        except h11.LocalProtocolError:
            if not isinstance(self.stream, WSStream):
                raise
            await self.send(RawData(b""))  # behind what is being sent
            await self.send(Closed())

    async def _send_error_response(self, status_code: int) -> None:
        """For what is no HTTP: JSON like every other error."""
        body = b'{"error":"bad request"}' if status_code == 400 else b'{"error":"the request cannot be served"}'
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=headers))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())


class _Served:
    """One connection: what Hypercorn wants of a server, on tasks and deadlines of ours."""

    def __init__(self, server: ApiServer, stream: trio.abc.Stream) -> None:
        self._server = server
        self._app = server._app
        self._stream = stream
        self._sending = trio.Lock()
        self._eof = False
        self._ended = False
        self._idle = True
        self._reading = trio.CancelScope()
        self._tasks = _Tasks(self)

    async def run(self, scheme: str, peer: Peer, local: Peer) -> None:
        self._peer = peer
        self._protocol = _Protocol(
            cast("AppWrapper", self._app),  # only our own spawn_app touches it
            self._server._config,
            self._server._context,
            self._tasks,
            ConnectionState({}),
            scheme == "https",
            (peer.ip, peer.port),
            (local.ip, local.port),
            self._send,
        )
        async with trio.open_nursery() as nursery:
            self._tasks.nursery = nursery
            with self._reading:
                self._reading.deadline = trio.current_time() + HEAD_SECONDS
                await self._read()
            nursery.cancel_scope.cancel()  # an app that still runs has nobody to answer
        if self._ended:
            await self._linger()

    async def _read(self) -> None:
        while not self._ended:
            data = await self._stream.receive_some(READ_SIZE)
            if data and self._idle:
                self._idle = False
                self._reading.deadline = trio.current_time() + HEAD_SECONDS
            self._eof = not data
            await self._protocol.handle(RawData(bytes(data)))
            if self._eof:
                if not self._idle:  # a client may end its side and still wait for the answer
                    self._reading.deadline = trio.current_time() + EOF_SECONDS
                    await trio.sleep_forever()
                break

    async def _send(self, event: Event) -> None:
        match event:
            case RawData(data):
                await self._send_all(data)
            case Updated(idle=True) if self._eof:
                self._finish()
            case Updated(idle=True):
                self._idle = True
                self._reading.deadline = trio.current_time() + IDLE_SECONDS
            case Updated():
                self._idle = False
                self._reading.deadline = math.inf
            case Closed():
                self._finish()

    async def _send_all(self, data: bytes) -> None:
        try:
            async with self._sending:
                with trio.fail_after(SEND_SECONDS):
                    await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._tasks.nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint_if_cancelled()

    def _finish(self) -> None:
        """The last answer is out."""
        self._ended = True
        self._reading.cancel()

    async def _linger(self) -> None:
        """FIN, then read and drop for a moment: a close with unread input would reset, and the answer be lost."""
        with trio.move_on_after(LINGER_SECONDS):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
                while await self._stream.receive_some(READ_SIZE):
                    pass

    async def run_app(
        self, scope: Scope, receive: Any, send: Callable[[ASGISendEvent | None], Awaitable[None]]
    ) -> None:
        """One request. `send(None)` tells Hypercorn that the app is through with it."""
        try:
            self._introduce(scope)
            await self._app(scope, receive, send)
        except BaseExceptionGroup as group:
            _, rest = group.split(trio.Cancelled)
            if rest is None:
                raise
            self._server.crashed(rest)
        except Exception as error:
            self._server.crashed(error)
        await send(None)

    def _introduce(self, scope: Scope) -> None:
        """Let the app see who really asks, and how."""
        if scope["type"] == "lifespan":
            return
        scheme = "https" if self._protocol.ssl else "http"
        peer, scheme = self._server._introduce(tuple(scope["headers"]), self._peer, scheme)
        scope["client"] = (peer.ip, peer.port)
        if scope["type"] == "http":
            scope["scheme"] = scheme
        else:
            scope["scheme"] = "wss" if scheme == "https" else "ws"


class _Tasks:
    """What Hypercorn calls a task group, on a nursery of ours."""

    nursery: trio.Nursery

    def __init__(self, served: _Served) -> None:
        self._served = served

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Put:
        put, take = trio.open_memory_channel[Any](config.max_app_queue_size)
        self.nursery.start_soon(self._served.run_app, scope, take.receive, send)
        return put.send

    def spawn(self, func: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self.nursery.start_soon(func, *args)

    async def __aenter__(self) -> _Tasks:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None
