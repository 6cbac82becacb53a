"""History of telemetry, in the captured file: points of metrics, and the log of requests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rustunnel_py.model.telemetry import LoggedRequest, MetricsPoint, RequestEvent
from rustunnel_py.store.instants import from_micros, to_micros

if TYPE_CHECKING:
    from datetime import datetime

    from rustunnel_py.store.database import Database, Row, Transaction

POINTS_MAX = 5000  # of one answer
REQUESTS_MAX = 1_000_000  # rows of the log in all, about 150 MiB: ten requests a second for its 24 hours
PRUNE_STEP = 5000  # rows in one transaction: what else waits for the file waits no longer than for a batch of captures

_EVENT_COLUMNS = "ingested_at, started_at, method, path, status, duration_ms, response_bytes, error, is_websocket"


@dataclass(slots=True)
class TelemetryBatch:
    """What is written together, each with the id of its tunnel."""

    points: list[tuple[str, MetricsPoint]] = field(default_factory=list)
    requests: list[tuple[str, LoggedRequest]] = field(default_factory=list)


class TelemetryBook:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, batch: TelemetryBatch) -> None:
        """Raises StoreError."""
        points = [
            (
                tunnel_id,
                to_micros(point.captured_at),
                point.ttl,
                point.opn,
                point.rt1_ms,
                point.p90_ms,
                point.requests,
                point.errors,
                point.bytes,
            )
            for tunnel_id, point in batch.points
        ]
        requests = [(tunnel_id, *_values(logged)) for tunnel_id, logged in batch.requests]

        async def work(transaction: Transaction) -> None:
            await transaction.execute_many(
                "INSERT INTO metrics_points (tunnel_id, captured_at, ttl, opn, rt1_ms, p90_ms, requests, errors, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                points,
            )
            await transaction.execute_many(
                f"INSERT INTO request_log (tunnel_id, {_EVENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", requests
            )

        await self._database.write(work)

    async def prune(self, requests_before: datetime, points_before: datetime, requests_max: int) -> None:
        """Forget what is older, and the oldest of more than `requests_max` requests; in steps. Raises StoreError."""
        while await self._prune_step(to_micros(requests_before), to_micros(points_before), requests_max):
            pass

    async def _prune_step(self, requests_before: int, points_before: int, requests_max: int) -> bool:
        """Whether there may be more."""

        async def work(transaction: Transaction) -> int:
            return max(
                await transaction.execute(
                    "DELETE FROM request_log WHERE seq IN (SELECT seq FROM request_log WHERE ingested_at < ? LIMIT ?)",
                    (requests_before, PRUNE_STEP),
                ),
                await transaction.execute(
                    "DELETE FROM request_log WHERE seq IN (SELECT seq FROM request_log"
                    " WHERE seq <= (SELECT max(seq) FROM request_log) - ? ORDER BY seq LIMIT ?)",
                    (requests_max, PRUNE_STEP),
                ),
                await transaction.execute(
                    "DELETE FROM metrics_points WHERE seq IN (SELECT seq FROM metrics_points"
                    " WHERE captured_at < ? LIMIT ?)",
                    (points_before, PRUNE_STEP),
                ),
            )

        return await self._database.write(work) >= PRUNE_STEP

    async def points(self, tunnel_id: str, first: datetime, last: datetime) -> list[MetricsPoint]:
        """Oldest first, both ends included, at most POINTS_MAX. Raises StoreError."""
        values = (tunnel_id, to_micros(first), to_micros(last), POINTS_MAX)

        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(
                "SELECT captured_at, ttl, opn, rt1_ms, p90_ms, requests, errors, bytes FROM metrics_points"
                " WHERE tunnel_id = ? AND captured_at >= ? AND captured_at <= ? ORDER BY captured_at, seq LIMIT ?",
                values,
            )

        return [MetricsPoint(from_micros(captured), *rest) for captured, *rest in await self._database.read(work)]

    async def requests_after(self, tunnel_id: str, after: datetime, limit: int) -> list[LoggedRequest]:
        """Oldest first; `after` itself is not included. Raises StoreError."""
        return await self._requests(
            "tunnel_id = ? AND ingested_at > ? ORDER BY ingested_at, seq", (tunnel_id, to_micros(after)), limit
        )

    async def newest_requests(self, tunnel_id: str, limit: int) -> list[LoggedRequest]:
        """Newest first. Raises StoreError."""
        return await self._requests("tunnel_id = ? ORDER BY ingested_at DESC, seq DESC", (tunnel_id,), limit)

    async def _requests(self, condition: str, values: tuple[object, ...], limit: int) -> list[LoggedRequest]:
        async def work(transaction: Transaction) -> list[Row]:
            return await transaction.fetch_all(
                f"SELECT {_EVENT_COLUMNS} FROM request_log WHERE {condition} LIMIT ?", (*values, limit)
            )

        return [_logged(row) for row in await self._database.read(work)]


def _values(logged: LoggedRequest) -> tuple[object, ...]:
    """In the order of _EVENT_COLUMNS."""
    event = logged.event
    return (
        to_micros(logged.ingested_at),
        to_micros(event.started_at),
        event.method,
        event.path,
        event.status,
        event.duration_ms,
        event.response_bytes,
        int(event.error),
        int(event.is_websocket),
    )


def _logged(row: Row) -> LoggedRequest:
    ingested, started, method, path, status, duration, size, error, is_websocket = row
    event = RequestEvent(from_micros(started), method, path, status, duration, size, bool(error), bool(is_websocket))
    return LoggedRequest(from_micros(ingested), event)
