"""WebSocket messages around a trunk, on data sockets.

The sans-I/O core of `websockets` reads frames, checks them and answers what is wrong with the right close code;
payloads, joined in order, are one byte stream, and the boundaries of messages mean nothing. Outgoing bytes of one pass
are joined into binary messages of at most `MESSAGE_MAX`.
"""

from __future__ import annotations

import logging
import struct
from typing import TYPE_CHECKING, cast

from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from rustunnel_py.errors import Reset
from rustunnel_py.transport.trunk import SocketTrunk

if TYPE_CHECKING:
    from rustunnel_py.transport.connection import Connection
    from rustunnel_py.transport.pump import Pump
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
