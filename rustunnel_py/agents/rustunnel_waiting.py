"""A raw pipe that was asked for before there was a place for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.errors import Refused
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from rustunnel_py.agents.rustunnel_link import RustunnelLink
    from rustunnel_py.errors import HopError
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.sink import Buffer, Pipe, Sink


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
            self._link.left_queue()

    def expire(self) -> None:
        if self.waits:
            self._link.left_queue()
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
