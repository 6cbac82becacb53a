from __future__ import annotations

import sqlite3
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.model.capture import Capture, Kind, Message
from rustunnel_py.model.tunnel import Peer
from rustunnel_py.store import captures as captures_module
from rustunnel_py.store.captures import Captures, Filter, Retention
from rustunnel_py.store.database import Transaction
from rustunnel_py.store.store import Store, open_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
FULL = Capture(
    seq=1,
    id=str(uuid.UUID(int=1)),
    tunnel_id="t1",
    connection_id="c1",
    captured_at=NOW,
    visitor=Peer("2001:db8::1", 5),
    scheme="https",
    method="POST",
    path="/a?b=\xff",
    minor=0,
    request_headers=((b"A", b"\xff"), (b"a", b"")),
    request_trailers=((b"T", b"1"),),
    request_body=b"\0\1\2",
    request_bytes=9,
    request_withheld=True,
    status=101,
    reason="Sw\xe9",
    response_headers=((b"B", b"2"),),
    response_trailers=((b"U", b"3"), (b"V", b"4")),
    response_body=b"\xff",
    response_bytes=2,
    response_withheld=True,
    request_clipped=True,
    response_clipped=True,
    queue_ms=1.5,
    agent_ms=None,
    first_byte_ms=2.25,
    duration_ms=3.125,
    hop="agent",
    code="agent-away",
    kind=Kind.WEBSOCKET,
    messages=(Message(True, "text", 5, 0.5, b"hel", False), Message(False, "binary", 1, 0.75, b"\0", True)),
    messages_forth=7,
    messages_back=8,
    messages_unwatched=True,
    origin=str(uuid.UUID(int=2)),
    imported=True,
)
OWNERS = {"t1": "u1", "t2": "u2"}
NO_BOUND = Retention(0, 0, 0, 0, 0)


def capture(seq: int, tunnel_id: str = "t1", **changes: object) -> Capture:
    plain = Capture(
        seq=seq,
        id=str(uuid.UUID(int=seq)),
        tunnel_id=tunnel_id,
        connection_id="c",
        captured_at=NOW + timedelta(seconds=seq),
        visitor=Peer("192.0.2.1", 1),
        method="GET",
        path=f"/{seq}",
        request_headers=((b"Host", b"a.example"),),
        status=200,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(tmp_path / "main.db", tmp_path / "captured.db") as store:
        yield store


@pytest.fixture
async def captures(store: Store) -> Captures:
    captures = Captures(store.captured)
    await captures.load()
    return captures


async def paths(captures: Captures, wanted: Filter | None = None, tunnel_id: str = "t1") -> list[str]:
    return [one.path for one in (await captures.search(tunnel_id, wanted or Filter(), None, 50)).captures]


async def test_everything_comes_back(captures: Captures) -> None:
    await captures.write([FULL], OWNERS)
    assert await captures.get("t1", FULL.id) == FULL
    assert await captures.get("t2", FULL.id) is None
    assert await captures.tunnel_of(FULL.id) == "t1"
    assert await captures.tunnel_of(str(uuid.UUID(int=9))) is None


async def test_what_is_there_is_known_after_a_restart(store: Store, captures: Captures) -> None:
    batch = [capture(number, "t2" if number % 3 else "t1") for number in range(1, 200)]
    await captures.write(batch, OWNERS)
    again = Captures(store.captured)
    await again.load()
    assert again.shares == captures.shares
    assert again.owners == OWNERS
    assert again.last_seq == captures.last_seq == 199
    assert again.shares["t1"].rows == 66
    assert 66 * 200 < again.shares["t1"].bytes < 66 * 500


async def test_F01_writing_twice_changes_nothing(captures: Captures) -> None:
    await captures.write([capture(1)], OWNERS)
    await captures.write([capture(1), capture(2)], OWNERS)
    await captures.load()
    assert captures.shares["t1"].rows == 2


async def test_F19_any_number_of_rows_needs_three_statements_and_large_rows_are_alone(
    captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection keeps each statement, with the values of its last use: large ones would stay in many of them."""
    written: list[tuple[int, int]] = []
    execute = Transaction.execute

    async def noting(self: Transaction, sql: str, values: Sequence[object] = ()) -> int:
        if sql.startswith("INSERT OR IGNORE INTO captures "):
            written.append((len(values) // 15, max(len(value) for value in values if isinstance(value, bytes))))
        return await execute(self, sql, values)

    monkeypatch.setattr(Transaction, "execute", noting)
    seq = 0
    for count in (1, 7, 8, 9, 63, 64, 65, 137):
        batch = [capture(seq + n, response_body=b"x" * (100_000 if n % 10 == 3 else 10)) for n in range(count)]
        seq += count
        await captures.write(batch, OWNERS)
    await captures.load()
    assert captures.shares["t1"].rows == seq
    assert {rows for rows, _ in written} == {64, 8, 1}
    assert max(size for rows, size in written if rows > 1) < 10_000


async def test_pages_by_cursor(captures: Captures) -> None:
    await captures.write([capture(number) for number in range(1, 8)], OWNERS)
    await captures.write([capture(8, "t2")], OWNERS)
    first = await captures.search("t1", Filter(), None, 3)
    second = await captures.search("t1", Filter(), first.cursor, 3)
    third = await captures.search("t1", Filter(), second.cursor, 3)
    assert [[one.seq for one in page.captures] for page in (first, second, third)] == [[7, 6, 5], [4, 3, 2], [1]]
    assert third.cursor is None
    assert (await captures.search("t1", Filter(), None, 7)).cursor is None
    assert (await captures.search("nobody", Filter(), None, 7)).captures == []


async def test_a_body_search_stops_and_goes_on(captures: Captures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures_module, "SEARCHED_BYTES_MAX", 20_000)
    monkeypatch.setattr(captures_module, "LOOKED_AT_A_STEP", 7)
    large = [
        capture(number, response_body=b"x" * 1000 + (b"Needle" if number % 10 == 0 else b"")) for number in range(1, 61)
    ]
    await captures.write(large, OWNERS)
    found: list[int] = []
    cursor, calls = None, 0
    while True:
        page = await captures.search("t1", Filter(body=b"nEEdle"), cursor, 50)
        found += [one.seq for one in page.captures]
        calls += 1
        cursor = page.cursor
        if cursor is None:
            break
    assert found == [60, 50, 40, 30, 20, 10]
    assert calls > 3
    limited = await captures.search("t1", Filter(body=b"needle"), None, 1)
    assert [one.seq for one in limited.captures] == [60]
    assert limited.cursor == 60


async def test_searching_messages_and_binary(captures: Captures) -> None:
    await captures.write([FULL, capture(2, request_body=b"\0\xffAbC\0"), capture(3)], OWNERS)
    assert await paths(captures, Filter(body=b"HEL")) == [FULL.path]
    assert await paths(captures, Filter(body=b"abc")) == ["/2"]
    assert await paths(captures, Filter(body=b"\xffa")) == ["/2"]
    assert await paths(captures, Filter(header="host: a.example", method="GET")) == ["/3", "/2"]
    assert await paths(captures, Filter(header="ost: a.example")) == []
    assert await paths(captures, Filter(pinned=True)) == []
    await captures.pin("t1", FULL.id, True)
    assert await paths(captures, Filter(pinned=True)) == [FULL.path]
    assert await paths(captures, Filter(path="%' OR 1=1 --")) == []


async def test_deleting(captures: Captures) -> None:
    await captures.write([capture(1), capture(2)], OWNERS)
    assert await captures.delete("t1", capture(1).id)
    assert not await captures.delete("t1", capture(1).id)
    assert not await captures.delete("t2", capture(2).id)
    assert captures.shares["t1"].rows == 1


async def test_D12_pruning_is_in_steps_and_spares_what_is_pinned(
    captures: Captures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captures_module, "PRUNED_AT_ONCE", 3)
    await captures.write([capture(number) for number in range(1, 11)], OWNERS)
    await captures.write([capture(11, "t2")], OWNERS)
    await captures.pin("t1", capture(2).id, True)
    retention = replace(NO_BOUND, rows_per_tunnel=4)
    steps = []
    while pruned := await captures.prune(retention, NOW):
        steps.append(pruned)
    assert steps == [3, 3]
    assert await paths(captures) == ["/10", "/9", "/8", "/2"]
    assert (await captures.pinned("t1")).rows == 1
    assert await captures.prune(replace(NO_BOUND, rows=2), NOW) == 3
    assert await paths(captures) == ["/2"]
    assert captures.shares["t2"].rows == 1


async def test_pruning_by_age(captures: Captures) -> None:
    await captures.write([capture(number) for number in range(1, 5)], OWNERS)
    assert await captures.prune(replace(NO_BOUND, seconds=10), NOW + timedelta(seconds=12)) == 1
    assert await paths(captures) == ["/4", "/3", "/2"]
    assert await captures.prune(NO_BOUND, NOW + timedelta(days=900)) == 0


async def test_pruning_by_bytes_of_one_tunnel(captures: Captures) -> None:
    await captures.write([capture(number, response_body=b"x" * 1000) for number in range(1, 11)], OWNERS)
    retention = replace(NO_BOUND, bytes_per_tunnel=6000)
    while await captures.prune(retention, NOW):
        pass
    assert 0 < captures.shares["t1"].bytes <= 6000


async def test_a_tunnel_without_captures_is_forgotten_at_the_next_start(captures: Captures) -> None:
    await captures.write([capture(1)], OWNERS)
    await captures.delete("t1", capture(1).id)
    await captures.load()
    assert captures.owners == {}


async def test_a_tunnel_whose_captures_were_pruned_is_no_longer_kept_in_mind(captures: Captures) -> None:
    await captures.write([capture(1), capture(2, "t2")], OWNERS)
    assert await captures.prune(replace(NO_BOUND, rows=1), NOW) == 1
    assert (set(captures.owners), set(captures._keys), len(captures._ids)) == ({"t2"}, {"t2"}, 1)
    await captures.write([capture(3)], OWNERS)
    assert await paths(captures) == ["/3"]
    assert captures.owners["t1"] == OWNERS["t1"]


async def test_the_file_keeps_what_sqlite_checks(store: Store, captures: Captures, tmp_path: Path) -> None:
    await captures.write([capture(number) for number in range(1, 700)], OWNERS)
    await captures.prune(replace(NO_BOUND, rows=100), NOW)
    connection = sqlite3.connect(tmp_path / "captured.db")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("SELECT count(*) FROM captures").fetchone() == (199,)
    connection.close()
