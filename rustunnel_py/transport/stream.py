"""A connection as a trio stream, for those who wait: the API, the control socket, tests.

Bytes that were read before the stream existed (a front's first head) are put back: they come first. They
count as delivered and not yet credited, like everything that waits in here; reading credits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from rustunnel_py.errors import Closed, Expired, LinkLost
from rustunnel_py.transport.tcp import SocketConnection

if TYPE_CHECKING:
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.wire.sink import Buffer

# What `receive_some` gives at most when it is not told.
RECEIVE_SIZE = 64 * 1024
# Handed to the connection at once, so that one large send does not go far past its high-water mark.
SEND_SIZE = 64 * 1024


class ConnectionStream(trio.abc.HalfCloseableStream):
    """`connection` as a stream; it is the sink from the moment this is made.

    Make it in the callback that hands the connection over, not in the task that uses it: what comes between would
    be lost. A deadline (`connection.due`) that passes breaks the stream. Errors are trio's: BrokenResourceError
    (`__cause__` is the LinkLost), ClosedResourceError, BusyResourceError.
    """

    def __init__(self, connection: Connection, put_back: Buffer = b"") -> None:
        if not isinstance(connection, SocketConnection):
            raise TypeError(f"not a socket connection: {connection!r}")
        self.connection = connection
        self._pump = connection.pump
        self._inbox = bytearray(put_back)
        self._came = trio.Event()  # something for a receiver: bytes, the end, an error
        self._roomy = trio.Event()
        self._roomy.set()
        self._receiving = False
        self._sending = False
        self._eof = False
        self._eof_sent = False
        self._closed = False
        self._lost: LinkLost | None = None
        self._gone = trio.Event()
        self._tell_gone = connection.gone
        if connection.is_gone:
            self._lost = Closed("the connection has ended")
            self._gone.set()
        else:
            connection.sink = self
            connection.gone = self._went

    # the sink

    def data(self, data: memoryview) -> None:
        self._inbox += data
        self._came.set()

    def eof(self) -> None:
        self._eof = True
        self._came.set()

    def room(self) -> None:
        self._roomy.set()

    def lost(self, error: LinkLost) -> None:
        self._lost = error
        self._wake()

    def expired(self) -> None:
        self.connection.abort()
        self.lost(Expired("a deadline passed"))

    def _went(self, connection: SocketConnection) -> None:
        self._gone.set()
        if not self._eof and self._lost is None:
            self._lost = Closed("the connection was ended by this side")
        self._wake()
        if self._tell_gone is not None:
            self._tell_gone(connection)

    def _wake(self) -> None:
        self._came.set()
        self._roomy.set()

    # receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if max_bytes is None:
            max_bytes = RECEIVE_SIZE
        elif not isinstance(max_bytes, int):
            raise TypeError("max_bytes must be an integer or None")
        elif max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is already receiving")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if self._inbox:
                    return self._take(max_bytes)
                if self._eof:
                    return b""
                if self._lost is not None:
                    raise trio.BrokenResourceError from self._lost
                self._came = trio.Event()
                await self._came.wait()
        finally:
            self._receiving = False

    def _take(self, max_bytes: int) -> bytes:
        inbox = self._inbox
        if len(inbox) <= max_bytes:
            taken = bytes(inbox)
            inbox.clear()
        else:
            taken = bytes(inbox[:max_bytes])
            del inbox[:max_bytes]
        connection = self.connection
        if not connection.is_gone:
            size = len(taken)
            self._pump.call(connection, lambda: connection.credit(size))
        return taken

    # sending

    async def send_all(self, data: Buffer) -> None:
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            self._check_sending()
            with memoryview(data) as view:
                for start in range(0, len(view), SEND_SIZE):
                    await self._wait_room()
                    self._send(view[start : start + SEND_SIZE])
            await self._wait_room()
        finally:
            self._sending = False

    def _send(self, piece: memoryview) -> None:
        connection = self.connection

        def send() -> None:
            if not connection.send(piece):
                self._roomy = trio.Event()

        self._pump.call(connection, send)

    async def _wait_room(self) -> None:
        if not self._roomy.is_set():
            await self._roomy.wait()
        self._check_sending()

    async def wait_send_all_might_not_block(self) -> None:
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            self._check_sending()
            await self._wait_room()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        self._begin_sending()
        try:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError
            if self._eof_sent:
                return
            if self._lost is not None:
                raise trio.BrokenResourceError from self._lost
            self._eof_sent = True
            self._pump.call(self.connection, self.connection.send_eof)
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is already sending")
        self._sending = True

    def _check_sending(self) -> None:
        if self._closed or self._eof_sent:
            raise trio.ClosedResourceError
        if self._lost is not None:
            raise trio.BrokenResourceError from self._lost
        if self._gone.is_set():
            raise trio.BrokenResourceError from Closed("the connection has ended")

    # ends

    def drop(self) -> None:
        """Flush and close without waiting; whoever waits on this stream hears ClosedResourceError. From a trio task."""
        self._shut_off()
        if not self.connection.is_gone:
            self._pump.call(self.connection, self.connection.close)

    async def aclose(self) -> None:
        """Flush, close and wait until it is done; cancelled, it aborts."""
        self._shut_off()
        if self.connection.is_gone:
            await trio.lowlevel.checkpoint()
            return
        self._pump.call(self.connection, self.connection.close)
        try:
            await self._gone.wait()
        except BaseException:
            self._pump.call(self.connection, self.connection.abort)
            raise

    def _shut_off(self) -> None:
        self._closed = True
        self._inbox.clear()
        self._wake()
