from __future__ import annotations

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.store import batch
from rustunnel_py.store.batch import WRITE_SECONDS
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.store.tunnel_log import HEARTBEAT_SECONDS, LogEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
ENTRY = LogEntry("l1", "t1", "u1", "http", "a.localhost", "s1", "k1", "ci", NOW)


class Wall:
    """A wall clock that tests set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
async def store(tmp_path: Path, wall: Wall) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "rustunnel.db", tmp_path / "captured.db", now=wall) as store:
        yield store


def entry(number: int, *, owner: str = "u1", protocol: str = "http") -> LogEntry:
    return replace(ENTRY, id=f"l{number}", owner=owner, protocol=protocol)


async def test_history_shows_what_just_happened(store: Store) -> None:
    store.tunnel_log.opened(ENTRY)
    assert await store.tunnel_log.history(None, None, 50, 0) == (1, [ENTRY])
    store.tunnel_log.closed("l1", NOW + timedelta(seconds=5))
    ended = replace(ENTRY, unregistered_at=NOW + timedelta(seconds=5))
    assert await store.tunnel_log.history(None, None, 50, 0) == (1, [ended])
    store.tunnel_log.closed("l1", NOW + timedelta(days=1))
    assert await store.tunnel_log.history(None, None, 50, 0) == (1, [ended])


async def test_history_by_owner_protocol_and_page(store: Store) -> None:
    for number in range(6):
        owner, protocol = ("u1", "u2")[number % 2], ("http", "tcp")[number // 3]
        store.tunnel_log.opened(entry(number, owner=owner, protocol=protocol))

    async def ids(owner: str | None, protocol: str | None, limit: int = 50, offset: int = 0) -> tuple[int, list[str]]:
        total, entries = await store.tunnel_log.history(owner, protocol, limit, offset)
        return total, [found.id for found in entries]

    assert await ids(None, None) == (6, ["l5", "l4", "l3", "l2", "l1", "l0"])
    assert await ids("u1", None) == (3, ["l4", "l2", "l0"])
    assert await ids(None, "tcp") == (3, ["l5", "l4", "l3"])
    assert await ids("u2", "tcp") == (2, ["l5", "l3"])
    assert await ids(None, None, 2, 1) == (6, ["l4", "l3"])
    assert await ids(None, None, 50, 2**40) == (6, [])
    assert await ids("' OR 1=1 --", None) == (0, [])


async def test_what_is_left_is_written_when_the_store_closes(tmp_path: Path) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths) as store:
        store.tunnel_log.opened(ENTRY)
        store.tunnel_log.closed("l1", NOW)
    async with open_store(*paths) as store:
        assert await store.tunnel_log.history(None, None, 50, 0) == (1, [replace(ENTRY, unregistered_at=NOW)])


async def test_entries_left_open_by_a_crash_end_when_they_were_last_seen(tmp_path: Path, wall: Wall) -> None:
    paths = tmp_path / "rustunnel.db", tmp_path / "captured.db"
    async with open_store(*paths, now=wall) as store:
        store.tunnel_log.opened(ENTRY)
        wall.now = NOW + timedelta(minutes=7)
        await store.tunnel_log.flush()
    # a later registration than the last heartbeat: the clock ran backwards
    connection = sqlite3.connect(paths[0])
    late = int((NOW + timedelta(hours=2)).timestamp()) * 1_000_000
    connection.execute(
        "INSERT INTO tunnel_log SELECT NULL, 'l2', tunnel_id, owner, protocol, label, session_id, token_id,"
        " token_label, ?, NULL FROM tunnel_log",
        (late,),
    )
    connection.commit()
    connection.close()
    wall.now = NOW + timedelta(days=1)
    async with open_store(*paths, now=wall) as store:
        _, entries = await store.tunnel_log.history(None, None, 50, 0)
    assert {found.id: found.unregistered_at for found in entries} == {
        "l1": NOW + timedelta(minutes=7),
        "l2": NOW + timedelta(hours=2),
    }


def last_seen(path: Path) -> int | None:
    connection = sqlite3.connect(path)
    try:
        row = connection.execute("SELECT last_seen FROM heartbeat").fetchone()
        return None if row is None else int(row[0])
    finally:
        connection.close()


async def test_run_writes_every_second_and_beats_while_tunnels_are_open(
    tmp_path: Path, wall: Wall, mock_clock: MockClock
) -> None:
    path = tmp_path / "rustunnel.db"
    async with open_store(path, tmp_path / "captured.db", now=wall) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.tunnel_log.run)

        async def tick(seconds: float) -> None:
            await trio.testing.wait_all_tasks_blocked()
            wall.now += timedelta(seconds=seconds)
            mock_clock.jump(seconds)
            await trio.testing.wait_all_tasks_blocked()
            async with store.tunnel_log._batch._writing:  # until a write that began has ended
                pass

        await tick(HEARTBEAT_SECONDS)
        assert last_seen(path) is None  # nothing is open: the disk may sleep
        store.tunnel_log.opened(ENTRY)
        await tick(WRITE_SECONDS)
        first = last_seen(path)
        assert first == int(wall.now.timestamp() * 1_000_000)
        await tick(WRITE_SECONDS)
        assert last_seen(path) == first
        await tick(HEARTBEAT_SECONDS)
        assert last_seen(path) == int(wall.now.timestamp() * 1_000_000)
        store.tunnel_log.closed("l1", NOW)
        nursery.cancel_scope.cancel()
    async with open_store(path, tmp_path / "captured.db", now=wall) as store:
        assert await store.tunnel_log.history(None, None, 50, 0) == (1, [replace(ENTRY, unregistered_at=NOW)])


async def test_D12_a_disk_that_does_not_keep_up_drops_the_oldest(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "PENDING_MAX", 5)
    other = sqlite3.connect(tmp_path / "rustunnel.db", isolation_level=None)
    other.execute("CREATE TRIGGER stop BEFORE INSERT ON tunnel_log BEGIN SELECT raise(ABORT, 'no'); END")
    for number in range(4):
        store.tunnel_log.opened(entry(number))
    await store.tunnel_log.flush()
    assert await store.tunnel_log.history(None, None, 50, 0) == (0, [])  # reading goes on
    for number in range(4, 7):
        store.tunnel_log.opened(entry(number))
    assert store.tunnel_log.dropped == 2
    other.execute("DROP TRIGGER stop")
    other.close()
    total, entries = await store.tunnel_log.history(None, None, 50, 0)
    assert (total, [found.id for found in entries]) == (5, ["l6", "l5", "l4", "l3", "l2"])


async def test_D03_events_of_a_write_that_failed_after_all_went_through_are_not_doubled(store: Store) -> None:
    store.tunnel_log.opened(ENTRY)
    await store.tunnel_log.flush()
    store.tunnel_log.opened(ENTRY)
    assert await store.tunnel_log.history(None, None, 50, 0) == (1, [ENTRY])


async def test_whose_a_tunnel_was(store: Store) -> None:
    assert await store.tunnel_log.owner_of("t1") is None
    store.tunnel_log.opened(ENTRY)
    assert await store.tunnel_log.owner_of("t1") == "u1"  # written or not
    store.tunnel_log.closed("l1", NOW)
    store.tunnel_log.opened(replace(ENTRY, id="l2", owner="u2"))
    assert await store.tunnel_log.owner_of("t1") == "u2"
    assert await store.tunnel_log.owner_of("' OR 1=1 --") is None


async def test_whose_a_tunnel_was_is_looked_up_not_searched_for(tmp_path: Path) -> None:
    async with open_store(tmp_path / "rustunnel.db", tmp_path / "captured.db"):
        connection = sqlite3.connect(tmp_path / "rustunnel.db")
        (plan,) = connection.execute(
            "EXPLAIN QUERY PLAN SELECT owner FROM tunnel_log WHERE tunnel_id = 'x' ORDER BY seq DESC LIMIT 1"
        )
        connection.close()
    assert "tunnel_log_by_tunnel" in plan[3]
