from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.hub import audit as events
from rustunnel_py.hub import retention
from rustunnel_py.hub.audit import Audit
from rustunnel_py.hub.retention import Retention
from rustunnel_py.store import batch
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.store.tunnel_log import LogEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "main.db", tmp_path / "captured.db") as store:
        yield store


def registered(store: Store, number: int, ended: datetime | None) -> None:
    entry = LogEntry(f"e{number}", "t", "o", "http", "l", "s", None, None, NOW - timedelta(days=400))
    store.tunnel_log.opened(entry)
    if ended is not None:
        store.tunnel_log.closed(entry.id, ended)


def keeping(store: Store, *, days: int = 0, rows: int = 0, audit_days: int = 0) -> Retention:
    return Retention(
        store.tunnel_log, store.audit, keep_days=days, keep_rows=rows, audit_keep_days=audit_days, now=lambda: NOW
    )


async def left(store: Store) -> list[str]:
    _, entries = await store.tunnel_log.history(None, None, 10_000, 0)
    return [entry.id for entry in entries]


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps would jump over the database's own deadlines."""
    monkeypatch.setattr(retention, "PAUSE_SECONDS", 0.0)


async def test_what_ended_too_long_ago_is_forgotten_in_small_steps(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PRUNED_AT_ONCE", 3)
    for number in range(10):
        registered(store, number, NOW - timedelta(days=20 - number))
    registered(store, 10, None)
    await store.tunnel_log.flush()
    assert await store.tunnel_log.prune(NOW - timedelta(days=15), None) == 3
    await keeping(store, days=15).sweep()
    assert await left(store) == ["e10", "e9", "e8", "e7", "e6", "e5"]


async def test_the_newest_are_kept_and_what_is_open(store: Store) -> None:
    registered(store, 0, None)
    for number in range(1, 20):
        registered(store, number, NOW)
    await store.tunnel_log.flush()
    await keeping(store, rows=5).sweep()
    assert await left(store) == ["e19", "e18", "e17", "e16", "e15", "e0"]
    await keeping(store, rows=5).sweep()
    assert len(await left(store)) == 6


async def test_no_bound_forgets_nothing(store: Store) -> None:
    registered(store, 0, NOW - timedelta(days=4000))
    await store.tunnel_log.flush()
    await keeping(store).sweep()
    assert await left(store) == ["e0"]


async def test_audit_events_are_kept_for_so_many_days(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "PRUNED_AT_ONCE", 2)
    for days in (50, 40, 31, 29, 0):
        Audit(store.audit, now=lambda days=days: NOW - timedelta(days=days)).note(  # type: ignore[misc]
            events.TokenExpired(token=str(days))
        )
    await store.audit.flush()
    await keeping(store, audit_days=30).sweep()
    assert [row.at for row in await store.audit.page(None, None, 10)] == [NOW, NOW - timedelta(days=29)]


async def test_D12_a_disk_that_does_not_keep_up_drops_the_oldest_events(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PENDING_MAX", 3)
    for number in range(5):
        Audit(store.audit).note(events.TokenExpired(token=str(number)))
    assert store.audit.dropped == 2
    assert [row.details for row in await store.audit.page(None, None, 10)] == [
        f'{{"event":"token_expired","who":null,"peer":"","token":"{number}"}}' for number in (4, 3, 2)
    ]


async def test_D01_D03_events_wait_for_a_disk_that_fails_and_are_not_doubled(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "main.db", isolation_level=None)
    other.execute("CREATE TRIGGER stop BEFORE INSERT ON audit_log BEGIN SELECT raise(ABORT, 'disk I/O error'); END")
    Audit(store.audit).note(events.TokenExpired(token="x"))
    await store.audit.flush()
    assert store.audit.waiting == 1
    other.execute("DROP TRIGGER stop")
    other.close()
    assert len(await store.audit.page(None, None, 10)) == 1
    assert store.audit.waiting == 0
