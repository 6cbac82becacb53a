"""Tagged requests and their answers: a local service and a crowd of visitors, both one epoll loop without a library.

A request names its tag in its target and, where it has a body, in each line of that; its answer is the tag over and
over. So every byte of an answer says whose it is, and so does every byte that the service gets.
"""

from __future__ import annotations

import random  # noqa: TID251  (seeded: a lane that failed can be run again)
import select
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

MOST_LINES = 400  # of a body; 17 bytes each
HANG_SECONDS = 60.0  # far beyond what any visitor may be made to wait


class _Peer:
    """One connection and what is not sent or not read yet."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.out = bytearray()
        self.held = bytearray()

    def write(self) -> bool:
        """Send what goes; False where the connection broke."""
        try:
            while self.out:
                del self.out[: self.sock.send(self.out)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True

    def read(self) -> bool | None:
        """Read what is there; False at the end, None where it broke."""
        try:
            while True:
                part = self.sock.recv(65536)
                if not part:
                    return False
                self.held += part
                if len(part) < 65536:
                    return True
        except BlockingIOError:
            return True
        except OSError:
            return None


def body_of(tag: bytes, lines: int) -> bytes:
    return (tag + b"\n") * lines


def serve(port: int = 0) -> None:
    """Answer for ever; prints its port first. A request whose body is not its own is answered 409."""
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    peers: dict[int, _Peer] = {}
    while True:
        for number, _ in poll.poll():
            if number == listener.fileno():
                while True:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        break
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    peers[sock.fileno()] = _Peer(sock)
                    poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
                continue
            peer = peers[number]
            goes_on = peer.read()
            while _answer(peer):
                pass
            if not peer.write() or not goes_on:
                del peers[number]
                peer.sock.close()


def _answer(peer: _Peer) -> bool:
    """Answer the first whole request that is held."""
    end = peer.held.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(peer.held[:end])
    size = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            size = int(value)
    if len(peer.held) < end + 4 + size:
        return False
    body = bytes(peer.held[end + 4 : end + 4 + size])
    del peer.held[: end + 4 + size]
    _, lines, tag = head.split(b" ", 2)[1].split(b"/")
    if body != body_of(tag, size // (len(tag) + 1)):
        peer.out += b"HTTP/1.1 409 Crossed\r\nContent-Length: 0\r\n\r\n"
        return True
    answer = body_of(tag, int(lines))
    peer.out += b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Tag: %b\r\n\r\n%b" % (len(answer), tag, answer)
    return True


@dataclass
class Outcome:
    """Answers by kind: `ok`, a status, `cut`, `ended`, `left`, `hang`; and the ones that were somebody else's."""

    kinds: Counter[str] = field(default_factory=Counter)
    crossed: list[str] = field(default_factory=list)
    seconds: float = 0.0


class _Visitor(_Peer):
    tag = b""
    lines = 0
    leaves_at = -1  # so many bytes of an answer, then it resets
    asked_at = 0.0


class Crowd:
    """`visitors` connections that ask for tunnels of `hosts` at `port`, together `requests` times."""

    def __init__(self, port: int, hosts: list[str], *, visitors: int, requests: int, seed: int = 1) -> None:
        self._port = port
        self._hosts = hosts
        self._requests = requests
        self._random = random.Random(seed)
        self._sent = 0
        self._poll = select.epoll()
        self._visitors: dict[int, _Visitor] = {}
        self.outcome = Outcome()
        for _ in range(visitors):
            self._connect()

    @property
    def done(self) -> int:
        return self.outcome.kinds.total() + len(self.outcome.crossed)

    def run(self, seconds: float) -> bool:
        """Go on for so long; False once all requests have had an answer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not self._visitors:
                return False
            for number, _ in self._poll.poll(0.1):
                visitor = self._visitors.get(number)
                if visitor is not None:
                    self._turn(visitor)
        late = time.monotonic() - HANG_SECONDS
        for visitor in [visitor for visitor in self._visitors.values() if visitor.asked_at < late]:
            self._count("hang", visitor, again=True)
        return True

    def _connect(self) -> None:
        sock = socket.create_connection(("127.0.0.1", self._port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        visitor = _Visitor(sock)
        self._visitors[sock.fileno()] = visitor
        self._poll.register(sock, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        if not self._ask(visitor):
            self._drop(visitor, again=False)

    def _ask(self, visitor: _Visitor) -> bool:
        if self._sent >= self._requests:
            return False
        self._sent += 1
        visitor.asked_at = time.monotonic()
        rolls = self._random
        tag = visitor.tag = b"%016x" % (self._sent * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
        visitor.lines = rolls.choice((1, 1, 1, 5, 50, MOST_LINES))
        visitor.leaves_at = rolls.randrange(1, 2000) if rolls.random() < 0.01 else -1
        body = body_of(tag, rolls.choice((1, 10, 100))) if rolls.random() < 0.3 else b""
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        host = rolls.choice(self._hosts).encode()
        method = b"POST" if body else b"GET"
        visitor.out += b"%b /%d/%b HTTP/1.1\r\nHost: %b\r\n%b\r\n%b" % (method, visitor.lines, tag, host, length, body)
        visitor.write()
        return True

    def _turn(self, visitor: _Visitor) -> None:
        goes_on = visitor.read() if visitor.write() else None
        held = visitor.held
        if 0 <= visitor.leaves_at <= len(held):
            self._count("left", visitor, again=True)
            return
        end = held.find(b"\r\n\r\n")
        if end >= 0:
            size = int(
                held[held.index(b"Content-Length: ") + 16 : held.index(b"\r\n", held.index(b"Content-Length: "))]
            )
            if len(held) >= end + 4 + size:
                self._judge(visitor, end, size)
                return
        if not goes_on:
            self._count("cut" if held else "ended", visitor, again=True)

    def _judge(self, visitor: _Visitor, end: int, size: int) -> None:
        head, body = bytes(visitor.held[:end]), bytes(visitor.held[end + 4 : end + 4 + size])
        rest = visitor.held[end + 4 + size :]
        status = head[9:12].decode()
        if status == "409" or rest or (status == "200" and body != body_of(visitor.tag, visitor.lines)):
            self.outcome.crossed.append(f"{visitor.tag!r}: {head[:200]!r} {body[:100]!r} {bytes(rest[:100])!r}")
            self._drop(visitor, again=True)
            return
        visitor.held.clear()
        self.outcome.kinds["ok" if status == "200" else status] += 1
        if b"\r\nConnection: close" in head:
            self._drop(visitor, again=True)
        elif not self._ask(visitor):
            self._drop(visitor, again=False)

    def _count(self, kind: str, visitor: _Visitor, *, again: bool) -> None:
        self.outcome.kinds[kind] += 1
        self._drop(visitor, again=again)

    def _drop(self, visitor: _Visitor, *, again: bool) -> None:
        del self._visitors[visitor.sock.fileno()]
        visitor.sock.close()
        if again and self._sent < self._requests:
            self._connect()


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
