"""The control socket: trio-websocket over a ConnectionStream.

A stock agent takes a close frame for the end for good, so none is ever sent unless `close_frames` was set: whatever the
library wants to say in one ends in a dropped connection. Leaving the context drops the connection, too.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import trio
import trio_websocket

from rustunnel_py.errors import RustunnelError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from rustunnel_py.transport.stream import ConnectionStream
    from rustunnel_py.wire.sink import Buffer

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

    __slots__ = ("_head", "_left", "_upgrade", "behind_head")

    def __init__(self) -> None:
        self.behind_head = 0  # bytes of the latest data that came behind the HTTP head
        self._upgrade = bytearray()  # the end of an HTTP head of which the blank line has not come
        self._head = bytearray()  # of the present frame
        self._left: int | None = None  # payload of the present frame; None: still in the HTTP head

    @property
    def in_head(self) -> bool:
        return self._left is None

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
            self.behind_head = len(data)
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
    """What trio-websocket sees: no close frame leaves through it, and a flood is slowed down.

    `answers`: it is the upgraded end. What comes behind the request's head is then held back until the 101 has left:
    the library loses what reaches it before.
    """

    def __init__(self, stream: ConnectionStream, *, answers: bool) -> None:
        self.below = stream
        self.close_frames = False
        self.upgraded = False
        self._paid_until = trio.current_time()
        self._lengths = _Lengths()
        self._answered = trio.Event()
        self._behind_head = b""
        if not answers:
            self._answered.set()

    async def send_all(self, data: Buffer) -> None:
        # The library writes one event at a time: the first byte tells a close frame (FIN, opcode 8).
        if self.upgraded and not self.close_frames and len(data) and data[0] == 0x88:
            self.below.drop()
            raise trio.ClosedResourceError("no close frame on this control socket")
        try:
            await self.below.send_all(data)
        finally:
            self._answered.set()  # whatever the answer was

    async def wait_send_all_might_not_block(self) -> None:
        await self.below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._lengths.in_head:
            data = await self._receive(max_bytes)
            if self._answered.is_set():
                return data
            size = len(data) - self._lengths.behind_head
            self._behind_head = data[size:]
            return data[:size]
        await self._answered.wait()
        data, self._behind_head = self._behind_head, b""
        return data or await self._receive(max_bytes)

    async def _receive(self, max_bytes: int | None) -> bytes:
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
    below = _ControlStream(stream, answers=True)
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
    below = _ControlStream(stream, answers=False)
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
