"""A TLS connection on the pump: SSLObject over memory BIOs, the same interface as a plain one.

One receive and one send a pass carry any number of records. Ciphertext is received into the pump's
scratch buffer, copied into the incoming BIO, and decrypted into the same scratch; small sends are joined
and become one record when the pass ends. What the BIO still holds when a pass has had its share goes to
`again`, since no edge will come for it.

Whatever OpenSSL wants to say is sent, an alert above all: a failing handshake flushes it, then lingers so
that it is not lost to a RST. The peer's close_notify is `eof`; a FIN without it is `lost(Reset)`, since
anybody on the way can send one (a truncation attack).
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from rustunnel_py.errors import Expired, LinkLost, Refused, Reset
from rustunnel_py.transport.pump import EPOLLERR, EPOLLIN, EPOLLOUT
from rustunnel_py.transport.tcp import (
    DIRECT,
    HIGH_WATER,
    LOW_WATER,
    READ_AHEAD,
    End,
    Phase,
    SocketConnection,
    begin_connect,
)
from rustunnel_py.wire.sink import SILENT, Buffer, Sink

if TYPE_CHECKING:
    import os
    import socket

    from rustunnel_py.transport.pump import Pump

# From the first byte to the last of a handshake (S05).
HANDSHAKE_SECONDS = 10.0
# One call of OpenSSL decrypts one record, of so much at most: with less space than this left, the rest waits a pass.
_RECORD = 16 * 1024
# Encrypted in pieces of this size, so that no ciphertext needs a huge allocation.
_PIECE = 64 * 1024

# ECDHE only, AEAD only; TLS 1.3 has its own list, which is as strict.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_OPEN, _CLOSING, _CONNECTING, _GONE = Phase.OPEN, Phase.CLOSING, Phase.CONNECTING, Phase.GONE


class NamingSSLObject(ssl.SSLObject):
    """Remembers the name that the client asked for."""

    sni: str | None = None


Chooser = Callable[["str | None"], "ssl.SSLContext | None"]
"""From the name that the client asked for to the context to use; None: the listener's own."""


def server_context(
    certificate: str | os.PathLike[str] | None = None, key: str | os.PathLike[str] | None = None
) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with forward secrecy and AEAD only, ALPN http/1.1, OpenSSL's own groups.

    No compression, no renegotiation, no early data. `certificate` is a PEM chain, `key` its key (PEM; None: in the
    same file). Raises OSError (ssl.SSLError is one) where they cannot be loaded or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    context.sslobject_class = NamingSSLObject
    choose_certificate(context, _no_choice)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def _no_choice(name: str | None) -> ssl.SSLContext | None:
    return None


def choose_certificate(context: ssl.SSLContext, chooser: Chooser) -> None:
    """Ask `chooser` at every handshake on `context`, so that contexts can be swapped while it runs.

    A chooser that raises ends that handshake with an internal_error alert.
    """

    def choose(sslobject: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> int | None:
        if isinstance(sslobject, NamingSSLObject):
            sslobject.sni = name
        try:
            chosen = chooser(name)
        except Exception:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        if chosen is not None:
            sslobject.context = chosen
        return None

    context.sni_callback = choose


class TlsConnection(SocketConnection):
    """TLS on `sock`. `handshaken(connection)` comes when the handshake is done; `send` is taken before."""

    __slots__ = (
        "_handshake_due",
        "_handshake_seconds",
        "_handshaken",
        "_incoming",
        "_left",
        "_more",
        "_notified",
        "_outgoing",
        "_plain",
        "_quiet",
        "_shaken",
        "ssl_object",
    )

    def __init__(
        self,
        pump: Pump,
        sock: socket.socket,
        context: ssl.SSLContext,
        sink: Sink = SILENT,
        *,
        server_side: bool,
        server_hostname: str | None = None,
        gone: Callable[[SocketConnection], None] | None = None,
        handshaken: Callable[[TlsConnection], None] | None = None,
        phase: Phase = Phase.OPEN,
        handshake_seconds: float = HANDSHAKE_SECONDS,
    ) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self._handshaken = handshaken
        self._shaken = False
        self._plain = bytearray()  # sent, not yet encrypted
        self._left = False  # the incoming BIO holds whole records that had to wait
        self._more = False  # the kernel holds more
        self._quiet = False  # no close_notify: after a failure, or a cut
        self._notified = False  # our close_notify is on its way
        super().__init__(pump, sock, sink, gone=gone, phase=phase)
        self._handshake_seconds = handshake_seconds
        self._handshake_due = math.inf if phase is _CONNECTING else pump.now + handshake_seconds
        if not server_side and phase is _OPEN:
            pump.later(self, self._shake)

    @property
    def sni(self) -> str | None:
        """The name that the client asked for; None before its hello, and where it asked for none."""
        return self.ssl_object.sni if isinstance(self.ssl_object, NamingSSLObject) else None

    def peer_certificate(self) -> bytes | None:
        """What the other end showed, as DER, verified or not; None before the handshake."""
        try:
            return self.ssl_object.getpeercert(binary_form=True)
        except ValueError:
            return None

    @property
    def due(self) -> float:
        if self._phase is _OPEN or self._phase is _CONNECTING:
            return min(self._due, self._stall, self._handshake_due)
        return self._give_up

    @due.setter
    def due(self, due: float) -> None:
        self._due = due

    def expired(self) -> None:
        if self._phase is _OPEN and self._handshake_due <= self.pump.now:
            self._lose(Expired(f"no TLS handshake within {self._handshake_seconds:g} s"))
        else:
            super().expired()

    # the handshake

    def _begin(self) -> None:
        self._handshake_due = self.pump.now + self._handshake_seconds
        if self._phase is _CLOSING:
            self._give_up = min(self._give_up, self._handshake_due)
        self._shake()

    def _shake(self) -> None:
        if self._shaken or self._phase not in (_OPEN, _CLOSING):
            return
        try:
            self.ssl_object.do_handshake()
        except ssl.SSLWantReadError:
            self._ship()
            return
        except (ssl.SSLError, ValueError) as error:
            self._fail(Refused(f"TLS handshake failed: {_text(error)}"), error)
            return
        self._ship()
        self._shaken = True
        self._handshake_due = math.inf
        handshaken, self._handshaken = self._handshaken, None
        if handshaken is not None and self._phase is _OPEN:
            handshaken(self)
        if not self.is_gone:
            self.pump.flush_soon(self)

    def _fail(self, lost: LinkLost, cause: Exception) -> None:
        """Send the alert, tell the sink, and stay long enough for the alert to arrive."""
        lost.__cause__ = cause
        sink = self.sink
        self._plain.clear()
        self._quiet = True
        self._shaken = True  # nothing waits for the handshake any more
        self._ship()
        self._handshaken = None
        if not self.is_gone:
            if self._phase is _CLOSING:
                self._end = End.LINGER
            self._end_by(End.LINGER)
            self.pump.flush_soon(self)
        sink.lost(lost)

    # output

    def _seal(self, data: Buffer) -> None:
        write = self.ssl_object.write
        with memoryview(data) as view:
            size = len(view)
            done = 0
            while done < size:
                done += write(view[done : done + _PIECE])
                if size - done > 0:
                    self._ship()

    def _ship(self) -> None:
        """Hand to the kernel what OpenSSL has written; what it does not take is buffered."""
        data = self._outgoing.read()
        if not data or self._send_error is not None:
            return
        if self._blocked or self._out:
            self._out += data
            return
        self._write_direct(data)

    def send(self, data: Buffer) -> bool:
        if self._end is not None or self._eof_wanted or self._send_error is not None or self._phase is _GONE:
            return True
        plain = self._plain
        if len(data) >= DIRECT and self._shaken and not self._blocked and self._phase is _OPEN:
            self._seal_all(data)
        else:
            if not plain:
                self.pump.flush_soon(self)
            plain += data
        if len(plain) + len(self._out) > HIGH_WATER:
            self._want_room = True
            return False
        return True

    def push(self, data: Buffer) -> bool:
        if len(data) >= DIRECT or not self._shaken or self._blocked or not self.is_open or self._eof_wanted:
            return self.send(data)
        if self._send_error is None:
            self._seal_all(data)
        if len(self._out) > HIGH_WATER:
            self._want_room = True
            return False
        return True

    def _seal_all(self, data: Buffer) -> None:
        try:
            if self._plain:
                self._seal(self._plain)
                self._plain.clear()
            self._seal(data)
        except (ssl.SSLError, ValueError) as error:  # reported by `later`: this may be inside `send`
            failure = error
            self.pump.later(self, lambda: self._broke(failure))
        self._ship()

    def _broke(self, error: Exception) -> None:
        if not self.is_gone and self.is_open:
            self._fail(Reset(f"TLS failed: {_text(error)}"), error)

    def flush(self) -> None:
        phase = self._phase
        if phase is _GONE or phase is _CONNECTING:
            return
        if self._plain and self._shaken and not self._blocked:
            if self._send_error is None:
                self._seal_all(b"")
            else:
                self._plain.clear()
        if self._out and not self._blocked:
            self._write()
        if self._want_room and len(self._plain) + len(self._out) <= LOW_WATER and self._phase is _OPEN:
            self._want_room = False
            self.sink.room()
        if (
            self._shaken
            and not self._out
            and not self._plain
            and (self._phase is _CLOSING or (self._eof_wanted and self._phase is _OPEN))
        ):
            self._flushed()

    def _flushed(self) -> None:
        if not self._notified and not self._quiet:
            self._notify()
            if self._out:
                return  # the kernel is full; `flush` comes again
        super()._flushed()

    def _notify(self) -> None:
        """Send our close_notify. OpenSSL looks for the peer's in the same call and would swallow a data record."""
        self._notified = True
        held = self._incoming.read() if self._incoming.pending else b""
        try:
            self.ssl_object.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # the peer's close_notify is not there yet, or never will be
        if held:
            self._incoming.write(held)
        self._ship()

    def _shut(self) -> None:
        # A half-close is the close_notify alone: OpenSSL may still have to answer a key update.
        if self._phase is _CLOSING:
            super()._shut()

    # input

    def wants(self) -> int:
        if self._phase is _CLOSING and not self._shaken:
            return EPOLLIN | EPOLLOUT if self._blocked else EPOLLIN
        return super().wants()

    def _ready_otherwise(self, flags: int) -> None:
        super()._ready_otherwise(flags)
        if self._phase is _CLOSING and not self._shaken and flags & ~EPOLLOUT & ~EPOLLERR:
            self._read()  # closed before the handshake was done: what was sent can only go out after it

    def _read(self) -> None:
        if self._left:
            self._more = True  # the edge that brings us here may be the kernel's, and it will not come again
            self._decrypt()
            return
        scratch = self.pump.scratch
        try:
            size = self._recv_into(scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(Reset(error.strerror or str(error)))
            return
        if size == 0:
            self._fin_came()
            return
        if self.quickack:
            self._acknowledge()
        self._incoming.write(scratch[:size])
        self._more = size == len(scratch) or self._unsure
        if not self._shaken:
            self._shake()
        if self._shaken and self._phase is _OPEN and self._incoming.pending:
            self._decrypt()
        elif self._more and self._phase in (_OPEN, _CLOSING):
            self.pump.again(self, EPOLLIN)

    def _decrypt(self) -> None:
        scratch = self.pump.scratch
        # typeshed says bytes; with a buffer given it is the count.
        read = cast("Callable[[int, memoryview], int]", self.ssl_object.read)
        incoming = self._incoming
        space = len(scratch)
        filled = 0
        closed = self._left = False
        failure: ssl.SSLError | None = None
        try:
            while True:
                size = read(space - filled, scratch[filled:])
                if size == 0:
                    closed = True
                    break
                filled += size
                if not incoming.pending:
                    break
                if filled > space - _RECORD:
                    self._left = True
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            closed = True
        except ssl.SSLError as error:
            failure = error
        if self._outgoing.pending:
            self._ship()
        if filled:
            self._uncredited += filled
            self.sink.data(scratch[:filled])
            if self._phase is not _OPEN:
                return
        if failure is not None:
            self._fail(Reset(f"TLS failed: {_text(failure)}"), failure)
        elif closed:
            self._notify_came()
        elif self._uncredited >= READ_AHEAD:
            self._paused = True
        elif self._left or self._more:
            self.pump.again(self, EPOLLIN)

    def _notify_came(self) -> None:
        if self._send_error is not None:
            super()._fin_came()
            return
        self._eof = True
        self.sink.eof()
        if self._eof_sent and self._phase is _OPEN:
            self._finish()

    def _fin_came(self) -> None:
        if self._phase is not _OPEN:
            self._finish()
        elif not self._shaken:
            self._lose(Refused("the peer ended the connection during the TLS handshake"))
        else:
            self._lose(Reset("the peer ended the connection without a close_notify"))

    # ends

    def _end_by(self, end: End) -> None:
        if end is End.CUT:
            # A FIN without close_notify is what tells a TLS peer that something is missing. Lingering keeps
            # the flushed bytes from being lost to a RST.
            end = End.LINGER
            if self._end is None:
                self._quiet = True
        super()._end_by(end)
        if not self._shaken:
            self._give_up = min(self._give_up, self._handshake_due)


def _text(error: Exception) -> str:
    """OpenSSL's own words, without its file and line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error)


def connect_tls(
    pump: Pump,
    family: int,
    sockaddr: tuple[object, ...],
    context: ssl.SSLContext,
    server_hostname: str | None,
    sink: Sink,
    *,
    gone: Callable[[SocketConnection], None] | None = None,
    connected: Callable[[TlsConnection], None] | None = None,
) -> TlsConnection:
    """Start to connect and to shake hands; `send` is taken meanwhile. `connected` comes after the handshake.

    A refusal, also of the certificate (`__cause__` is the ssl.SSLError), is `sink.lost(Refused)`, by the pump.
    Raises OSError where not even a socket can be had.
    """
    sock, code = begin_connect(family, sockaddr)
    connection = TlsConnection(
        pump,
        sock,
        context,
        sink,
        server_side=False,
        server_hostname=server_hostname,
        gone=gone,
        handshaken=connected,
        phase=Phase.CONNECTING,
    )
    if code:
        pump.later(connection, lambda: connection._refuse(code))
    return connection
