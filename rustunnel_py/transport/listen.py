"""Listening sockets, the handler that accepts from one and survives everything, and real addresses.

Where a trusted proxy connects, a PROXY header comes first (`wire/proxy.py`), before TLS too. It is read to its last
byte and not further, so that whoever gets the socket knows nothing of it.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.errors import PortInUse, WireError
from rustunnel_py.model.networks import Networks
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.transport.pump import EPOLLIN, Pump
from rustunnel_py.transport.tcp import peer_of
from rustunnel_py.wire import proxy

if TYPE_CHECKING:
    from collections.abc import Callable

# Connections that wait in the kernel; it cuts this to net.core.somaxconn. A reload of a page with many assets by
# many visitors at once must not see a refusal.
BACKLOG = 1024
# Accepted in one pass, so that a flood of connects does not keep everybody else waiting.
ACCEPTS_A_PASS = 32
# No descriptor or memory left: how long nothing is accepted.
PAUSE_SECONDS = 1.0

# A PROXY header is the first thing on a connection, in one segment almost always.
INTRODUCTION_SECONDS = 10.0
# Connections whose header is not there yet, on one listener. Proxies send it at once.
INTRODUCTIONS_MAX = 1024

_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


def bind(host: str, port: int, *, key: str) -> list[socket.socket]:
    """Listening sockets for `host` and `port`; port 0 takes a free one, the same for all of them.

    `host` "::" is dual stack and falls back to 0.0.0.0 where there is no IPv6. A name gives one socket for each
    of its addresses. Raises PortInUse, which names `key`, the setting to change.
    """
    if host in ("::", ""):
        dual = _bind_dual_stack(port, key)
        return [dual if dual is not None else _bind_one(socket.AF_INET, ("0.0.0.0", port), host, port, key)]
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port, key):
            if sockets and port == 0:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            sockets.append(_bind_one(family, address, host, port, key))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _addresses(host: str, port: int, key: str) -> list[tuple[int, tuple[object, ...]]]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if address.version == 4 else socket.AF_INET6, (host, port))]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PortInUse(key, f"{host} is no address of this machine: {error.strerror or error}") from error
    return [(family, address) for family, _, _, _, address in dict.fromkeys(found)]


def _bind_dual_stack(port: int, key: str) -> socket.socket | None:
    if not socket.has_ipv6 or not hasattr(socket, "IPV6_V6ONLY"):
        return None
    try:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    except OSError:
        return None
    try:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return _listen(sock, ("::", port))
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENOPROTOOPT):
            return None
        raise _in_use(error, "::", port, key) from error


def _bind_one(family: int, address: tuple[object, ...], host: str, port: int, key: str) -> socket.socket:
    sock: socket.socket | None = None
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return _listen(sock, address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _in_use(error, host, port, key) from error


def _listen(sock: socket.socket, address: tuple[object, ...]) -> socket.socket:
    if sys.platform == "win32":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        # A port whose old connections are in TIME_WAIT is usable at once (T08).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setblocking(False)
    sock.bind(address)
    sock.listen(BACKLOG)
    return sock


def _in_use(error: OSError, host: str, port: int, key: str) -> PortInUse:
    if error.errno == errno.EADDRINUSE:
        return PortInUse(key, f"port {port} is already in use on this machine; choose another port")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PortInUse(key, f"port {port} needs privileges that this process does not have; choose another port")
    if error.errno == errno.EADDRNOTAVAIL:
        return PortInUse(key, f"cannot listen on port {port}: {host} is no address of this machine")
    return PortInUse(key, f"cannot listen on {host or '::'} port {port}: {error.strerror or error}")


@dataclass(slots=True)
class Intake:
    """How connections are accepted, and how often it went wrong, for all listeners that share it.

    `introduced_by`: those who must begin with a PROXY header; everybody else's is data. `ceiling`: a socket with a
    higher descriptor is not accepted.
    """

    introduced_by: Networks = field(default_factory=Networks)
    ceiling: float = math.inf
    pauses: int = 0  # for want of descriptors or memory
    unintroduced: int = 0  # connections that ended for want of a PROXY header


class Listener:
    """Accepts from `sock` and hands each socket on; owns `sock`. A crash in `accepted` costs that socket only."""

    __slots__ = (
        "_closed",
        "_introductions",
        "_paused",
        "accepted",
        "due",
        "intake",
        "pump",
        "sock",
    )

    def __init__(
        self,
        pump: Pump,
        sock: socket.socket,
        accepted: Callable[[socket.socket, Peer], None],
        intake: Intake | None = None,
    ) -> None:
        sock.setblocking(False)
        self.pump = pump
        self.sock = sock
        self.accepted = accepted
        self.due = math.inf
        self.intake = intake or Intake()
        self._introductions: dict[_Introduction, None] = {}
        self._paused = False
        self._closed = False
        pump.add(self)

    @property
    def address(self) -> Peer:
        """Where it listens, with the real port."""
        return peer_of(self.sock.getsockname())

    def ready(self, flags: int) -> None:
        if self._paused:
            return
        for _ in range(ACCEPTS_A_PASS):
            try:
                sock, address = self.sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OUT_OF:
                    self._pause()
                    return
                if self._closed or error.errno == errno.EBADF:
                    return
                continue  # that one visitor left again: ECONNABORTED and its like, accept(2)
            if sock.fileno() >= self.intake.ceiling:
                sock.close()
                self._pause()
                return
            peer = peer_of(address)
            if self.intake.introduced_by and peer.ip in self.intake.introduced_by:
                self._await_introduction(sock, peer)
            else:
                self._hand_on(sock, peer)
            if self._closed:
                return
        self.pump.again(self, EPOLLIN)

    def _hand_on(self, sock: socket.socket, peer: Peer) -> None:
        try:
            self.accepted(sock, peer)
        except Exception as error:
            sock.close()
            self.pump.crash(None, error)

    def _await_introduction(self, sock: socket.socket, peer: Peer) -> None:
        if len(self._introductions) >= INTRODUCTIONS_MAX:
            self.intake.unintroduced += 1
            sock.close()
            return
        self._introductions[_Introduction(self, sock, peer)] = None

    def _introduced(self, introduction: _Introduction, visitor: Peer | None) -> None:
        """The header was read; None: there is none to come, and the socket is closed."""
        del self._introductions[introduction]
        if visitor is None:
            self.intake.unintroduced += 1
        else:
            self._hand_on(introduction.sock, visitor)

    def _pause(self) -> None:
        """Out of descriptors: let those who hold some finish, and look again at the next sweep."""
        self.intake.pauses += 1
        self._paused = True
        self.due = self.pump.now + PAUSE_SECONDS

    def expired(self) -> None:
        self.due = math.inf
        self._paused = False
        self.pump.again(self, EPOLLIN)

    def wants(self) -> int:
        return 0 if self._paused else EPOLLIN

    def flush(self) -> None:
        pass

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for introduction in list(self._introductions):
                introduction.abort()
            self.pump.drop(self)
            self.sock.close()

    def abort(self) -> None:
        self.close()

    def crashed(self, error: Exception) -> None:
        """`ready` itself raised: go on accepting."""
        self.pump.again(self, EPOLLIN)


class _Introduction:
    """An accepted socket of a proxy until its PROXY header is there; then it is handed on as if just accepted."""

    __slots__ = ("_header", "_listener", "_peer", "due", "pump", "sock")

    def __init__(self, listener: Listener, sock: socket.socket, peer: Peer) -> None:
        sock.setblocking(False)
        self.pump = listener.pump
        self.sock = sock
        self._listener = listener
        self._peer = peer
        self._header = bytearray()
        self.due = self.pump.now + INTRODUCTION_SECONDS
        self.pump.add(self)

    def ready(self, flags: int) -> None:
        if self.sock.fileno() < 0:
            return
        header = self._header
        try:
            while size := proxy.missing(header):
                came = self.sock.recv(size)
                if not came:
                    self.abort()
                    return
                header += came
                if len(header) <= len(proxy.SIGNATURE) + 4:
                    proxy.read(header)  # raises for what never becomes a header
            read = proxy.read(header)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, WireError):
            self.abort()
            return
        self.pump.drop(self)
        source = read.source if read is not None else None
        self._listener._introduced(self, self._peer if source is None else Peer(*source))

    def expired(self) -> None:
        self.abort()

    def wants(self) -> int:
        return EPOLLIN

    def flush(self) -> None:
        pass

    def abort(self) -> None:
        if self.sock.fileno() >= 0:
            self.pump.drop(self)
            self.sock.close()
            self._listener._introduced(self, None)

    def crashed(self, error: Exception) -> None:
        self.abort()
