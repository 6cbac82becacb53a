"""Sinks for tests: one that writes down what it hears, one that ruins each view when the call is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.errors import LinkLost
    from rustunnel_py.wire.sink import Pipe, Sink

POISON = 0xDD


class Poisoned:
    """Around a sink: the view that it was given holds rubbish once its callback is over (design rule 2)."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def data(self, data: memoryview) -> None:
        try:
            self.sink.data(data)
        finally:
            if not data.readonly:
                data[:] = bytes([POISON]) * len(data)

    def eof(self) -> None:
        self.sink.eof()

    def room(self) -> None:
        self.sink.room()

    def lost(self, error: LinkLost) -> None:
        self.sink.lost(error)

    def expired(self) -> None:
        self.sink.expired()


class Recorder:
    """Writes down everything. `pipe`: credits what comes at once, unless `credits` is False."""

    def __init__(self, *, credits: bool = True) -> None:
        self.pipe: Pipe | None = None
        self.credits = credits
        self.received = bytearray()
        self.heard: list[str] = []
        self.errors: list[LinkLost] = []
        self.on_data: Callable[[memoryview], None] | None = None
        self._changed = trio.Event()

    def _note(self, word: str) -> None:
        self.heard.append(word)
        self._changed.set()

    def data(self, data: memoryview) -> None:
        self.received += data
        if not self.heard or self.heard[-1] != "data":
            self.heard.append("data")
        if self.on_data is not None:
            self.on_data(data)
        if self.credits and self.pipe is not None:
            self.pipe.credit(len(data))
        self._changed.set()

    def eof(self) -> None:
        self._note("eof")

    def room(self) -> None:
        self._note("room")

    def lost(self, error: LinkLost) -> None:
        self.errors.append(error)
        self._note("lost")

    def expired(self) -> None:
        self._note("expired")

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Until `condition` holds; looked at whenever something was heard."""
        while not condition():
            self._changed = trio.Event()
            await self._changed.wait()

    async def wait_received(self, size: int) -> bytes:
        await self.wait(lambda: len(self.received) >= size)
        return bytes(self.received)

    async def wait_heard(self, word: str) -> None:
        await self.wait(lambda: word in self.heard)
