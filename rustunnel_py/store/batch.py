"""Rows that wait in memory and are written together, so that nobody waits for the disk.

What is appended is durable WRITE_SECONDS later at the latest. While the disk does not answer it waits for longer,
within PENDING_MAX; then the oldest go, and are counted. A batch whose transaction failed is put back in front of what
came meanwhile and written again: that transaction may have been durable all the same, so writing must be idempotent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import structlog
import trio

from rustunnel_py.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WRITE_SECONDS = 1.0
PENDING_MAX = 10_000  # rows of some hundred bytes: a few MiB
PRUNED_AT_ONCE = 500  # rows that a transaction forgets: some milliseconds, so that nobody waits for it

T = TypeVar("T")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Batch(Generic[T]):
    """`write(rows)` is one idempotent transaction; it raises StoreError. `name` is said in the log.

    `due()` says whether to write although nothing waits. `dropped` counts rows that are lost.
    """

    def __init__(
        self, name: str, write: Callable[[list[T]], Awaitable[None]], *, due: Callable[[], bool] = lambda: False
    ) -> None:
        self._name = name
        self._write = write
        self._due = due
        self._pending: deque[T] = deque()
        self._writing = trio.Lock()
        self._failing = False
        self.dropped = 0

    def __len__(self) -> int:
        """Rows that are not written yet."""
        return len(self._pending)

    def append(self, row: T) -> None:
        if len(self._pending) >= PENDING_MAX:
            self._pending.popleft()
            self.dropped += 1
        self._pending.append(row)

    async def run(self) -> None:
        """Write what has come together, every WRITE_SECONDS; once more when cancelled."""
        try:
            while True:
                await self.flush()
                await trio.sleep(WRITE_SECONDS)
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Write all that waits now; what cannot be written is kept for the next time.

        Shielded: once rows have left the queue, somebody must see how their transaction ends.
        """
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._pending or self._due():
                    await self._write_pending()

    async def _write_pending(self) -> None:
        rows = list(self._pending)
        self._pending.clear()
        try:
            await self._write(rows)
        except BaseException as error:
            self._put_back(rows)
            if not isinstance(error, StoreError):
                raise
            if not self._failing:
                log.error(f"{self._name} cannot be written; it is kept in memory", error=str(error))
            self._failing = True
        else:
            if self._failing:
                log.info(f"{self._name} is written again", dropped=self.dropped)
            self._failing = False

    def _put_back(self, rows: list[T]) -> None:
        room = max(0, PENDING_MAX - len(self._pending))
        kept = rows[len(rows) - room :] if room < len(rows) else rows
        self.dropped += len(rows) - len(kept)
        self._pending.extendleft(reversed(kept))
