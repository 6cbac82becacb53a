"""Disks that fail: what was acknowledged is there, what failed was said, and it goes on when the disk does (D rows)."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rustunnel_py.errors import StoreError
from rustunnel_py.model.access import Role
from rustunnel_py.store.audit import AuditRow
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.store.tokens import Token
from rustunnel_py.store.tunnel_log import LogEntry
from tests.support.read_only import turned_read_only

if TYPE_CHECKING:
    from rustunnel_py.store.database import Transaction

ROOT = Path(__file__).parent.parent.parent
NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def token(number: int, label: str = "x") -> Token:
    return Token(f"t{number}", f"{number:064x}", label, f"u{number}", None, Role.AGENT, NOW)


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "main.db"


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


async def try_to_create(store: Store, numbers: range, label: str = "x") -> set[str]:
    """The ids of those that were acknowledged."""
    made = set()
    for number in numbers:
        try:
            await store.tokens.create(token(number, label))
        except StoreError:
            continue
        made.add(f"t{number}")
    return made


async def ids(main: Path, captured: Path) -> set[str]:
    async with open_store(main, captured) as store:
        return {one.id for one in store.tokens.all()}


async def test_D02_a_place_where_nothing_can_be_written(captured: Path) -> None:
    with pytest.raises(StoreError, match=r"is its folder there and writable\?") as caught:
        async with open_store(Path("/proc/nothing.db"), captured):
            pass
    assert "\n" not in str(caught.value)


async def test_D02_turned_read_only_while_running(main: Path, captured: Path) -> None:
    """What changes something fails and says so, what reads goes on, what can wait waits, and all recovers by itself."""
    entry = LogEntry("l1", "x", "u1", "http", "a.localhost", "s1", None, None, NOW)
    async with open_store(main, captured) as store:
        await store.tokens.create(token(1))
        with turned_read_only(main, captured):
            with pytest.raises(StoreError):
                await store.tokens.create(token(2))
            with pytest.raises(StoreError):
                await store.tokens.delete("t1")
            assert [one.id for one in store.tokens.all()] == ["t1"]
            store.tokens.note_tunnel("t1")
            await store.tokens.flush()
            store.tunnel_log.opened(entry)
            store.audit.append(AuditRow("a1", NOW, "token_expired", None, None, "{}"))
            assert (await store.tunnel_log.history(None, None, 10, 0))[0] == 0  # reading goes on
            assert await store.audit.page(None, None, 10) == []
            assert (store.tunnel_log.waiting, store.audit.waiting) == (1, 1)
        await store.tokens.create(token(3))
        await store.tokens.flush()
        assert await store.tunnel_log.history(None, None, 10, 0) == (1, [entry])
        assert [row.id for row in await store.audit.page(None, None, 10)] == ["a1"]
    async with open_store(main, captured) as store:
        assert {one.id: one.tunnel_count for one in store.tokens.all()} == {"t1": 1, "t3": 0}


async def test_D04_errors_now_and_then(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        other = sqlite3.connect(main, isolation_level=None)
        other.execute(
            "CREATE TRIGGER now_and_then BEFORE INSERT ON tokens WHEN abs(random()) % 5 = 0"
            " BEGIN SELECT raise(ABORT, 'disk I/O error'); END"
        )
        made = await try_to_create(store, range(100))
        other.execute("DROP TRIGGER now_and_then")
        other.close()
        assert 0 < len(made) < 100
        assert {one.id for one in store.tokens.all()} == made
    assert await ids(main, captured) == made


LIMITED = """
import resource, signal, sys, trio
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.store.test_storage_faults import try_to_create
from rustunnel_py.store.store import open_store

async def run():
    main, captured = Path({main!r}), Path({captured!r})
    async with open_store(main, captured) as store:
        made = await try_to_create(store, range(10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = max(p.stat().st_size for p in main.parent.iterdir()) + 100_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        label = "x" * 3000
        more = await try_to_create(store, range(100, 300), label)
        assert 0 < len(more) < 200, len(more)
        assert len(store.tokens) == len(made | more)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        made |= more | await try_to_create(store, range(1000, 1010))
        assert {{"t1000", "t1009"}} <= made
    print(*sorted(made))

trio.run(run)
"""


async def test_D01_D05_no_room_and_room_again(main: Path, captured: Path) -> None:
    """In a process of its own: the limit of a file's size is the process's."""
    script = textwrap.dedent(LIMITED).format(root=str(ROOT), main=str(main), captured=str(captured))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)  # noqa: ASYNC221
    assert done.returncode == 0, done.stderr
    made = set(done.stdout.split())
    assert made <= await ids(main, captured)
    connection = sqlite3.connect(main)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_D09_a_file_that_was_taken_away_gets_no_silent_writes(main: Path, captured: Path, how: str) -> None:
    async with open_store(main, captured) as store:
        await store.tokens.create(token(1))
        away = main.with_name("away.db")
        main.rename(away)
        if how == "replaced":
            main.write_bytes(b"something else")
        with pytest.raises(StoreError, match="deleted or replaced"):
            await store.tokens.create(token(2))
        assert [one.id for one in store.tokens.all()] == ["t1"]
        assert (await store.tunnel_log.history(None, None, 10, 0))[0] == 0  # reads go on
        away.rename(main)
        await store.tokens.create(token(3))
    assert await ids(main, captured) == {"t1", "t3"}


async def test_D13_a_commit_of_the_main_file_is_on_the_disk_before_it_is_acknowledged(
    main: Path, captured: Path
) -> None:
    async with open_store(main, captured) as store:

        async def settings(transaction: Transaction) -> tuple[object, ...]:
            names = ("synchronous", "journal_mode", "fullfsync")
            return tuple([(await transaction.fetch_one(f"PRAGMA {name}") or (None,))[0] for name in names[:2]])

        assert await store.tokens._database.write(settings) == (2, "wal")  # FULL
        assert await store.captured.write(settings) == (1, "wal")  # NORMAL: captures may be lost
