"""A TCP connection on the pump: a non-blocking socket, an output buffer, deadlines, its sink.

`SocketConnection` is what plain and TLS connections share: phases, output, ends, deadlines.

    CONNECTING ──► OPEN ──► CLOSING ──► (LINGERING | CUTTING) ──► GONE
         └──────────┴───────────┴────────────────────────────────►┘

A sink is called in CONNECTING (`lost`, `expired`) and OPEN only. CLOSING flushes what was sent, by the
kind of end that was asked for; its deadlines are the connection's own. When both sides' clean ends have
passed, the connection ends by itself and nothing is heard but `gone`.

Reading is edge-triggered (design rule 9): a short read means that the kernel has no more, unless a FIN or an
error was seen, which only another read brings out, or urgent data, where a read stops short of the mark; a full read
goes to `again`. So no read ends in EAGAIN. The mark itself means nothing here: urgent bytes are bytes of the stream, in
their place (RFC 6093, section 5).
"""

from __future__ import annotations

import enum
import errno
import math
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING

from rustunnel_py.errors import Crash, Expired, LinkLost, Refused, Reset
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.transport.pump import EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, SCRATCH_SIZE
from rustunnel_py.wire.sink import SILENT, Buffer, Sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.transport.pump import Pump

if sys.platform == "win32":

    def _kernel_holds(sock: socket.socket) -> int:
        return 0

else:
    import fcntl
    import termios

    def _kernel_holds(sock: socket.socket) -> int:
        """Bytes that the kernel has not yet sent, or that the peer has not yet acknowledged."""
        try:
            return int(struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
        except OSError:
            return 0


# Output beyond this makes `send` return False; below LOW_WATER the sink hears `room`. Enough for what a fast
# path carries in one round trip, little enough for thousands of slow visitors.
HIGH_WATER = 256 * 1024
LOW_WATER = 64 * 1024
# Bytes delivered and not yet credited; beyond it nothing is read. The last read may add one SCRATCH_SIZE to it.
READ_AHEAD = 128 * 1024
# From this size on a view is sent at once and not copied into the output buffer first.
DIRECT = 16 * 1024
# An answer before the end of input: how long what still comes is read and dropped (design rule 11).
LINGER_SECONDS = 2.0
# How long the last output of a closing connection may take.
CLOSE_SECONDS = 60.0
# How long a cut waits for the kernel to have sent what was flushed, before the RST throws it away.
CUT_SECONDS = 5.0
# A peer that takes nothing for so long has gone or never will; sinks may set `due` earlier.
STALL_SECONDS = 600.0

# Absent outside Linux; the value is the kernel's.
TCP_QUICKACK = getattr(socket, "TCP_QUICKACK", None)

_GATHERS = hasattr(socket.socket, "sendmsg")  # not on Windows

# From the first of these on, short reads are followed by another one.
_UNSURE = EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR
_READABLE = EPOLLIN | _UNSURE
_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_STILL_CONNECTING = {errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, getattr(errno, "WSAEWOULDBLOCK", -1)}


class Phase(enum.Enum):
    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    LINGERING = "lingering"
    CUTTING = "cutting"
    GONE = "gone"


class End(enum.Enum):
    """How a closing connection ends once its output is flushed."""

    CLOSE = "close"
    LINGER = "linger"
    CUT = "cut"


_CONNECTING, _OPEN, _CLOSING = Phase.CONNECTING, Phase.OPEN, Phase.CLOSING
_LINGERING, _CUTTING, _GONE = Phase.LINGERING, Phase.CUTTING, Phase.GONE


def peer_of(address: object) -> Peer:
    """A socket address as policies and logs see it: IPv4-mapped addresses are IPv4, no scope id."""
    if not isinstance(address, tuple) or len(address) < 2:
        return Peer("0.0.0.0", 0)
    ip = str(address[0]).partition("%")[0]
    if ip.startswith("::ffff:") and "." in ip:
        ip = ip[7:]
    return Peer(ip, int(address[1]))


class SocketConnection:
    """What plain and TLS connections share; see the module's text. Not used by itself."""

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_connected",
        "_due",
        "_end",
        "_eof",
        "_eof_sent",
        "_eof_wanted",
        "_give_up",
        "_local",
        "_out",
        "_paused",
        "_peer",
        "_phase",
        "_recv_into",
        "_send",
        "_send_error",
        "_stall",
        "_taken",
        "_uncredited",
        "_unsure",
        "_want_room",
        "gone",
        "pump",
        "quickack",
        "sink",
        "sock",
    )

    sock: socket.socket
    sink: Sink

    def __init__(
        self,
        pump: Pump,
        sock: socket.socket,
        sink: Sink = SILENT,
        *,
        gone: Callable[[SocketConnection], None] | None = None,
        phase: Phase = Phase.OPEN,
    ) -> None:
        sock.setblocking(False)
        self.pump = pump
        self.sock = sock
        self.sink = sink
        self.gone = gone
        self.quickack = False  # acknowledge each read at once, for peers that leave Nagle's algorithm on
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._out = bytearray()
        self._taken = 0  # bytes of output that the kernel took, for `delivered`
        self._blocked = False  # the kernel took less than all: EPOLLOUT will say when it takes more
        self._want_room = False  # a `send` returned False
        self._send_error: OSError | None = None
        self._uncredited = 0
        self._paused = False  # nothing is read until credit comes
        self._unsure = False  # a FIN, an error or urgent data was announced: short reads are followed by another
        self._eof = False  # the peer's clean end was delivered
        self._eof_wanted = False
        self._eof_sent = False
        self._end: End | None = None
        self._give_up = math.inf
        self._due = math.inf
        self._stall = math.inf
        self._peer: Peer | None = None
        self._local: Peer | None = None
        self._phase = phase
        self._connected: Callable[[], None] | None = None
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Left out of line, the byte at the urgent mark would be missing from what is passed on.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        except OSError:
            pass  # not TCP: a socket pair
        pump.add(self)

    def __repr__(self) -> str:
        end = f" to {self._end.value}" if self._end is not None and self._phase is not _GONE else ""
        return f"<{type(self).__name__} {self.peer} {self._phase.value}{end}>"

    # addresses, deadlines

    @property
    def peer(self) -> Peer:
        """The other end; asked of the kernel once, unless the listener (or a PROXY header) said so."""
        if self._peer is None:
            try:
                self._peer = peer_of(self.sock.getpeername())
            except OSError:
                return Peer("0.0.0.0", 0)
        return self._peer

    @peer.setter
    def peer(self, peer: Peer) -> None:
        self._peer = peer

    @property
    def local(self) -> Peer:
        """This end."""
        if self._local is None:
            try:
                self._local = peer_of(self.sock.getsockname())
            except OSError:
                return Peer("0.0.0.0", 0)
        return self._local

    @local.setter
    def local(self, local: Peer) -> None:
        self._local = local

    @property
    def due(self) -> float:
        """When `expired` is called: what the sink set, or the end of patience with a peer that takes nothing."""
        if self._phase is _OPEN or self._phase is _CONNECTING:
            return min(self._due, self._stall)
        return self._give_up

    @due.setter
    def due(self, due: float) -> None:
        self._due = due

    @property
    def is_gone(self) -> bool:
        return self._phase is _GONE

    @property
    def is_open(self) -> bool:
        """A sink is heard and `send` sends; False from the first end that was asked for on."""
        return (self._phase is _OPEN or self._phase is _CONNECTING) and self._end is None

    def expired(self) -> None:
        if self._phase is _CONNECTING and self._end is not None:
            self._finish()
        elif self._phase is _OPEN or self._phase is _CONNECTING:
            if self._stall <= self.pump.now:
                self._lose(Expired(f"the peer took no data for {STALL_SECONDS:.0f} s"))
                return
            self._due = math.inf
            self.sink.expired()
        elif self._phase is _CUTTING:
            self._try_cut()
        elif self._phase is not _GONE:
            self._finish(rst=self._phase is _CLOSING)

    # output

    @property
    def delivered(self) -> int:
        """Bytes of output (of TLS as they are encrypted) that the peer has acknowledged; asks the kernel."""
        return self._taken - (0 if self._phase is _GONE else _kernel_holds(self.sock))

    def send_eof(self) -> None:
        if self._eof_wanted or self._end is not None or self._phase is _GONE:
            return
        self._eof_wanted = True
        self.pump.flush_soon(self)

    def push(self, data: Buffer) -> bool:
        raise NotImplementedError

    def send(self, data: Buffer) -> bool:
        raise NotImplementedError

    def flush(self) -> None:
        raise NotImplementedError

    def _write(self) -> None:
        """Hand the output buffer to the kernel, as much as it takes."""
        out = self._out
        try:
            taken = self._send(out)
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as error:
            self._send_failed(error)
            return
        self._taken += taken
        if taken == len(out):
            out.clear()
            self._stall = math.inf
            return
        del out[:taken]
        self._blocked = True
        if taken or self._stall == math.inf:
            self._stall = self.pump.now + STALL_SECONDS

    def _write_direct(self, data: Buffer) -> None:
        """Send `data` behind what is buffered without copying it first; what the kernel does not take is buffered."""
        out = self._out
        try:
            if not out:
                taken = self._send(data)
            elif _GATHERS:
                taken = self.sock.sendmsg((out, data))
            else:
                out += data
                self._write()
                return
        except (BlockingIOError, InterruptedError):
            taken = 0
        except OSError as error:
            self._send_failed(error)
            return
        self._taken += taken
        ahead = len(out)
        if taken == ahead + len(data):
            out.clear()
            return
        if taken < ahead:
            del out[:taken]
            out += data
        else:
            out.clear()
            with memoryview(data) as view:
                out += view[taken - ahead :]
        self._blocked = True
        self._stall = self.pump.now + STALL_SECONDS
        self.pump.flush_soon(self)

    def _send_failed(self, error: OSError) -> None:
        """Nothing more can be sent. What the peer sent before it broke off is still read, then `lost` says so."""
        self._out.clear()
        self._blocked = False
        self._stall = math.inf
        self._send_error = error
        self._unsure = True
        self.pump.again(self, EPOLLERR | EPOLLIN)

    # input

    def credit(self, size: int) -> None:
        self._uncredited -= size
        if self._paused and self._uncredited < READ_AHEAD:
            self._paused = False
            # Always, even if nothing is known to be unread: the portable pump looks at `wants` then.
            self.pump.again(self, EPOLLIN)

    def wants(self) -> int:
        phase = self._phase
        if phase is _OPEN:
            wanted = EPOLLIN if not self._paused and not self._eof else 0
            return wanted | EPOLLOUT if self._blocked else wanted
        if phase is _CONNECTING:
            return EPOLLOUT
        if phase is _CLOSING:
            return EPOLLOUT if self._blocked else 0
        return EPOLLIN if phase is _LINGERING else 0

    def ready(self, flags: int) -> None:
        if self._phase is not _OPEN:
            self._ready_otherwise(flags)
            return
        if flags & _UNSURE:
            self._unsure = True
            if flags & EPOLLERR and (self._paused or self._eof):
                self._lose(Reset(self._reason()))
                return
        if self._blocked and flags & EPOLLOUT:
            self._blocked = False
            self.flush()
            if self._phase is not _OPEN:
                return
        if flags & _READABLE and not self._paused and not self._eof:
            self._read()

    def _ready_otherwise(self, flags: int) -> None:
        phase = self._phase
        if flags & _UNSURE:
            self._unsure = True
        if phase is _CONNECTING:
            if flags & (EPOLLOUT | EPOLLERR | EPOLLHUP):
                self._settle_connect(flags)
        elif phase is _CLOSING:
            if flags & EPOLLERR:
                self._finish()
            elif self._blocked and flags & EPOLLOUT:
                self._blocked = False
                self.flush()
        elif phase is _LINGERING:
            if flags & _READABLE:
                self._drain()
        elif phase is _CUTTING and flags & EPOLLERR:
            self._finish()

    def _read(self) -> None:
        raise NotImplementedError

    def _acknowledge(self) -> None:
        if TCP_QUICKACK is None:
            return
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, TCP_QUICKACK, 1)
        except OSError:
            pass

    def _fin_came(self) -> None:
        """The peer ended its direction."""
        if self._send_error is not None:
            self._lose(Reset(self._reason()))
            return
        self._eof = True
        self.sink.eof()
        if self._eof_sent and self._phase is _OPEN:
            self._finish()

    def _drain(self) -> None:
        """Lingering: read and drop, until the peer's end or the deadline."""
        try:
            size = self._recv_into(self.pump.scratch)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if size == 0:
            self._finish()
        elif size == SCRATCH_SIZE or self._unsure:
            self.pump.again(self, EPOLLIN)

    def _reason(self) -> str:
        error = self._send_error
        if error is None:
            code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return os.strerror(code) if code else "reset by the peer"
        return error.strerror or str(error)

    # connecting

    def _settle_connect(self, flags: int) -> None:
        code = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._refuse(code)
            return
        try:
            self._peer = peer_of(self.sock.getpeername())
        except OSError:
            if flags & (EPOLLERR | EPOLLHUP):
                self._refuse(errno.ECONNREFUSED)
            return  # without reason: still connecting
        self._phase = _OPEN if self._end is None else _CLOSING
        self._begin()
        connected, self._connected = self._connected, None
        if connected is not None and self._end is None:
            connected()
        if not self.is_gone:
            self.pump.flush_soon(self)
            self.pump.again(self, flags & _READABLE)

    def _begin(self) -> None:
        """The socket is connected."""

    def _refuse(self, code: int) -> None:
        if self._phase is not _GONE:
            refused = Refused(os.strerror(code))
            refused.__cause__ = OSError(code, os.strerror(code))
            self._lose(refused)

    # ends

    def close(self) -> None:
        self._end_by(End.CLOSE)

    def close_lingering(self) -> None:
        self._end_by(End.LINGER)

    def cut(self) -> None:
        self._end_by(End.CUT)

    def reset(self) -> None:
        self.abort()

    def abort(self) -> None:
        if self._phase is not _GONE:
            self._finish(rst=True)

    def _end_by(self, end: End) -> None:
        if self._end is not None or self._phase is _GONE:
            return
        self._end = end
        self.sink = SILENT
        if self._phase is _OPEN:
            self._phase = _CLOSING
            self._give_up = self.pump.now + CLOSE_SECONDS
        else:  # still connecting: what was sent meanwhile goes out first
            self._give_up = self._due = min(self._due, self.pump.now + CLOSE_SECONDS)
            self._connected = None
        self.pump.flush_soon(self)

    def _flushed(self) -> None:
        """The output buffer is empty and something waits for that: a FIN, or the end."""
        if self._phase is _CLOSING:
            if self._end is End.CUT:
                self._phase = _CUTTING
                self._give_up = self.pump.now
                self._stall = self.pump.now + CUT_SECONDS
                self._try_cut()
            elif self._end is End.LINGER and not self._eof and self._send_error is None:
                self._shut()
                if self._phase is _CLOSING:
                    self._phase = _LINGERING
                    self._give_up = self.pump.now + LINGER_SECONDS
                    self.pump.again(self, EPOLLIN)
            else:
                self._finish()
        elif self._eof_wanted and not self._eof_sent:
            self._eof_sent = True
            if self._eof:
                self._finish()
            else:
                self._shut()

    def _shut(self) -> None:
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._unsure = True
            self.pump.again(self, EPOLLERR | EPOLLIN)

    def _try_cut(self) -> None:
        """RST as soon as the kernel has sent what it holds, since a RST throws that away."""
        if self.pump.now >= self._stall or _kernel_holds(self.sock) == 0:
            self._finish(rst=True)
        else:
            self._give_up = self.pump.now  # and again at the next sweep

    def _lose(self, error: LinkLost) -> None:
        """End at once and tell the sink; only ever called by the pump."""
        sink = self.sink
        self._finish()
        sink.lost(error)

    def crashed(self, error: Exception) -> None:
        if self._phase is _GONE:
            return
        sink = self.sink
        self._finish(rst=True)
        crash = Crash(f"{type(error).__name__} in a callback")
        crash.__cause__ = error
        sink.lost(crash)

    def _finish(self, *, rst: bool = False) -> None:
        self._phase = _GONE
        self.sink = SILENT
        self._connected = None
        self._out = bytearray()
        self._give_up = math.inf
        _ = self.peer  # for the log, which may ask when the socket cannot tell any more
        self.pump.drop(self)
        if rst:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
            except OSError:
                pass
        self.sock.close()
        self.pump.later(self, self._tell_gone)

    def _tell_gone(self) -> None:
        gone, self.gone = self.gone, None
        if gone is not None:
            gone(self)


class TcpConnection(SocketConnection):
    """A plain TCP connection. `gone(connection)` comes once, by the pump, when its socket is closed."""

    __slots__ = ()

    def send(self, data: Buffer) -> bool:
        if self._end is not None or self._eof_wanted or self._send_error is not None or self._phase is _GONE:
            return True
        out = self._out
        if len(data) >= DIRECT and self._phase is _OPEN and not self._blocked:
            self._write_direct(data)
        else:
            if not out:
                self.pump.flush_soon(self)
            out += data
        if len(out) > HIGH_WATER:
            self._want_room = True
            return False
        return True

    def push(self, data: Buffer) -> bool:
        if self._end is not None or self._eof_wanted or self._send_error is not None or self._phase is _GONE:
            return True
        out = self._out
        if self._phase is _OPEN and not self._blocked:
            self._write_direct(data)
        else:
            if not out:
                self.pump.flush_soon(self)
            out += data
        if len(out) > HIGH_WATER:
            self._want_room = True
            return False
        return True

    def flush(self) -> None:
        if self._out:
            if self._blocked or self._phase is _CONNECTING:
                return
            self._write()
        if self._want_room and len(self._out) <= LOW_WATER and self._phase is _OPEN:
            self._want_room = False
            self.sink.room()
        if not self._out and (self._phase is _CLOSING or (self._eof_wanted and self._phase is _OPEN)):
            self._flushed()

    def _read(self) -> None:
        pump = self.pump
        scratch = pump.scratch
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
        self._uncredited += size
        self.sink.data(scratch[:size])
        if self._phase is not _OPEN:
            return
        if self._uncredited >= READ_AHEAD:
            self._paused = True
        elif size == SCRATCH_SIZE or self._unsure:
            pump.again(self, EPOLLIN)


def begin_connect(family: int, sockaddr: tuple[object, ...]) -> tuple[socket.socket, int]:
    """A non-blocking socket that connects to `sockaddr`, and errno of a refusal that came at once, or 0.

    Raises OSError where not even a socket can be had.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        code = sock.connect_ex(sockaddr)
    except OSError as error:
        code = error.errno or errno.EINVAL
    return sock, 0 if code in _STILL_CONNECTING else code


def connect_tcp(
    pump: Pump,
    family: int,
    sockaddr: tuple[object, ...],
    sink: Sink,
    *,
    gone: Callable[[SocketConnection], None] | None = None,
    connected: Callable[[TcpConnection], None] | None = None,
) -> TcpConnection:
    """Start to connect; `send` is taken meanwhile. A failure is `sink.lost(Refused)`, by the pump.

    `connected(connection)` comes once the socket is connected. A deadline is the caller's, by `due`.
    Raises OSError where not even a socket can be had.
    """
    sock, code = begin_connect(family, sockaddr)
    connection = TcpConnection(pump, sock, sink, gone=gone, phase=Phase.CONNECTING)
    if connected is not None:
        tell = connected
        connection._connected = lambda: tell(connection)
    if code:
        pump.later(connection, lambda: connection._refuse(code))
    return connection
