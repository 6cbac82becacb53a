# ruff: noqa: ASYNC220  (a test may look at files while nothing else runs)
from __future__ import annotations

import fcntl
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import NotFound, StoreBroken, StoreError
from rustunnel_py.model.access import Role
from rustunnel_py.store import database
from rustunnel_py.store.store import Store, open_store
from rustunnel_py.store.tokens import Token

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustunnel_py.store.database import Transaction

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
TABLES = {"users", "organisations", "memberships", "tokens", "names", "tunnel_log", "heartbeat"}


def a_token(number: int = 1, *, digest: str | None = None) -> Token:
    return Token(
        id=f"00000000-0000-4000-8000-{number:012d}",
        hash=digest or f"{number:064x}",
        label=f"token {number}",
        owner=f"10000000-0000-4000-8000-{number:012d}",
        scope=None,
        role=Role.AGENT,
        created_at=NOW,
    )


async def opened_once(main: Path, captured: Path) -> None:
    async with open_store(main, captured):
        pass


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "rustunnel.db"


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


async def refusal(main: Path, captured: Path, kind: type[StoreError] = StoreBroken) -> str:
    """Why the store does not open: one line, and the files are as they were."""
    before = main.read_bytes() if main.is_file() else None
    with pytest.raises(kind) as caught:
        await opened_once(main, captured)
    text = str(caught.value)
    assert "\n" not in text
    assert str(main.parent) in text
    assert (main.read_bytes() if main.is_file() else None) == before
    return text


async def test_D10_new_files_are_private_and_complete(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        assert re.fullmatch(r"[0-9a-f-]{36}", store.accounts.first)
        for path in main.parent.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    with sqlite3.connect(main) as connection:
        names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert names >= TABLES
        assert connection.execute("SELECT count(*) FROM organisations").fetchone() == (1,)
        assert connection.execute("SELECT role FROM memberships").fetchall() == [("admin",)]
    connection.close()
    assert not main.with_name("rustunnel.db.new").exists()


async def test_D10_files_that_others_can_read_are_made_private(main: Path, captured: Path) -> None:
    await opened_once(main, captured)
    main.chmod(0o644)
    await opened_once(main, captured)
    assert stat.S_IMODE(main.stat().st_mode) == 0o600


async def test_the_first_user_stays_the_first_user(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        first = store.accounts.first
        await store.tokens.create(a_token())
    async with open_store(main, captured) as store:
        assert store.accounts.first == first
    connection = sqlite3.connect(main)
    assert connection.execute("SELECT count(*), count(DISTINCT organisation_id) FROM memberships").fetchone() == (2, 1)
    connection.close()


async def pragma_of(store: Store, name: str) -> tuple[object, object]:
    async def work(transaction: Transaction) -> object:
        row = await transaction.fetch_one(f"PRAGMA {name}")
        return row[0] if row else None

    main_database = store.tokens._database
    return await main_database.write(work), await store.captured.write(work)


async def test_the_precious_file_syncs_every_commit(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        assert await pragma_of(store, "synchronous") == (2, 1)  # FULL, NORMAL
        assert await pragma_of(store, "journal_mode") == ("wal", "wal")
        assert await pragma_of(store, "foreign_keys") == (1, 1)


def random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 64)


def header_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 0xFF
    path.write_bytes(content)


def page_flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(4096, 4096 + 64):
        content[at] ^= 0xFF
    path.write_bytes(content)


def cut(size: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.write_bytes(path.read_bytes()[:size])

    return damage


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def named_pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def symbolic_link(path: Path) -> None:
    real = path.with_name("real.db")
    path.rename(real)
    path.symlink_to(real)


DAMAGES = [random_bytes, header_flipped, page_flipped, cut(0), cut(1), cut(4096), cut(5000)]
DAMAGE_NAMES = ["random", "header", "page", "cut0", "cut1", "cut4096", "cut5000"]


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
async def test_D06_a_damaged_main_file_stops_the_start(
    damage: Callable[[Path], None], main: Path, captured: Path
) -> None:
    await opened_once(main, captured)
    damage(main)
    assert "restore it from a backup" in await refusal(main, captured)


@pytest.mark.parametrize("replace", [folder, named_pipe, symbolic_link])
async def test_D06_what_is_no_file_stops_the_start(replace: Callable[[Path], None], main: Path, captured: Path) -> None:
    await opened_once(main, captured)
    replace(main)
    assert "not a database file" in await refusal(main, captured)


async def test_D06_a_newer_schema_is_refused(main: Path, captured: Path) -> None:
    await opened_once(main, captured)
    connection = sqlite3.connect(main)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer version" in await refusal(main, captured)


async def test_D06_a_newer_captured_schema_is_refused_too(main: Path, captured: Path) -> None:
    await opened_once(main, captured)
    connection = sqlite3.connect(captured)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "newer version" in await refusal(main, captured)
    assert captured.exists()


async def test_D06_the_database_of_another_program_is_refused(main: Path, captured: Path) -> None:
    connection = sqlite3.connect(main)
    connection.execute("CREATE TABLE tokens (id)")
    connection.commit()
    connection.close()
    assert "another program" in await refusal(main, captured)


async def test_D06_a_missing_file_with_its_journal_left_is_no_new_start(main: Path, captured: Path) -> None:
    main.with_name("rustunnel.db-wal").write_bytes(b"what is left")
    assert "is missing but" in await refusal(main, captured)
    assert not main.exists()


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    main = tmp_path / "nowhere" / "rustunnel.db"
    with pytest.raises(StoreError, match="cannot be opened"):
        await opened_once(main, tmp_path / "captured.db")


@pytest.mark.parametrize("damage", DAMAGES, ids=DAMAGE_NAMES)
async def test_D06_a_damaged_captured_file_is_set_aside(
    damage: Callable[[Path], None], main: Path, captured: Path
) -> None:
    for times in (1, 2):
        await opened_once(main, captured)
        damage(captured)
        broken = captured.read_bytes()
        await opened_once(main, captured)
        aside = [path for path in captured.parent.iterdir() if ".broken-" in path.name]
        assert len(aside) == times
        assert broken in [path.read_bytes() for path in aside]


WRITER = """
import sys, trio
from datetime import datetime, UTC
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from rustunnel_py.model.access import Role
from rustunnel_py.store.store import open_store
from rustunnel_py.store.tokens import Token

async def main():
    folder = Path(sys.argv[1])
    async with open_store(folder / "rustunnel.db", folder / "captured.db") as store:
        for number in range(10_000):
            await store.tokens.create(Token(
                id=f"t{number}", hash=f"{number:064x}", label="x", owner=f"u{number}", scope=None,
                role=Role.AGENT, created_at=datetime.now(UTC)))
            print(number, flush=True)

trio.run(main)
"""


async def test_D07_what_was_acknowledged_survives_kill_9(main: Path, captured: Path) -> None:
    root = str(Path(database.__file__).parents[2])
    command = [sys.executable, "-c", WRITER, str(main.parent), root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == 30:
                process.send_signal(signal.SIGKILL)
                break
        acknowledged = [30, *map(int, process.stdout)]
    assert main.with_name("rustunnel.db-wal").exists()
    async with open_store(main, captured) as store:
        assert len(store.tokens) >= acknowledged[-1] + 1
    connection = sqlite3.connect(main)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def test_D07_a_journal_cut_in_mid_frame_is_recovered(main: Path, captured: Path, tmp_path: Path) -> None:
    async with open_store(main, captured) as store:
        for number in range(3):
            await store.tokens.create(a_token(number))
        copy = tmp_path / "copy"
        copy.mkdir()
        for name in ("rustunnel.db", "rustunnel.db-wal"):
            (copy / name).write_bytes((tmp_path / name).read_bytes())
    journal = copy / "rustunnel.db-wal"
    journal.write_bytes(journal.read_bytes()[:-1000])
    async with open_store(copy / "rustunnel.db", copy / "captured.db") as store:
        assert [token.id for token in store.tokens.all()] == [a_token(number).id for number in range(2)]


async def test_D08_a_second_server_on_one_file_is_refused(main: Path, captured: Path) -> None:
    async with open_store(main, captured):
        with pytest.raises(StoreError, match="in use by another running server"):
            await opened_once(main, captured)
    await opened_once(main, captured)


async def test_D08_a_second_server_in_another_process_is_refused(main: Path, captured: Path) -> None:
    lock = os.open(main.with_name("rustunnel.db.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use" in await refusal(main, captured, StoreError)
    finally:
        os.close(lock)


async def test_D08_a_file_held_by_another_program(main: Path, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    async with open_store(main, captured) as store:
        holder = sqlite3.connect(main, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await store.tokens.create(a_token())
        assert store.tokens.all() == []
        holder.execute("ROLLBACK")
        await store.tokens.create(a_token())
        holder.close()


async def test_a_failed_transaction_leaves_nothing(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        main_database = store.tokens._database

        async def half(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO users (id, name, created_at) VALUES ('x', 'x', 0)")
            raise NotFound("on purpose")

        async def wrong(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO users (id, name, created_at) VALUES ('y', 'y', 0)")
            await transaction.execute("INSERT INTO nowhere VALUES (1)")

        async def count(transaction: Transaction) -> object:
            return await transaction.fetch_all("SELECT id FROM users WHERE id IN ('x', 'y')")

        with pytest.raises(NotFound, match="on purpose"):
            await main_database.write(half)
        with pytest.raises(StoreError, match="nowhere"):
            await main_database.write(wrong)
        assert await main_database.write(count) == []
        assert await main_database.read(count) == []


async def test_reads_cannot_write(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:

        async def work(transaction: Transaction) -> int:
            return await transaction.execute("DELETE FROM users")

        with pytest.raises(StoreError, match="readonly"):
            await store.tokens._database.read(work)


async def test_a_cancelled_writer_only_stops_waiting(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        main_database = store.tokens._database
        started, may_go_on = threading.Event(), threading.Event()

        async def work(transaction: Transaction) -> None:
            await transaction.execute("INSERT INTO users (id, name, created_at) VALUES ('x', 'x', 0)")
            started.set()
            may_go_on.wait(10)

        async def count(transaction: Transaction) -> object:
            return await transaction.fetch_one("SELECT count(*) FROM users WHERE id = 'x'")

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(main_database.write, work)
                await trio.to_thread.run_sync(started.wait)
                scope.cancel()
        assert scope.cancelled_caught
        may_go_on.set()
        assert await main_database.write(count) == (1,)


ENDLESS = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


async def endless(transaction: Transaction) -> None:
    await transaction.fetch_all(ENDLESS)


async def one(transaction: Transaction) -> object:
    return await transaction.fetch_one("SELECT 1")


async def test_a_slow_read_is_stopped_and_the_next_one_served(
    main: Path, captured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "READ_SECONDS", 0.05)
    async with open_store(main, captured) as store:
        with pytest.raises(StoreError, match="interrupted"):
            await store.tokens._database.read(endless)
        assert await store.tokens._database.read(one) == (1,)


async def test_a_read_whose_caller_left_is_stopped(main: Path, captured: Path) -> None:
    async with open_store(main, captured) as store:
        with trio.move_on_after(0.05) as scope:
            await store.tokens._database.read(endless)
        assert scope.cancelled_caught
        with trio.fail_after(5):  # far below READ_SECONDS
            assert await store.tokens._database.read(one) == (1,)


async def test_leaving_by_cancellation_joins_the_thread(main: Path, captured: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_store(main, captured) as store:
            scope.cancel()
            await store.tokens._database.read(one)
    assert not [thread for thread in threading.enumerate() if thread.name == "store"]
    with pytest.raises(StoreError, match="closed"):
        await store.tokens._database.read(one)
    await opened_once(main, captured)


async def test_cancelled_while_it_starts(main: Path, captured: Path) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with open_store(main, captured):
            raise AssertionError("it must not open")
    assert not [thread for thread in threading.enumerate() if thread.name == "store"]
    await opened_once(main, captured)


async def test_an_error_of_the_body_comes_out_as_it_is(main: Path, captured: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_store(main, captured):
            raise LookupError("mine")


async def test_D14_a_start_that_was_killed_while_it_made_the_file(main: Path, captured: Path) -> None:
    main.with_name("rustunnel.db.new").write_bytes(b"half of a database")
    await opened_once(main, captured)
    assert not main.with_name("rustunnel.db.new").exists()


async def test_D14_a_migration_is_all_or_nothing(main: Path, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await opened_once(main, captured)
    scripts = database._scripts("main")

    def with_more(*more: str) -> Callable[[str], list[str]]:
        return lambda folder: [*scripts, *more] if folder == "main" else database.__dict__["_real"](folder)

    monkeypatch.setattr(database, "_real", database._scripts, raising=False)
    monkeypatch.setattr(database, "_scripts", with_more("CREATE TABLE more (x); CREATE TABLE names (y);"))
    with pytest.raises(StoreError, match="already exists"):
        await opened_once(main, captured)
    connection = sqlite3.connect(main)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(scripts),)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'more'").fetchone() == (0,)
    connection.close()
    monkeypatch.setattr(database, "_scripts", with_more("CREATE TABLE more (x);"))
    await opened_once(main, captured)
    connection = sqlite3.connect(main)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(scripts) + 1,)
    connection.close()
