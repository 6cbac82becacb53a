"""WebSocket messages around a trunk (data sockets), and the control socket.

Data: the sans-I/O core of `websockets` reads frames, checks them and answers what is wrong with the right close code;
payloads, joined in order, are one byte stream, and the boundaries of messages mean nothing. Outgoing bytes of one pass
are joined into binary messages of at most `MESSAGE_MAX`.

Control: trio-websocket over a ConnectionStream. A stock agent takes a close frame for the end for good, so none is ever
sent unless `close_frames` was set: whatever the library wants to say in one ends in a dropped connection. Leaving the
context drops the connection, too.
"""

from __future__ import annotations

import logging
import struct
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import trio
import trio_websocket
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from rustunnel_py.errors import Reset, RustunnelError
from rustunnel_py.transport.trunk import SocketTrunk

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
    from rustunnel_py.transport.stream import ConnectionStream
    from rustunnel_py.wire.sink import Buffer

# One outgoing message: small enough that a ping behind it is never late.
MESSAGE_MAX = 256 * 1024
# Incoming, as the stock peers bound them: a frame is held whole, a message is not.
FRAME_MAX = 16 * 1024 * 1024
INCOMING_MESSAGE_MAX = 64 * 1024 * 1024
# A message of the greatest size in pieces of 4 KiB; whoever cuts smaller wants something else.
FRAGMENTS_MAX = 16 * 1024
# The stock agent's library pings not at all, ours every 20 s.
PINGS_A_SECOND = 100

# From this size on payload is not copied behind its header.
_DIRECT = 16 * 1024

_log = logging.getLogger(__name__)


def _binary_header(size: int) -> bytes:
    """FIN, binary, not masked (RFC 6455 §5.2)."""
    if size < 126:
        return bytes((0x82, size))
    if size < 0x10000:
        return struct.pack(">BBH", 0x82, 126, size)
    return struct.pack(">BBQ", 0x82, 127, size)


class WebSocketTrunk(SocketTrunk):
    """A mux's bytes as binary WebSocket messages on one connection, after the 101. See SocketTrunk.

    `keep_alive` pings on the WebSocket itself every 20 s; the mux's own ping is not needed. A peer's close frame is
    `lost(Reset)`, a peer that breaks the protocol is told why by a close frame first.
    """

    __slots__ = (
        "_fragments",
        "_full",
        "_held",
        "_pending",
        "_pings",
        "_protocol",
        "_server_side",
        "_unpaid",
        "_want_room",
    )

    ping_seconds = 20.0
    answer_seconds = 10.0

    def __init__(self, pump: Pump, connection: Connection, bytes_read: Buffer = b"", *, server_side: bool) -> None:
        self._server_side = server_side
        self._protocol = Protocol(
            SERVER if server_side else CLIENT, max_size=(INCOMING_MESSAGE_MAX, FRAME_MAX), logger=_log
        )
        self._pending = bytearray()  # payload of this pass
        self._full = False  # the connection wants no more
        self._want_room = False
        self._held = 0  # raw bytes that the connection waits to be credited
        self._unpaid = 0  # payload that the mux has not credited
        self._fragments = 0
        self._pings = 0
        super().__init__(pump, connection, bytes_read)

    # output

    def send(self, data: Buffer) -> bool:
        if self._over:
            return True
        size = len(data)
        self.sent += size
        pending = self._pending
        if size >= _DIRECT and self._server_side and len(pending) + size <= MESSAGE_MAX:
            header = _binary_header(len(pending) + size)
            self._pending = bytearray()
            self.connection.send(header + pending)
            self._note_room(self.connection.send(data))
        else:
            if not pending:
                self.pump.flush_soon(self)
            pending += data
            if len(pending) > MESSAGE_MAX:
                self.flush()
        if self._full:
            self._want_room = True
        return not self._full

    def flush(self) -> None:
        """Everything that was sent in this pass, as messages."""
        pending, self._pending = self._pending, bytearray()
        if self._over or not pending:
            return
        with memoryview(pending) as view:
            for start in range(0, len(view), MESSAGE_MAX):
                piece = view[start : start + MESSAGE_MAX]
                if self._server_side:
                    self._note_room(self.connection.push(b"".join((_binary_header(len(piece)), piece))))
                else:
                    self._protocol.send_binary(piece)
                    self._ship()

    def _ship(self) -> None:
        """What the protocol has to say: masked messages, pings, pongs, the close frame."""
        for chunk in self._protocol.data_to_send():
            if chunk:
                self._note_room(self.connection.push(chunk))

    def _note_room(self, took: bool) -> None:
        if not took:
            self._full = True

    def room(self) -> None:
        self._full = False
        if self._want_room:
            self._want_room = False
            self.sink.room()

    def send_eof(self) -> None:
        """WebSocket has no half-close; the mux says goodbye in its own way."""

    def close(self, code: int | None = None) -> None:
        """Flush, then end, with a close frame only if there is a `code`."""
        if self._over:
            return
        self.flush()
        if code is not None and self._protocol.state is OPEN:
            self._protocol.send_close(code)
            self._ship()
        self._end()
        if code is None:
            self.connection.close()
        else:
            self.connection.close_lingering()

    def _send_ping(self, value: int) -> None:
        self._protocol.send_ping(struct.pack(">I", value & 0xFFFFFFFF))
        self._ship()

    def sweep(self, now: float) -> None:
        self._pings = 0
        super().sweep(now)

    # input

    def credit(self, size: int) -> None:
        self._unpaid -= size
        self._settle()

    def _settle(self) -> None:
        """The connection is owed for what the mux has been given and not paid; frames in the making are paid here."""
        owed = self._held - max(0, self._unpaid)
        if owed > 0:
            self._held -= owed
            self.connection.credit(owed)

    def data(self, data: memoryview) -> None:
        self._heard = True
        if self._early:
            self._deliver_early()
        if not self._over:
            self._arrived(data)

    def _arrived(self, data: memoryview) -> None:
        self._held += len(data)
        protocol = self._protocol
        protocol.receive_data(cast("bytes", data))  # it is copied at once
        for event in protocol.events_received():
            self._take(cast("Frame", event))
            if self._over:
                return
        self._ship()
        if protocol.state is not OPEN:
            self._broke_off()
        else:
            self._settle()

    def _take(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.BINARY or opcode is Opcode.CONT:
            if not frame.fin:
                self._fragments += 1
                if self._fragments > FRAGMENTS_MAX:
                    self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
                    return
            else:
                self._fragments = 0
            size = len(frame.data)
            if size:
                self._unpaid += size
                self.received += size
                self.sink.data(memoryview(frame.data))
        elif opcode is Opcode.TEXT:
            self._fail(CloseCode.UNSUPPORTED_DATA, "binary messages only")
        elif opcode is Opcode.PING:
            self._pings += 1
            if self._pings > PINGS_A_SECOND:
                self._fail(CloseCode.POLICY_VIOLATION, "too many pings")

    def _fail(self, code: CloseCode, reason: str) -> None:
        if self._protocol.state is OPEN:
            self._protocol.fail(code, reason)
        self._ship()
        self._broke_off(reason)

    def _broke_off(self, reason: str = "") -> None:
        protocol = self._protocol
        if not reason:
            if protocol.parser_exc is not None:
                reason = f"the peer broke the WebSocket protocol: {protocol.parser_exc}"
            elif protocol.close_rcvd is not None:
                reason = f"the peer closed it with code {protocol.close_rcvd.code}"
        sink = self.sink
        self._end()
        self.connection.close_lingering()
        sink.lost(Reset(reason))

    def eof(self) -> None:
        self._deliver_early()
        if not self._over:
            sink = self.sink
            self._end()
            self.connection.close()
            sink.lost(Reset("the connection ended without a close frame"))


# The control socket

# A message of the control protocol is a few hundred bytes; the stock client's own bound on one is far higher.
CONTROL_MESSAGE_MAX = 256 * 1024
# Larger reads would let a flood of one-byte fragments hold up the loop.
CONTROL_READ = 4096
# What a peer may send in the long run, and at once.
CONTROL_BYTES_A_SECOND = 128 * 1024
CONTROL_BURST = 512 * 1024

_CLEAN_CODES = {1000, 1001, 1005}  # normal, going away, no code given


class ControlEnded(RustunnelError):
    """The control socket is over. `clean`: the peer sent a close frame, `code` is in it (1005: none)."""

    def __init__(self, code: int | None, *, clean: bool) -> None:
        super().__init__(f"the peer closed it with code {code}" if clean else "the control socket was lost")
        self.code = code
        self.clean = clean


class UpgradeRefused(RustunnelError):
    """The server answered something else than a 101. `status` is 0 where it was no HTTP at all."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        super().__init__(f"the server answered {status} to the upgrade" if status else "the server does not speak HTTP")
        self.status = status
        self.body = body


class _Lengths:
    """Reads the lengths that frames announce as they pass by: a message that would be too long is refused before it
    comes. The library below looks at what has arrived only, and would wait for 2^63-1 bytes.
    """

    __slots__ = ("_head", "_left", "_upgrade")

    def __init__(self) -> None:
        self._upgrade = bytearray()  # the end of an HTTP head of which the blank line has not come
        self._head = bytearray()  # of the present frame
        self._left: int | None = None  # payload of the present frame; None: still in the HTTP head

    def too_long(self, data: Buffer) -> bool:
        """Whether a frame in or begun by `data`, the next bytes of the connection, announces too much."""
        at = 0
        if self._left is None:
            self._upgrade += data
            end = self._upgrade.find(b"\r\n\r\n")
            if end < 0:
                del self._upgrade[:-3]
                return False
            data = bytes(self._upgrade[end + 4 :])
            self._upgrade.clear()
            self._left = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
                continue
            head = self._head
            head.append(data[at])
            at += 1
            if len(head) < 2:
                continue
            size = head[1] & 0x7F
            extended = {126: 2, 127: 8}.get(size, 0)
            if len(head) < 2 + extended:
                continue
            if extended:
                size = int.from_bytes(head[2 : 2 + extended], "big")
            if size > CONTROL_MESSAGE_MAX:
                return True
            self._left = size + (4 if head[1] & 0x80 else 0)
            head.clear()
        return False


class _ControlStream(trio.abc.Stream):
    """What trio-websocket sees: no close frame leaves through it, and a flood is slowed down."""

    def __init__(self, stream: ConnectionStream) -> None:
        self.below = stream
        self.close_frames = False
        self.upgraded = False
        self._paid_until = trio.current_time()
        self._lengths = _Lengths()

    async def send_all(self, data: Buffer) -> None:
        # The library writes one event at a time: the first byte tells a close frame (FIN, opcode 8).
        if self.upgraded and not self.close_frames and len(data) and data[0] == 0x88:
            self.below.drop()
            raise trio.ClosedResourceError("no close frame on this control socket")
        await self.below.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = await self.below.receive_some(CONTROL_READ if max_bytes is None else min(max_bytes, CONTROL_READ))
        if self._lengths.too_long(data):
            self.below.drop()
            raise trio.BrokenResourceError(f"a frame of more than {CONTROL_MESSAGE_MAX} bytes was announced")
        now = trio.current_time()
        self._paid_until = max(now, self._paid_until) + len(data) / CONTROL_BYTES_A_SECOND
        ahead = self._paid_until - now - CONTROL_BURST / CONTROL_BYTES_A_SECOND
        if ahead > 0:
            await trio.sleep(ahead)
        return data

    async def aclose(self) -> None:
        await self.below.aclose()


class ControlSocket:
    """Messages on a control socket. `ignored` counts text messages."""

    def __init__(self, socket: trio_websocket.WebSocketConnection, stream: _ControlStream) -> None:
        self.ignored = 0
        self._socket = socket
        self._stream = stream

    @property
    def close_frames(self) -> bool:
        """May a close frame be sent? Only to a peer that is known to understand one."""
        return self._stream.close_frames

    @close_frames.setter
    def close_frames(self, allowed: bool) -> None:
        self._stream.close_frames = allowed

    async def send(self, message: bytes) -> None:
        """One binary message; waits while the peer takes none. Raises ControlEnded."""
        try:
            await self._socket.send_message(message)
        except trio_websocket.ConnectionClosed as closed:
            raise _ended(closed) from None

    async def receive(self) -> bytes | None:
        """The next message; None for a text message, which is ignored. Raises ControlEnded."""
        try:
            message = await self._socket.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise _ended(closed) from None
        if isinstance(message, str):
            self.ignored += 1
            return None
        return bytes(message)

    def drop(self) -> None:
        """Flush and close the connection below, without a close frame."""
        self._stream.below.drop()

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        """Say goodbye by a close frame, if `close_frames` allows it, and wait for the answer (bound it); else drop."""
        if not self._stream.close_frames:
            self.drop()
            await trio.lowlevel.checkpoint()
            return
        await self._socket.aclose(code, reason)


def _ended(closed: trio_websocket.ConnectionClosed) -> ControlEnded:
    code = closed.reason.code if closed.reason is not None else None
    return ControlEnded(code, clean=code is not None and (code in _CLEAN_CODES or 3000 <= code < 5000))


class _Guarded:
    """A nursery for trio-websocket: its reader's exceptions end the control socket, and nothing else."""

    def __init__(self, nursery: trio.Nursery, stream: _ControlStream) -> None:
        self._nursery = nursery
        self._stream = stream
        self.error: Exception | None = None
        self.handshake = trio.CancelScope()

    def start_soon(self, function: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, function, name="control reader")

    async def _run(self, function: Callable[[], Awaitable[None]]) -> None:
        try:
            await function()
        except Exception as error:
            self.error = error
            self._stream.below.drop()
        self.handshake.cancel()


@asynccontextmanager
async def serve_control(
    stream: ConnectionStream, *, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> AsyncIterator[ControlSocket]:
    """Accept the upgrade whose request, already judged, was put back into `stream`; drops the connection at the end.

    Raises ControlEnded where the peer leaves before the 101 is out.
    """
    below = _ControlStream(stream)
    async with _control_tasks(below) as guarded:
        socket: trio_websocket.WebSocketConnection | None = None
        with guarded.handshake:
            request = await trio_websocket.wrap_server_stream(
                cast("trio.Nursery", guarded),
                below,
                max_message_size=CONTROL_MESSAGE_MAX,
                receive_buffer_size=CONTROL_READ,
            )
            try:
                socket = await request.accept(extra_headers=list(headers))
            except trio_websocket.ConnectionClosed:
                pass
        if socket is None:
            raise ControlEnded(None, clean=False)
        below.upgraded = True
        yield ControlSocket(socket, below)


@asynccontextmanager
async def open_control(
    stream: ConnectionStream, host: str, path: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> AsyncIterator[ControlSocket]:
    """Ask for the upgrade and yield the socket; drops the connection at the end. Close frames are allowed here.

    Raises UpgradeRefused, or ControlEnded where the connection ends first. A deadline is the caller's.
    """
    below = _ControlStream(stream)
    below.close_frames = True
    async with _control_tasks(below) as guarded:
        socket: trio_websocket.WebSocketConnection | None = None
        with guarded.handshake:
            socket = await trio_websocket.wrap_client_stream(
                cast("trio.Nursery", guarded),
                cast("trio.SocketStream", below),
                host,
                path,
                extra_headers=list(headers),
                max_message_size=CONTROL_MESSAGE_MAX,
                receive_buffer_size=CONTROL_READ,
            )
        if socket is None:
            if isinstance(guarded.error, trio_websocket.ConnectionRejected):
                raise UpgradeRefused(guarded.error.status_code, guarded.error.body or b"")
            if guarded.error is not None:
                raise UpgradeRefused(0)
            raise ControlEnded(None, clean=False)
        below.upgraded = True
        yield ControlSocket(socket, below)


@asynccontextmanager
async def _control_tasks(below: _ControlStream) -> AsyncIterator[_Guarded]:
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield _Guarded(nursery, below)
            except BaseException as error:
                failure = error
                raise
            finally:
                below.below.drop()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and group.exceptions == (failure,):
            raise failure from failure.__cause__
        cancelled, rest = group.split(trio.Cancelled)
        if cancelled is not None and rest is not None and rest.split(ControlEnded)[1] is None:
            raise cancelled from None  # the socket ended and this task was cancelled at once: nobody asks why any more
        raise
