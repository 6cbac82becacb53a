"""Leased tunnels: those that live (read once, at start) and those that ended (read for lists)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rustunnel_py.model.lease import Lease, Status
from rustunnel_py.store.instants import from_micros, from_micros_or_none, to_micros

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

ENDED_PER_OWNER_MAX = 1000  # of one owner's ended leases the newest are kept; a list of them has no pages

_COLUMNS = (
    "id, owner, token_id, token_label, slug, hostname, status, requested_port, created_at, heartbeat_at, expires_at,"
    " stopped_at, last_error, run_hash, agent_hash"
)
_ALIVE = "status IN ('creating', 'active', 'stopping')"


class LeaseBook:
    """Rows of `leases`; which of them are alive is for the hub to say."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def alive(self) -> list[Lease]:
        """Oldest first. Raises StoreError."""

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(f"SELECT {_COLUMNS} FROM leases WHERE {_ALIVE} ORDER BY seq")

        return [_lease(row) for row in await self._database.read(work)]

    async def add(self, lease: Lease) -> None:
        """Durable when this returns; old ended rows beyond the bound go. Raises StoreError."""
        values = _row(lease)
        owner = lease.owner

        async def work(transaction: Transaction) -> None:
            marks = ", ".join("?" * len(values))
            await transaction.execute(f"INSERT INTO leases ({_COLUMNS}) VALUES ({marks})", values)
            await transaction.execute(
                f"DELETE FROM leases WHERE seq IN (SELECT seq FROM leases WHERE owner = ? AND NOT ({_ALIVE})"
                " ORDER BY seq DESC LIMIT -1 OFFSET ?)",
                (owner, ENDED_PER_OWNER_MAX),
            )

        await self._database.write(work)

    async def update(self, leases: Sequence[Lease]) -> None:
        """Write what can change of each. Raises StoreError."""
        rows = [
            (
                lease.status.value,
                _micros(lease.heartbeat_at),
                _micros(lease.expires_at),
                _micros(lease.stopped_at),
                lease.last_error,
                lease.id,
            )
            for lease in leases
        ]

        async def work(transaction: Transaction) -> None:
            await transaction.execute_many(
                "UPDATE leases SET status = ?, heartbeat_at = ?, expires_at = ?, stopped_at = ?, last_error = ?"
                " WHERE id = ?",
                rows,
            )

        await self._database.write(work)

    async def ended_of(self, owner: str) -> list[Lease]:
        """Oldest first. Raises StoreError."""

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(
                f"SELECT {_COLUMNS} FROM leases WHERE owner = ? AND NOT ({_ALIVE}) ORDER BY seq", (owner,)
            )

        return [_lease(row) for row in await self._database.read(work)]

    async def find_ended(self, owner: str, id_or_host: str) -> str | None:
        """The id of an ended lease of this owner, the newest where several had the name. Raises StoreError."""

        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one(
                "SELECT id FROM leases WHERE owner = ? AND (id = ? OR hostname = ?) ORDER BY seq DESC LIMIT 1",
                (owner, id_or_host, id_or_host),
            )

        row = await self._database.read(work)
        return None if row is None else str(row[0])

    async def id_of_run(self, run_hash: str) -> tuple[str, str] | None:
        """Id and owner of the lease that a run token was made for. Raises StoreError."""

        async def work(transaction: Transaction) -> Row | None:
            return await transaction.fetch_one("SELECT id, owner FROM leases WHERE run_hash = ?", (run_hash,))

        row = await self._database.read(work)
        return None if row is None else (str(row[0]), str(row[1]))


def _micros(instant: datetime | None) -> int | None:
    return None if instant is None else to_micros(instant)


def _row(lease: Lease) -> tuple[object, ...]:
    """In the order of _COLUMNS."""
    return (
        lease.id,
        lease.owner,
        lease.token_id,
        lease.token_label,
        lease.slug,
        lease.hostname,
        lease.status.value,
        lease.requested_port,
        to_micros(lease.created_at),
        _micros(lease.heartbeat_at),
        _micros(lease.expires_at),
        _micros(lease.stopped_at),
        lease.last_error,
        lease.run_hash,
        lease.agent_hash,
    )


def _lease(row: Row) -> Lease:
    (
        lease_id,
        owner,
        token_id,
        label,
        slug,
        hostname,
        status,
        port,
        created,
        beat,
        expires,
        stopped,
        error,
        run,
        agent,
    ) = row
    return Lease(
        id=lease_id,
        owner=owner,
        token_id=token_id,
        token_label=label,
        slug=slug,
        hostname=hostname,
        status=Status(status),
        requested_port=port,
        created_at=from_micros(created),
        heartbeat_at=from_micros_or_none(beat),
        expires_at=from_micros_or_none(expires),
        stopped_at=from_micros_or_none(stopped),
        last_error=error,
        run_hash=run,
        agent_hash=agent,
    )
