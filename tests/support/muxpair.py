"""Two yamux sessions joined by a pretend wire, and sinks that note what they hear.

Bytes move only when a test says so, in the pieces that it says; the views that a session got are poisoned after
the call, so that a sink which keeps one is found out.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.wire.sink import SILENT
from rustunnel_py.wire.yamux import Limits, Role, Session, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.wire.sink import Buffer, Crashable, Sink

HEADER = struct.Struct(">BBHII")


@dataclass(frozen=True, slots=True)
class Frame:
    """One yamux frame as a test writes or reads it; `length` is the payload's for data, unless told."""

    kind: int
    flags: int
    stream: int
    length: int
    payload: bytes = b""
    version: int = 0

    def encode(self) -> bytes:
        return HEADER.pack(self.version, self.kind, self.flags, self.stream, self.length) + self.payload


def data_frame(stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return Frame(0, flags, stream, len(payload), payload).encode()


def window_frame(stream: int, credit: int, flags: int = 0) -> bytes:
    return Frame(1, flags, stream, credit).encode()


def ping_frame(value: int, flags: int = 1) -> bytes:
    return Frame(2, flags, 0, value).encode()


def go_away_frame(code: int) -> bytes:
    return Frame(3, 0, 0, code).encode()


def split_frames(raw: bytes) -> list[Frame]:
    """Whole frames only; raises if the bytes end within one."""
    frames = []
    at = 0
    while at < len(raw):
        version, kind, flags, stream, length = HEADER.unpack_from(raw, at)
        at += HEADER.size
        payload = raw[at : at + length] if kind == 0 else b""
        if kind == 0 and len(payload) != length:
            raise AssertionError(f"{length - len(payload)} bytes of a payload are missing")
        at += len(payload)
        frames.append(Frame(kind, flags, stream, length, payload, version))
    return frames


class PretendLater:
    """Deferred calls, run when a test says so."""

    def __init__(self) -> None:
        self.calls: deque[tuple[Crashable, Callable[[], None]]] = deque()

    def __call__(self, by: Crashable, function: Callable[[], None]) -> None:
        self.calls.append((by, function))

    def run(self) -> None:
        while self.calls:
            by, function = self.calls.popleft()
            try:
                function()
            except Exception as error:
                by.crashed(error)


class PretendTrunk:
    """The Pipe under a session: what it sends lies in `out` until it is taken. `high` bytes: above, no room."""

    def __init__(self, high: int = 1 << 30) -> None:
        self.sink: Sink = SILENT
        self.out = bytearray()
        self.high = high
        self.most = 0
        self.credited = 0
        self.sends = 0
        self._full = False

    def send(self, data: Buffer) -> bool:
        self.sends += 1
        self.out += data
        self.most = max(self.most, len(self.out))
        if len(self.out) >= self.high:
            self._full = True
        return not self._full

    def send_eof(self) -> None:
        raise AssertionError("a session never ends its trunk")

    def credit(self, size: int) -> None:
        self.credited += size

    def reset(self) -> None:
        raise AssertionError("a session never resets its trunk")

    def take(self, size: int | None = None) -> bytes:
        """The oldest bytes of `out`; says `room` to the session when less than half is left."""
        taken = bytes(self.out[:size])
        del self.out[: len(taken)]
        if self._full and len(self.out) <= self.high // 2:
            self._full = False
            self.sink.room()
        return taken

    def frames(self) -> list[Frame]:
        return split_frames(self.take())


@dataclass(eq=False)
class Hearing:
    """A sink that notes everything. `pays`: gives credit for each piece at once; `on_data` runs in the callback."""

    stream: Stream | None = None
    pays: bool = True
    received: bytearray = field(default_factory=bytearray)
    pieces: list[int] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    error: LinkLost | None = None
    on_data: Callable[[memoryview], object] | None = None
    on_room: Callable[[], object] | None = None
    on_eof: Callable[[], object] | None = None

    def data(self, data: memoryview) -> None:
        assert len(data) > 0
        self._alive("data")
        assert "eof" not in self.events, "data after eof"
        self.received += data
        self.pieces.append(len(data))
        if self.on_data is not None:
            self.on_data(data)
        if self.pays and self.stream is not None:
            self.stream.credit(len(data))

    def eof(self) -> None:
        self._alive("eof")
        assert "eof" not in self.events
        self.events.append("eof")
        if self.on_eof is not None:
            self.on_eof()

    def room(self) -> None:
        self._alive("room")
        self.events.append("room")
        if self.on_room is not None:
            self.on_room()

    def lost(self, error: LinkLost) -> None:
        self._alive("lost")
        self.events.append("lost")
        self.error = error

    def expired(self) -> None:
        raise AssertionError("pipes of a link never expire")

    def _alive(self, what: str) -> None:
        assert "lost" not in self.events, f"{what} after lost"


def hear(stream: Stream, *, pays: bool = True) -> Hearing:
    """A Hearing, set as the stream's sink."""
    hearing = Hearing(stream, pays)
    stream.sink = hearing
    return hearing


class Writer:
    """Sends a body as fast as the stream takes it, then FIN; a `send` that says False is obeyed."""

    def __init__(self, stream: Stream, body: bytes, chunk: int = 10_000) -> None:
        self.hearing = hear(stream)
        self.stream = stream
        self.hearing.on_room = self.go
        self.chunk = chunk
        self.rest: Iterator[bytes] = iter([body[at : at + chunk] for at in range(0, len(body), chunk)])

    def go(self) -> None:
        for part in self.rest:
            if not self.stream.send(part):
                return
        self.stream.send_eof()


def echo(hearing: Hearing) -> None:
    """Send back what comes, with credit when it has been taken."""
    stream = hearing.stream
    assert stream is not None
    unpaid = [0]
    hearing.pays = False

    def data(view: memoryview) -> None:
        if stream.send(view):
            stream.credit(len(view))
        else:
            unpaid[0] += len(view)

    def room() -> None:
        stream.credit(unpaid[0])
        unpaid[0] = 0

    hearing.on_data = data
    hearing.on_room = room
    hearing.on_eof = stream.send_eof


def body(seed: int, size: int) -> bytes:
    """A reproducible body, different for each seed."""
    return bytes((at * 31 + (at >> 8) + seed) & 255 for at in range(size))


def feed(session: Session, raw: bytes, pieces: Iterable[int] = ()) -> None:
    """Give the session bytes as its trunk would, cut into `pieces` (the rest in one); views are poisoned after."""
    at = 0
    cuts = iter(pieces)
    while at < len(raw):
        size = next(cuts, len(raw) - at)
        buffer = bytearray(raw[at : at + size])
        with memoryview(buffer) as view:
            session.data(view)
        for index in range(min(len(buffer), 4096)):
            buffer[index] = 0xDB
        at += size


class Side:
    """One session with its trunk, deferred calls, and everything it accepted."""

    def __init__(
        self, role: Role, *, high: int = 1 << 30, accepts: bool | None = None, limits: Limits | None = None
    ) -> None:
        self.trunk = PretendTrunk(high)
        self.later = PretendLater()
        self.accepted: list[Hearing] = []
        self.endings: list[LinkLost] = []
        self.free = 0
        self.on_accept: Callable[[Hearing], None] | None = None
        accepting = role is Role.SERVER if accepts is None else accepts
        self.session = Session(
            role,
            self.trunk,
            self.later,
            accept=self._accept if accepting else None,
            ended=self.endings.append,
            streams_free=self._streams_free,
            limits=limits or Limits(),
        )
        self.trunk.sink = self.session

    def _accept(self, stream: Stream) -> None:
        hearing = hear(stream)
        self.accepted.append(hearing)
        if self.on_accept is not None:
            self.on_accept(hearing)

    def _streams_free(self) -> None:
        self.free += 1

    def feed(self, *raws: bytes, pieces: Iterable[int] = ()) -> list[Frame]:
        """Bytes of the peer, and what the session answers to them."""
        feed(self.session, b"".join(raws), pieces)
        self.later.run()
        return self.trunk.frames()


class MuxPair:
    """A client and a server session on one pretend wire."""

    def __init__(self, *, high: int = 1 << 30, limits: Limits | None = None) -> None:
        self.client = Side(Role.CLIENT, high=high, limits=limits)
        self.server = Side(Role.SERVER, high=high, limits=limits)

    def move(self, piece: int | None = None) -> bool:
        """Carry one piece (bytes; None: all there is) each way. Whether anything moved."""
        moved = False
        for source, target in ((self.client, self.server), (self.server, self.client)):
            raw = source.trunk.take(piece)
            if raw:
                moved = True
                feed(target.session, raw)
            source.later.run()
            target.later.run()
        return moved

    def settle(self, piece: int | None = None, *, rounds: int = 1_000_000) -> None:
        """Move until nothing is under way."""
        for _ in range(rounds):
            if not self.move(piece):
                return
        raise AssertionError("the two sides never come to rest")
