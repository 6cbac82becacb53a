"""The history of registrations: one row each, written in batches (`batch.py`) so that no agent waits for the disk.

A crash leaves rows open; the next start closes them with the last time a server was seen alive, which is
written with every batch and every HEARTBEAT_SECONDS while tunnels are open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import trio

from rustunnel_py.store import batch
from rustunnel_py.store.batch import Batch
from rustunnel_py.store.instants import from_micros, from_micros_or_none, to_micros

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

HEARTBEAT_SECONDS = 10.0  # how far off the end of a crashed server's rows may be; a write costs the disk a sync

_COLUMNS = "id, tunnel_id, owner, protocol, label, session_id, token_id, token_label, registered_at, unregistered_at"


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One registration. `session_id` is the public one; token fields are None for the admin token."""

    id: str
    tunnel_id: str
    owner: str
    protocol: str
    label: str
    session_id: str
    token_id: str | None
    token_label: str | None
    registered_at: datetime
    unregistered_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Closing:
    entry_id: str
    at: datetime


_Event: TypeAlias = LogEntry | _Closing


class TunnelLog:
    """`dropped` counts events that were lost because the disk did not keep up."""

    def __init__(self, database: Database, now: Callable[[], datetime]) -> None:
        self._database = database
        self._now = now
        self._batch: Batch[_Event] = Batch("the tunnel log", self._write, due=self._is_beat_due)
        self._open: set[str] = set()
        self._beaten: float | None = None
        self.run = self._batch.run
        self.flush = self._batch.flush

    @property
    def dropped(self) -> int:
        return self._batch.dropped

    @property
    def waiting(self) -> int:
        """Events that are not written yet."""
        return len(self._batch)

    def opened(self, entry: LogEntry) -> None:
        self._open.add(entry.id)
        self._batch.append(entry)

    def closed(self, entry_id: str, at: datetime) -> None:
        self._open.discard(entry_id)
        self._batch.append(_Closing(entry_id, at))

    def _is_beat_due(self) -> bool:
        if not self._open:
            return False
        return self._beaten is None or trio.current_time() >= self._beaten + HEARTBEAT_SECONDS

    async def _write(self, events: list[_Event]) -> None:
        last_seen = to_micros(self._now())

        async def work(transaction: Transaction) -> None:
            await _write_events(transaction, events)
            await transaction.execute("INSERT OR REPLACE INTO heartbeat (one, last_seen) VALUES (1, ?)", (last_seen,))

        await self._database.write(work)
        self._beaten = trio.current_time()

    async def close_leftovers(self) -> None:
        """At start: end what a crash left open, when a server was last seen. Raises StoreError."""

        async def work(transaction: Transaction) -> None:
            await transaction.execute(
                "UPDATE tunnel_log SET unregistered_at ="
                " max(registered_at, coalesce((SELECT last_seen FROM heartbeat), registered_at))"
                " WHERE unregistered_at IS NULL"
            )

        await self._database.write(work)

    async def prune(self, before: datetime | None, keep: int | None) -> int:
        """Forget some rows that ended before then, or that are more than `keep`; gives how many, 0 when through.

        One small transaction, so that nobody waits for it. Open rows stay. Raises StoreError.
        """
        micros = None if before is None else to_micros(before)

        async def work(transaction: Transaction) -> int:
            gone = 0
            if micros is not None:
                gone = await transaction.execute(
                    "DELETE FROM tunnel_log WHERE seq IN"
                    " (SELECT seq FROM tunnel_log WHERE unregistered_at < ? ORDER BY unregistered_at LIMIT ?)",
                    (micros, batch.PRUNED_AT_ONCE),
                )
            if gone == 0 and keep is not None:
                # Rows only go from the old end, so the numbers between the ends tell how many there are at most.
                ends = await transaction.fetch_one("SELECT min(seq), max(seq) FROM tunnel_log")
                first, last = ends if ends is not None and ends[0] is not None else (0, 0)
                if last - first >= keep:
                    gone = await transaction.execute(
                        "DELETE FROM tunnel_log WHERE seq IN (SELECT seq FROM tunnel_log"
                        " WHERE seq <= ? AND unregistered_at IS NOT NULL ORDER BY seq LIMIT ?)",
                        (last - keep, batch.PRUNED_AT_ONCE),
                    )
            return gone

        return await self._database.write(work)

    async def history(
        self, owner: str | None, protocol: str | None, limit: int, offset: int
    ) -> tuple[int, list[LogEntry]]:
        """How many entries match, and `limit` of them from `offset` on, newest first. None: all. Raises StoreError.

        Sees everything that happened before the call, written or not, as far as the disk takes it.
        """
        await self.flush()
        conditions = {"owner = ?": owner, "protocol = ?": protocol}
        wanted = {condition: value for condition, value in conditions.items() if value is not None}
        where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
        values = tuple(wanted.values())

        async def work(transaction: Transaction) -> tuple[int, list[Row]]:
            counted = await transaction.fetch_one(f"SELECT count(*) FROM tunnel_log{where}", values)
            rows = await transaction.fetch_all(
                f"SELECT {_COLUMNS} FROM tunnel_log{where} ORDER BY seq DESC LIMIT ? OFFSET ?",
                (*values, limit, offset),
            )
            return counted[0] if counted else 0, rows

        total, rows = await self._database.read(work)
        return total, [_entry(row) for row in rows]

    async def owner_of(self, tunnel_id: str) -> str | None:
        """Whose a tunnel is or was, as far back as registrations are kept. Raises StoreError."""
        await self.flush()

        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one(
                "SELECT owner FROM tunnel_log WHERE tunnel_id = ? ORDER BY seq DESC LIMIT 1", (tunnel_id,)
            )

        row = await self._database.read(work)
        return None if row is None else str(row[0])


async def _write_events(transaction: Transaction, events: list[_Event]) -> None:
    """Idempotent: a transaction that failed may have been written all the same."""
    await transaction.execute_many(
        f"INSERT OR IGNORE INTO tunnel_log ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL)",
        [
            (
                entry.id,
                entry.tunnel_id,
                entry.owner,
                entry.protocol,
                entry.label,
                entry.session_id,
                entry.token_id,
                entry.token_label,
                to_micros(entry.registered_at),
            )
            for entry in events
            if isinstance(entry, LogEntry)
        ],
    )
    await transaction.execute_many(
        "UPDATE tunnel_log SET unregistered_at = ? WHERE id = ? AND unregistered_at IS NULL",
        [(to_micros(closing.at), closing.entry_id) for closing in events if isinstance(closing, _Closing)],
    )


def _entry(row: Row) -> LogEntry:
    (entry_id, tunnel_id, owner, protocol, label, session_id, token_id, token_label, registered, unregistered) = row
    return LogEntry(
        id=entry_id,
        tunnel_id=tunnel_id,
        owner=owner,
        protocol=protocol,
        label=label,
        session_id=session_id,
        token_id=token_id,
        token_label=token_label,
        registered_at=from_micros(registered),
        unregistered_at=from_micros_or_none(unregistered),
    )
