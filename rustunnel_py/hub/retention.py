"""Forgets old registrations and audit events, a few at a time, so that nobody waits for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import structlog
import trio

from rustunnel_py.errors import StoreError
from rustunnel_py.store.instants import utc_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from rustunnel_py.store.audit import AuditLog
    from rustunnel_py.store.tunnel_log import TunnelLog

EVERY_SECONDS = 600.0
PAUSE_SECONDS = 0.2  # between two steps: the writer is somebody else's most of the time

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Retention:
    """0 days or rows: no bound."""

    def __init__(
        self,
        tunnel_log: TunnelLog,
        audit: AuditLog,
        *,
        keep_days: int,
        keep_rows: int,
        audit_keep_days: int,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._tunnel_log = tunnel_log
        self._audit = audit
        self._keep_days = keep_days
        self._keep_rows = keep_rows or None
        self._audit_keep_days = audit_keep_days
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.sweep()
            except StoreError as error:
                log.warning("old history could not be forgotten", error=str(error))
            await trio.sleep(EVERY_SECONDS)

    async def sweep(self) -> None:
        """Forget all that is too old or too much, step by step. Raises StoreError."""
        before = self._before(self._keep_days)
        if before is not None or self._keep_rows is not None:
            await _in_steps(lambda: self._tunnel_log.prune(before, self._keep_rows))
        audit_before = self._before(self._audit_keep_days)
        if audit_before is not None:
            await _in_steps(lambda: self._audit.prune(audit_before))

    def _before(self, days: int) -> datetime | None:
        return self._now() - timedelta(days=days) if days else None


async def _in_steps(step: Callable[[], Awaitable[int]]) -> None:
    forgotten = await step()
    while forgotten:
        await trio.sleep(PAUSE_SECONDS)
        forgotten = await step()
