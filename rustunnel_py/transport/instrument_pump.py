"""A pump that runs where trio would wait: no task switch, and no system call of trio's, between two passes.

trio tells instruments `before_io_wait(timeout)` when its tasks have run and it is about to wait for its own epoll. This
pump has that epoll as one of its descriptors and waits for both, pass after pass, until trio has something to do: its
epoll is ready, a deadline came, or a callback made a task runnable. Then it returns. Where trio would still wait, since
it worked out `timeout` before, an empty call to its entry queue keeps it from that.

What that needs to know of trio is private: the runner's run queue, who waits for idleness, its epoll. All of it is in
`_Insides`, looked for in the versions of trio that were tried. Elsewhere, under a clock that is not the system's, where
another pump has the place, and after any failure in here (trio drops an instrument that raises), `EpollPump` does the
same by `wait_readable`.

trio is never starved: it gets its turn after every pass in which one of the three reasons is seen, a pass is bounded,
and a wait for trio's tasks to be idle (`wait_all_tasks_blocked`) is left to trio.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio

from rustunnel_py.transport.pump import EPOLLIN, EVENTS_A_PASS, EpollPump, has_epoll

if TYPE_CHECKING:
    import select
    from collections.abc import Sized

_taken: trio.lowlevel.RunVar[bool] = trio.lowlevel.RunVar("instrument pump", default=False)

# Versions whose insides were looked at and tried. Newer ones go the public way until somebody has.
TRIED = ((0, 26), (0, 35))


class _Insides:
    """The parts of trio's runner that are looked at. Raises AttributeError where one is not there."""

    __slots__ = ("epoll", "idle_waiters", "run_queue")

    run_queue: Sized
    idle_waiters: Sized
    epoll: select.epoll

    def __init__(self) -> None:
        runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner
        self.run_queue = runner.runq
        self.idle_waiters = runner.waiting_for_idle
        self.epoll = runner.io_manager._epoll
        self.epoll.fileno()


def fits() -> bool:
    """Whether this pump can run here; called within trio."""
    version = tuple(int(part) for part in trio.__version__.split(".")[:2] if part.isdecimal())
    if not has_epoll() or not TRIED[0] <= version <= TRIED[1]:
        return False
    if _taken.get():
        return False
    if type(trio.lowlevel.current_clock()).__name__ != "SystemClock":
        return False  # a clock that jumps takes a wait of trio's own for a sign of idleness
    try:
        _Insides()
    except AttributeError:
        return False
    return True


class InstrumentPump(EpollPump, trio.abc.Instrument):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self._token = trio.lowlevel.current_trio_token()
        self._failed = trio.Event()
        self._inside: _Insides | None = None
        self._trio_fd = -1

    def _ring(self) -> None:
        if self._inside is None:
            super()._ring()  # else this pump is asked before trio waits

    @trio.lowlevel.enable_ki_protection
    async def _wait(self) -> None:
        if not _taken.get():
            await self._wait_in_trios_place()
            super()._ring()  # a pass may have been broken off
        await super()._wait()

    async def _wait_in_trios_place(self) -> None:
        """Until something fails."""
        self._inside = inside = _Insides()
        self._trio_fd = inside.epoll.fileno()
        self._epoll.register(self._trio_fd, EPOLLIN)
        _taken.set(True)
        trio.lowlevel.add_instrument(self)
        try:
            await self._failed.wait()
        finally:
            trio.lowlevel.remove_instrument(self)
            _taken.set(False)
            self._inside = None
            self._epoll.unregister(self._trio_fd)

    def before_io_wait(self, timeout: float) -> None:
        try:
            self._run_until_trio_is_wanted(timeout)
        except Exception as error:
            self.crash(None, error)
            self._inside = None
            self._failed.set()
            self._keep_trio_awake()

    def _run_until_trio_is_wanted(self, timeout: float) -> None:
        inside = self._inside
        if inside is None or self._over():
            return
        poll, trio_fd, runnable = self._poll, self._trio_fd, inside.run_queue
        if timeout <= 0 or inside.idle_waiters:
            events = poll(0, EVENTS_A_PASS)
            if events or self._left_over():
                self._run(events)
                self._keep_trio_awake()  # not to be taken for idle
            return
        until = perf_counter() + timeout
        while True:
            events = poll(0 if self._left_over() else timeout, EVENTS_A_PASS)
            self._run(events)
            timeout = until - perf_counter()
            if runnable or timeout <= 0 or self._over() or any(fd == trio_fd for fd, _ in events):
                break
        # Also where trio's epoll is ready: what made it so may be gone when trio looks.
        self._keep_trio_awake()

    def _over(self) -> bool:
        return self._ended

    def _keep_trio_awake(self) -> None:
        """Make its next wait end at once."""
        self._token.run_sync_soon(_nothing, idempotent=True)


def _nothing() -> None:
    pass
