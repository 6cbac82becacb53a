"""The audit log in the database: written in batches, read by page, pruned by age.

Events wait in memory for at most a second; while the disk does not answer they wait longer, within PENDING_MAX, and
the oldest are dropped and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.store.instants import from_micros, to_micros

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

WRITE_SECONDS = 1.0
PENDING_MAX = 10_000
PRUNED_AT_ONCE = 500  # rows a transaction: some milliseconds, so that nobody waits for it

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_COLUMNS = "id, at, event, owner, token_id, details"


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One event. `details` is JSON; `seq` orders the rows of one database and is 0 before it is stored."""

    id: str
    at: datetime
    event: str
    owner: str | None
    token_id: str | None
    details: str
    seq: int = 0


class AuditLog:
    """`dropped` counts events that were lost because the disk did not keep up."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: deque[AuditRow] = deque()
        self._writing = trio.Lock()
        self._failing = False
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Events that are not written yet."""
        return len(self._pending)

    def append(self, row: AuditRow) -> None:
        if len(self._pending) >= PENDING_MAX:
            self._pending.popleft()
            self.dropped += 1
        self._pending.append(row)

    async def run(self) -> None:
        """Write what has come together, once a second; once more when cancelled."""
        try:
            while True:
                await self.flush()
                await trio.sleep(WRITE_SECONDS)
        finally:
            await self.flush()

    async def flush(self) -> None:
        """Write the batch now; what cannot be written is kept for the next time. Shielded."""
        with trio.CancelScope(shield=True):
            async with self._writing:
                if self._pending:
                    await self._write()

    async def _write(self) -> None:
        batch = list(self._pending)
        self._pending.clear()
        rows = [(row.id, to_micros(row.at), row.event, row.owner, row.token_id, row.details) for row in batch]

        async def work(transaction: Transaction) -> None:
            # Ignored if it is there: a write that failed may have gone through all the same.
            await transaction.execute_many(
                f"INSERT OR IGNORE INTO audit_log ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows
            )

        try:
            await self._database.write(work)
        except StoreError as error:
            room = max(0, PENDING_MAX - len(self._pending))
            kept = batch[len(batch) - room :] if room < len(batch) else batch
            self.dropped += len(batch) - len(kept)
            self._pending.extendleft(reversed(kept))
            if not self._failing:
                log.error("the audit log cannot be written; it is kept in memory", error=str(error))
            self._failing = True
        else:
            if self._failing:
                log.info("the audit log is written again", dropped=self.dropped)
            self._failing = False

    async def page(self, before: int | None, event: str | None, limit: int) -> list[AuditRow]:
        """At most `limit` rows that are older than `before`, newest first. Raises StoreError."""
        await self.flush()
        conditions = {"seq < ?": before, "event = ?": event}
        wanted = {condition: value for condition, value in conditions.items() if value is not None}
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        values = (*wanted.values(), limit)

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(
                f"SELECT {_COLUMNS}, seq FROM audit_log{where} ORDER BY seq DESC LIMIT ?", values
            )

        return [_row(row) for row in await self._database.read(work)]

    async def prune(self, before: datetime) -> int:
        """Forget some of what is older; gives how many rows, 0 when nothing is left. Raises StoreError."""
        micros = to_micros(before)

        async def work(transaction: Transaction) -> int:
            return await transaction.execute(
                "DELETE FROM audit_log WHERE seq IN (SELECT seq FROM audit_log WHERE at < ? ORDER BY at LIMIT ?)",
                (micros, PRUNED_AT_ONCE),
            )

        return await self._database.write(work)


def _row(row: Row) -> AuditRow:
    row_id, at, event, owner, token_id, details, seq = row
    return AuditRow(row_id, from_micros(at), event, owner, token_id, details, seq)
