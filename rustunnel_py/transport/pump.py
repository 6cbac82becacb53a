"""The pump: one epoll, bounded passes, leftovers, one flush a pass; the portable pump beside it.

Handlers (connections, listeners) are registered once. A pass runs the `ready` callbacks of at most
`EVENTS_A_PASS` descriptors, then what earlier passes left over (`again`), then the deferred calls
(`later`) and one `flush` for everything that asked for it, in at most `FLUSH_ROUNDS` rounds. Between
two passes trio has its turn, so a saturated connection starves neither another one nor a task.

The epoll pump is three trio tasks: one waits for the epoll's own descriptor, one answers the bell
(whatever is queued outside a pass rings it), one sweeps deadlines every `SWEEP_SECONDS`. The portable
pump, for systems without epoll, waits for each descriptor by two tasks of its own and tells handlers
the same. A third kind waits where trio itself would (`instrument_pump.py`): two task switches and two
system calls a pass less. All catch every `Exception` of a callback, count it and hand it to `crashed` of
the one on whose behalf the callback ran (`wire/sink.py`, rule 6).
"""

from __future__ import annotations

import select
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import trio

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterable

    from rustunnel_py.wire.sink import Crashable

# The values of select.EPOLL* on Linux, by which both pumps speak to handlers: the names are missing elsewhere.
EPOLLIN = 0x001
EPOLLPRI = 0x002
EPOLLOUT = 0x004
EPOLLERR = 0x008
EPOLLHUP = 0x010
EPOLLRDHUP = 0x2000
EPOLLET = 0x80000000

# At most so many descriptors in one pass; the rest stay in the kernel's list, in turn.
EVENTS_A_PASS = 64
# Also the most that one connection reads in one pass. A quarter of it costs bulk 30 % more processor time a byte.
SCRATCH_SIZE = 256 * 1024
# A mux flushes into a trunk, a trunk into a connection, a connection into its socket: three are needed.
FLUSH_ROUNDS = 3
# Deadlines are as coarse as this.
SWEEP_SECONDS = 1.0


class Flushable(Protocol):
    def flush(self) -> None: ...


class Handler(Protocol):
    """What the pump drives: a connection or a listener."""

    sock: socket.socket

    @property
    def due(self) -> float:
        """When `expired` is to be called, on the pump's clock; inf: no deadline."""

    def ready(self, flags: int) -> None:
        """Flags are EPOLLIN, EPOLLPRI, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR of this module.

        The portable pump says EPOLLIN and EPOLLOUT alone, and again as long as there is more to read. May come without
        reason: a descriptor that is not ready is no error.
        """

    def wants(self) -> int:
        """EPOLLIN | EPOLLOUT as wanted now; only the portable pump asks."""

    def flush(self) -> None: ...

    def expired(self) -> None: ...

    def abort(self) -> None: ...

    def crashed(self, error: Exception) -> None: ...


class Pump(Protocol):
    now: float  # trio's clock, read once a pass
    crashes: int  # what the guards caught; a healthy process has 0
    passes: int  # how many there were
    on_crash: Callable[[Exception], None] | None  # hears each of them, for the log
    scratch: memoryview  # the receive buffer that all connections share; valid during one ready() only

    def add(self, handler: Handler) -> None:
        """Drive `handler` from now on. Raises RuntimeError once the pump has ended."""

    def drop(self, handler: Handler) -> None:
        """Let go of `handler`; called before its socket is closed. Nothing if it is not there."""

    def later(self, by: Crashable, function: Callable[[], object]) -> None: ...

    def call(self, by: Crashable, function: Callable[[], object]) -> None:
        """From a trio task: touch a machine now, guarded, and ring the bell so that what it wrote is flushed."""

    def again(self, handler: Handler, flags: int) -> None:
        """Call handler.ready(flags) once more after the others had their turn."""

    def flush_soon(self, what: Flushable) -> None: ...

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]:
        """Call `function(now)` at every sweep; returns what takes it off again."""

    def sweep(self, now: float) -> None: ...

    def crash(self, by: object, error: Exception) -> None:
        """For other guards (listener, mux): count `error` and tell `by.crashed`, where it has that."""


class _Pump:
    """What both pumps share: the queues of a pass, the guards, the sweep, the bell."""

    def __init__(self) -> None:
        self.now = trio.current_time()
        self.crashes = 0
        self.passes = 0
        self.on_crash: Callable[[Exception], None] | None = None
        self.scratch = memoryview(bytearray(SCRATCH_SIZE))
        self._again: dict[Handler, int] = {}
        self._calls: list[tuple[Crashable, Callable[[], object]]] = []
        self._flushes: dict[Flushable, None] = {}
        self._sweeps: dict[object, Callable[[float], None]] = {}
        self._in_pass = False
        self._ended = False
        self._bell = trio.Event()

    # what machines ask for

    def later(self, by: Crashable, function: Callable[[], object]) -> None:
        self._calls.append((by, function))
        if not self._in_pass:
            self._ring()

    def again(self, handler: Handler, flags: int) -> None:
        again = self._again
        again[handler] = again.get(handler, 0) | flags
        if not self._in_pass:
            self._ring()

    def flush_soon(self, what: Flushable) -> None:
        self._flushes[what] = None
        if not self._in_pass:
            self._ring()

    @trio.lowlevel.enable_ki_protection
    def call(self, by: Crashable, function: Callable[[], object]) -> None:
        if self._in_pass:
            try:
                function()
            except Exception as error:
                self.crash(by, error)
            return
        self._in_pass = True
        self.now = trio.current_time()
        try:
            function()
        except Exception as error:
            self.crash(by, error)
        finally:
            self._in_pass = False
        if self._flushes or self._calls or self._again:
            self._ring()

    def on_sweep(self, function: Callable[[float], None]) -> Callable[[], None]:
        key = object()
        self._sweeps[key] = function

        def take_off() -> None:
            self._sweeps.pop(key, None)

        return take_off

    @trio.lowlevel.enable_ki_protection
    def sweep(self, now: float) -> None:
        was_in_pass = self._in_pass
        self._in_pass = True
        self.now = now
        try:
            for handler in self._all():
                if handler.due <= now:
                    try:
                        handler.expired()
                    except Exception as error:
                        self.crash(handler, error)
            for function in list(self._sweeps.values()):
                try:
                    function(now)
                except Exception as error:
                    self.crash(function, error)
        finally:
            self._in_pass = was_in_pass
        if not was_in_pass and (self._flushes or self._calls or self._again):
            self._ring()

    def crash(self, by: object, error: Exception) -> None:
        self.crashes += 1
        if self.on_crash is not None:
            self.on_crash(error)
        crashed = getattr(by, "crashed", None)
        if crashed is None:
            return
        try:
            crashed(error)
        except Exception as second:
            self.crashes += 1
            if self.on_crash is not None:
                self.on_crash(second)

    def _ring(self) -> None:
        """Something was queued outside a pass."""
        self._bell.set()

    # a pass

    def _all(self) -> list[Handler]:
        raise NotImplementedError

    def _has(self, handler: Handler) -> bool:
        raise NotImplementedError

    def _run_again(self, left: dict[Handler, int]) -> None:
        """What earlier passes left over, in turn and no more than a pass may take."""
        for count, (handler, flags) in enumerate(list(left.items())):
            if count >= EVENTS_A_PASS:
                kept = dict(list(left.items())[count:])
                for newer, newer_flags in self._again.items():
                    kept[newer] = kept.get(newer, 0) | newer_flags
                self._again = kept
                return
            if not self._has(handler):
                continue
            try:
                handler.ready(flags)
            except Exception as error:
                self.crash(handler, error)

    def _finish(self) -> None:
        """Deferred calls and flushes; what they ask for in turn, in at most three rounds."""
        for _ in range(FLUSH_ROUNDS):
            if self._calls:
                calls, self._calls = self._calls, []
                for by, function in calls:
                    try:
                        function()
                    except Exception as error:
                        self.crash(by, error)
            if self._flushes:
                flushes, self._flushes = self._flushes, {}
                for what in flushes:
                    try:
                        what.flush()
                    except Exception as error:
                        self.crash(what, error)
            elif not self._calls:
                return

    def _left_over(self) -> bool:
        return bool(self._again or self._flushes or self._calls)

    def run_pass(self) -> None:
        """One bounded pass."""
        raise NotImplementedError

    @trio.lowlevel.enable_ki_protection
    async def _answer_bell(self) -> None:
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            self.run_pass()
            while self._left_over():
                await trio.lowlevel.checkpoint()
                self.run_pass()

    @trio.lowlevel.enable_ki_protection
    async def _sweep_deadlines(self) -> None:
        while True:
            await trio.sleep(SWEEP_SECONDS)
            self.sweep(trio.current_time())

    def start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._answer_bell, name="pump bell")
        nursery.start_soon(self._sweep_deadlines, name="pump sweep")

    @trio.lowlevel.enable_ki_protection
    def end(self) -> None:
        """Abort every handler; each `gone` that this owes is given before this returns."""
        self._ended = True
        self._in_pass = True
        for handler in self._all():
            try:
                handler.abort()
            except Exception as error:
                self.crash(handler, error)
            self.drop(handler)
        self._again.clear()
        self._finish()

    def close(self) -> None:
        """The tasks have ended, too."""

    def add(self, handler: Handler) -> None:
        raise NotImplementedError

    def drop(self, handler: Handler) -> None:
        raise NotImplementedError


class EpollPump(_Pump):
    """Linux: each descriptor is registered once, edge-triggered, and no event is asked for twice.

    Only `_wait` and `_ring` know how trio is waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll()
        self._poll = self._epoll.poll
        self._handlers: dict[int, Handler] = {}
        # Descriptors added in this pass: an event that the kernel gave before belongs to a closed namesake.
        self._fresh: set[int] = set()
        self._more = False

    def add(self, handler: Handler) -> None:
        if self._ended:
            raise RuntimeError("the pump has ended")
        fd = handler.sock.fileno()
        self._epoll.register(fd, EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET)
        self._handlers[fd] = handler
        self._fresh.add(fd)

    def drop(self, handler: Handler) -> None:
        fd = handler.sock.fileno()
        if self._handlers.get(fd) is not handler:
            return
        del self._handlers[fd]
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # closed behind our back; the kernel forgot it then
        self._again.pop(handler, None)

    def _all(self) -> list[Handler]:
        return list(self._handlers.values())

    def _has(self, handler: Handler) -> bool:
        return self._handlers.get(handler.sock.fileno()) is handler

    def run_pass(self) -> None:
        if not (self._in_pass or self._ended):
            self._run(self._poll(0, EVENTS_A_PASS))

    def _run(self, events: list[tuple[int, int]]) -> None:
        """A pass over `events`, as they have just come from the kernel."""
        self._in_pass = True
        try:
            self.passes += 1
            self.now = trio.current_time()
            again: dict[Handler, int] | None = None
            if self._again:
                again, self._again = self._again, {}
            fresh = self._fresh
            if fresh:
                fresh.clear()
            self._more = len(events) == EVENTS_A_PASS
            handlers = self._handlers
            for fd, flags in events:
                handler = handlers.get(fd)
                if handler is None or (fresh and fd in fresh):
                    continue
                if again:
                    flags |= again.pop(handler, 0)
                try:
                    handler.ready(flags)
                except Exception as error:
                    self.crash(handler, error)
            if again:
                self._run_again(again)
            self._finish()
        finally:
            self._in_pass = False

    def _left_over(self) -> bool:
        return bool(self._more or self._again or self._flushes or self._calls)

    @trio.lowlevel.enable_ki_protection
    async def _wait(self) -> None:
        fd = self._epoll.fileno()
        while True:
            await trio.lowlevel.wait_readable(fd)
            self.run_pass()
            while self._left_over():
                await trio.lowlevel.checkpoint()
                self.run_pass()

    def start(self, nursery: trio.Nursery) -> None:
        super().start(nursery)
        nursery.start_soon(self._wait, name="pump")

    def close(self) -> None:
        self._epoll.close()


class _Watch:
    """Two tasks of the portable pump that wait for one descriptor."""

    __slots__ = ("dropped", "poked_read", "poked_write")

    def __init__(self) -> None:
        self.dropped = False
        self.poked_read = trio.Event()
        self.poked_write = trio.Event()

    def poke(self) -> None:
        self.poked_read.set()
        self.poked_write.set()


class PortablePump(_Pump):
    """Wherever trio runs: a task waits for reading and one for writing, where the handler wants it."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: dict[Handler, _Watch] = {}
        self._nursery: trio.Nursery | None = None
        # Whose `wants` may have changed: looked at after the pass.
        self._touched: set[object] = set()

    def again(self, handler: Handler, flags: int) -> None:
        self._touched.add(handler)
        super().again(handler, flags)

    def flush_soon(self, what: Flushable) -> None:
        self._touched.add(what)
        super().flush_soon(what)

    def start(self, nursery: trio.Nursery) -> None:
        super().start(nursery)
        self._nursery = nursery

    def add(self, handler: Handler) -> None:
        if self._ended or self._nursery is None:
            raise RuntimeError("the pump has ended")
        watch = self._watches[handler] = _Watch()
        self._nursery.start_soon(self._watch_reading, handler, watch, name="pump reading")
        self._nursery.start_soon(self._watch_writing, handler, watch, name="pump writing")

    def drop(self, handler: Handler) -> None:
        watch = self._watches.pop(handler, None)
        if watch is None:
            return
        watch.dropped = True
        self._again.pop(handler, None)
        watch.poke()
        if handler.sock.fileno() != -1:
            trio.lowlevel.notify_closing(handler.sock)

    def _all(self) -> list[Handler]:
        return list(self._watches)

    def _has(self, handler: Handler) -> bool:
        return handler in self._watches

    def run_pass(self) -> None:
        self._pass(())

    def _pass(self, events: Iterable[tuple[Handler, int]]) -> None:
        if self._in_pass or self._ended:
            return
        self._in_pass = True
        try:
            self.passes += 1
            self.now = trio.current_time()
            again, self._again = self._again, {}
            for handler, flags in events:
                self._touched.add(handler)
                try:
                    handler.ready(flags | again.pop(handler, 0))
                except Exception as error:
                    self.crash(handler, error)
            self._run_again(again)
            self._finish()
        finally:
            self._in_pass = False
        touched, self._touched = self._touched, set()
        for one in touched:
            watch = self._watches.get(one)  # type: ignore[call-overload]
            if watch is not None:
                watch.poke()

    @trio.lowlevel.enable_ki_protection
    async def _watch_reading(self, handler: Handler, watch: _Watch) -> None:
        while not watch.dropped:
            if handler.wants() & EPOLLIN:
                try:
                    await trio.lowlevel.wait_readable(handler.sock)
                except trio.ClosedResourceError:
                    return
                if not watch.dropped:
                    self._pass(((handler, EPOLLIN),))
                await trio.lowlevel.checkpoint()
            else:
                await watch.poked_read.wait()
                watch.poked_read = trio.Event()

    @trio.lowlevel.enable_ki_protection
    async def _watch_writing(self, handler: Handler, watch: _Watch) -> None:
        while not watch.dropped:
            if handler.wants() & EPOLLOUT:
                try:
                    await trio.lowlevel.wait_writable(handler.sock)
                except trio.ClosedResourceError:
                    return
                if not watch.dropped:
                    self._pass(((handler, EPOLLOUT),))
            else:
                await watch.poked_write.wait()
                watch.poked_write = trio.Event()


def has_epoll() -> bool:
    return hasattr(select, "epoll")


PumpKind: TypeAlias = Literal["auto", "instrument", "epoll", "portable"]


def _make(kind: PumpKind) -> EpollPump | PortablePump:
    from rustunnel_py.transport import instrument_pump  # it is a kind of EpollPump

    if kind == "instrument" or (kind == "auto" and instrument_pump.fits()):
        return instrument_pump.InstrumentPump()
    return EpollPump() if kind == "epoll" or (kind == "auto" and has_epoll()) else PortablePump()


@asynccontextmanager
async def open_pump(kind: PumpKind = "auto") -> AsyncIterator[Pump]:
    """A running pump; `auto` takes the fastest that fits here. Leaving it aborts every connection on it.

    An exception of the body leaves as it is, not in a group.
    """
    pump = _make(kind)
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            pump.start(nursery)
            try:
                yield pump
            except BaseException as error:
                failure = error
                raise
            finally:
                pump.end()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if failure is not None and group.exceptions == (failure,):
            raise failure from failure.__cause__
        raise
    finally:
        pump.close()
