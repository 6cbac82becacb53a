"""What watches the process itself: a loop that does not turn, and callbacks that raise.

A task of the loop beats; a thread listens. When the beat stays away for BLOCKED_SECONDS, the thread logs where the
loop is, while it is still there; with the next beat the loop logs how long it was. Where the thread could not run
either (the process was stopped, the machine slept), nobody was to blame and nothing is said.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.model.bucket import Bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

BLOCKED_SECONDS = 1.0  # nothing may hold the loop for so long (P10): agents' pings and every visitor wait for it
BEAT_SECONDS = 0.25
STACK_DEPTH = 12  # innermost calls that are logged
CRASHES_A_SECOND = 1.0  # tracebacks in the log; a visitor may be able to repeat what raised
CRASH_BURST = 10.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Watchdog:
    """Watches the loop of the thread that made it. `blocks` counts how often it was held."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.blocks = 0
        self._clock = clock
        self._watched = threading.get_ident()
        self._beat_at = clock()
        self._looked_at = clock()
        self._told = False  # of the present block
        self._ending = threading.Event()

    def __repr__(self) -> str:
        return f"<Watchdog {self.blocks} blocks>"

    async def beat(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(BEAT_SECONDS)
            self.beaten()

    def beaten(self) -> None:
        """The loop turns; says so if it did not for too long."""
        now = self._clock()
        late = now - self._beat_at - BEAT_SECONDS
        told, self._told = self._told, False
        self._beat_at = now
        # Without the thread's word it may have been the whole process that stood still.
        if told or (late >= BLOCKED_SECONDS and now - self._looked_at < late):
            if not told:
                self.blocks += 1
            log.error("the event loop was blocked", seconds=round(late, 2))

    def look(self) -> None:
        """One look of the thread: log where the loop is if its beat has stayed away."""
        now = self._clock()
        slept, self._looked_at = now - self._looked_at, now
        if slept > BLOCKED_SECONDS:
            self._beat_at = max(self._beat_at, now - BEAT_SECONDS)  # we were not there: count from now on
            return
        if self._told or now - self._beat_at < BLOCKED_SECONDS:
            return
        self._told = True
        self.blocks += 1
        log.error("the event loop is blocked", where=self._where())

    def _where(self) -> str:
        frame = sys._current_frames().get(self._watched)
        calls = traceback.extract_stack(frame)[-STACK_DEPTH:] if frame is not None else []
        return " < ".join(f"{call.name} ({call.filename}:{call.lineno})" for call in reversed(calls))

    def run(self) -> None:
        """The thread."""
        self._looked_at = self._clock()
        while not self._ending.wait(BEAT_SECONDS):
            self.look()

    def end(self) -> None:
        self._ending.set()


@asynccontextmanager
async def watched_loop() -> AsyncIterator[Watchdog]:
    """Watch this loop while the body runs."""
    watchdog = Watchdog()
    thread = threading.Thread(target=watchdog.run, name="watchdog", daemon=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.beat)
        thread.start()
        try:
            yield watchdog
        finally:
            watchdog.end()
            nursery.cancel_scope.cancel()


class CrashLog:
    """What guards caught, for the log: each with its traceback, not more than so many. `crashes` counts them all."""

    def __init__(
        self,
        event: str = "a callback raised; its connection was ended",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.crashes = 0
        self._event = event
        self._clock = clock
        self._bucket = Bucket(CRASHES_A_SECOND, clock(), CRASH_BURST)
        self._unsaid = 0

    def __repr__(self) -> str:
        return f"<CrashLog {self.crashes}>"

    def __call__(self, error: BaseException) -> None:
        self.crashes += 1
        if self._bucket.take(self._clock()):
            self._unsaid += 1
            return
        unsaid, self._unsaid = self._unsaid, 0
        more = {"unsaid": unsaid} if unsaid else {}
        log.error(self._event, exc_info=error, **more)


def log_what_the_interpreter_ignores() -> None:
    """What is raised where nothing can catch it goes to the log, bounded.

    A TLS name that is no ASCII is such a case: the ssl module fails on it before our callback is asked, and would
    write a traceback straight to standard error, which may block.
    """
    crash_log = CrashLog("an exception was ignored by the interpreter")

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_value is not None:
            crash_log(unraisable.exc_value)

    sys.unraisablehook = hook
