"""An exchange for those who wait anyway: the async form of `Link.exchange`.

    async with converse(pump, link, visit, head, body) as reply:
        async for data in reply:
            ...

Leaving the block before the end resets the exchange. What the local service says in between (100, 103) is passed over;
an upgrade is refused, since there is nobody to join.
"""

from __future__ import annotations

from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import trio

from rustunnel_py.errors import Hop, HopError
from rustunnel_py.wire.sink import SILENT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rustunnel_py.hub.link import Exchange, Link
    from rustunnel_py.model.visit import Visit
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Crashable, Pipe

SENT_AT_ONCE = 64 * 1024  # of a request's body; then the link says whether there is room


class Caller(Protocol):
    """As much of a pump as a conversation needs."""

    def call(self, by: Crashable, function: Callable[[], None]) -> None: ...


class Conversation:
    """One exchange as its sink, and as an async iterator over the reply's payload. `head` is there from the start."""

    def __init__(self) -> None:
        self.reply_head: ReplyHead | None = None
        self.trailers: Headers = ()
        self._exchange: Exchange | None = None
        self._pump: Caller | None = None
        self._chunks: deque[bytes] = deque()
        self._room = trio.Event()
        self._news = trio.Event()
        self._over = False
        self._error: HopError | None = None

    # the exchange's sink

    def interim(self, head: ReplyHead) -> None: ...

    def head(self, head: ReplyHead) -> None:
        self.reply_head = head
        self._tell()

    def upgraded(self, head: ReplyHead, pipe: Pipe) -> None:
        pipe.sink = SILENT
        pipe.reset()
        self.failed(HopError(Hop.LOCAL_SERVICE, 502, "unasked-upgrade", "The local service switched protocols."))

    def data(self, data: memoryview) -> None:
        self._chunks.append(bytes(data))
        self._tell()

    def end(self, trailers: Headers) -> None:
        self.trailers = trailers
        self._end()

    def room(self) -> None:
        self._room.set()

    def failed(self, error: HopError) -> None:
        self._error = error
        self._end()

    def crashed(self, error: Exception) -> None:
        self.failed(HopError(Hop.EDGE, 500, "crash", "This server made a mistake."))

    def _end(self) -> None:
        self._over = True
        self._exchange = None
        self._room.set()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # for the task

    async def begin(self, pump: Caller, link: Link, visit: Visit, head: RequestHead, body: bytes) -> None:
        """Send the request and wait for the reply's head. Raises HopError."""
        self._pump = pump
        refused: list[HopError] = []

        def start() -> None:
            try:
                self._exchange = link.exchange(visit, head, self)
            except HopError as error:
                refused.append(error)

        pump.call(self, start)
        if refused:
            raise refused[0]
        for at in range(0, len(body), SENT_AT_ONCE):
            self._room = trio.Event()
            pump.call(self, lambda at=at: self._send(body[at : at + SENT_AT_ONCE]))  # type: ignore[misc]
            await self._room.wait()
        pump.call(self, self._finish)
        while self.reply_head is None and not self._over:
            await self._news.wait()
        if self.reply_head is None and self._error is not None:
            raise self._error

    def _send(self, data: bytes) -> None:
        if self._exchange is None or self._exchange.send(data):
            self._room.set()

    def _finish(self) -> None:
        if self._exchange is not None:
            self._exchange.finish()

    def stop(self) -> None:
        """Whatever is still under way."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and self._pump is not None:
            self._pump.call(self, exchange.reset)

    def __aiter__(self) -> Conversation:
        return self

    async def __anext__(self) -> bytes:
        """More of the reply's payload. Raises HopError where it was cut."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            if self._over:
                raise StopAsyncIteration
            await self._news.wait()
        chunk = self._chunks.popleft()
        if self._exchange is not None and self._pump is not None:
            exchange = self._exchange
            self._pump.call(self, lambda: exchange.credit(len(chunk)))
        return chunk


@asynccontextmanager
async def converse(
    pump: Caller, link: Link, visit: Visit, head: RequestHead, body: bytes = b""
) -> AsyncIterator[Conversation]:
    """Send one request by `link`; the block begins when the reply's head is there. Raises HopError."""
    conversation = Conversation()
    try:
        await conversation.begin(pump, link, visit, head, body)
        yield conversation
    finally:
        conversation.stop()
