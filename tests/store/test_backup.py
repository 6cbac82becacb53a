from __future__ import annotations

import sqlite3
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import trio

from rustunnel_py.errors import ConfigError, StoreBroken, StoreError
from rustunnel_py.model.access import Role
from rustunnel_py.store.backup import back_up, captured_beside, restore
from rustunnel_py.store.store import open_store
from rustunnel_py.store.tokens import Token

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


def token(number: int) -> Token:
    return Token(f"t{number}", f"{number:064x}", "x", f"u{number}", None, Role.AGENT, NOW)


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "main.db"


@pytest.fixture
def captured(tmp_path: Path) -> Path:
    return tmp_path / "captured.db"


async def test_a_backup_is_made_while_the_server_writes_and_can_be_put_back(
    main: Path, captured: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.db"
    async with open_store(main, captured) as store:
        await store.tokens.create(token(1))

        async def write_on() -> None:
            for number in range(2, 30):
                await store.tokens.create(token(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            await trio.to_thread.run_sync(back_up, main, copy)
        with pytest.raises(StoreError, match="in use by another running server"):
            restore(copy, main, "main")
    assert [path.name for path in tmp_path.glob("copy*")] == ["copy.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    aside = restore(copy, main, "main")
    assert aside is not None
    assert ".replaced-" in aside.name
    async with open_store(main, captured) as store:
        assert store.tokens.get("t1") is not None
        assert len(store.tokens) < 29
    async with open_store(aside, tmp_path / "other.db") as store:
        assert len(store.tokens) == 29


async def test_captures_are_a_file_of_their_own(main: Path, captured: Path, tmp_path: Path) -> None:
    async with open_store(main, captured):
        back_up(captured, captured_beside(tmp_path / "copy.db"))
    assert (tmp_path / "copy.captured.db").exists()
    assert restore(tmp_path / "copy.captured.db", tmp_path / "new.db", "captured") is None
    with pytest.raises(StoreBroken, match="main file"):
        restore(tmp_path / "copy.captured.db", main, "main")


async def test_nothing_is_replaced_by_a_backup(main: Path, captured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_text("precious")
    async with open_store(main, captured):
        with pytest.raises(ConfigError, match="replaces nothing"):
            back_up(main, copy)
    assert copy.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"x" * 5000, b"SQLite format 3\0" + b"x" * 5000])
async def test_D06_what_is_no_backup_is_refused_and_leaves_all_as_it_was(
    main: Path, captured: Path, tmp_path: Path, content: bytes
) -> None:
    async with open_store(main, captured):
        pass
    before = main.read_bytes()
    copy = tmp_path / "copy.db"
    copy.write_bytes(content)
    with pytest.raises(StoreBroken):
        restore(copy, main, "main")
    assert main.read_bytes() == before
    assert not list(tmp_path.glob("main.db.*-*"))


async def test_D06_a_backup_of_a_newer_version_is_refused(main: Path, captured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with open_store(main, captured):
        back_up(main, copy)
    connection = sqlite3.connect(copy)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreBroken, match="newer version"):
        restore(copy, main, "main")


async def test_D01_a_backup_that_fails_leaves_nothing(main: Path, captured: Path, tmp_path: Path) -> None:
    async with open_store(main, captured):
        with pytest.raises(StoreError):
            back_up(main, tmp_path / "nowhere" / "copy.db")
    with pytest.raises(StoreError):
        back_up(tmp_path / "missing.db", tmp_path / "copy.db")
    assert not list(tmp_path.glob("copy*"))
