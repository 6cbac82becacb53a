"""The waist: what the server may ask of one agent, whatever its kind, or of a peer node.

Everything here is a call and nothing waits. An edge takes a `Link` from `hub.links` and either opens a raw
pipe to the local service (`open`) or has one HTTP request and its reply carried (`exchange`). What a link
cannot do is raised as `HopError` before anything is sent; what fails later comes as `failed` or `lost`.
The rules of sinks (`wire/sink.py`) hold for exchanges too: no call of an edge makes the link call the
edge's sink before it returns, and `send` takes everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rustunnel_py.errors import HopError
    from rustunnel_py.model.visit import Carries, Visit
    from rustunnel_py.wire.http1 import Headers, ReplyHead, RequestHead
    from rustunnel_py.wire.sink import Buffer, Pipe


class ExchangeSink(Protocol):
    """What the edge hears of one exchange: `end`, `failed` or `upgraded`, exactly one of them, last."""

    def interim(self, head: ReplyHead) -> None:
        """A 1xx of the local service: 100 or 103, never 101."""

    def head(self, head: ReplyHead) -> None:
        """The reply's head; its framing says how the body is to be sent on."""

    def upgraded(self, head: ReplyHead, pipe: Pipe) -> None:
        """A 101. Set `pipe.sink` before returning; what followed the 101 is delivered then."""

    def data(self, data: memoryview) -> None:
        """Payload of the reply's body, never chunk framing; valid during the call only."""

    def end(self, trailers: Headers) -> None:
        """The reply is complete."""

    def room(self) -> None:
        """After a `send` that returned False: the request's body may go on."""

    def failed(self, error: HopError) -> None:
        """It failed, before the head or in the middle of the body; what was delivered is a cut reply."""


class Exchange(Protocol):
    """What the edge may do. Bodies are payload, the link frames them as the request's head says."""

    def send(self, data: Buffer) -> bool:
        """More of the request's body; False: wait for `room`."""

    def finish(self, trailers: Headers = ()) -> None:
        """The request is complete; called always, also without a body."""

    def credit(self, size: int) -> None:
        """So much of what `data` brought has been written to the visitor. Ignored after the end."""

    def reset(self) -> None:
        """The visitor is gone or its request turned bad: abort towards the local service. Nothing is heard after."""


class Link(Protocol):
    """The server's live handle on one agent."""

    carries: Carries

    def exchange(self, visit: Visit, head: RequestHead, sink: ExchangeSink) -> Exchange:
        """Carry one request and its reply. Raises HopError for what is refused before anything is sent."""

    def open(self, visit: Visit) -> Pipe:
        """A raw connection to the local service; set its `sink` before the present callback returns."""
