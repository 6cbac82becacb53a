"""The stock rustunnel client, played byte for byte from the wire spec and the recordings (version 0.7.8).

It shares no code with the package: TLS by trio, WebSocket and yamux by hand, so that the server is held to the
spec and not to our own machines. It is as strict as the real one: between `register_tunnel` and its answer, and
before `auth_ok`, any other frame (a WebSocket ping, too) fails the session. It leaves Nagle's algorithm on,
writes a yamux frame with payload as two WebSocket messages of at most 8 KiB of payload, opens one local
connection per stream, reads nothing into the bytes, and acknowledges a stream with its first frame of any kind.

async with stock_agent(control_port, token, tls=context) as agent:
    tunnel = await agent.register("http", service.port, subdomain="demo")
    await agent.serve()
    ...
    await agent.drop_data()
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import struct
import time
import uuid
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

VERSION = "0.7.8"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
Y_DATA, Y_WINDOW, Y_PING, Y_GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW = 262_144
PAYLOAD_MAX = 8192
STREAMS_MAX = 512
ANSWER_SECONDS = 10.0
PING_SECONDS = 30.0

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class SessionFailed(Exception):
    """What makes the real client drop its session; `final`: it gives up for good."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Refused(Exception):
    """An upgrade was answered by something else than 101."""

    def __init__(self, status: int, answer: bytes) -> None:
        super().__init__(f"{status}: {answer!r}")
        self.status = status
        self.answer = answer


class ControlEnded(SessionFailed):
    """The control socket ended; `how` is "fin", "close_notify", "reset" or "close frame"."""

    def __init__(self, how: str) -> None:
        super().__init__(f"control ended: {how}", final=how == "close frame")
        self.how = how


class WebSocket:
    """The client's half of one WebSocket connection, frame by frame."""

    def __init__(self, stream: Stream, kept: bytes = b"") -> None:
        self.stream = stream
        self.frozen: StockAgent | None = None  # whose process may be stopped
        self._kept = bytearray(kept)
        self._lock = trio.Lock()
        self.ended: str | None = None

    @classmethod
    async def open(cls, stream: Stream, host: str, path: str) -> WebSocket:
        key = base64.b64encode(os.urandom(16))
        await stream.send_all(
            b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % (path.encode(), host.encode(), key)
        )
        answer = bytearray()
        while b"\r\n\r\n" not in answer:
            more = await stream.receive_some(65536)
            if not more:
                raise Refused(0, bytes(answer))
            answer += more
        head, _, rest = bytes(answer).partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        status = int(lines[0].split(b" ")[1])
        if status != 101:
            raise Refused(status, bytes(answer))
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])
        }
        wanted = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        if headers.get(b"sec-websocket-accept") != wanted or headers.get(b"upgrade", b"").lower() != b"websocket":
            raise SessionFailed("a wrong upgrade answer", final=True)
        if b"sec-websocket-extensions" in headers or b"sec-websocket-protocol" in headers:
            raise SessionFailed("an extension or subprotocol that nobody asked for", final=True)
        return cls(stream, rest)

    async def send(self, op: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((0x80 | op, 0x80 | size))
        elif size < 65536:
            head = struct.pack(">BBH", 0x80 | op, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | op, 0x80 | 127, size)
        mask = os.urandom(4)
        number = int.from_bytes(payload, "big") ^ int.from_bytes((mask * (size // 4 + 1))[:size], "big")
        async with self._lock:
            await self.stream.send_all(head + mask + number.to_bytes(size, "big"))

    async def receive(self) -> tuple[int, bytes]:
        """One frame; none of either side's is ever fragmented. Raises EOFError, `ended` says how."""
        first, second = await self._exactly(2)
        if not first & 0x80 or first & 0x70 or second & 0x80:
            raise SessionFailed(f"a fragmented, reserved or masked frame: {first:02x} {second:02x}")
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await self._exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self._exactly(8), "big")
        if size > 16 * 1024 * 1024:
            raise SessionFailed("a frame over 16 MiB")
        return first & 0x0F, await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        while len(self._kept) < size:
            try:
                more = await self._thawed(self.stream.receive_some(65536))
            except trio.ClosedResourceError:
                self.ended = "ours"
                raise EOFError from None
            except trio.BrokenResourceError as error:
                reset = isinstance(error.__cause__, ConnectionResetError) or isinstance(
                    getattr(error.__cause__, "__cause__", None), ConnectionResetError
                )
                self.ended = "reset" if reset else "fin"
                raise EOFError from None
            if not more:
                self.ended = "close_notify" if isinstance(self.stream, trio.SSLStream) else "fin"
                raise EOFError
            self._kept += more
        taken = bytes(self._kept[:size])
        del self._kept[:size]
        return taken

    async def _thawed(self, reading: Awaitable[bytes | bytearray]) -> bytes | bytearray:
        """A stopped process does not see what came, or that it ended."""
        try:
            return await reading
        finally:
            if self.frozen is not None:
                await self.frozen.thawed.wait()

    async def drop(self) -> None:
        """A FIN without TLS close_notify, as the real one ends its sockets."""
        stream = self.stream
        if isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        await trio.aclose_forcefully(stream)


@dataclass
class StockTunnel:
    """One registration, as the server answered it."""

    id: str
    protocol: str
    public_url: str
    assigned_port: int | None
    local: tuple[str, int]


@dataclass
class YamuxStream:
    """One stream of the data socket, the accepting side."""

    id: int
    acknowledged: bool = False
    send_window: int = WINDOW
    receive_window: int = WINDOW
    unread: int = 0  # taken and not credited yet
    kept: bytearray = field(default_factory=bytearray)
    got_fin: bool = False
    sent_fin: bool = False
    reset: bool = False
    changed: trio.Event = field(default_factory=trio.Event)
    received: int = 0

    def tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class DataSocket:
    """yamux over one `/_data` WebSocket, in the server's role."""

    def __init__(self, websocket: WebSocket, agent: StockAgent) -> None:
        self.websocket = websocket
        self.agent = agent
        self.streams: dict[int, YamuxStream] = {}
        self.highest = 0
        self.pings_answered = 0
        self.resets: list[int] = []
        self.go_away: int | None = None
        self._bytes = bytearray()
        self._lock = trio.Lock()
        self.ended = trio.Event()

    async def run(self) -> None:
        """Until the socket ends, however it does."""
        try:
            async with trio.open_nursery() as nursery:
                await self._frame(Y_PING, SYN, 0, int.from_bytes(os.urandom(4), "big"))
                try:
                    while True:
                        op, payload = await self.websocket.receive()
                        if op == BINARY:
                            self._bytes += payload
                            await self._take_frames(nursery)
                        elif op == PING:
                            # Its yamux ping goes out before its pong, as recorded.
                            await self._frame(Y_PING, SYN, 0, int.from_bytes(os.urandom(4), "big"))
                            await self.websocket.send(PONG, payload)
                        elif op == CLOSE:
                            self.agent.data_ends.append("close frame")
                            break
                finally:
                    with trio.CancelScope(shield=True):
                        await self.websocket.drop()  # so that a frame that cannot be written ends, too
                nursery.cancel_scope.cancel()
        except* (EOFError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.agent.data_ends.append(self.websocket.ended or "broken")
        finally:
            self.ended.set()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self.websocket.drop()

    async def _take_frames(self, nursery: trio.Nursery) -> None:
        while len(self._bytes) >= 12:
            version, kind, flags, ident, length = struct.unpack_from(">BBHII", self._bytes)
            size = length if kind == Y_DATA else 0
            if version or kind > Y_GO_AWAY or size > 16 * 1024 * 1024:
                raise self.agent.violated(f"yamux header {bytes(self._bytes[:12]).hex()}")
            if len(self._bytes) < 12 + size:
                return
            payload = bytes(self._bytes[12 : 12 + size])
            del self._bytes[: 12 + size]
            if kind == Y_PING:
                await self._take_ping(flags, length)
            elif kind == Y_GO_AWAY:
                self.go_away = length
                self.agent.violated("a go-away makes this agent drop its data socket")
                raise EOFError
            else:
                await self._take_stream_frame(nursery, kind, flags, ident, length, payload)

    async def _take_ping(self, flags: int, value: int) -> None:
        if flags & SYN:
            self.pings_answered += 1
            await self._frame(Y_PING, ACK, 0, value)

    async def _take_stream_frame(
        self, nursery: trio.Nursery, kind: int, flags: int, ident: int, length: int, payload: bytes
    ) -> None:
        stream = self.streams.get(ident)
        if flags & SYN:
            if ident % 2 == 0 or ident <= self.highest or stream is not None:
                raise self.agent.violated(f"SYN on stream {ident}")
            if len(self.streams) >= STREAMS_MAX:
                raise self.agent.violated("more than 512 streams")
            self.highest = ident
            stream = self.streams[ident] = YamuxStream(ident)
            self.agent.most_streams = max(self.agent.most_streams, len(self.streams))
            silent = sum(not one.acknowledged for one in self.streams.values())
            self.agent.most_unacknowledged = max(self.agent.most_unacknowledged, silent)
            nursery.start_soon(self._serve_stream, stream)
        if stream is None:
            return
        if kind == Y_WINDOW:
            stream.send_window += length
        else:
            if len(payload) > stream.receive_window:
                raise self.agent.violated(f"past the window of stream {ident}")
            if stream.got_fin and payload:
                raise self.agent.violated(f"data after FIN on stream {ident}")
            stream.receive_window -= len(payload)
            stream.received += len(payload)
            stream.kept += payload
        if flags & FIN:
            stream.got_fin = True
        if flags & RST:
            stream.reset = True
            self.resets.append(ident)
            self.streams.pop(ident, None)
        stream.tell()

    async def _frame(self, kind: int, flags: int, ident: int, length: int, payload: bytes = b"") -> None:
        """Header and payload are two WebSocket messages. A stream's end must not cut a frame that is being written."""
        async with self._lock:
            with trio.CancelScope(shield=True):
                await self.websocket.send(BINARY, struct.pack(">BBHII", 0, kind, flags, ident, length))
                if payload:
                    await self.websocket.send(BINARY, payload)

    async def _stream_frame(
        self, stream: YamuxStream, kind: int, flags: int, length: int, payload: bytes = b""
    ) -> None:
        if not stream.acknowledged and not flags & RST:
            stream.acknowledged = True
            flags |= ACK
        await self._frame(kind, flags, stream.id, length, payload)

    # one stream

    async def _serve_stream(self, stream: YamuxStream) -> None:
        conn_id = str(uuid.UUID(bytes=await self._read(stream, 16)))
        announced = await self.agent.announced(conn_id)
        local = self.agent.local_for(announced["protocol"])
        if local is None:
            return  # the real one leaves such a stream open and silent
        try:
            connection = await trio.open_tcp_stream(*local)
        except OSError:
            await self._reset(stream)
            return
        self.agent.local_connections += 1
        async with connection:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch_reset, stream, nursery.cancel_scope)
                    nursery.start_soon(self._local_to_stream, connection, stream, nursery.cancel_scope)
                    await self._stream_to_local(stream, connection, nursery.cancel_scope)
            except* OSError:
                await self._reset(stream)
        if stream.got_fin and stream.sent_fin:
            self.streams.pop(stream.id, None)

    async def _watch_reset(self, stream: YamuxStream, scope: trio.CancelScope) -> None:
        while not stream.reset:
            await stream.changed.wait()
        scope.cancel()

    async def _read(self, stream: YamuxStream, size: int) -> bytes:
        while len(stream.kept) < size:
            await stream.changed.wait()
        taken = bytes(stream.kept[:size])
        del stream.kept[:size]
        stream.unread += size
        return taken

    async def _stream_to_local(
        self, stream: YamuxStream, connection: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        while True:
            while not stream.kept and not stream.got_fin:
                await stream.changed.wait()
            if not stream.kept:
                break
            taken = bytes(stream.kept)
            stream.kept.clear()
            try:
                await connection.send_all(taken)
            except trio.BrokenResourceError:
                await self._reset(stream)
                scope.cancel()
                return
            stream.unread += len(taken)
            if stream.unread >= WINDOW // 2 and not stream.got_fin:
                credit, stream.unread = stream.unread, 0
                stream.receive_window += credit
                await self._stream_frame(stream, Y_WINDOW, 0, credit)
        try:
            await connection.send_eof()
        except trio.BrokenResourceError:
            pass
        self._maybe_done(stream, scope)

    async def _local_to_stream(
        self, connection: trio.SocketStream, stream: YamuxStream, scope: trio.CancelScope
    ) -> None:
        while True:
            try:
                data = await connection.receive_some(PAYLOAD_MAX)
            except trio.BrokenResourceError:
                await self._reset(stream)
                scope.cancel()
                return
            if not data:
                break
            while data:
                while not stream.send_window:
                    await stream.changed.wait()
                piece, data = data[: stream.send_window], data[stream.send_window :]
                stream.send_window -= len(piece)
                await self._stream_frame(stream, Y_DATA, 0, len(piece), piece)
        stream.sent_fin = True
        await self._stream_frame(stream, Y_DATA, FIN, 0)
        self._maybe_done(stream, scope)

    def _maybe_done(self, stream: YamuxStream, scope: trio.CancelScope) -> None:
        if stream.got_fin and stream.sent_fin and not stream.kept:
            scope.cancel()

    async def _reset(self, stream: YamuxStream) -> None:
        """A data frame of length 0 with RST and no ACK, as recorded."""
        self.streams.pop(stream.id, None)
        if not stream.reset:
            stream.reset = True
            await self._frame(Y_DATA, RST, stream.id, 0)


class StockAgent:
    """One session of the stock client. Made by `stock_agent`."""

    def __init__(self, port: int, token: str, tls: ssl.SSLContext | None, host: str, *, heartbeats: bool) -> None:
        self.session_id = ""
        self.server_version = ""
        self.tunnels: list[StockTunnel] = []
        self.heard: list[dict[str, Any]] = []  # every control frame, in order
        self.violations: list[str] = []  # what the real one would not stand
        self.data_ends: list[str] = []
        self.failure: SessionFailed | None = None
        self.ended = trio.Event()  # the control socket is gone
        self.thawed = trio.Event()
        self.thawed.set()
        self.control: WebSocket | None = None
        self.data: DataSocket | None = None
        self.data_opened = 0
        self.local_connections = 0
        self.most_streams = 0
        self.most_unacknowledged = 0
        self.nursery: trio.Nursery | None = None
        self._port = port
        self._token = token
        self._tls = tls
        self._host = host
        self._heartbeats = heartbeats
        self._waiting: dict[str, dict[str, Any]] = {}
        self._announced: dict[str, trio.Event] = {}
        self._more = trio.Event()
        self._answers: deque[dict[str, Any]] = deque()
        self._registering = False
        self._reconnect_data = True
        self._pong = trio.Event()

    def violated(self, what: str) -> SessionFailed:
        self.violations.append(what)
        return SessionFailed(what)

    async def _dial(self) -> Stream:
        stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)  # the real one leaves Nagle's algorithm on
        if self._tls is None:
            return stream
        wrapped = trio.SSLStream(stream, self._tls, server_hostname=self._host)
        await wrapped.do_handshake()
        return wrapped

    async def _open(self, path: str) -> WebSocket:
        stream = await self._dial()
        try:
            websocket = await WebSocket.open(stream, f"{self._host}:{self._port}", path)
        except BaseException:
            await trio.aclose_forcefully(stream.transport_stream if isinstance(stream, trio.SSLStream) else stream)
            raise
        websocket.frozen = self
        return websocket

    # control

    async def connect(self) -> None:
        """`/_control` and `auth`. Raises SessionFailed, Refused."""
        control = self.control = await self._open("/_control")
        await self._say(type="auth", token=self._token, client_version=VERSION)
        with trio.fail_after(ANSWER_SECONDS):
            answer = await self._only_answer(("auth_ok", "auth_error"))
        if answer["type"] == "auth_error":
            await control.drop()
            raise SessionFailed(f"auth error: {answer['message']}", final=True)
        self.session_id = answer["session_id"]
        self.server_version = answer["server_version"]

    async def register(
        self, protocol: str, local_port: int, *, subdomain: str | None = None, host: str = "127.0.0.1"
    ) -> StockTunnel:
        """One tunnel. Before `serve`, as the real one does it. Raises SessionFailed with the server's text."""
        request_id = str(uuid.uuid4())
        await self._say(
            type="register_tunnel",
            request_id=request_id,
            protocol=protocol,
            subdomain=subdomain,
            local_addr=f"localhost:{local_port}",
        )
        with trio.fail_after(ANSWER_SECONDS):
            answer = await self._only_answer(("tunnel_registered", "tunnel_error"))
        if answer["type"] == "tunnel_error":
            message = answer["message"]
            raise SessionFailed(f"tunnel error: {message}", final="auth" in message or "Auth" in message)
        if answer["request_id"] != request_id:
            self.violations.append("an answer to another request")
        tunnel = StockTunnel(
            answer["tunnel_id"], protocol, answer["public_url"], answer["assigned_port"], (host, local_port)
        )
        self.tunnels.append(tunnel)
        return tunnel

    async def _only_answer(self, kinds: tuple[str, ...]) -> dict[str, Any]:
        """The next frame is one of these, or the session fails."""
        if self.control is None:
            raise RuntimeError("not connected")
        try:
            op, payload = await self.control.receive()
        except EOFError:
            raise ControlEnded(self.control.ended or "fin") from None
        if op != BINARY:
            raise self.violated(f"a frame with opcode {op} in place of {kinds[0]}")
        frame: dict[str, Any] = json.loads(payload)
        self.heard.append(frame)
        if frame["type"] not in kinds:
            raise self.violated(f"{frame['type']} in place of {kinds[0]}")
        return frame

    async def _say(self, **frame: object) -> None:
        if self.control is None:
            raise RuntimeError("not connected")
        await self.control.send(BINARY, json.dumps(frame, separators=(",", ":")).encode())

    async def serve(self, run_data: Callable[..., Awaitable[object]] | None = None) -> None:
        """Open the data socket and serve until the session ends; returns when it is open.

        `run_data(task_status=…)` takes the place of the data socket of this module.
        """
        nursery = self.nursery
        if nursery is None:
            raise RuntimeError("made by stock_agent() only")
        nursery.start_soon(self._run_control)
        if self._heartbeats:
            nursery.start_soon(self._beat)
        await nursery.start(self._run_data if run_data is None else run_data)

    async def _run_control(self) -> None:
        control = self.control
        if control is None:
            raise RuntimeError("not connected")
        try:
            while True:
                op, payload = await control.receive()
                if op == BINARY:
                    await self._take_control(json.loads(payload))
                elif op == PING:
                    self.violations.append("a WebSocket ping on the control socket")
                    await control.send(PONG, payload)
                elif op == CLOSE:
                    self.violations.append("a close frame on the control socket")
                    self.failure = ControlEnded("close frame")
                    break
        except EOFError:
            self.failure = ControlEnded(control.ended or "fin")
        except trio.BrokenResourceError:
            self.failure = ControlEnded("reset")
        except trio.ClosedResourceError:
            self.failure = ControlEnded("closed")  # by this side, while an answer was due
        except SessionFailed as failure:
            self.failure = failure
        finally:
            self.ended.set()
            self._tell()

    async def _take_control(self, frame: dict[str, Any]) -> None:
        self.heard.append(frame)
        match frame["type"]:
            case "ping":
                await self._say(type="pong", timestamp=frame["timestamp"])
            case "pong":
                self._pong.set()
            case "new_connection":
                conn_id = frame["conn_id"]
                if conn_id in self._waiting:
                    self.violations.append("a connection id twice")
                self._waiting[conn_id] = frame
                if set(frame) != {"type", "conn_id", "client_addr", "protocol"}:
                    self.violations.append(f"fields of new_connection: {sorted(frame)}")
            case _:
                pass
        self._tell()

    def _tell(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def _beat(self) -> None:
        while not self.ended.is_set():
            await trio.sleep(PING_SECONDS)
            await self.thawed.wait()
            self._pong = trio.Event()
            try:
                await self._say(type="ping", timestamp=int(time.time() * 1000))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def announced(self, conn_id: str) -> dict[str, Any]:
        """The `new_connection` of a stream; either may come first."""
        while conn_id not in self._waiting:
            await self._more.wait()
        return self._waiting[conn_id]

    def local_for(self, protocol: str) -> tuple[str, int] | None:
        """The first tunnel of the same protocol, http and https being one."""
        for tunnel in self.tunnels:
            if tunnel.protocol.removesuffix("s") == protocol.removesuffix("s"):
                return tunnel.local
        return None

    async def wait_heard(self, kind: str, count: int = 1) -> dict[str, Any]:
        """The `count`-th frame of a type."""
        while True:
            found = [frame for frame in self.heard if frame["type"] == kind]
            if len(found) >= count:
                return found[count - 1]
            if self.ended.is_set():
                raise SessionFailed(f"ended before {kind}: {self.failure}")
            await self._more.wait()

    async def unregister(self, tunnel: StockTunnel) -> None:
        await self._say(type="unregister_tunnel", tunnel_id=tunnel.id)
        self.tunnels.remove(tunnel)

    async def ping(self, timestamp: int = 1) -> None:
        await self._say(type="ping", timestamp=timestamp)

    # data

    async def _run_data(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """After an end 200 ms, then five tries 500 ms apart; then control is dropped as well."""
        websocket = await self._open(f"/_data/{self.session_id}")
        started = False
        while True:
            self.data = DataSocket(websocket, self)
            self.data_opened += 1
            self._tell()
            if not started:
                task_status.started()
                started = True
            try:
                await self.data.run()
            except* SessionFailed as failures:
                self.data_ends.append(str(failures.exceptions[0]))
            if not self._reconnect_data or self.ended.is_set():
                return
            await trio.sleep(0.2)
            for _ in range(5):
                try:
                    websocket = await self._open(f"/_data/{self.session_id}")
                    break
                except (OSError, Refused, trio.BrokenResourceError):
                    await trio.sleep(0.5)
            else:
                await trio.sleep(0.5)
                await self.drop_control()
                return

    async def wait_data(self, count: int) -> DataSocket:
        """The `count`-th data socket is open."""
        while self.data_opened < count:
            await self._more.wait()
        if self.data is None:
            raise RuntimeError("no data socket")
        return self.data

    async def drop_data(self) -> None:
        """The network cuts the data socket; the agent comes back with another."""
        if self.data is not None:
            await self.data.websocket.drop()

    async def drop_control(self) -> None:
        """The network cuts the control socket: an unclean end. The agent leaves its data socket open."""
        self._reconnect_data = False
        if self.control is not None:
            await self.control.drop()

    async def close(self) -> None:
        """Ctrl-C: a close frame on control, FIN on both, no close_notify and no `unregister_tunnel`."""
        self._reconnect_data = False
        if self.control is not None:
            await self.control.send(CLOSE, b"")
        if self.data is not None:
            await self.data.websocket.drop()
        if self.control is not None:
            await self.control.drop()

    def freeze(self) -> None:
        """Stop reading and writing; sockets stay open, as with SIGSTOP."""
        self.thawed = trio.Event()

    def thaw(self) -> None:
        self.thawed.set()


@asynccontextmanager
async def stock_agent(
    port: int,
    token: str,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = "localhost",
    heartbeats: bool = True,
    connect: bool = True,
) -> AsyncIterator[StockAgent]:
    """A stock client that has authenticated; leaving drops it uncleanly unless `close` was called."""
    agent = StockAgent(port, token, tls, host, heartbeats=heartbeats)
    if connect:
        await agent.connect()
    async with trio.open_nursery() as nursery:
        agent.nursery = nursery
        try:
            yield agent
        finally:
            agent._reconnect_data = False
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                if agent.control is not None:
                    await agent.control.drop()
                if agent.data is not None:
                    await agent.data.websocket.drop()
            nursery.cancel_scope.cancel()
