"""Those who wait for a place with an agent: in a line for each tunnel; and the raw pipe of one of them."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, TypeAlias

from rustunnel_py.errors import Refused
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rustunnel_py.agents.rustunnel_exchange import LinkExchange
    from rustunnel_py.agents.rustunnel_link import RustunnelLink
    from rustunnel_py.errors import HopError
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.sink import Buffer, Pipe, Sink

Waiting: TypeAlias = "LinkExchange | WaitingPipe"


class Lines:
    """Visits that wait, a line for each tunnel, so that none of them stands before those of another one."""

    __slots__ = ("_lines", "count")

    def __init__(self) -> None:
        self.count = 0  # in all lines
        self._lines: dict[str, OrderedDict[Waiting, None]] = {}

    def __iter__(self) -> Iterator[Waiting]:
        for line in self._lines.values():
            yield from line

    def length(self, tunnel_id: str) -> int:
        return len(self._lines.get(tunnel_id, ()))

    def add(self, waiting: Waiting, *, first: bool = False) -> None:
        """At the end of its line, or in front of it."""
        tunnel_id = waiting.visit.tunnel_id
        line = self._lines.get(tunnel_id)
        if line is None:
            line = self._lines[tunnel_id] = OrderedDict()
        line[waiting] = None
        if first:
            line.move_to_end(waiting, last=False)
        self.count += 1

    def remove(self, waiting: Waiting) -> None:
        """Nothing where it waits no more."""
        tunnel_id = waiting.visit.tunnel_id
        line = self._lines.get(tunnel_id)
        if line is not None and waiting in line:
            del line[waiting]
            self.count -= 1
            if not line:
                del self._lines[tunnel_id]

    def first(self, tunnel_id: str) -> Waiting | None:
        return next(iter(self._lines.get(tunnel_id, ())), None)

    def firsts(self) -> list[Waiting]:
        """The first of each line, who waits longest first."""
        return sorted((next(iter(line)) for line in self._lines.values()), key=lambda waiting: waiting.since)

    def clear(self) -> list[Waiting]:
        """Everybody, who waits no more then."""
        everybody = list(self)
        self._lines.clear()
        self.count = 0
        return everybody


class WaitingPipe:
    """A pipe whose stream is opened when there is a place for it; then it passes everything on."""

    __slots__ = ("_blocked", "_eof", "_link", "_over", "_pending", "_sink", "_stream", "since", "visit")

    def __init__(self, link: RustunnelLink, visit: Visit) -> None:
        self.visit = visit
        self.since = 0.0
        self._link = link
        self._sink: Sink = SILENT
        self._stream: Pipe | None = None
        self._pending = bytearray()
        self._eof = False
        self._blocked = False
        self._over = False

    @property
    def waits(self) -> bool:
        return self._stream is None and not self._over

    @property
    def sink(self) -> Sink:
        return self._sink if self._stream is None else self._stream.sink

    @sink.setter
    def sink(self, sink: Sink) -> None:
        if self._stream is None:
            self._sink = sink
        else:
            self._stream.sink = sink

    def start(self, stream: Pipe) -> None:
        stream.sink = self._sink
        self._stream = stream
        room = stream.send(self._pending) if self._pending else True
        self._pending = bytearray()
        if self._eof:
            stream.send_eof()
        elif self._blocked and room:
            self._link.pump.later(self, self._tell_room)

    def send(self, data: Buffer) -> bool:
        if self._stream is not None:
            return self._stream.send(data)
        if self._over or self._eof:
            return True
        self._pending += data
        self._blocked = True
        return False

    def send_eof(self) -> None:
        if self._stream is not None:
            self._stream.send_eof()
        self._eof = True

    def credit(self, size: int) -> None:
        if self._stream is not None:
            self._stream.credit(size)

    def reset(self) -> None:
        if self._stream is not None:
            self._stream.reset()
        elif not self._over:
            self._over = True
            self._sink = SILENT
            self._link.left_queue(self)

    def expire(self) -> None:
        if self.waits:
            self._link.left_queue(self)
            self.give_up(self._link.no_place())

    def give_up(self, error: HopError) -> None:
        sink = self._sink
        self._over = True
        self._sink = SILENT
        sink.lost(Refused(error.message))

    def crashed(self, error: Exception) -> None:
        self.reset()

    def _tell_room(self) -> None:
        self.sink.room()
