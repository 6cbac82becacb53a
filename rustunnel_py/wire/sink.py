"""The vocabulary of everything that carries bytes: a `Pipe` takes them, a `Sink` is called with them.

Machines call down (`send`, `credit`, `reset`) and are called back by the pump (`data`, `eof`, `room`,
`lost`). The rules, each of which has a test:

1. Calls go down, callbacks come from the pump. No call on a pipe calls its own sink before it
   returns; what must be said is said through `later`. An error met in `send` is reported so.
2. No read starts inside a callback; `credit` only queues. `data(view)` is valid during the call only:
   who cannot pass it on copies it. A buffer that has handed out views is replaced, never resized.
3. After every callback the caller checks whether it is gone or replaced: a sink may close, reset
   or replace in `data`.
4. `send` takes everything. It returns True: give credit for what was passed on at once. It returns
   False: stop, and give that credit when `room` is called. Credit counts in the bytes of the side it
   is given on.
5. What was delivered is paid for in the end: who ends an exchange credits what is unpaid.
6. Who serves many sinks (pump, mux, listener, sweep) catches `Exception` around each callback,
   counts it, resets that one pipe and calls `lost(Crash)`.
7. `eof` and `lost` come at most once. Nothing comes after `lost`, nor after this side's own `reset`
   or `close`. After `eof` this side may still send.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from rustunnel_py.errors import LinkLost

Buffer: TypeAlias = bytes | bytearray | memoryview


class Sink(Protocol):
    """What a pipe calls."""

    def data(self, data: memoryview) -> None:
        """Bytes came; valid during the call only, never empty. Pay for them with `credit`."""

    def eof(self) -> None:
        """The peer's clean end of its direction."""

    def room(self) -> None:
        """After a `send` that returned False: you may send again."""

    def lost(self, error: LinkLost) -> None:
        """It is over, uncleanly: a reset, a cut, a deadline, a crash. Nothing comes after it."""

    def expired(self) -> None:
        """The `due` of the connection has passed. Pipes of a link never call it."""


class Pipe(Protocol):
    """One two-way byte stream: a connection, a yamux stream, or what wraps one."""

    sink: Sink

    def send(self, data: Buffer) -> bool:
        """Take all of `data` (it is copied or sent before this returns). False: stop until `room`."""

    def send_eof(self) -> None:
        """End this direction after what was sent; the other stays open."""

    def credit(self, size: int) -> None:
        """So many bytes of what `data` brought have been passed on."""

    def reset(self) -> None:
        """End both directions at once; unsent output is dropped, nothing is heard afterwards."""


class Crashable(Protocol):
    """On whose behalf a deferred call runs."""

    def crashed(self, error: Exception) -> None:
        """The deferred call raised; end yourself."""


Later: TypeAlias = Callable[[Crashable, Callable[[], None]], None]
"""`later(by, function)`: run it soon, outside the present call; if it raises, `by` hears of it."""


class SilentSink:
    """Hears nothing: what a pipe has before its owner sets a sink, and after it let go of it."""

    __slots__ = ()

    def data(self, data: memoryview) -> None: ...

    def eof(self) -> None: ...

    def room(self) -> None: ...

    def lost(self, error: LinkLost) -> None: ...

    def expired(self) -> None: ...


SILENT = SilentSink()
