"""Recordings made ready for whoever looks: redacted, a slice of time at a time.

Nothing leaves a ring by another way.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rustunnel_py.hub.recording import Recording
    from rustunnel_py.model.capture import Capture

SLICE_SECONDS = 0.001  # so long captures are made ready at a time; then traffic has its turn
VIEWS_BYTES_MAX = 16 * 1024 * 1024  # captures made ready for callers that are kept so for the next one
CLOCK_SLACK = timedelta(seconds=0.5)  # a wall clock that moved further against ours was set
_EPOCH = datetime.fromtimestamp(0, UTC)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class CaptureViews:
    """`wall` is the wall clock. `unreadable` counts recordings that could not be redacted."""

    def __init__(self, wall: Callable[[], datetime]) -> None:
        self._wall = wall
        self._offset = timedelta()
        self._ready: OrderedDict[int, Capture] = OrderedDict()
        self._bytes = 0
        self.pinned: set[int] = set()  # numbers of what is in memory
        self.unreadable = 0
        self.set_clock()

    def set_clock(self) -> None:
        """Look how the wall clock stands to ours; now and then, so that captures agree among themselves."""
        offset = self._wall() - _EPOCH - timedelta(seconds=trio.current_time())
        if abs(offset - self._offset) > CLOCK_SLACK:
            self._offset = offset

    async def ready(self, recordings: Iterable[Recording], *, keep: bool) -> list[Capture]:
        """Redact them, a slice at a time, so that traffic has its turn in between. `keep`: for the next caller."""
        captures: list[Capture] = []
        until = trio.current_time() + SLICE_SECONDS
        for recording in recordings:
            capture = self._ready.get(recording.seq)
            if capture is None:
                capture = await self._one(recording, keep=keep)
            if capture is not None:
                captures.append(capture)
            if trio.current_time() >= until:
                await trio.lowlevel.checkpoint()
                until = trio.current_time() + SLICE_SECONDS
        return captures

    async def view(self, recording: Recording) -> Capture:
        """What may be seen of one."""
        for capture in await self.ready([recording], keep=True):
            return capture
        raise NotFound("request not found")

    async def _one(self, recording: Recording, *, keep: bool) -> Capture | None:
        """In a thread where that takes long: there the interpreter switches by itself. None: it cannot be redacted."""
        try:
            if recording.heavy:
                capture = await trio.to_thread.run_sync(self._capture, recording)
            else:
                capture = self._capture(recording)
        except Exception as error:
            # Nothing that passes through a tunnel may end the server; what cannot be redacted stays here.
            log.exception("a capture could not be made ready", error=repr(error), visit=recording.id)
            recording.stored = True
            self.unreadable += 1
            return None
        if keep:
            self._keep(capture, recording.size)
        return capture

    def _capture(self, recording: Recording) -> Capture:
        capture = recording.capture(0.0, _EPOCH + self._offset)
        capture.pinned = capture.seq in self.pinned
        return capture

    def _keep(self, capture: Capture, size: int) -> None:
        self._ready[capture.seq] = capture
        self._bytes += size
        if self._bytes > VIEWS_BYTES_MAX:
            self._ready.clear()
            self._bytes = 0

    def forget(self, seq: int) -> None:
        """What is to be seen of it has changed."""
        self._ready.pop(seq, None)
