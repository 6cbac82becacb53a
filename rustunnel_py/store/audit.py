"""The audit log in the database: written in batches (`batch.py`), read by page, pruned by age."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rustunnel_py.store import batch
from rustunnel_py.store.batch import Batch
from rustunnel_py.store.instants import from_micros, to_micros

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

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
        self._batch: Batch[AuditRow] = Batch("the audit log", self._write)
        self.append = self._batch.append
        self.run = self._batch.run
        self.flush = self._batch.flush

    @property
    def dropped(self) -> int:
        return self._batch.dropped

    @property
    def waiting(self) -> int:
        """Events that are not written yet."""
        return len(self._batch)

    async def _write(self, events: list[AuditRow]) -> None:
        rows = [(row.id, to_micros(row.at), row.event, row.owner, row.token_id, row.details) for row in events]

        async def work(transaction: Transaction) -> None:
            await transaction.execute_many(
                f"INSERT OR IGNORE INTO audit_log ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)", rows
            )

        await self._database.write(work)

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
                (micros, batch.PRUNED_AT_ONCE),
            )

        return await self._database.write(work)


def _row(row: Row) -> AuditRow:
    row_id, at, event, owner, token_id, details, seq = row
    return AuditRow(row_id, from_micros(at), event, owner, token_id, details, seq)
